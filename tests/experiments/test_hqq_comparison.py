import numpy as np
import torch

from qbook.experiments import hqq_comparison
from qbook.ptq import gptq


def layers(seed=0):
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(128, 128))
    h, other = (gptq.hessian(rng.normal(size=(400, 128)) @ mix) for _ in range(2))
    return {"layer": (torch.from_numpy(rng.normal(size=(24, 128)) * 0.05).float(), h, other)}


def test_every_method_is_measured_and_data_help_the_outputs_only():
    judged = []
    rows = hqq_comparison.run(layers(), lambda found: judged.append(found) or 1.5, widths=(3,))
    by = {row["method"]: row for row in rows}
    assert list(by) == list(hqq_comparison.METHODS)
    assert len(judged) == len(rows)
    assert by["GPTQ"]["output"] < min(r["output"] for m, r in by.items() if m != "GPTQ")
    assert by["GPTQ"]["weight_2"] > by["nearest"]["weight_2"]
    assert by["HQQ"]["weight_2"] < by["nearest, real zero"]["weight_2"]
    assert by["least squares, zero and scale"]["weight_2"] < by["HQQ"]["weight_2"]


def test_real_zeros_are_counted_with_sixteen_bits():
    methods = {name: hqq_comparison.METHODS[name] for name in ("nearest", "HQQ")}
    nearest, hqq = hqq_comparison.run(layers(), widths=(4,), methods=methods)
    assert (nearest["size"], hqq["size"]) == (4 + 20 / 64, 4 + 32 / 64)
    assert "judged" not in nearest


def test_errors_are_relative_to_weights_and_outputs():
    methods = {"zeros": (lambda w, h, bits: 0 * w, False)}
    (row,) = hqq_comparison.run(layers(), widths=(4,), methods=methods)
    assert row["weight_07"] == row["weight_2"] == row["output"] == 1
