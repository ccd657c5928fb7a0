import pytest
import torch

from qbook.data import available, how_to_get
from qbook.experiments import eight_bit_adam, from_scratch, recorded
from qbook.models import char_gpt

NEEDS = "tinyshakespeare.txt"
needs_text = pytest.mark.skipif(not available(NEEDS), reason=how_to_get(NEEDS))
TOY = {"steps": 2, "batch_size": 2, "judge": lambda model: model.norm.bias.sum().item()}


@needs_text
def test_in_float32_the_experiment_is_from_scratchs_training():
    mine = eight_bit_adam.run("float32", **TOY)[0]
    plain = from_scratch.run(seeds=(0,), **TOY)[0]
    assert mine["training"] == plain["training"]
    assert mine["validation"] == plain["validation"]
    count = sum(p.numel() for p in char_gpt.CharGPT().parameters())
    assert mine["bytes"] == {"first": 4 * count, "second": 4 * count}


@needs_text
def test_eight_bits_follow_float32_at_a_quarter_of_the_bytes():
    exact, ours = (eight_bit_adam.run(name, **TOY)[0] for name in ("float32", "8-bit"))
    # Two steps of the warm-up: the losses are those of the first weights.
    assert abs(exact["training"][-1][1] - ours["training"][-1][1]) <= 0.01
    assert sum(ours["bytes"].values()) <= 0.3 * sum(exact["bytes"].values())
    assert ours["zeros"]["second"] <= 0.01


def formats(name):
    """Of each parameter with moments: its name and the names of the two formats."""
    model = char_gpt.CharGPT()
    optimizer = eight_bit_adam.make_optimizer(name)(model)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    return {
        n: tuple(optimizer.state[p][k].fmt and optimizer.state[p][k].fmt.name for k in STATES)
        for n, p in model.named_parameters()
    }


STATES = ("first", "second")
EIGHT, EXACT = ("dynamic", "unsigned dynamic"), (None, None)


def test_matrices_are_in_eight_bits_embeddings_only_where_the_arm_says_so_vectors_never():
    ours, all_in = formats("8-bit"), formats("embeddings too")
    assert ours["head.weight"] == ours["blocks.0.up.weight"] == EIGHT
    assert ours["blocks.0.up.bias"] == ours["norm.weight"] == EXACT
    assert ours["embedding.weight"] == ours["position.weight"] == EXACT
    assert all_in["embedding.weight"] == all_in["position.weight"] == EIGHT
    assert {n for n in ours if ours[n] != all_in[n]} == {"embedding.weight", "position.weight"}
    assert formats("linear")["head.weight"] == ("INT8", "UINT8")


def test_weight_decay_stays_on_matrices_and_no_parameter_is_lost_or_taken_twice():
    model = char_gpt.CharGPT()
    groups = eight_bit_adam.make_optimizer("8-bit")(model).param_groups
    found = [p for group in groups for p in group["params"]]
    assert {id(p) for p in found} == {id(p) for p in model.parameters()}
    assert len(found) == len(list(model.parameters()))
    for group in groups:
        for p in group["params"]:
            assert group["weight_decay"] == (char_gpt.WEIGHT_DECAY if p.ndim == 2 else 0)
        assert group["betas"] == (0.9, 0.99)


@needs_text
def test_a_training_that_ends_in_nan_says_at_which_step():
    # A learning rate that throws the weights to 1e19: their products leave float32.
    row = eight_bit_adam.run("float32", learning_rate=1e21, **(TOY | {"steps": 4}))[0]
    assert row["validation"] is None
    assert row["training"] == []
    assert row["steps"] == 1


def test_every_arm_is_recorded_with_the_steps_it_made():
    record = recorded.load("eight_bit_adam")
    assert set(record["results"]) == set(eight_bit_adam.ARMS)
    for rows in record["results"].values():
        assert [row["seed"] for row in rows] == list(eight_bit_adam.SEEDS)
        for row in rows:
            assert row["validation"] is None or row["steps"] == eight_bit_adam.RECIPE["steps"]


def test_an_unknown_arm_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"FP4.*8-bit"):
        eight_bit_adam.run("FP4")
