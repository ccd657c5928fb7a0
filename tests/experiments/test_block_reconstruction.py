import math

import numpy as np
import pytest
import torch

from qbook.data import digits
from qbook.experiments import block_reconstruction, recorded
from qbook.ptq import brecq, reconstruction

BLOCKS = ["2", "3", "4"]


@pytest.fixture(scope="module")
def net():
    return block_reconstruction.digits_network(steps=40)


def test_the_network_is_trained_and_repeats(net):
    _, (test, labels) = digits()
    found = net(torch.from_numpy(test).double()).argmax(1).numpy()
    assert np.mean(found == labels) > 0.9
    again = block_reconstruction.digits_network(steps=40)
    for a, b in zip(net.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("method", "fitted"),
    [
        ("nearest", 0),
        ("layers", 6),
        ("blocks", 3),
        ("blocks, Fisher", 3),
        ("qdrop 0.5", 3),
    ],
)
def test_a_method_fits_layers_or_blocks(net, method, fitted, monkeypatch):
    calls = []
    fit = reconstruction.fit

    def counted(block, *args, **kwargs):
        calls.append(len(reconstruction.rounded_layers(block)))
        assert (kwargs["importance"] is not None) == (method == "blocks, Fisher")
        assert (kwargs.get("mix") is not None) == method.startswith("qdrop")
        return fit(block, *args, **kwargs)

    monkeypatch.setattr(reconstruction, "fit", counted)
    seen = torch.from_numpy(np.random.default_rng(0).random((8, 64)))
    quantized = block_reconstruction.quantize(method, net, seen, 2, 4, blocks=BLOCKS, steps=1)
    assert calls == ([1] * 6 if method == "layers" else [2] * fitted)
    assert list(brecq.codes(quantized)) == [
        "0",
        *(f"{b}.linear{k}" for b in BLOCKS for k in (1, 2)),
        "5",
    ]


def test_an_unknown_method_is_named(net):
    with pytest.raises(ValueError, match="'magic' is unknown"):
        block_reconstruction.quantize("magic", net, torch.zeros(2, 64), 2, 4)


def test_a_model_compared_with_itself_has_no_error(net):
    _, (test, labels) = digits()
    test = torch.from_numpy(test).double()
    found = block_reconstruction.measure(net, net, test[:5], test, labels, block="4")
    expected = 100 * np.mean(net(test).argmax(1).numpy() == labels)
    assert math.isclose(found["accuracy"], expected)
    assert abs(found["divergence"]) <= 1e-15
    assert found["error_seen"] == found["error_fresh"] == 0


def test_the_scaled_fisher_has_mean_one(net):
    fisher = block_reconstruction.scaled_fisher(net, None, "3", torch.rand(9, 64).double())
    assert abs(float(fisher.mean()) - 1) <= 1e-12


def test_calibration_images_are_drawn_without_repetition_from_the_seed():
    images = np.zeros((40, 32, 32, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(40)
    first, same, other = (
        block_reconstruction.calibration(images, 12, seed)[:, 0, 0, 0] for seed in (0, 0, 1)
    )
    assert first.shape == (12,)
    assert len(set(first.tolist())) == 12
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_the_record_holds_the_runs_that_the_module_names():
    record = recorded.load("block_reconstruction")
    found = [
        (r["method"], r["weight_bits"], r["act_bits"], r["seed"]) for r in record["results"]["runs"]
    ]
    assert found == block_reconstruction.RUNS
    assert record["schedule"] == block_reconstruction.SCHEDULE
