import numpy as np
import pytest

from qbook.data import available, how_to_get
from qbook.experiments import block_methods, recorded


@pytest.mark.skipif(not available("tinyshakespeare.txt"), reason=how_to_get("tinyshakespeare.txt"))
def test_blocks_of_a_transformer_are_reconstructed(monkeypatch):
    """A few steps on few windows: the run goes through, and learning beats nearest rounding."""
    from qbook.experiments import all_methods

    def small():
        subject = all_methods.char_gpt(windows=8)
        return subject._replace(draw=lambda seed: [subject.draw(seed)[0][:8]])

    monkeypatch.setitem(all_methods.SUBJECTS, "char_gpt", small)
    rows = block_methods.run(
        "char_gpt", seeds=(0,), methods=("nearest", "blocks", "qdrop 0.5"), steps=12, batch_size=4
    )
    nearest, blocks, dropped = (row["judged"][0] for row in rows)
    assert max(blocks, dropped) < nearest - 0.1


@pytest.mark.parametrize("name", block_methods.BLOCKS)
def test_records_repeat_every_learnt_method_with_three_seeds(name):
    rows = recorded.load(f"block_methods_{name}")["results"]["rows"]
    assert [row["method"] for row in rows] == list(block_methods.METHODS)
    for row in rows:
        assert len(row["judged"]) == (1 if row["method"] == "nearest" else 3)
        assert np.isfinite(row["judged"]).all()
