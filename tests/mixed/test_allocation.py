import itertools

import numpy as np
import pytest

from qbook.mixed import allocation


def every_assignment(layers, widths):
    return np.array(list(itertools.product(range(widths), repeat=layers)))


def best_by_brute_force(costs, budgets):
    """-> least cost over every assignment within the budgets, inf where none is."""
    layers, widths = costs.shape
    least = np.inf
    for choice in every_assignment(layers, widths):
        if all(use[np.arange(layers), choice].sum() <= limit for use, limit in budgets.values()):
            least = min(least, costs[np.arange(layers), choice].sum())
    return least


def example(layers, widths, seed):
    """Costs that fall, sizes that rise, with the width: integers, so that sums are exact."""
    rng = np.random.default_rng(seed)
    bits = np.arange(2, 2 + widths)
    counts = rng.integers(10, 1000, layers)
    # Four orders of magnitude, as errors of 2 to 8 bits have.
    slopes = rng.integers(1, 1000, (layers, 1))
    costs = slopes * 4.0**-bits * rng.uniform(0.5, 2, (layers, widths))
    size = counts[:, None] * bits
    bops = rng.integers(10, 1000, (layers, 1)) * bits * 8
    return costs, size, bops


@pytest.mark.parametrize(("layers", "widths"), [(1, 1), (1, 4), (3, 5), (5, 4), (8, 3)])
@pytest.mark.parametrize("seed", range(4))
def test_the_integer_programme_equals_trying_every_assignment(layers, widths, seed):
    costs, size, bops = example(layers, widths, seed)
    for share in (0.0, 0.1, 0.35, 0.6, 0.9, 1.0):
        limits = [
            int(use.min(1).sum() + share * (use.max(1).sum() - use.min(1).sum()))
            for use in (size, bops)
        ]
        # The second budget is looser by a bit, so that either may bind.
        budgets = {"bits": (size, limits[0]), "bops": (bops, int(1.1 * limits[1]))}
        chosen = allocation.allocate(costs, budgets)
        assert chosen.shape == (layers,)
        for use, limit in budgets.values():
            # Integers below 1e5: the solver's 1e-6 of an entry cannot hide one more.
            assert allocation.total(use, chosen) <= limit
        least = best_by_brute_force(costs, budgets)
        # HiGHS stops at an absolute gap of 1e-6 in costs scaled to at most 1.
        assert allocation.total(costs, chosen) <= least + 1e-6 * costs.max()


@pytest.mark.parametrize("seed", range(6))
def test_a_price_gives_the_best_point_of_the_convex_hull_and_the_programme_never_less(seed):
    costs, size, _ = example(5, 4, seed)
    choices = every_assignment(5, 4)
    points = np.array([(allocation.total(size, c), allocation.total(costs, c)) for c in choices])
    lowest, highest = points[:, 0].min(), points[:, 0].max()
    for limit in np.linspace(lowest, highest, 9).round():
        chosen = allocation.allocate_by_price(costs, size, limit)
        used, cost = allocation.total(size, chosen), allocation.total(costs, chosen)
        assert used <= limit
        # On the lower hull: no chord between two assignments passes below it.
        left, right = points[points[:, 0] <= used], points[points[:, 0] > used]
        for u, c in left:
            chord = c + (right[:, 1] - c) * (used - u) / (right[:, 0] - u)
            # Sums of five costs, interpolated: a few units of the last place of the largest.
            assert np.all(cost <= chord + 1e-12 * costs.max())
        exact = allocation.total(costs, allocation.allocate(costs, {"bits": (size, limit)}))
        assert exact <= cost + 1e-6 * costs.max()


@pytest.mark.parametrize("seed", range(4))
def test_a_price_is_exact_for_the_budget_that_it_spends(seed):
    costs, size, _ = example(7, 4, seed)
    for limit in np.linspace(size.min(1).sum(), size.max(1).sum(), 8):
        spent = allocation.total(size, allocation.allocate_by_price(costs, size, limit))
        chosen = allocation.allocate_by_price(costs, size, spent)
        assert allocation.total(size, chosen) == spent
        exact = allocation.allocate(costs, {"bits": (size, spent)})
        least = allocation.total(costs, exact)
        assert abs(allocation.total(costs, chosen) - least) <= 1e-6 * costs.max()


def test_the_chapters_example_where_the_price_leaves_a_sixth_of_the_loss_on_the_table():
    # Three layers of 2000, 1500 and 1500 weights at two or four bits, 2000 bytes in all.
    costs = np.array([[10.0, 0.0], [6.0, 0.0], [6.0, 0.0]])
    size = np.array([[2000], [1500], [1500]]) * [2, 4] / 8
    by_price = allocation.allocate_by_price(costs, size, 2000)
    exact = allocation.allocate(costs, {"bytes": (size, 2000)})
    assert by_price.tolist() == [1, 0, 0]
    assert exact.tolist() == [0, 1, 1]
    assert (allocation.total(costs, by_price), allocation.total(costs, exact)) == (12.0, 10.0)


def test_costs_that_differ_by_a_constant_per_layer_give_the_same_widths():
    costs, size, _ = example(6, 4, 1)
    shifted = costs - np.arange(6)[:, None]
    limit = size.mean(1).sum()
    assert np.array_equal(
        allocation.allocate(costs, {"bits": (size, limit)}),
        allocation.allocate(shifted, {"bits": (size, limit)}),
    )


def test_without_a_budget_and_with_a_wide_one_every_layer_takes_its_cheapest():
    costs = np.array([[3.0, 1.0, 2.0], [0.0, -1.0, -1.5]])
    use = np.ones((2, 3))
    assert allocation.allocate(costs, {}).tolist() == [1, 2]
    assert allocation.allocate(costs, {"use": (use, 2)}).tolist() == [1, 2]
    assert allocation.allocate_by_price(costs, use, 2).tolist() == [1, 2]


def test_a_budget_too_small_is_refused_with_the_smallest_possible():
    costs, size, _ = example(4, 3, 0)
    smallest = size.min(1).sum()
    message = f"bytes={smallest - 1} .* smallest possible is {smallest}"
    with pytest.raises(ValueError, match=message):
        allocation.allocate(costs, {"bytes": (size, smallest - 1)})
    with pytest.raises(ValueError, match=f"smallest possible is {smallest}"):
        allocation.allocate_by_price(costs, size, smallest - 1)
    assert allocation.allocate(costs, {"bytes": (size, smallest)}).tolist() == [0, 0, 0, 0]
    assert allocation.allocate_by_price(costs, size, smallest).tolist() == [0, 0, 0, 0]


def test_budgets_that_only_clash_together_are_refused_with_what_the_others_leave():
    # The width that is small is slow: 1 + 1 bytes take 8 units of time, one of 4 bytes saves 3.
    size, time = np.array([[1, 4], [1, 4]]), np.array([[4, 1], [4, 1]])
    with pytest.raises(ValueError, match="the smallest size possible is 5, not 4"):
        allocation.allocate(np.zeros((2, 2)), {"size": (size, 4), "time": (time, 5)})


def test_shapes_and_values_that_no_table_has_are_refused():
    with pytest.raises(ValueError, match=r"give \[layers, widths\]"):
        allocation.allocate(np.ones(3), {})
    with pytest.raises(ValueError, match=r"bytes has shape \(2, 2\); the costs have \(2, 3\)"):
        allocation.allocate(np.ones((2, 3)), {"bytes": (np.ones((2, 2)), 9)})
    with pytest.raises(ValueError, match="NaN or infinity"):
        allocation.allocate(np.array([[np.nan, 1.0]]), {})
