"""What calibration costs: histograms, the entropy search and the search of least MSE.

torch's HistogramObserver is what a user would pick instead.  It does other work than the search of
least MSE: it looks at 2048 bins where the search quantizes every value, and stops at the first
range that is no better than the one before.  The same work, all ranges and every value, is done by
the loop of torch calls in place, and by ``ranges.mse`` on fewer values, for it takes 10 s on these.
"""

import numpy as np
import torch
from torch.ao.quantization.observer import HistogramObserver

from qbook import affine, metrics
from qbook.kernels.range_search import entropy, histogram, mse, values
from qbook.lab.timing import Group, Target
from qbook.ranges import entropy as numpy_entropy
from qbook.ranges import mse as numpy_mse

VALUES, FEWER, BINS, BITS = 10_000_000, 500_000, 2048, 8
STEPS, FEW_STEPS = 100, 10


def groups():
    x = np.random.default_rng(0).normal(size=VALUES).astype(np.float32)
    yield counting(x)
    yield divergence(x)
    yield least_error(x, STEPS, (Target("qbook", "torch in place", 8.0),))
    yield least_error(x, FEW_STEPS, (Target("qbook", "HistogramObserver", 8.0),))
    yield same_search(x[:FEWER])


def counting(x):
    low, high = float(x.min()), float(x.max())
    tensor = torch.from_numpy(x)
    cases = {
        "numpy.histogram": lambda: np.histogram(x, BINS, (low, high))[0],
        "torch.histc": lambda: torch.histc(tensor, BINS, low, high),
        "HistogramObserver": lambda: observe(tensor).histogram,
        "qbook": lambda: histogram.histogram(x, BINS, low, high),
        "qbook, range first": lambda: of_own_range(x),
    }
    if not np.array_equal(cases["qbook"](), cases["numpy.histogram"]()):
        raise ValueError("the counts are not those of numpy.histogram")
    targets = (
        Target("qbook", "numpy.histogram", 5.0),
        Target("qbook, range first", "HistogramObserver", 3.5),
    )
    return Group(f"histogram of {VALUES:.0e} in {BINS} bins", cases, VALUES, x.nbytes, targets)


def of_own_range(x):
    ends = values.extrema(x[None])
    return histogram.histogram(x, BINS, *(float(end[0]) for end in ends))


def observe(tensor):
    observer = HistogramObserver(reduce_range=False)
    observer(tensor)
    return observer


def divergence(x):
    top = np.float64(np.abs(x).max())
    counts = histogram.absolute_histogram(x, BINS, top)
    levels = 2 ** (BITS - 1)
    cases = {
        "ranges.entropy": lambda: numpy_entropy.divergences(counts, levels),
        "qbook": lambda: entropy.divergences(counts, levels),
    }
    expected, found = (case() for case in cases.values())
    finite = np.isfinite(expected)
    # 2e-15 is what float64 cannot tell, in either: terms of p ln(p / q) are added that cancel.
    if not np.all(np.abs(found[finite] - expected[finite]) <= 1e-12 * expected[finite] + 2e-15):
        raise ValueError("the divergences are not those of ranges.entropy")
    targets = (Target("qbook", "ranges.entropy", 10.0),)
    return Group(f"entropy search, {BINS} bins", cases, targets=targets)


def least_error(x, steps, targets):
    tensor, room = torch.from_numpy(x), torch.empty(len(x))
    cases = {
        "HistogramObserver": lambda: observe(tensor).calculate_qparams(),
        "torch in place": lambda: in_place(tensor, room, steps),
        "qbook": lambda: mse.search(x, BITS, steps=steps)[1],
    }
    agree(cases["qbook"](), cases["torch in place"](), x)
    return Group(f"least MSE of {VALUES:.0e}, {steps} ranges", cases, targets=targets)


def in_place(tensor, room, steps):
    """The search as somebody would write it who looks at speed: no allocation, one pass a call"""
    top = tensor.abs().max()
    best, least = None, float("inf")
    most = 2 ** (BITS - 1) - 1
    for step in range(steps, 0, -1):
        scale = top * (step / steps) / most
        torch.mul(tensor, 1 / scale, out=room).round_().clamp_(-most, most).mul_(scale).sub_(tensor)
        error = torch.dot(room, room).item()
        if error < least:
            best, least = top * (step / steps), error
    return best


def same_search(x):
    tensor = torch.from_numpy(x)
    cases = {
        "ranges.mse, NumPy": lambda: numpy_mse.search(x, BITS, steps=STEPS)[1],
        "ranges.mse, torch": lambda: numpy_mse.search(tensor, BITS, steps=STEPS)[1],
        "qbook": lambda: mse.search(x, BITS, steps=STEPS)[1],
    }
    if cases["qbook"]() != cases["ranges.mse, NumPy"]():
        raise ValueError("the range is not that of ranges.mse")
    targets = (Target("qbook", "ranges.mse, NumPy", 60.0),)
    name = f"least MSE of {FEWER:.0e}, {STEPS} ranges, like with like"
    return Group(name, cases, STEPS * FEWER, targets=targets)


def agree(high, other, x):
    """Sums in float32 may prefer a neighbour: what counts is that its error is no smaller."""
    ends = [np.float32(end) for end in (high, other)]
    qparams = [affine.qparams_from_range(-end, end, BITS) for end in ends]
    errors = [metrics.mse(x, affine.fake_quantize(x, one)) for one in qparams]
    if not errors[0] <= errors[1]:
        raise ValueError(f"{high} leaves the error {errors[0]}, and {other} {errors[1]}")
