import pytest

from qbook.data import available, how_to_get
from qbook.experiments import distributed_gradients
from qbook.training.communication import processes, wire

NEEDS = "tinyshakespeare.txt"
pytestmark = pytest.mark.skipif(not available(NEEDS), reason=how_to_get(NEEDS))


@pytest.fixture(scope="module")
def table():
    """What two ranks find in one step"""
    return wire.run_threads(
        2, distributed_gradients.errors, distributed_gradients.AVERAGES, 1, 1, 1
    )


def test_every_way_sends_the_same_to_all_and_float32_sends_the_mean(table):
    for found in table:
        assert set(found) == set(distributed_gradients.AVERAGES)
        assert all(row["same"] for row in found.values())
        assert found["float32"]["error"] == 0
        assert found["float32"]["owed"] == 0


def test_errors_bytes_and_shares_are_in_order(table):
    found = table[0]
    for name in distributed_gradients.FP8:
        # Half a step of three bits of mantissa, twice; post-scaling saturates besides.
        assert 0.01 <= found[name]["error"] <= (0.5 if name == "post-scaling" else 0.1)
        assert 3.9 <= found["float32"]["bytes"] / found[name]["bytes"] <= 4
    assert found["post-scaling"]["saturated"] > found["pre-scaling"]["saturated"]
    assert found["pre-scaling"]["mu"] == pytest.approx(0.5)
    assert 25 <= found["float32"]["bytes"] / found["1 bit"]["bytes"] <= 32
    assert found["1 bit"]["error"] > found["auto-scaling"]["error"]
    assert found["1 bit"]["owed"] < found["1 bit, forgetful"]["owed"]


def train(w):
    return {
        arm: distributed_gradients.train(w, arm, steps=3, windows=1, judged=2)
        for arm in ("float32", "auto-scaling", "1-bit Adam")
    }


def test_arms_start_alike_and_ranks_end_alike():
    first, second = processes.run_processes(2, train)
    losses = [row["losses"] for row in first.values()]
    assert len(losses[0]) == 3
    # The first loss is of the same weights; 1-bit Adam's warm-up of one step is Adam's too.
    assert losses[0][0] == losses[1][0] == losses[2][0]
    assert losses[0][2] != losses[2][2]
    assert losses[1][2][1] == pytest.approx(losses[0][2][1], abs=0.05)
    for arm, row in first.items():
        assert row["validation"] == second[arm]["validation"]
    assert first["float32"]["bytes"] > 3.9 * first["auto-scaling"]["bytes"]
