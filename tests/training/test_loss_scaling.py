import math

import numpy as np
import pytest
import torch

from qbook.training import loss_scaling
from qbook.training.loss_scaling import LossScale


@pytest.mark.parametrize(("growth", "backoff", "interval"), [(2.0, 0.5, 3), (4.0, 0.25, 1)])
@pytest.mark.parametrize("seed", range(3))
def test_the_schedule_is_that_of_torchs_grad_scaler(growth, backoff, interval, seed):
    weight = torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=1.0)
    scaler = torch.amp.GradScaler(
        "cpu",
        init_scale=2.0**10,
        growth_factor=growth,
        backoff_factor=backoff,
        growth_interval=interval,
    )
    state, expected = LossScale(2.0**10), torch.zeros(3)
    for bad in np.random.default_rng(seed).random(200) < 0.2:
        slope = torch.tensor([1.0, -2.0, math.inf if bad else 3.0])
        optimizer.zero_grad()
        scaler.scale((weight * slope).sum()).backward()
        gradients, finite = loss_scaling.unscale([slope * state.scale], state.scale)
        if finite:
            expected = expected - gradients[0]
        scaler.step(optimizer)
        scaler.update()
        state = loss_scaling.update(
            state,
            finite,
            growth_factor=growth,
            backoff_factor=backoff,
            growth_interval=interval,
        )
        assert state.scale == scaler.get_scale()
        assert state.good_steps == scaler.state_dict()["_growth_tracker"]
        assert torch.equal(weight.detach(), expected)


def test_growth_ends_at_the_range_of_float32_as_torchs_does():
    state = LossScale(2.0**127)
    assert loss_scaling.update(state, True, growth_interval=1) == LossScale(2.0**127)
    scale, tracker = torch.full((1,), 2.0**127), torch.zeros(1, dtype=torch.int32)
    torch._amp_update_scale_(scale, tracker, torch.zeros(1), 2.0, 0.5, 1)
    assert scale.item() == 2.0**127


@pytest.mark.parametrize("interval", [1, 5, 100])
def test_one_step_in_interval_plus_one_is_skipped_when_the_limit_is_fixed(interval):
    state, skipped = LossScale(2.0**10), 0
    for _ in range(10 * (interval + 1)):
        finite = state.scale <= 2.0**10
        skipped += not finite
        state = loss_scaling.update(state, finite, growth_interval=interval)
    assert skipped == 10


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_one_number_that_is_not_finite_condemns_the_step(bad):
    good = torch.tensor([2.0, 4.0], dtype=torch.float16)
    gradients, finite = loss_scaling.unscale([good, torch.tensor([[8.0]])], 4.0)
    assert finite is True
    assert gradients[0].dtype == torch.float32
    assert [g.tolist() for g in gradients] == [[0.5, 1.0], [[2.0]]]
    assert loss_scaling.unscale([good, torch.tensor([1.0, bad])], 4.0)[1] is False
    assert good.tolist() == [2.0, 4.0]


def test_unscaling_returns_what_float16_could_not_hold():
    scaled = torch.tensor([2.0**-24], dtype=torch.float16)
    gradients, _ = loss_scaling.unscale([scaled], 2.0**10)
    assert gradients[0].item() == 2.0**-34
    assert loss_scaling.unscale([scaled.double()], 2.0)[0][0].dtype == torch.float64


@pytest.mark.parametrize("largest", [1e-9, 0.3, 1.0, 2.0**-3, 65504.0, 3e7])
def test_a_static_scale_is_the_highest_power_of_two_below_overflow(largest):
    scale = loss_scaling.static_scale(largest)
    assert math.frexp(scale)[0] == 0.5
    assert scale * largest < 65504 <= 2 * scale * largest


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="growth_interval=0"):
        loss_scaling.update(LossScale(), True, growth_interval=0)
    with pytest.raises(ValueError, match="backoff_factor=1"):
        loss_scaling.update(LossScale(), True, backoff_factor=1)
    with pytest.raises(ValueError, match="growth_factor=1"):
        loss_scaling.update(LossScale(), True, growth_factor=1)
    for largest in (0.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="largest="):
            loss_scaling.static_scale(largest)
