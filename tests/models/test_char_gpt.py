import json
import math

import pytest
import torch

from qbook.data import available, how_to_get
from qbook.models import char_gpt

NEEDS = "tinyshakespeare.txt"
needs_text = pytest.mark.skipif(not available(NEEDS), reason=how_to_get(NEEDS))


def test_no_character_sees_what_follows_it():
    """Causality: a change at position 40 leaves all logits before it as they were."""
    model = char_gpt.load()
    ids = torch.randint(65, (2, 64), generator=torch.Generator().manual_seed(0))
    other = ids.clone()
    other[:, 40] = (other[:, 40] + 1) % 65
    with torch.no_grad():
        before, after = model(ids), model(other)
    # Two batches of one shape: the same sums in the same order.
    assert torch.equal(before[:, :40], after[:, :40])
    assert not torch.equal(before[:, 40:], after[:, 40:])


def test_its_size_is_what_the_book_says():
    model = char_gpt.load()
    # Per block 12 d^2 + 13 d (biases 9 d, norms 4 d); embeddings 65 d + 128 d; norm 2 d; head.
    d = 128
    expected = 4 * (12 * d**2 + 13 * d) + 193 * d + 2 * d + 65 * d + 65
    assert sum(p.numel() for p in model.parameters()) == expected
    assert char_gpt.WEIGHTS.stat().st_size < 3e6


def test_text_survives_coding_and_strangers_are_refused():
    text = "To be, or not to be:\nthat is the question"
    assert char_gpt.decode(char_gpt.encode(text)) == text
    with pytest.raises(ValueError, match="'é' is not among the 65 characters"):
        char_gpt.encode("café")


def test_a_text_beyond_the_context_is_refused():
    with pytest.raises(ValueError, match="129 characters exceed the context of 128"):
        char_gpt.load()(torch.zeros(1, 129, dtype=torch.int64))


@needs_text
def test_the_shipped_weights_have_the_loss_that_their_log_states():
    log = json.loads(char_gpt.LOG.read_text())
    found = char_gpt.cross_entropy(char_gpt.load(), char_gpt.windows("validation"))
    # The log rounds to 4 digits; sums in float32 differ by less on other processors.
    assert abs(found - log["validation_cross_entropy"]) < 2e-3
    # Far below a uniform guess, and below the entropy of single characters (3.3 nats).
    assert found < 1.6 < math.log(65)


@needs_text
def test_training_and_validation_do_not_overlap():
    train, validation = char_gpt.windows("train"), char_gpt.windows("validation")
    assert train.shape[1] == validation.shape[1] == 129
    # The windows overlap by the one character that is target here and input there.
    assert torch.equal(train[0, -1:], train[1, :1])
    text = 0.9 * 1_115_394
    assert len(train) == int(text - 1) // 128
    drawn = char_gpt.windows("train", 5, seed=3)
    assert torch.equal(drawn, char_gpt.windows("train", 5, seed=3))
    assert not torch.equal(drawn, char_gpt.windows("train", 5, seed=4))
    for split, count, message in [
        ("test", 3, "choose 'train' or"),
        ("train", None, "pass a count"),
    ]:
        with pytest.raises(ValueError, match=message):
            char_gpt.windows(split, count, seed=1)


@needs_text
def test_a_few_steps_of_training_lower_the_loss():
    losses = []
    state = torch.get_rng_state()
    char_gpt.train(steps=12, report=lambda step, loss: losses.append(loss))
    assert torch.equal(torch.get_rng_state(), state)
    # A fresh model guesses: log 65 = 4.17 nats; twelve steps of warm-up must show.
    assert abs(losses[0] - math.log(65)) < 0.5
    assert losses[-1] < losses[0] - 0.2


def test_a_sample_continues_its_prompt():
    model = char_gpt.load()
    text = char_gpt.sample(model, "ROMEO:", 30)
    assert text.startswith("ROMEO:")
    assert len(text) == 36
    assert text == char_gpt.sample(model, "ROMEO:", 30)
