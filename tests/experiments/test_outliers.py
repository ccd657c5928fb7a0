import pytest
import torch

from qbook import affine
from qbook.experiments import outliers, recorded


@pytest.mark.parametrize("axis", [0, 1])
def test_splitting_covers_one_outlier_with_half_the_step(axis):
    w = torch.linspace(-1, 1, 60).reshape(6, 10)
    w = torch.where(w == 1, 8.0, w)
    error = {}
    for name, quantize in outliers.methods(4).items():
        w_hat = quantize(w, axis)
        assert w_hat.shape == w.shape
        error[name] = float(((w - w_hat) ** 2).mean())
    # One channel is added in each case: the outlier is covered with half the step.
    finest = {n: e for n, e in error.items() if n.startswith("ocs") and "omse" not in n}
    assert all(e < error["minmax"] / 2 for e in finest.values())
    assert error["omse"] <= error["minmax"]
    # Halves err on the outlier's channel as the coarse grid does.
    assert all(error[n] < error[n.replace("ocs", "halves")] for n in finest)


def test_by_row_every_output_has_its_own_scale():
    w = torch.tensor([[1.0, 0.5, 0.25], [10.0, 5.0, 2.5]])
    w_hat = outliers.by_row(w, 4)
    for row, expected in zip(w_hat, w, strict=True):
        assert torch.equal(row, affine.fake_quantize(expected, affine.choose_qparams(expected, 4)))


def test_the_record_has_a_result_for_every_method():
    results = recorded.load("outliers")["results"]
    assert set(outliers.methods(4)) <= set(results["resnet"]["4"])
    for bits in ("8", "6"):
        for part in ("minilm_weights", "minilm_inputs"):
            assert set(outliers.RANGES) <= set(results[part][bits])
            assert {f"ocs_{r}" for r in outliers.RATIOS} <= set(results[part][bits])
