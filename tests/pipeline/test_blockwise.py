import pytest
import torch
from torch import nn

import qbook
from qbook.pipeline.layers import quantized_layers
from qbook.ptq import brecq, qdrop


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(6, 4, 3, padding=1)

    def forward(self, x):
        return (x + self.second(self.first(x).relu())).relu()


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), Residual(), nn.Flatten(), nn.Linear(64, 3)
    ).eval()


X = torch.randn(24, 1, 6, 6, generator=torch.Generator().manual_seed(0))
SHORT = {"steps": 6, "batch_size": 8, "learning_rate": 0.05}


@pytest.mark.parametrize(("method", "x_bits"), [("brecq", None), ("brecq", 4), ("qdrop", 4)])
def test_the_packed_network_computes_what_the_reconstructed_one_did(
    model, method, x_bits, tmp_path
):
    batches = list(X.split(10))
    packed, report = qbook.quantize(
        model, batches, method=method, bits=2, x_bits=x_bits, blocks=["2"], seed=1, **SHORT
    )
    apply = brecq.quantize if method == "brecq" else qdrop.quantize
    expected = apply(model, X, ["2"], 2, x_bits, seed=1, **SHORT)
    with torch.no_grad():
        found, wanted = packed(X), expected(X)
    # The same codes and steps; sums in another order.
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    bits = {row.name: row.bits for row in report.rows}
    assert bits == {"0": 8, "2.first": 2, "2.second": 2, "4": 8}
    assert quantized_layers(packed).keys() == bits.keys()
    path = qbook.save(packed, tmp_path / "model.safetensors")
    loaded = qbook.load(model, path)
    assert torch.equal(loaded(X), packed(X))


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({}, r"needs blocks=\[...\]"),
        ({"blocks": ["9"]}, r"unknown: \['9'\], the model has 0, 1, 2"),
        ({"blocks": ["2"], "batches": []}, "needs calibration data"),
        ({"blocks": ["2"], "batches": [(X, X)]}, "a list of tensors"),
        ({"blocks": ["2"], "method": "qdrop", "x_bits": None}, "pass x_bits"),
        ({"blocks": ["2"], "group_size": 4}, "leave out group_size"),
        ({"blocks": ["2"], "skip": ["4"]}, "leave out skip"),
        ({"blocks": ["2"], "bits": {"0": 4}}, "leave out the dict"),
    ],
)
def test_calls_that_do_not_work_are_refused(model, keywords, message):
    call = {"batches": [X], "method": "brecq", "bits": 2, "x_bits": 4, **keywords}
    with pytest.raises(ValueError, match=message):
        qbook.quantize(model, call.pop("batches"), **call)
