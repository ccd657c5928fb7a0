import itertools

import pytest

from qbook.lab import timing
from qbook.lab.timing import Group, Target


class Clock:
    """A clock that the cases themselves advance."""

    def __init__(self):
        self.now = 0.0
        self.calls = []

    def case(self, name, seconds):
        def call():
            self.now += seconds
            self.calls.append(name)

        return call


def measured(speeds, **options):
    clock = Clock()
    cases = {name: clock.case(name, seconds) for name, seconds in speeds.items()}
    return clock, timing.interleave(cases, clock=lambda: clock.now, seconds=1e-6, **options)


def test_a_ratio_is_that_of_the_times():
    _, timings = measured({"slow": 3.0, "fast": 1.5})
    assert timings["fast"].seconds == pytest.approx(1.5, rel=1e-12)
    group = Group("g", dict.fromkeys(timings))
    assert timing.ratio(group, timings, Target("fast", "slow", 1)) == pytest.approx(2, rel=1e-12)


def test_cases_take_turns_and_every_other_round_is_reversed():
    clock, _ = measured({"a": 1.0, "b": 1.0}, rounds=3)
    # Warm-up and calibration: a a b b; then a b, b a, a b.  Written as runs of one name:
    assert [name for name, _ in itertools.groupby(clock.calls)] == list("ababab")


def test_work_of_different_size_is_compared_by_operation_or_byte():
    _, timings = measured({"kernel": 2.0, "peak": 1.0})
    group = Group("g", timings, operations={"kernel": 8, "peak": 5}, bytes_moved=6)
    ratio = timing.ratio(group, timings, Target("kernel", "peak", 0.8, "operation"))
    assert ratio == pytest.approx(8 / 2 / (5 / 1), rel=1e-12)
    by_byte = timing.ratio(group, timings, Target("kernel", "peak", 0.8, "byte"))
    assert by_byte == pytest.approx(0.5, rel=1e-12)


def test_unknown_work_is_refused():
    _, timings = measured({"kernel": 2.0, "peak": 1.0})
    group = Group("g", timings, operations={"kernel": 8})
    with pytest.raises(ValueError, match="g: no operations are known for Target"):
        timing.ratio(group, timings, Target("kernel", "peak", 1, "operation"))


def test_the_table_names_every_case_with_its_rates():
    _, timings = measured({"torch": 2.0, "qbook": 1.0})
    text = timing.table(Group("product", timings, operations=4e9), timings)
    assert text.splitlines()[0] == "product"
    assert "2.00 x" in text
    assert "4.0 GOP/s" in text


def test_a_clock_that_stands_still_and_too_few_rounds_are_refused():
    with pytest.raises(ValueError, match="a took no time by this clock"):
        timing.interleave({"a": lambda: None}, clock=lambda: 1.0)
    with pytest.raises(ValueError, match="1 cases in rounds=2; pass one case and 3 rounds"):
        timing.interleave({"a": lambda: None}, rounds=2)
