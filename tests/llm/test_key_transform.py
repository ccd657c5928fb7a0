import numpy as np
import pytest
import torch
from torch import nn

from qbook.llm import cached_attention, hadamard, key_transform
from qbook.models import char_gpt

IDS = torch.randint(65, (2, 40), generator=torch.Generator().manual_seed(0))
QUERY, KEY = "blocks.1.attention.query", "blocks.1.attention.key"
ATTENTION = "blocks.1.attention"


def keys(model):
    return cached_attention.record(model, [ATTENTION], 4, lambda m: m(IDS))[ATTENTION][1][0]


def same(a, b):
    # float64, logits of about 10; m has a condition of at most 100.
    return float((a - b).abs().max()) <= 1e-9


@torch.no_grad()
def test_keys_change_as_told_and_the_function_stays():
    model = char_gpt.load().double()
    skewed = torch.from_numpy(np.random.default_rng(0).normal(size=(32, 32))) + 8 * torch.eye(32)
    for m in (hadamard.matrix(32, seed=1), torch.diag(torch.arange(1.0, 33)), skewed):
        moved = key_transform.transform(model, QUERY, KEY, m)
        assert same(keys(moved), keys(model) @ m.double())
        assert same(moved(IDS), model(IDS))
    assert not same(keys(moved), keys(model))


@torch.no_grad()
def test_planted_channels_are_larger_in_every_head_by_exactly_the_factor():
    model = char_gpt.load().double()
    planted = key_transform.plant(model, QUERY, KEY, [3, 20], 50.0, head_size=32)
    ratio = (keys(planted).abs().amax((0, 2)) / keys(model).abs().amax((0, 2))).round(decimals=9)
    expected = torch.ones(4, 32).double()
    expected[:, [3, 20]] = 50
    assert torch.equal(ratio, expected)
    assert same(planted(IDS), model(IDS))


@torch.no_grad()
def test_softmax_does_not_see_an_offset_of_all_keys():
    model = char_gpt.load().double()
    offset = torch.from_numpy(np.random.default_rng(1).normal(size=128)) * 20
    moved = key_transform.shift(model, KEY, offset)
    assert same(moved(IDS), model(IDS))
    assert same(keys(moved), keys(model) + offset.unflatten(0, (4, 1, 32)))


def test_wrong_calls_say_what_would_work():
    model = char_gpt.load()
    with pytest.raises(ValueError, match=r"shape \(24, 24\) does not divide the 128"):
        key_transform.transform(model, QUERY, KEY, torch.eye(24))
    with pytest.raises(ValueError, match="rank 31, not 32"):
        key_transform.plant(model, QUERY, KEY, [3], 0.0, head_size=32)
    with pytest.raises(ValueError, match=r"\(64,\) does not fit a bias of \(128,\)"):
        key_transform.shift(model, KEY, torch.zeros(64))
    with pytest.raises(ValueError, match=r"\(8,\) does not fit a bias of None"):
        key_transform.shift(nn.Sequential(nn.Linear(8, 8, bias=False)), "0", torch.zeros(8))
