import numpy as np
import pytest

from qbook.data import available, how_to_get
from qbook.experiments import all_methods, recorded


def rows_of(name):
    return {row["label"]: row for row in recorded.load(f"all_methods_{name}")["results"]["rows"]}


def test_a_small_run_repeats_the_record_of_the_digits():
    chosen = {
        "W3 nearest": {"bits": 3},
        "W3 GPTQ": {"bits": 3, "method": "gptq"},
    }
    found = all_methods.run(all_methods.digits(), chosen, seeds=(0,))
    record = rows_of("digits")
    for row in found:
        assert row["bytes"] == record[row["label"]]["bytes"]
        # One of 360 images may change sides with another order of summation.
        assert abs(row["judged"][0] - record[row["label"]]["judged"][0]) <= 100 / 360 + 1e-3


@pytest.mark.skipif(not available("tinyshakespeare.txt"), reason=how_to_get("tinyshakespeare.txt"))
def test_nearest_rounding_of_the_character_gpt_repeats_its_record():
    subject = all_methods.char_gpt()
    (row,) = all_methods.run(subject, {"W3 nearest": {"bits": 3}})
    record = rows_of("char_gpt")["W3 nearest"]
    assert row["bytes"] == record["bytes"]
    # Nothing is random; float32 sums differ between processors.
    assert abs(row["judged"][0] - record["judged"][0]) < 2e-3


def test_the_table_holds_every_method_at_every_width_once():
    table = all_methods.settings()
    for bits in (4, 3, 2):
        for method in all_methods.METHODS:
            assert table[f"W{bits} {method}"]["bits"] == bits
    assert "W8 nearest" in table
    assert "W8 GPTQ" not in table
    assert len(table) == 3 + 1 + 3 * len(all_methods.METHODS)


@pytest.mark.parametrize("name", all_methods.SUBJECTS)
def test_records_are_whole_and_repeat_random_methods(name):
    for row in rows_of(name).values():
        random = any(word in row["label"] for word in ("GPTQ", "AdaRound", "static"))
        assert len(row["judged"]) == len(row["seconds"]) == (3 if random else 1)
        assert np.isfinite(row["judged"]).all()
    sizes = [row["bytes"] for label, row in rows_of(name).items() if label.endswith("nearest")]
    assert sizes == sorted(sizes, reverse=True)
