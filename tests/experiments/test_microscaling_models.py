import numpy as np
import pytest
import torch
from torch import nn

from qbook.experiments import microscaling, recorded
from qbook.formats import E2M1
from qbook.formats import microscaling as blocks


def subject(seed=0):
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(128, 256), nn.GELU(), nn.Linear(256, 128))
    for p in model.parameters():
        p.data = torch.randn(p.shape, generator=generator) / 16
    x = torch.randn(50, 128, generator=generator)
    with torch.no_grad():
        y = model(x)

    @torch.no_grad()
    def judge(model):
        return {"error": (model(x) - y).double().pow(2).mean(dim=1).numpy()}

    return microscaling.Subject(model, judge)


def test_fewer_bits_err_more_and_inputs_add_their_own():
    rows = microscaling.run(subject())
    error = {(row["label"], row["inputs"]): row["error"][0] for row in rows}
    assert error["real", False] == 0
    for inputs in (False, True):
        order = [error[name, inputs] for name in ("INT8", "MXFP8", "NVFP4", "MXFP4")]
        assert order == sorted(order)
    assert all(error[n, True] > error[n, False] for n in microscaling.WEIGHTS if (n, True) in error)
    between = error["MXFP4 with MXFP8", True]
    assert error["MXFP4", False] < between < error["MXFP4", True]


def test_differences_are_paired():
    values = iter([np.array([1.0, 2.0, 4.0]), np.array([1.5, 2.5, 4.5]), np.array([2.0, 2.0, 5.0])])
    judge = microscaling.Subject(subject().model, lambda _: {"loss": next(values)})
    arms = {name: microscaling.WEIGHTS[name] for name in ("INT8", "INT4")}
    _, same, other = microscaling.run(judge, arms, {})
    assert same["loss"] == pytest.approx([2.8333, 0.5, 0])
    # Differences 1, 0, 1: a standard deviation of sqrt(1/3), over sqrt(3).
    assert other["loss"] == pytest.approx([3, 2 / 3, 1 / 3], rel=1e-4)


def test_a_rotation_changes_nothing_but_the_rounding():
    x = torch.randn(3, 5, 256, generator=torch.Generator().manual_seed(1))
    same = microscaling.rotated(lambda x: x, 16)(x)
    # Two float32 products with an orthogonal matrix.
    assert float((same - x).abs().max()) <= 1e-5
    # A lone outlier becomes 128 numbers of one size, which keeps all of its energy.
    lone = torch.zeros(1, 128)
    lone[0, 3] = 1.0
    seen = []
    microscaling.rotated(lambda x: seen.append(x) or x, 128)(lone)
    assert torch.allclose(seen[0].abs(), torch.full((1, 128), 128**-0.5))


def test_inputs_are_rounded_once_for_layers_that_share_them():
    calls = []

    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(32, 32), nn.Linear(32, 32)

        def forward(self, x):
            return self.a(x) + self.b(x)

    model, x = Shared(), torch.randn(4, 32)
    made = microscaling.apply(
        model, lambda w: w, lambda x: calls.append(1) or blocks.fake_quantize(x)
    )
    with torch.no_grad():
        assert torch.equal(made(x), model(blocks.fake_quantize(x)))
        assert torch.equal(made(2 * x), model(blocks.fake_quantize(2 * x)))
    assert len(calls) == 2


def test_the_record_holds_every_arm():
    results = recorded.load("microscaling")["results"]
    arms = {
        "char_gpt": (microscaling.WEIGHTS, microscaling.BOTH),
        "planted": (("INT8", "INT4", "MXFP4", "NVFP4"), microscaling.PLANTED),
        "minilm": (microscaling.WEIGHTS, ()),
        "minilm_inputs": ((), microscaling.ON_MINILM),
    }
    for subject, (weights_arms, both_arms) in arms.items():
        labels = [("real", False)]
        labels += [(name, False) for name in weights_arms] + [(name, True) for name in both_arms]
        assert [(row["label"], row["inputs"]) for row in results[subject]] == labels


def test_groups_of_integers_are_stored_with_short_scales():
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(2))
    x_hat = microscaling.integers(4, 32)(x).reshape(4, 2, 32)
    scale = (x.reshape(4, 2, 32).abs().amax(dim=-1, keepdim=True) / 7).half().float()
    assert float((x_hat / scale - (x_hat / scale).round()).abs().max()) <= 1e-5
    assert not torch.equal(x_hat.reshape(4, 64), blocks.fake_quantize(x, E2M1))
