import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from qbook.llm import cached_attention, kivi
from qbook.models import char_gpt

NAMES = [f"blocks.{i}.attention" for i in range(4)]
IDS = torch.randint(65, (2, 77), generator=torch.Generator().manual_seed(0))


def normal(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def decoded(q, k, v, **settings):
    """Token by token, with a cache that is really filled: the oracle"""
    cache, rows = kivi.Cache(**settings), []
    for i in range(q.shape[-2]):
        now = slice(i, i + 1)
        cache.append(k[..., now, :], v[..., now, :])
        k_hat, v_hat = cache.read()
        rows.append(F.scaled_dot_product_attention(q[..., now, :], k_hat, v_hat))
    return torch.cat(rows, dim=-2)


@pytest.mark.parametrize("axes", list(itertools.product([-1, -2], repeat=2)))
@pytest.mark.parametrize(
    ("residual", "in_blocks"), [(0, False), (8, False), (8, True), (16, False)]
)
def test_all_positions_at_once_are_those_of_decoding_token_by_token(axes, residual, in_blocks):
    q, k, v = (normal(2, 3, 45, 8, seed=seed) for seed in range(3))
    settings = {"bits": 2, "group_size": 4, "residual": residual, "in_blocks": in_blocks}
    settings |= {"key_axis": axes[0], "value_axis": axes[1]}
    found = cached_attention.attend(q, k, v, **settings)
    # float64, averages of numbers below 5.
    assert float((found - decoded(q, k, v, **settings)).abs().max()) <= 1e-12


@pytest.mark.parametrize("settings", [{"residual": 128}, {"residual": 96, "group_size": 8}])
@torch.no_grad()
def test_a_window_that_holds_the_whole_text_changes_nothing(settings):
    model = char_gpt.load().double()
    cached = cached_attention.with_cache(model, NAMES, 4, **settings)
    # float64, logits of about 10, four blocks.
    assert float((cached(IDS) - model(IDS)).abs().max()) <= 1e-10


@torch.no_grad()
def test_the_error_falls_with_the_bits_and_the_model_stays():
    model = char_gpt.load().double()
    before = {name: w.clone() for name, w in model.state_dict().items()}
    real, error = model(IDS), []
    for bits in (2, 4, 8):
        cached = cached_attention.with_cache(model, NAMES, 4, bits=bits, residual=32)
        error.append(float((cached(IDS) - real).abs().max()))
        # The first token whose block of keys is full sees it rounded; those before see nothing.
        assert float((cached(IDS)[:, :31] - real[:, :31]).abs().max()) <= 1e-10
    # A bit more halves the step: two bits are a factor of four, give or take the nonlinearities.
    assert error[0] > 2 * error[1] > 8 * error[2] > 0
    assert all(torch.equal(w, before[name]) for name, w in model.state_dict().items())


@torch.no_grad()
def test_recorded_heads_give_the_models_own_attention():
    model = char_gpt.load().double()
    seen = cached_attention.record(model, NAMES, 4, lambda m: m(IDS))
    outputs = []
    hook = model.blocks[2].attention.output.register_forward_pre_hook(
        lambda _, x: outputs.append(x[0])
    )
    model(IDS)
    hook.remove()
    q, k, v = (calls[0] for calls in seen["blocks.2.attention"])
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    found = outputs[0].unflatten(-1, (4, 32)).transpose(1, 2)
    assert float((found - expected).abs().max()) <= 1e-12
    model(IDS)
    assert len(seen["blocks.2.attention"][0]) == 1
