import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from qbook.experiments import mixed_precision as experiment

FIT, TEST = experiment.load_digits()
SOME = (FIT[0][:40], FIT[1][:40])


def sgd_of_torch(parameters, rate, steps, momentum):
    """The same network out of torch's layers and torch's optimizer, all images in every step."""
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).double()
    w1, w2, b1, b2 = parameters
    model.load_state_dict({"0.weight": w1, "0.bias": b1, "2.weight": w2, "2.bias": b2})
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=momentum)
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy(model(SOME[0]), SOME[1]).backward()
        optimizer.step()
    return [p.detach() for p in (model[0].weight, model[2].weight, model[0].bias, model[2].bias)]


@pytest.mark.parametrize("factor", [1.0, 2.0**-20])
def test_without_rounding_it_is_torchs_sgd_whatever_the_factor(factor):
    start = experiment.first_parameters(0)
    found, scales, lost = experiment.train(
        start, experiment.ARMS["FP32"], SOME, rate=0.1, steps=5, batch=None, factor=factor
    )
    expected = sgd_of_torch(start, 0.1, 5, 0.9)
    # Two orders of float64 sums of at most 64 terms; powers of two change nothing.
    assert all(bool(((a - b).abs() <= 1e-13).all()) for a, b in zip(found, expected, strict=True))
    assert scales == [1.0] * 5
    assert lost == 0


@pytest.mark.parametrize("name", ["FP16", "BF16"])
def test_without_a_master_copy_every_weight_is_a_number_of_the_format(name):
    arm = experiment.ARMS[name]
    found, _, lost = experiment.train(
        experiment.first_parameters(1), arm, FIT, rate=2.0**-8, steps=3, seed=1
    )
    assert all(torch.equal(p, p.to(arm.dtype).double()) for p in found)
    assert 0 < lost < 1


def test_at_the_factor_of_the_page_every_gradient_becomes_zero_unless_the_loss_is_scaled():
    # 128 images: no gradient at the outputs exceeds 2^-7 times the factor.
    start = experiment.first_parameters(2)
    settings = {"rate": 0.1, "steps": 3, "factor": 2.0**-18}
    stuck, _, _ = experiment.train(start, experiment.ARMS["FP16, master"], FIT, **settings)
    assert all(torch.equal(a, b) for a, b in zip(stuck, start, strict=True))
    moved, scales, _ = experiment.train(
        start, experiment.ARMS["FP16, master, scaling"], FIT, **settings
    )
    assert scales == [2.0**16] * 3
    assert experiment.evaluate(moved, FIT) < experiment.evaluate(start, FIT)


def test_an_overflow_skips_the_step_and_halves_the_scale():
    start = experiment.first_parameters(3)
    found, scales, _ = experiment.train(
        start, experiment.ARMS["FP16, master, scaling"], FIT, rate=0.1, steps=2, factor=2.0**20
    )
    assert scales == [2.0**16, 2.0**15]
    assert all(torch.equal(a, b) for a, b in zip(found, start, strict=True))


def test_the_sweeps_cover_what_is_asked():
    loss = experiment.sweep_factor(factors=(1.0,), seeds=(0, 1), steps=1)
    assert set(loss) == set(experiment.ARMS)
    assert all(len(v) == 1 and len(v[0]) == 2 for v in loss.values())
    progress = experiment.sweep_rate(rates=(0.5, 0.25), seeds=(0,), steps=1)
    # One step with a master copy: FP16's rounding of the gradients costs less than a percent.
    assert all(abs(p - 1) <= 0.01 for row in progress["FP16, master"] for p, _ in row)
