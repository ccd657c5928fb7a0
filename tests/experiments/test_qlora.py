import pytest
import torch

from qbook.data import available, how_to_get
from qbook.experiments import qlora
from qbook.llm import lora
from qbook.models import char_gpt

NEEDS = ("tinyshakespeare.txt", "wikitext-2-valid.txt", "wikitext-2-test.txt")
MISSING = [name for name in NEEDS if not available(name)]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=" ".join(map(how_to_get, MISSING)))
NF4_ARM = "adapters, NF4 base"
SHORT = {"rates": (1e-2,), "steps": 6, "scanned_steps": 1, "batch_size": 2, "judged": 6}


def test_adapters_on_four_bits_learn_and_the_memory_is_what_formulas_say():
    (row,) = qlora.run({NF4_ARM: qlora.ARMS[NF4_ARM]}, (0,), **SHORT)
    assert row["after"][0] < row["before"]
    assert row["rate"] == 1e-2
    model = lora.attach(char_gpt.load(), qlora.RANK)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    memory = row["memory"]
    assert memory["trained"] == memory["gradients"] == 4 * trained
    assert memory["optimizer"] == 2 * 4 * trained
    own = [p for p in model.parameters() if not p.requires_grad] + list(model.buffers())
    assert memory["frozen"] == sum(t.numel() * t.element_size() for t in own)
    assert memory["kept for backward"] > 0


def test_the_best_of_several_rates_is_taken_and_every_arm_sees_the_same_batches():
    options = SHORT | {"rates": (1e-6, 1e-2), "scanned_steps": 3}
    same = {label: qlora.ARMS["adapters, float32 base"] for label in ("one", "other")}
    one, other = qlora.run(same, (0,), **options)
    assert one["rate"] == 1e-2
    assert one["scanned"][0][1] > one["scanned"][1][1]
    assert one["after"] == other["after"]


def test_judged_text_is_not_learnt_from():
    learnt, judged = qlora.text("valid"), qlora.text("test")
    assert set(char_gpt.decode(judged[:5000])) <= set(char_gpt.ALPHABET)
    assert not torch.equal(learnt[:5000], judged[:5000])
    assert qlora.windows(judged, 3).shape == (3, 129)


def test_integers_have_no_more_levels_than_their_bits():
    linear = qlora.integers(2)(torch.nn.Linear(128, 3))
    for group in linear.weight.reshape(-1, 64):
        assert len(group.unique()) <= 4
