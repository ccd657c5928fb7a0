"""Least MSE, fast: float32 sums rule out nearly all factors, float64 decides among the rest.

The search of ``ranges.mse`` (Choukroun et al. 2019, arXiv:1902.06822), and its answer.  A factor
goes once its error on a part of x exceeds that of another on all of x, since errors only add up;
and if its sum in float32 is above the least one by more than such sums can be wrong.  Where several
are left, ``affine`` and ``metrics`` compute their errors again, in float64.  Book: 2.7, 6.2
"""

import numpy as np

from qbook import affine, metrics
from qbook.kernels import isa, threads
from qbook.kernels.range_search import errors, values
from qbook.ranges import mse as reference

# Blocks are dealt out to so many rounds, each of them spread over all of x.
ROUNDS = 32
# What a float32 sum of a block is made of: squares, each with one rounding of the difference (only
# where it is clipped) and one of the product, and DEPTH additions: DEPTH + 3 times half an ulp.
# One more stands for the higher powers and the sums in float64.
WRONG = (errors.DEPTH + 4) * 2.0**-24


def search(x, bits, *, axis=None, symmetric=True, steps=100, use=None, num_threads=None):
    """The range of least MSE among ``steps`` shrunken ones -> (low, high), of x's library, device.

    Arguments, result and errors as of ``ranges.mse.search``, which also does float64 x.  The factor
    is the same; only of factors whose errors agree to the last digits of float64 it may be another,
    for tensors and for axes other than the last, because there sums are taken in another order.
    use:  an instruction set, see ``isa``;  num_threads: see ``threads``
    """
    chosen = isa.choose(use)
    steps_are_wrong = not isinstance(steps, int) or steps < 1
    if chosen == isa.REFERENCE or values.is_wide(x) or steps_are_wrong:
        return reference.search(x, bits, axis=axis, symmetric=symmetric, steps=steps)
    rows, shape = values.rows_of(x, axis)
    low, high = values.extrema(rows, num_threads)
    low, high = np.minimum(low, np.float32(0)), np.maximum(high, np.float32(0))
    if symmetric:
        high = np.maximum(-low, high)
        low = -high
    # The widest first: of equally good ones it is the one that argmin takes.
    factors = (np.arange(steps, 0, -1) / steps).astype(np.float32)
    ranges = low[:, None] * factors, high[:, None] * factors
    qparams = affine.qparams_from_range(*ranges, bits, symmetric=symmetric)
    sums = squared_errors(rows, qparams, use=chosen, num_threads=num_threads)
    close = ~(sums > _highest(sums.min(axis=1, keepdims=True), rows.shape[1]))
    best = np.argmax(close, axis=1)
    # Rows of zeros have no error with any factor.
    unsettled = np.flatnonzero((close.sum(axis=1) > 1) & (low < high))
    if unsettled.size:
        some = _part(qparams, unsettled)
        best[unsettled] = _decide(rows[unsettled], some, close[unsettled])
    factor = factors[best]
    return values.like(x, low * factor, shape), values.like(x, high * factor, shape)


def squared_errors(rows, qparams, *, use=None, num_threads=None):
    """Sum of squared errors of each candidate, float64 [rows, candidates]; inf where it is beaten.

    rows:     float32 [rows, n], contiguous, n > 0
    qparams:  scale, zero_point [rows, candidates]
    Off by up to ``WRONG`` of their size.  A candidate is given up, and gets inf, when a part of its
    sum exceeds the whole of another; which one that is depends on nothing but x.
    """
    token, count = isa.ISAS[isa.choose(use)], threads.count(num_threads)
    scale, zero_point = qparams.scale, qparams.zero_point.astype(np.float32)
    lowest, highest = (np.float32(q) - zero_point for q in (qparams.qmin, qparams.qmax))
    grid = np.stack([np.float32(1) / scale, lowest, highest, scale], axis=1)
    blocks = -(-rows.shape[1] // errors.BLOCK)
    rounds = min(ROUNDS, blocks)

    def of_blocks(first, stride, grid, wanted):
        part = np.zeros((len(rows), len(range(first, blocks, stride)), grid.shape[2]))
        wanted = np.ascontiguousarray(wanted, np.uint8)
        errors.squared(token, rows, grid, wanted, first, stride, part, count)
        return part.sum(axis=1)

    sums = of_blocks(0, rounds, grid, np.ones(scale.shape))
    # The whole error of the one that looks best is the bar for the others.
    leader = sums.argmin(axis=1)[:, None]
    own = np.ascontiguousarray(np.take_along_axis(grid, leader[:, None], axis=2))
    whole = of_blocks(0, 1, own, np.ones(leader.shape))
    bar = _highest(whole, rows.shape[1])
    others = np.arange(scale.shape[1]) != leader
    for turn in range(1, rounds):
        sums += of_blocks(turn, rounds, grid, others & ~(sums > bar))
    np.put_along_axis(sums, leader, whole, axis=1)
    sums[sums > bar] = np.inf
    return sums


def _highest(least, n):
    """The highest sum that belongs to no larger error than the sum ``least`` of n values."""
    # Half of float32's smallest number is what a square may lose at the bottom.
    lost = n * 2.0**-149
    with np.errstate(over="ignore"):
        return (least + lost) * (1 + WRONG) / (1 - WRONG) + lost


def _decide(rows, qparams, close):
    """Which candidate of each row is the best of those that are close, by ``metrics.mse``."""
    exact = np.full(close.shape, np.inf)
    for c in np.flatnonzero(close.any(axis=0)):
        which = np.flatnonzero(close[:, c])
        x, one = rows[which], _part(qparams, which, slice(c, c + 1))
        exact[which, c] = metrics.mse(x, affine.fake_quantize(x, one), axis=1)[:, 0]
    return exact.argmin(axis=1)


def _part(qparams, rows, candidates=slice(None)):
    scale, zero_point = (a[rows, candidates] for a in (qparams.scale, qparams.zero_point))
    return affine.QParams(scale, zero_point, qparams.qmin, qparams.qmax)
