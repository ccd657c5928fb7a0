import pytest
import torch

from qbook.data import available, how_to_get
from qbook.experiments import fp8_lm_training, from_scratch, recorded
from qbook.models import char_gpt
from qbook.training.fp8_linear import Fp8Linear

NEEDS = "tinyshakespeare.txt"
needs_text = pytest.mark.skipif(not available(NEEDS), reason=how_to_get(NEEDS))
TOY = {"steps": 3, "batch_size": 2, "judge": lambda model: model.norm.bias.sum().item()}


@needs_text
def test_in_float32_the_experiment_is_from_scratchs_training():
    mine = fp8_lm_training.run("float32", **TOY)[0]
    plain = from_scratch.run(seeds=(0,), **TOY)[0]
    assert mine["training"] == plain["training"]
    assert mine["validation"] == plain["validation"]
    count = sum(p.numel() for p in char_gpt.CharGPT().parameters())
    assert sum(mine["bytes"].values()) >= 16 * count


@needs_text
def test_fp8_lm_follows_float32_and_without_scales_the_states_are_zeros():
    exact, ours, bare = (
        fp8_lm_training.run(name, **TOY)[0] for name in ("float32", "FP8-LM", "no scales")
    )
    # Three steps of the warm-up: the losses are those of the first weights, to FP8's noise.
    assert abs(exact["training"][-1][1] - ours["training"][-1][1]) <= 0.05
    assert ours["zeros"]["gradient"] <= 0.05
    assert bare["zeros"]["gradient"] >= 0.5
    assert bare["zeros"]["second"] >= 0.5
    assert sum(ours["bytes"].values()) < 6.01 / 16 * sum(exact["bytes"].values())


def test_all_linears_but_the_head_multiply_in_fp8_and_the_weights_stay():
    model = char_gpt.load()
    converted = fp8_lm_training.convert(model)
    kinds = {
        name: type(m) for name, m in converted.named_modules() if isinstance(m, torch.nn.Linear)
    }
    assert kinds.pop("head") is torch.nn.Linear
    assert set(kinds.values()) == {Fp8Linear}
    assert len(kinds) == 24
    for a, b in zip(model.parameters(), converted.parameters(), strict=True):
        assert torch.equal(a, b)


def test_every_arm_is_recorded_with_its_validation_loss():
    results = recorded.load("fp8_lm_training")["results"]
    assert set(results["short"]) == set(fp8_lm_training.ARMS)
    rows = results["long"][fp8_lm_training.LONG]
    assert [row["seed"] for row in rows] == list(from_scratch.SEEDS)
    assert all(row["training"][-1][0] == from_scratch.RECIPE["steps"] for row in rows)


@needs_text
def test_a_training_that_ends_in_nan_says_at_which_step():
    # A learning rate that throws the weights to 1e19: their products leave float32.
    row = fp8_lm_training.run("float32", learning_rate=1e21, **TOY)[0]
    assert row["validation"] is None
    assert row["training"] == []
    assert row["steps"] == 1


def test_an_unknown_arm_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"FP4.*FP8-LM"):
        fp8_lm_training.run("FP4")
