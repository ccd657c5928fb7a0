"""Is it right?  Against products in float64, within what rounding explains; else against bits.

Bound of a product y of x and w_hat, both exact: with u half a unit in the last place of 1 in y's
type, |y - x w_hat^T| <= u |x w_hat^T| + 6 u sqrt(x^2 (w_hat^2)^T).  The first term is the rounding
of y.  The second is that of w_hat to x's type, where a kernel does that: errors of up to u each,
independent, so that their sum has a deviation of at most u / sqrt(3) of the root; 6 is ten of it.
Sums in float32 may add k 2^-24 of the root: k additions, each rounded or cut off by as much.
"""

import contextlib
import warnings

import torch


def product(name, found, x, w_hat, bias=None, extra=0.0):
    """found [m, n] against x [m, k] w_hat [n, k]^T + bias.  Raises ValueError beyond the bound.

    extra:  of the root above, allowed in addition: what sums in fewer bits than float32 may lose
    """
    x, w_hat = x.double(), w_hat.double()
    expected = x @ w_hat.T
    root = (x.square() @ w_hat.square().T).sqrt()
    if bias is not None:
        expected += bias.double()
    unit = torch.finfo(found.dtype).eps / 2
    spread = 6 * unit + x.shape[1] * 2.0**-24 + extra
    within(name, found, expected, unit * expected.abs() + spread * root)


def within(name, found, expected, limit):
    """Raises ValueError unless |found - expected| <= limit everywhere; shapes equal."""
    if found.shape != expected.shape:
        raise ValueError(f"{name} has shape {list(found.shape)}, not {list(expected.shape)}")
    # So that NaN counts as wrong.
    wrong = ~((found.double() - expected.double()).abs() <= limit)
    if wrong.any():
        where = wrong.nonzero()[0]
        place = tuple(where.tolist())
        raise ValueError(
            f"{name}: {int(wrong.sum())} of {wrong.numel()} numbers are wrong, the first at "
            f"{list(place)}: {found[place].item():.6g} instead of {expected[place].item():.6g}"
        )


def equal(name, found, expected):
    """Raises ValueError unless both have the same shape, type and bits."""
    if found.dtype != expected.dtype:
        raise ValueError(f"{name} is {found.dtype}, not {expected.dtype}")
    if found.is_floating_point():
        bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[found.element_size()]
        found, expected = found.view(bits), expected.view(bits)
    within(name, found, expected.to(found.device), 0)


@contextlib.contextmanager
def poisoned():
    """Memory that is asked for inside holds NaN, or the largest integer, until it is written."""
    before = torch.are_deterministic_algorithms_enabled()
    only_warned = torch.is_deterministic_algorithms_warn_only_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before, warn_only=only_warned)
