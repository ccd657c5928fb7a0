import copy

import pytest
import torch
from torch import nn

from qbook.llm import scaling
from qbook.models import char_gpt

IDS = torch.randint(65, (2, 40), generator=torch.Generator().manual_seed(0))
BLOCK = "blocks.1."
# Writer -> readers in a block of the character GPT; attention averages values, factors pass.
PAIRS = {
    "attention_norm": ["attention.query", "attention.key", "attention.value"],
    "mlp_norm": ["up"],
    "attention.value": ["attention.output"],
}


@pytest.mark.parametrize("writer", PAIRS)
@torch.no_grad()
def test_scales_move_and_the_function_stays(writer):
    model = char_gpt.load().double()
    s = torch.rand(128, generator=torch.Generator().manual_seed(1)).double() * 5 + 0.1
    moved = scaling.migrate(model, BLOCK + writer, [BLOCK + name for name in PAIRS[writer]], s)
    before, after = model(IDS), moved(IDS)
    # float64: some hundred operations of relative error 1e-16, logits of about 10.
    assert float((after - before).abs().max()) <= 1e-11
    old, new = (m.get_submodule(BLOCK + writer).weight for m in (model, moved))
    assert not torch.equal(old, new)


@torch.no_grad()
def test_planted_channels_are_larger_by_the_factor_and_nothing_else_changes():
    model = char_gpt.load().double()
    planted = scaling.plant(model, "blocks.0.mlp_norm", ["blocks.0.up"], [3, 70], 40.0)
    seen = {}
    for name, m in (("real", model), ("planted", planted)):
        m.blocks[0].up.register_forward_pre_hook(
            lambda _, x, name=name: seen.__setitem__(name, x[0])
        )
        seen[f"{name} logits"] = m(IDS)
    ratio = seen["planted"] / seen["real"]
    expected = torch.ones(128).double()
    expected[[3, 70]] = 40
    # One rounding of the gain and one of the bias, where they do not cancel.
    assert float((ratio / expected - 1).abs().max()) <= 1e-9
    assert float((seen["planted logits"] - seen["real logits"]).abs().max()) <= 1e-11


@torch.no_grad()
def test_a_scaled_linear_is_the_linear_and_leaves_it_alone():
    g = torch.Generator().manual_seed(2)
    linear = nn.Linear(7, 3).double()
    before = copy.deepcopy(linear.state_dict())
    s = torch.rand(7, generator=g).double() + 0.5
    x = torch.randn(2, 5, 7, generator=g).double()
    scaled = scaling.ScaledLinear(linear, s)
    assert float((scaled(x) - linear(x)).abs().max()) <= 1e-14
    assert torch.equal(scaled.linear.weight, linear.weight * s)
    assert all(torch.equal(value, before[name]) for name, value in linear.state_dict().items())


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_factors_that_are_not_positive_are_refused(bad):
    s = torch.ones(128)
    s[5] = bad
    with pytest.raises(ValueError, match="must have one axis and be positive and finite"):
        scaling.migrate(char_gpt.load(), "blocks.0.mlp_norm", ["blocks.0.up"], s)


def test_factors_for_another_width_are_refused_with_both_numbers():
    model = char_gpt.load()
    with pytest.raises(ValueError, match=r"s has 128 factors; blocks.0.down has 512 channels"):
        scaling.migrate(model, "blocks.0.mlp_norm", ["blocks.0.down"], torch.ones(128))
    with pytest.raises(ValueError, match="s has 3 factors; the layer has 7 channels"):
        scaling.ScaledLinear(nn.Linear(7, 3), torch.ones(3))
