import numpy as np
import pytest

from qbook.data import available, how_to_get
from qbook.experiments import learned_rotations, recorded, rotations
from qbook.models import char_gpt


@pytest.mark.skipif(not available("tinyshakespeare.txt"), reason=how_to_get("tinyshakespeare.txt"))
def test_rotations_are_learned_and_judged_at_toy_size():
    ids = char_gpt.windows("validation", 2)
    rows = learned_rotations.spread(
        ids, bits=3, seeds=(0,), starts=("axes",), arms=("through",), steps=2
    )
    tried = [(row["arm"], row["start"]) for row in rows]
    assert tried == [("random", 0), ("random", "axes"), ("through", "axes")]
    assert len({row["loss"] for row in rows}) == 3
    assert all(np.isfinite([row["kl"], row["train_kl"], row["error"]]).all() for row in rows)
    # Rounding costs more in principal axes than in a rotation that spreads them.
    kl = {(row["arm"], row["start"]): row["train_kl"] for row in rows}
    assert kl["random", "axes"] > 1.2 * kl["random", 0]


@pytest.mark.skipif(not available("tinyshakespeare.txt"), reason=how_to_get("tinyshakespeare.txt"))
def test_what_is_learned_is_a_rotation_and_the_arms_differ():
    flat = rotations.fused(char_gpt.load())
    everywhere, axes = rotations.inside(flat), rotations.principal_axes(flat)
    found = [
        learned_rotations.learned(everywhere, axes, 4, steps=1, arm=arm)
        for arm in learned_rotations.ARMS
    ]
    for q in found:
        assert float((q @ q.T).diagonal().sub(1).abs().max()) <= 1e-10
        assert float((q - axes).abs().max()) > 1e-4
    assert float((found[1] - found[2]).abs().max()) > 1e-4


@pytest.mark.parametrize("bits", learned_rotations.TRIED)
def test_the_record_holds_every_arm(bits):
    rows = recorded.load(f"learned_rotations_{bits}")["results"]
    tried = learned_rotations.TRIED[bits]
    for arm in tried["arms"]:
        assert [row["start"] for row in rows if row["arm"] == arm] == list(tried["starts"])
    random = [row["start"] for row in rows if row["arm"] == "random"]
    assert random[:8] == list(learned_rotations.SEEDS)
    assert random[8:] == [start for start in tried["starts"] if start == "axes"]
