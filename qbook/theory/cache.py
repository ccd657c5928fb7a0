"""Caches, exactly: which accesses of a trace miss, and how many in a loop over an array.

A trace is an array of line numbers.  The weights of a model, read once a token, are the trace
0, 1, ... W - 1, over and over: with the least recently used line evicted it hits always or never.

Mattson et al. 1970, IBM Systems Journal 9(2) (least recently used); Hill and Smith 1989, IEEE
Trans. Computers 38(12) (compulsory, capacity and conflict misses).  Book: 6.2.2
"""

import itertools
from collections import OrderedDict, namedtuple

import numpy as np

# Bytes that move together, on most processors of today.
LINE = 64
Kinds = namedtuple("Kinds", "compulsory capacity conflict")


def oldest(cached):
    """The line that was used least recently; cached: keys in the order of their last use."""
    return next(iter(cached))


def newest(cached):
    """The line that was used last: the best choice for a loop, see ``best_rate``."""
    return next(reversed(cached))


def at_random(rng):
    """-> a choice among all lines alike, by a numpy.random.Generator"""
    return lambda cached: next(itertools.islice(cached, int(rng.integers(len(cached))), None))


def misses(trace, lines, *, ways=None, victim=oldest):
    """trace: integers [n] -> bool [n], True where the line must be fetched

    lines:   that the cache holds, in S = lines / ways sets; line l belongs to set l mod S
    ways:    lines of a set; None: all, the cache is fully associative
    victim:  what a full set gives up: ``oldest``, ``newest`` or ``at_random(rng)``
    Raises ValueError unless ways divides lines.
    """
    ways = lines if ways is None else ways
    if not 1 <= ways <= lines or lines % ways:
        raise ValueError(f"lines={lines} are no sets of ways={ways}; choose a divisor")
    sets = [OrderedDict() for _ in range(lines // ways)]
    missed = np.zeros(len(trace), bool)
    for i, line in enumerate(np.asarray(trace).tolist()):
        cached = sets[line % len(sets)]
        if line in cached:
            cached.move_to_end(line)
            continue
        missed[i] = True
        if len(cached) == ways:
            del cached[victim(cached)]
        cached[line] = None
    return missed


def kinds(trace, lines, ways):
    """Misses of the least recently used, by what would have spared them -> ``Kinds`` of counts

    compulsory: the first touch of a line, no cache of any size
    capacity:   the others in a fully associative cache of as many lines: a larger one
    conflict:   what sets of ``ways`` add, less than 0 where they happen to do better
    """
    first = len(np.unique(trace))
    full = int(misses(trace, lines).sum())
    return Kinds(first, full - first, int(misses(trace, lines, ways=ways).sum()) - full)


def stream(count, passes):
    """Lines 0 ... count - 1 in turn, ``passes`` times -> int [count * passes]"""
    return np.tile(np.arange(count), passes)


def lines_of(numbers, bits, line=LINE):
    """Lines that hold so many packed numbers of ``bits``, from the start of one on."""
    return -(-numbers * bits // (8 * line))


def misses_per_pass(count, lines, ways=None):
    """Of ``stream`` with the least recently used evicted, from the second pass on -> int

    A set that gets as many lines as it has ways, or fewer, keeps them; one that gets more always
    evicts the line that is needed next.
    """
    sets = lines // (lines if ways is None else ways)
    # count mod sets of the sets get one line more than the others.
    fewer, longer = divmod(count, sets)
    lost = longer * (fewer + 1) if (fewer + 1) * sets > lines else 0
    return lost + ((sets - longer) * fewer if fewer * sets > lines else 0)


def best_rate(count, lines):
    """Misses per access of ``stream`` that no choice of victims can beat, fully associative."""
    return max(0.0, (count - lines) / (count - 1)) if count > 1 else 0.0


def random_rate(count, lines):
    """Misses per access of ``stream`` with random victims, after many passes: a mean-field estimate

    A line is met again after count - 1 other accesses; if a share m of them misses, it survives
    with the probability (1 - 1 / lines)^(m (count - 1)), which must be 1 - m.
    """
    if count <= lines:
        return 0.0
    rate = 1.0
    # From above to the largest solution, at least by a constant factor a step where count > lines.
    for _ in range(10_000):
        following = 1 - (1 - 1 / lines) ** (rate * (count - 1))
        if rate - following < 1e-15:
            break
        rate = following
    return rate
