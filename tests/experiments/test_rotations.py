import numpy as np
import pytest
import torch

from qbook.data import available, how_to_get
from qbook.experiments import recorded, rotations
from qbook.llm import hadamard, quarot
from qbook.models import char_gpt

IDS = torch.randint(65, (2, 40), generator=torch.Generator().manual_seed(0))
needs_text = pytest.mark.skipif(
    not available("tinyshakespeare.txt"), reason=how_to_get("tinyshakespeare.txt")
)


@torch.no_grad()
def same(a, b):
    # float32 logits of about 10 through four blocks, rotated a few times.
    return float((a(IDS) - b(IDS)).abs().max()) <= 1e-3


@needs_text
def test_every_subject_and_every_arm_is_the_same_function():
    real = char_gpt.load()
    for name, model in rotations.subjects().items():
        found = dict(rotations.arms(model))
        assert {"nearest", "stream", "inside", "everywhere"} <= set(found)
        assert all(same(changed, real) for changed in found.values()), name


@needs_text
def test_planted_gains_vanish_when_they_are_fused_and_planted_values_do_not():
    rows = rotations.planted(
        char_gpt.windows("validation", 4), names=("trained", "gains", "values")
    )
    change = {(row["subject"], row["arm"]): row["change"] for row in rows}
    for name in ("gains", "values"):
        assert change[name, "nearest"] >= 3 * change["trained", "nearest"]
    # Fusing undoes the gains, rotation or not.
    assert abs(change["gains", "fused"] - change["trained", "fused"]) <= 0.002
    assert change["values", "fused"] >= 0.9 * change["values", "nearest"]
    assert change["values", "inside"] <= 0.7 * change["values", "fused"]


@needs_text
def test_principal_axes_gather_what_a_hadamard_matrix_spreads():
    flat = rotations.fused(char_gpt.load())
    q = rotations.principal_axes(flat)
    assert float((q @ q.T - torch.eye(128)).abs().max()) <= 1e-10
    seen = {}
    for name, rotation in {"axes": q, "hadamard": hadamard.matrix(128, seed=0)}.items():
        turned = quarot.rotate(flat.double(), rotations.STREAM, rotation)
        x = []
        turned.blocks[3].mlp_norm.register_forward_hook(lambda *a, x=x: x.append(a[2]))
        with torch.no_grad():
            turned(IDS)
        energy = x[0].flatten(0, 1).pow(2).mean(dim=0)
        seen[name] = float(energy.max() / energy.mean())
    assert seen["axes"] > 2 * seen["hadamard"]


def test_the_error_of_a_difference_is_that_of_paired_windows():
    ids = torch.zeros(3, 2, dtype=torch.int64)
    real, found = (
        torch.tensor(p).log().reshape(3, 1, 2)
        for p in ([[0.5, 0.5]] * 3, [[0.5, 0.5], [0.25, 0.75], [0.125, 0.875]])
    )
    row = rotations.compare(real, found, ids)
    # Losses ln 2, 2 ln 2, 3 ln 2 against ln 2: mean ln 2, deviation ln 2 over the root of three.
    expected = {"loss": 2 * np.log(2), "change": np.log(2), "error": np.log(2) / 3**0.5}
    assert all(abs(row[name] - value) <= 1e-5 for name, value in expected.items())
    # Divergence of the fair coin from the others, by hand: sum of p ln(p / q).
    each = [0, 0.5 * np.log(2) + 0.5 * np.log(2 / 3), 0.5 * np.log(4) + 0.5 * np.log(4 / 7)]
    assert abs(row["kl"] - np.mean(each)) <= 1e-5
    assert abs(row["kl_error"] - np.std(each, ddof=1) / 3**0.5) <= 1e-5


def test_the_record_holds_every_arm():
    planted = recorded.load("rotations")["results"]["planted"]
    assert {row["subject"] for row in planted} == {"trained", "gains", "values", "axes"}
    arms = {row["arm"] for row in planted if row["subject"] == "trained"}
    assert arms == {"nearest", "fused", "smoothed", "stream", "inside", "everywhere"}
