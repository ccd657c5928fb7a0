import pytest

from qbook import metrics
from qbook.data import available, how_to_get
from qbook.experiments import bitnet_training, from_scratch, recorded
from qbook.models import char_gpt, weights
from qbook.qat import bitnet

NEEDS = "tinyshakespeare.txt"
needs_text = pytest.mark.skipif(not available(NEEDS), reason=how_to_get(NEEDS))
SHORT = {"steps": 3, "batch_size": 2}


def short(arm, monkeypatch):
    monkeypatch.setattr(bitnet_training, "FEW", 1)
    monkeypatch.setattr(bitnet_training, "FED", 1)
    judge = bitnet_training.judged_by(char_gpt.windows("validation", 2))
    models = []
    (row,) = bitnet_training.run(
        arm, seeds=(3,), judge=judge, report=lambda _, model: models.append(model), **SHORT
    )
    return row, models[0], judge


@needs_text
def test_the_float32_arm_is_that_of_from_scratch_rounded_and_continued(monkeypatch):
    row, model, judge = short("float32", monkeypatch)
    (plain,) = from_scratch.run(seeds=(3,), judge=judge, **SHORT)
    assert row["training"] == plain["training"]
    assert row["validation"] == plain["validation"]
    assert set(row["rounded"]) == {*bitnet_training.RULES, "absmean, x in 8 bits"}
    assert len(row["layers"]) == 24
    assert all(0 < found["weight"] < 0.4 for found in row["layers"].values())
    assert row["continued"]["training"] != row["training"]
    assert sum(row["histogram"]) == sum(
        w.numel() for name, w in weights.weights(model).items() if name != "head"
    )


@needs_text
@pytest.mark.parametrize(("arm", "bits"), [("faster", 1.58), ("binary", 1)])
def test_the_other_arms_train_bit_linear_and_pack_it_without_loss(arm, bits, monkeypatch):
    row, model, _ = short(arm, monkeypatch)
    layers = [m for m in model.modules() if isinstance(m, bitnet.BitLinear)]
    assert len(layers) == len(row["zeros"]) == 24
    assert {m.bits for m in layers} == {bits}
    assert row["packed"] == {"2-bit": row["validation"], "base-3": row["validation"]}
    assert row["bytes"]["base-3"] < row["bytes"]["2-bit"] < row["bytes"]["float32"] / 8
    assert all((share == 0) == (bits == 1) for share in row["zeros"])


def test_the_rules_err_in_the_order_that_they_must():
    w = weights.weights(char_gpt.load())["blocks.1.up"]
    errors = {name: float(metrics.mse(w, rule(w))) for name, rule in bitnet_training.RULES.items()}
    assert errors["best, rows"] <= errors["best"] <= errors["0.7 mean"] <= errors["absmean"]


@pytest.mark.parametrize("arm", ["float32", "ternary", "faster", "fastest", "beyond"])
def test_the_record_holds_every_seed_of_its_arm(arm):
    record = recorded.load(f"bitnet_{arm}")
    assert [row["seed"] for row in record["results"]] == list(bitnet_training.ARMS[arm]["seeds"])
    assert record["steps"] == from_scratch.RECIPE["steps"]
    assert all(len(row["training"]) == 100 for row in record["results"])


def test_the_arms_differ_in_what_they_say(monkeypatch):
    given = []
    monkeypatch.setattr(
        bitnet_training.from_scratch, "run", lambda prepare, **options: given.append(options) or []
    )
    for arm in ("ternary", "faster"):
        bitnet_training.run(arm, judge=lambda model: 0.0)
    assert "learning_rate" not in given[0]
    assert given[1]["learning_rate"] == 2 * char_gpt.LEARNING_RATE
    assert given[0]["seeds"] == given[1]["seeds"] == (0,)
