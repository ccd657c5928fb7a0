import numpy as np
import pytest
import torch

from qbook.data import available, how_to_get
from qbook.experiments import minilm_w8a8, recorded
from qbook.llm import smoothquant

FILES = (
    "all-MiniLM-L6-v2/model.safetensors",
    "all-MiniLM-L6-v2/tokenizer.json",
    "sst2-train.tsv",
    "sst2-dev.tsv",
)


def test_the_error_of_a_difference_counts_lost_and_won_sentences():
    before = np.array([True] * 6 + [False] * 4)
    after = np.array([True] * 4 + [False] * 2 + [True] * 3 + [False])
    found = minilm_w8a8.compare(before, after)
    assert (found["lost"], found["won"]) == (2, 3)
    assert (found["accuracy"], found["difference"]) == (70, 10)
    # Five sentences of ten changed: mean square 0.5, mean 0.1, over the root of ten.
    assert found["error"] == round(100 * np.sqrt((0.5 - 0.01) / 10), 2)
    assert minilm_w8a8.compare(before, before)["error"] == 0


def test_the_record_holds_every_arm_and_its_alpha_is_the_best_on_the_train_split():
    record = recorded.load("minilm_w8a8")
    results, alphas = record["results"], record["alphas"]
    for key, values in results["moved"].items():
        assert len(values) == len(alphas)
        tuned = results["arms"][f"tuned {key}"]
        assert tuned["moved"] == min(values)
        assert tuned["alpha"] == alphas[int(np.argmin(values))]
        half = results["arms"][f"smooth {key}"]
        assert half["moved"] == values[alphas.index(0.5)]
    for arm in results["arms"].values():
        # 872 sentences; both accuracies were rounded to hundredths.
        lost = 100 * (arm["lost"] - arm["won"]) / 872
        assert abs(arm["accuracy"] - results["float"] + lost) <= 0.011
    assert len(results["arms"]) == 2 + 3 * 2 + 3 * 2 * len(minilm_w8a8.SMOOTHED)


MISSING = [name for name in FILES if not available(name)]


@pytest.mark.skipif(bool(MISSING), reason=" ".join(map(how_to_get, MISSING)))
@torch.no_grad()
def test_a_toy_run_has_the_shape_of_the_record():
    data = minilm_w8a8.task(sentences=24, calibrated=8, chosen=8, probed=100)
    record = recorded.load("minilm_w8a8")["results"]
    real, maxima = data.right(data.model), smoothquant.maxima(data.model, data.calibrate)
    arms = dict(minilm_w8a8.plain(data, real, maxima))
    moved = minilm_w8a8.sweep(data, "norms", "row", maxima, (0.5,))
    assert set(moved) <= set(record["moved"])
    one = {"norms O1 row": moved["norms O1 row"]}
    arms |= dict(minilm_w8a8.judged(data, real, one, maxima, (0.5,)))
    assert set(arms) <= set(record["arms"])
    assert arms["smooth norms O1 row"] == arms["tuned norms O1 row"]
    assert arms["LLM.int8()"]["moved"] < arms["vector-wise"]["moved"]
    assert arms["smooth norms O1 row"]["moved"] < arms["plain O1 row"]["moved"]
    assert arms["plain O1 row"]["moved"] < arms["plain O2 tensor"]["moved"]
    # Vector-wise is O1 with a scale for each row of the weights.
    assert abs(arms["plain O1 row"]["moved"] / arms["vector-wise"]["moved"] - 1) < 1e-2
    # The maxima of a smoothed model are those that calibrating it again would find.
    _, model, own = next(minilm_w8a8.smoothed(data, "norms", (0.7,), maxima))
    again = smoothquant.maxima(model, data.calibrate)
    assert own.keys() == again.keys()
    for key, largest in again.items():
        # The function stays up to the rounding of float32, through six layers.
        assert torch.allclose(own[key], largest, rtol=1e-3, atol=1e-4)
