"""Timing side by side: what counts is a ratio, measured in one run, in turns.

Cases take turns, in reversed order every other round, so that a slow minute of a shared machine
falls on all of them; a case is repeated within its turn until that lasts long enough.
With one thread the clock is the process's own time, which stands still while others run.  Book: 6.2
"""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Target:
    """``case`` must have ``at_least`` times the rate of ``against``, another case of the group.

    per:  "call", or "operation" or "byte" where a call of the one does other work than of the other
    """

    case: str
    against: str
    at_least: float
    per: str = "call"


@dataclass(frozen=True)
class Group:
    """What is timed together.

    cases:        name -> callable without arguments, on prepared data; the first is the baseline
    operations:   of one call: a number for all cases, or name -> number
    bytes_moved:  likewise
    unit:         what ``operations`` counts, such as tokens
    """

    name: str
    cases: Mapping[str, Callable]
    operations: float | Mapping | None = None
    bytes_moved: float | Mapping | None = None
    targets: tuple[Target, ...] = field(default=())
    unit: str = "operations"

    def work(self, case, per):
        """-> operations or bytes of one call of a case, None where it is not known; 1 per call"""
        if per == "call":
            return 1
        work = self.operations if per == "operation" else self.bytes_moved
        return work.get(case) if isinstance(work, Mapping) else work


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: median and quartiles over the rounds, and each round's."""

    seconds: float
    quartiles: tuple
    rounds: tuple


def interleave(cases, *, rounds=9, seconds=0.03, clock=time.perf_counter):
    """name -> callable, each called for about ``seconds`` in each round -> name -> ``Timing``

    One call before the first turn warms up and compiles.
    Raises ValueError for no cases, fewer than 3 rounds, or a clock that does not advance.
    """
    if not cases or rounds < 3:
        raise ValueError(
            f"{len(cases)} cases in rounds={rounds}; pass one case and 3 rounds or more"
        )
    repeats = {name: _repeats(case, seconds) for name, case in cases.items()}
    taken = {name: [] for name in cases}
    for turn in range(rounds):
        for name in list(cases)[:: 1 if turn % 2 == 0 else -1]:
            case, count = cases[name], repeats[name]
            start = clock()
            for _ in range(count):
                case()
            taken[name].append((clock() - start) / count)
    return {name: _summary(name, times) for name, times in taken.items()}


def ratio(group, timings, target):
    """The rate of ``target.case`` over that of ``target.against``: median of the rounds' ratios.

    Raises ValueError where the work of a case is not known.
    """
    works = [group.work(name, target.per) for name in (target.case, target.against)]
    if None in works:
        raise ValueError(f"{group.name}: no {target.per}s are known for {target}")
    pairs = zip(timings[target.case].rounds, timings[target.against].rounds, strict=True)
    return works[0] / works[1] * statistics.median(other / own for own, other in pairs)


def table(group, timings):
    """-> text: one line a case, with its rates and its speed against the first"""
    baseline = next(iter(group.cases))
    width = max(len(name) for name in group.cases)
    lines = [group.name]
    for name, timing in timings.items():
        low, high = (1e3 * q for q in timing.quartiles)
        line = f"  {name:{width}} {1e3 * timing.seconds:10.4f} ms ({low:.4f} to {high:.4f})"
        line += f" {ratio(group, timings, Target(name, baseline, 0)):8.2f} x"
        for per, unit in (("operation", "GOP/s"), ("byte", "GB/s")):
            work = group.work(name, per)
            if work is not None and per == "operation" and group.unit != "operations":
                line += f" {work / timing.seconds:9.0f} {group.unit}/s"
            elif work is not None:
                line += f" {work / timing.seconds / 1e9:9.1f} {unit}"
        lines.append(line)
    return "\n".join(lines)


def _repeats(case, seconds):
    case()
    start = time.perf_counter()
    case()
    return max(1, round(seconds / max(time.perf_counter() - start, 1e-7)))


def _summary(name, times):
    if not min(times) > 0:
        raise ValueError(f"{name} took no time by this clock; let each turn last longer")
    quartiles = statistics.quantiles(times, n=4)
    return Timing(statistics.median(times), (quartiles[0], quartiles[2]), tuple(times))
