import numpy as np
import torch
from torch import nn

from qbook.experiments import equalization
from qbook.models import separable
from qbook.ptq import fold, neighbours


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3)).double()


def test_rounded_weights_have_one_scale_a_layer_or_one_a_row():
    model = small()
    for axis, shape in ((None, (1, 1)), (1, (7, 1))):
        w = model[0].weight.detach()
        largest = w.abs().max() if axis is None else w.abs().amax(1, keepdim=True)
        steps = equalization.rounded(model, 3, axis)[0].weight.detach() / (largest / 3)
        assert largest.reshape(-1, 1).shape == shape
        # Whole steps, from -3 to 3, up to the rounding of the quotient.
        assert float((steps - steps.round()).abs().max()) <= 1e-14
        assert float(steps.abs().max()) <= 3 + 1e-14


def test_a_plant_spreads_the_channels_and_keeps_the_function():
    model, x = small(), torch.randn(4, 5, dtype=torch.float64)
    planted = equalization.planted(model, 4)
    with torch.no_grad():
        # Two more roundings for each weight.
        assert float((planted(x) - model(x)).abs().max()) <= 1e-13
    ratio = (planted[0].weight / model[0].weight).detach().log2().mean(1)
    assert float(ratio.abs().max()) <= 4
    assert float(ratio.max() - ratio.min()) >= 3
    assert torch.equal(equalization.planted(model, 0)[0].weight, model[0].weight)


def test_at_sixteen_bits_every_step_answers_as_the_network_does():
    torch.manual_seed(0)
    model = separable.SeparableNet().eval()
    images = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    labels = separable.predict(model, images).numpy()
    found = equalization.steps(model, images, labels, images[:2], widths=(16,))
    assert list(found) == ["16 tensor", "16 channel"]
    assert all(row == dict.fromkeys(row, 100.0) and len(row) == 6 for row in found.values())
    assert len(neighbours.chains(fold.fold(model))) == 11
    plants = equalization.plants(model, images, labels, octaves=(0, 1), bits=16)
    assert plants["equalized tensor"] == [100.0, 100.0]
