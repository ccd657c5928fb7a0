import itertools

import pytest

from qbook.experiments import block_reconstruction, dropped_quantization, recorded


def test_one_run_repeats_and_measures():
    net = block_reconstruction.digits_network(steps=20)
    runs = [dropped_quantization.run(net, "qdrop 0.5", 4, 16, 3, steps=2) for _ in range(2)]
    assert runs[0] == runs[1]
    assert set(runs[0]) == {"accuracy", "divergence", "error_seen", "error_fresh"}
    assert 0 <= runs[0]["accuracy"] <= 100
    assert runs[0]["divergence"] > 0


@pytest.mark.parametrize(
    ("name", "axes"),
    [
        (
            "dropped_quantization",
            (
                dropped_quantization.ACT_BITS,
                dropped_quantization.CALIBRATION,
                dropped_quantization.METHODS,
            ),
        ),
        ("dropped_quantization_long", ((4,), (256,), dropped_quantization.LONGER)),
    ],
)
def test_the_record_holds_every_combination_for_every_seed(name, axes):
    rows = recorded.load(name)["results"]
    found = {(r["act_bits"], r["images"], r["method"], r["seed"]) for r in rows}
    assert found == set(itertools.product(*axes, dropped_quantization.SEEDS))
    assert len(found) == len(rows)
