import numpy as np
import torch
from torch import nn

from qbook import affine
from qbook.ptq import simulate


def small_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(12, 5)).double()


def test_what_is_recorded_is_what_the_layers_saw():
    model, x = small_model(), torch.randn(4, 2, 3, 3, dtype=torch.float64)
    seen = simulate.record(model, lambda m: (m(x), m(x[:1])))
    assert list(seen) == ["0", "3"]
    assert [len(v) for v in seen["0"]] == [4, 1]
    assert torch.equal(seen["0"][0], x)
    assert torch.equal(seen["3"][1], model[:3](x[:1]))
    simulate.record(model, lambda m: None)
    model(x)
    assert len(seen["0"]) == 2


def test_hooks_are_removed_when_the_call_fails():
    model = small_model()
    try:
        simulate.record(model, lambda m: 1 / 0)
    except ZeroDivisionError:
        pass
    assert all(not m._forward_pre_hooks for m in model.modules())


def test_weights_are_rounded_row_by_row_and_the_model_stays_as_it_is():
    model = small_model()
    before = model[0].weight.detach().clone()
    rounded = simulate.quantize_weights(model, bits=3)
    assert torch.equal(model[0].weight, before)
    for row, original in zip(rounded[0].weight.flatten(1), before.flatten(1), strict=True):
        # Three bits: seven codes, the largest of which is the row's largest weight.
        steps = row / (original.abs().max() / 3)
        assert (steps - steps.round()).abs().max() <= 1e-14
        assert (row - original).abs().max() <= original.abs().max() / 6 * (1 + 1e-14)


def test_inputs_are_replaced_in_the_copy_alone():
    model, x = small_model(), torch.randn(4, 2, 3, 3, dtype=torch.float64)
    called = []

    def round_input(name, x):
        called.append(name)
        return affine.fake_quantize(x, affine.choose_qparams(x, 4))

    copied = simulate.quantize_inputs(model, round_input)
    with torch.no_grad():
        found = copied(x)
        hidden = model[:3](round_input("by hand", x))
        expected = model[3](round_input("by hand", hidden))
        model(x)
    assert torch.equal(found, expected)
    assert called == ["0", "3", "by hand", "by hand"]
    assert np.abs((found - model(x)).detach().numpy()).max() > 1e-3
