"""LSQ with an offset: the loss teaches where the levels begin as it teaches their distance.

Bhalgat et al. 2020, arXiv:2004.09576.  Book: 3.2
"""

import torch

from qbook import affine, ste
from qbook.qat import lsq


def fake_quantize(v, scale, beta, bits, *, signed=False, factor=None):
    """torch v [...] -> scale * round(clip((v - beta) / scale)) + beta, with gradients for all three

    scale, beta: tensors that broadcast to v's shape, scale > 0; ``fit`` makes the first ones
    factor:      what multiplies the gradients of scale and beta; None: ``lsq.gradient_factor``
    LSQ on v - beta, and beta back again.  beta = 0 is LSQ.  Raises ValueError as ``lsq`` does.
    """
    if factor is None:
        factor = lsq.gradient_factor(v.numel() / max(scale.numel(), 1), bits, signed=signed)
    scaled = ste._Surrogate.apply(beta, beta.detach(), torch.full_like(beta, factor))
    # Once to every element, so that what beta gains and loses there cancels before it is summed.
    offset = scaled.expand(v.shape)
    return lsq.fake_quantize(v - offset, scale, bits, signed=signed, factor=factor) + offset


def slopes(v, scale, beta, bits, *, signed=False):
    """torch v [...] -> derivatives of v_hat [...] by v, by scale and by beta, all [...].

    By beta it is 1 where v is clipped, else 0: what it is by v, the other way round.
    """
    to_v, to_scale = lsq.slopes(v - beta, scale, bits, signed=signed)
    return to_v, to_scale, 1 - to_v


def initial_weight_scale(w, bits):
    """torch w [...] -> max(|mu - 3 sigma|, |mu + 3 sigma|) / 2^(bits-1), of no dimension.

    For signed codes and beta = 0.  Raises ValueError for w that is all zero or has fewer than two.
    """
    affine.code_range(bits)
    if w.numel() < 2 or not bool((w != 0).any()):
        raise ValueError(f"w of shape {tuple(w.shape)} gives no scale; two values, not all zero")
    w = w.detach()
    return (w.mean().abs() + 3 * w.std()) / 2 ** (bits - 1)


def fit(x, bits, *, signed=False, starts=6, rounds=100):
    """torch x [...] -> (scale, beta) of least squared error, each of no dimension, of x's type.

    The paper asks for the minimum; the search is ours: quantize, then fit the line
    x = scale * code + beta by least squares, and repeat until no code changes.  No step raises the
    error; ``starts`` shrunken ranges at each end, so starts^2 beginnings, and the best end counts.
    Raises ValueError for fewer than two different values, NaN or infinity, and for bad bits.
    """
    qmin, qmax, _ = affine.code_range(bits, symmetric=False, signed=signed)
    cells = _Cells(x)
    low, high = cells.ordered[0], cells.ordered[-1]
    if not bool(low < high):
        raise ValueError(f"x of {x.numel()} values has no two that differ; nothing to fit")
    codes = torch.arange(qmax - qmin + 1, dtype=torch.float64, device=x.device)
    best = None
    for left in range(starts):
        for right in range(starts):
            # Ends move inwards by halves: outliers may lie far from the rest.
            middle = cells.ordered[cells.ordered.numel() // 2]
            begin = middle + (low - middle) / 2**left
            end = middle + (high - middle) / 2**right
            if bool(begin < end):
                scale, beta = (end - begin) / codes[-1], begin
                found = _descend(cells, codes, scale, beta, _line, rounds)
                best = found if best is None or bool(found[0] < best[0]) else best
    _, scale, beta = best
    return scale.to(x.dtype), (beta - scale * qmin).to(x.dtype)


def fit_scale(x, bits, zero_point, *, starts=12, rounds=100):
    """torch x [...] -> scale of least squared error for beta = -scale * zero_point, no dimension.

    zero_point: integer of 0 ... 2^bits - 1, codes unsigned.  0: LSQ's range for activations that
    are not negative; 2^(bits-1): its range for signed ones.  Raises ValueError where x holds no
    value that a code can reach, and as ``fit`` does.
    """
    _, qmax, _ = affine.code_range(bits, symmetric=False, signed=False)
    if not isinstance(zero_point, int) or not 0 <= zero_point <= qmax:
        raise ValueError(f"zero_point={zero_point!r} is no code of {bits} bits: 0 to {qmax}")
    cells = _Cells(x)
    codes = torch.arange(qmax + 1, dtype=torch.float64, device=x.device) - zero_point
    ends = [e / c for e, c in ((cells.ordered[0], codes[0]), (cells.ordered[-1], codes[-1])) if c]
    widest = max(ends, default=0)
    if not widest > 0:
        raise ValueError(f"no value of x lies on the side of the codes {codes.tolist()}")
    zero = torch.zeros_like(widest)
    found = [
        _descend(cells, codes, widest / 2 ** (k / 2), zero, _ray, rounds) for k in range(starts)
    ]
    return min(found, key=lambda f: float(f[0]))[1].to(x.dtype)


def qparams(scale, beta, bits, *, signed=False):
    """The learned grid as ``affine.QParams``: zero_point = round(-beta / scale), a code.

    The levels move by beta + scale * zero_point: at most half a step where -beta / scale lies
    within the codes, so where 0 is within the range; else to the range's end.
    """
    scale, beta = scale.detach(), beta.detach()
    plain = lsq.qparams(scale, bits, signed=signed)
    zero_point = torch.round(-beta / scale).clamp(plain.qmin, plain.qmax)
    return affine.QParams(scale, zero_point.to(torch.int32), plain.qmin, plain.qmax)


class _Cells:
    """Sorted values with running sums: count, sum and squares of a cell cost two look-ups."""

    def __init__(self, x):
        self.ordered = x.detach().flatten().double().sort().values
        if self.ordered.numel() < 2 or not bool(torch.isfinite(self.ordered).all()):
            raise ValueError(f"x of shape {tuple(x.shape)} needs two values or more, all finite")
        self.sums = torch.nn.functional.pad(self.ordered.cumsum(0), (1, 0))
        self.squares = (self.ordered**2).sum()

    def between(self, thresholds):
        """thresholds [n - 1], ascending -> counts [n] and sums [n] of the cells they part"""
        inner = torch.searchsorted(self.ordered, thresholds)
        edges = torch.nn.functional.pad(inner, (1, 1))
        edges[-1] = self.ordered.numel()
        return edges.diff().double(), self.sums[edges].diff()


def _descend(cells, codes, scale, beta, solve, rounds):
    """-> (error, scale, beta) after at most ``rounds`` of: assign to cells, solve for the levels"""
    before = None
    for _ in range(rounds):
        counts, sums = cells.between(scale * (codes[:-1] + 0.5) + beta)
        if before is not None and torch.equal(counts, before):
            break
        solution = solve(codes, counts, sums)
        if solution is None:
            break
        (scale, beta), before = solution, counts
    counts, sums = cells.between(scale * (codes[:-1] + 0.5) + beta)
    levels = scale * codes + beta
    return cells.squares - 2 * (levels * sums).sum() + (levels**2 * counts).sum(), scale, beta


def _line(codes, counts, sums):
    """Least squares x = scale * code + beta, or None where all share a code"""
    n = counts.sum()
    mean_code, mean = (codes * counts).sum() / n, sums.sum() / n
    spread = ((codes - mean_code) ** 2 * counts).sum()
    if not spread > 0:
        return None
    scale = ((codes - mean_code) * sums).sum() / spread
    return scale, mean - scale * mean_code


def _ray(codes, counts, sums):
    """Least squares x = scale * code, or None where no scale above 0 is best"""
    power, product = (codes**2 * counts).sum(), (codes * sums).sum()
    if not (power > 0 and product > 0):
        return None
    return product / power, torch.zeros_like(product)
