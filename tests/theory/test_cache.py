"""Oracles: caches written another way (distances, lists), and every small loop there is."""

import itertools

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from qbook.theory import cache


def missed_by_distance(trace, lines):
    """Mattson's rule: a hit where fewer than ``lines`` other lines came since the last use."""
    missed = []
    for i, line in enumerate(trace):
        before = [j for j in range(i) if trace[j] == line]
        missed.append(not before or len(set(trace[before[-1] + 1 : i])) >= lines)
    return missed


def missed_by_ages(trace, sets, ways):
    """Sets as arrays of lines and of the times of their last use; -1: empty."""
    held, used = np.full((sets, ways), -1), np.full((sets, ways), -1)
    missed = []
    for time, line in enumerate(trace):
        row = line % sets
        found = np.flatnonzero(held[row] == line)
        missed.append(not found.size)
        way = found[0] if found.size else used[row].argmin()
        held[row, way], used[row, way] = line, time
    return missed


def least_misses(trace, lines):
    """The fewest misses of any choice of victims: all sets of held lines that can be reached."""
    states = {frozenset(): 0}
    for line in trace:
        following = {}
        for held, count in states.items():
            if line in held:
                reached = [(held, count)]
            elif len(held) < lines:
                reached = [(held | {line}, count + 1)]
            else:
                reached = [(held - {out} | {line}, count + 1) for out in held]
            for state, total in reached:
                following[state] = min(total, following.get(state, total))
        states = following
    return min(states.values())


@pytest.mark.parametrize("lines", range(1, 5))
def test_every_short_trace_misses_where_the_distance_says(lines):
    for trace in itertools.product(range(4), repeat=5):
        assert cache.misses(trace, lines).tolist() == missed_by_distance(trace, lines)


@pytest.mark.parametrize(("sets", "ways"), [(1, 1), (1, 7), (3, 1), (4, 2), (5, 3), (2, 8)])
def test_sets_miss_as_another_simulation_does(sets, ways):
    rng = np.random.default_rng(sets + 10 * ways)
    trace = rng.integers(0, 3 * sets * ways, 700)
    found = cache.misses(trace, sets * ways, ways=ways)
    assert_array_equal(found, missed_by_ages(trace, sets, ways))
    assert 0 < found.sum() < len(trace)


@pytest.mark.parametrize("lines", range(1, 13))
def test_a_loop_hits_always_or_never(lines):
    for count in range(1, 14):
        passes = cache.misses(cache.stream(count, 4), lines).reshape(4, count)
        assert passes[0].all()
        assert (passes[1:] == (count > lines)).all()
        assert cache.misses_per_pass(count, lines) == passes[1:].sum(axis=1)[0]


@pytest.mark.parametrize(("sets", "ways"), [(1, 4), (4, 1), (3, 2), (4, 3)])
def test_in_sets_the_step_is_a_ramp(sets, ways):
    lines = sets * ways
    for count in range(1, 4 * lines):
        passes = cache.misses(cache.stream(count, 3), lines, ways=ways).reshape(3, count)
        per_pass = passes[1:].sum(axis=1)
        assert (per_pass == cache.misses_per_pass(count, lines, ways)).all()
        if lines <= count <= lines + sets:
            assert per_pass[0] == (count - lines) * (ways + 1)


def test_a_loop_that_turns_round_misses_only_what_is_too_much():
    for lines, count in itertools.product(range(1, 9), range(1, 12)):
        there = np.arange(count)
        trace = np.concatenate([there, there[::-1]] * 2)
        passes = cache.misses(trace, lines).reshape(4, count).sum(axis=1)
        assert (passes[1:] == max(0, count - lines)).all()


def test_no_choice_of_victims_beats_the_newest_in_a_loop():
    for lines, count in itertools.product(range(1, 5), range(2, 6)):
        trace = cache.stream(count, 5)
        newest = cache.misses(trace, lines, victim=cache.newest)
        assert newest.sum() == least_misses(trace, lines)


@pytest.mark.parametrize(("count", "lines"), [(5, 4), (9, 4), (7, 1), (33, 32), (50, 7)])
def test_the_newest_misses_at_the_best_rate_exactly(count, lines):
    # Every line that is not held is met once in count - 1 accesses.
    missed = cache.misses(cache.stream(count, count), lines, victim=cache.newest)[count:]
    assert missed[: (count - 1) ** 2].sum() == (count - lines) * (count - 1)
    assert cache.best_rate(count, lines) == (count - lines) / (count - 1)


@pytest.mark.parametrize("count", [150, 192, 256, 512])
def test_random_victims_miss_at_the_rate_of_the_estimate(count):
    rng = np.random.default_rng(0)
    missed = cache.misses(cache.stream(count, 80), 128, victim=cache.at_random(rng))
    # 60 passes of which each has at most 0.5 / sqrt(count) of noise, and the mean field's own
    # error of order 1 / lines: 0.02 is thrice both together.
    found = missed.reshape(80, count)[20:].mean()
    assert abs(found - cache.random_rate(count, 128)) <= 0.02
    assert cache.best_rate(count, 128) < found < 1


def test_the_rates_are_zero_where_the_loop_fits():
    for count in (1, 7, 8):
        assert cache.random_rate(count, 8) == cache.best_rate(count, 8) == 0
    assert cache.random_rate(9, 8) > cache.best_rate(9, 8) > 0


def test_the_rate_of_random_victims_solves_its_equation():
    for count, lines in [(257, 256), (300, 256), (4096, 256), (3, 1)]:
        rate = cache.random_rate(count, lines)
        # The last step was below 1e-15 and every step shrinks by a factor of 1 - 1 / 512 or less.
        assert abs(1 - (1 - 1 / lines) ** (rate * (count - 1)) - rate) <= 1e-12
        assert 0 < rate <= 1


def test_kinds_add_up_and_name_the_cure():
    fits = np.tile(np.arange(0, 8 * 64, 64), 5)
    # Eight lines that share a set of four: a cache of 64 lines would do, in one set.
    assert cache.kinds(fits, 64, 4) == (8, 0, 32)
    # One line more than there is room: in one set all miss, in sets of one only two do.
    assert cache.kinds(cache.stream(9, 5), 8, 1) == (9, 36, -28)
    trace = np.random.default_rng(0).integers(0, 90, 999)
    assert sum(cache.kinds(trace, 32, 2)) == cache.misses(trace, 32, ways=2).sum()


def test_lines_hold_as_many_numbers_as_fit():
    for bits in (1, 2, 4, 8, 16, 32):
        for numbers in (0, 1, 63, 64, 65, 1000):
            touched = {number * bits // 512 for number in range(numbers)}
            assert cache.lines_of(numbers, bits) == len(touched)


@pytest.mark.parametrize(("lines", "ways"), [(8, 3), (8, 0), (8, 16), (0, 1)])
def test_sets_of_unequal_size_are_refused(lines, ways):
    with pytest.raises(ValueError, match=f"lines={lines} are no sets of ways={ways}"):
        cache.misses([0], lines, ways=ways)
