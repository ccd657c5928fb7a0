import math

import pytest
import torch

from qbook.experiments import width_search


@pytest.fixture(scope="module")
def trained():
    return width_search.network(0)


@pytest.fixture(scope="module")
def losses(trained):
    """Every assignment's training cross-entropy."""
    train, _ = width_search.images()
    w, b = trained
    return {
        a: torch.tensor(width_search.scores(width_search.rounded(w, a), b, train)[0])
        for a in width_search.ASSIGNMENTS
    }


def test_size_and_objective_by_hand():
    # 64 * 32 * 2 + 32 * 32 * 4 + 32 * 10 * 8
    assert width_search.size((2, 4, 8)) == 10752
    task, bits = torch.tensor(0.5).double(), torch.tensor(10752.0).double()
    by_eta = width_search.objective("EdMIPS", task, bits, 0.01)
    by_gamma = width_search.objective("DNAS", task, bits, 2)
    # Numbers below 1, in float64.
    assert abs(by_eta.item() - (0.5 + 0.10752)) <= 1e-12
    assert abs(by_gamma.item() - 0.5 * (math.log(10752) / math.log(27136)) ** 2) <= 1e-12


@pytest.mark.parametrize("method", ["DNAS", "EdMIPS"])
def test_without_a_price_a_search_finds_the_best_of_all_assignments(method, trained, losses):
    found = width_search.search(method, 0, *trained, 0, steps=100)
    assert found.widths == (8, 8, 8)
    assert found.widths == width_search.best(method, 0, losses)
    # float64 against its rounding to float32 above.
    assert abs(found.chosen - losses[found.widths].item()) <= 1e-7


@pytest.mark.parametrize(
    ("method", "price", "widths"), [("DNAS", 12, (4, 4, 4)), ("EdMIPS", 3, (2, 2, 2))]
)
def test_at_a_price_a_search_finds_the_best_of_all_assignments(
    method, price, widths, trained, losses
):
    found = width_search.search(method, price, *trained, 0, steps=100)
    assert width_search.best(method, price, losses) == widths
    assert found.widths == widths


def test_weights_learn_only_where_they_should_and_arguments_stay(trained):
    w, b = trained
    copies = [v.clone() for v in (*w, *b)]
    state = torch.random.get_rng_state()
    width_search.search("DNAS", 2, w, b, 0, steps=3)
    width_search.search_and_train("DNAS", 2, w, b, 0, steps=3)
    width_search.train(w, b, (2, 4, 8), 0, steps=3)
    assert all(torch.equal(v, c) for v, c in zip((*w, *b), copies, strict=True))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_training_at_two_bits_regains_what_rounding_lost(trained, losses):
    train, _ = width_search.images()
    w, b = width_search.train(*trained, (2, 2, 2), 0, steps=30)
    after, _ = width_search.scores(width_search.rounded(w, (2, 2, 2)), b, train)
    assert after < losses[2, 2, 2] / 2
