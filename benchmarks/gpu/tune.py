"""Which tiles are fastest: every candidate of a room at the timed shapes, checked, then timed."""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from benchmarks.gpu import ahead, clock, compare

MOST_SHOWN = 8


@dataclass(frozen=True)
class Problem:
    """name:   the shape
    cases:     ``Config`` -> call() -> y; the first is what the room's table chooses today
    check:     check(found=y) raises ValueError where y is wrong
    """

    name: str
    cases: Mapping[object, Callable]
    check: Callable


def rank(problem, device):
    """-> list of (config, seconds), fastest first, and config -> why it is out"""
    right, wrong = {}, {}
    ahead.rehearse(problem.cases.values(), device)
    for config, case in problem.cases.items():
        try:
            with compare.poisoned():
                found = case()
            problem.check(found=found)
        # Too much shared memory, or no such instruction: the compiler's errors have many types.
        except Exception as error:
            wrong[config] = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        else:
            right[config] = case
    if not right:
        return [], wrong
    timings, _ = clock.interleave(right, device, rounds=7)
    seconds = [(config, found.seconds) for config, found in timings.items()]
    return sorted(seconds, key=operator.itemgetter(1)), wrong


def report(problem, ranking, wrong):
    """-> text: the ranking, how the present choice fares, the line to paste"""
    chosen = next(iter(problem.cases))
    lines = [f"{problem.name}: {len(ranking)} of {len(problem.cases)} candidates run and are right"]
    for place, (config, seconds) in enumerate(ranking):
        if place < MOST_SHOWN or config == chosen:
            mark = "  <- chosen today" if config == chosen else ""
            lines.append(f"  {place + 1:3}. {1e6 * seconds:9.2f} us  {config}{mark}")
    lines += [f"  out: {config}: {why[:140]}" for config, why in wrong.items()]
    if ranking:
        today = dict(ranking).get(chosen)
        gain = f", {today / ranking[0][1]:.2f} x today's" if today else ", today's does not run"
        lines.append(f"  paste for {problem.name}{gain}:\n    {ranking[0][0]!r},")
    return "\n".join(lines)
