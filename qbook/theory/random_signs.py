"""Random signs before a Hadamard transform: what becomes of a vector's tails, exactly and at worst.

y = (x s) h, s of n independent signs, h the Hadamard matrix of order n over sqrt(n).  With
kappa = n sum x^4 / (sum x^2)^2, the kurtosis about zero of the n numbers of x, every y_k has

    E y_k^2 = |x|^2 / n        E y_k^4 / (E y_k^2)^2 = 3 - 2 kappa / n

and P(|y_k| >= t |x| / sqrt(n)) <= 2 exp(-t^2 / 2): Hoeffding 1963, theorem 2,
doi:10.1080/01621459.1963.10500830.  The fourth moment is the project's derivation.  Book: 5.9
"""

import math

from array_api_compat import array_namespace


def kurtosis(x):
    """x [..., n] -> n sum x^4 / (sum x^2)^2 [...]: 1 for signs, about 3 for normal values, up to n

    Raises ValueError for a row that is zero throughout, NaN or infinite.
    """
    xp, x = _rows(x)
    return x.shape[-1] * xp.sum(x**4, axis=-1) / xp.sum(x**2, axis=-1) ** 2


def crest(x):
    """x [..., n] -> max |x| over its root mean square [...], 1 to sqrt(n)

    Raises ValueError as ``kurtosis``.
    """
    xp, x = _rows(x)
    return xp.max(xp.abs(x), axis=-1) / xp.sqrt(xp.mean(x**2, axis=-1))


def kurtosis_after(x):
    """x [..., n] -> kurtosis of each y_k over all signs [...], below 3.  Raises as ``kurtosis``"""
    return 3 - 2 * kurtosis(x) / x.shape[-1]


def crest_bound(n, rows=1, *, failure=0.01):
    """-> a float: with probability 1 - failure no ``crest`` of ``rows`` transformed rows exceeds it

    Raises ValueError unless n and rows are positive and failure lies between 0 and 1.
    """
    if not (n > 0 and rows > 0 and 0 < failure < 1):
        raise ValueError(
            f"n={n} and rows={rows} must be positive, failure={failure} between 0 and 1"
        )
    return math.sqrt(2 * math.log(2 * n * rows / failure))


def _rows(x):
    """-> namespace, and x with every row scaled to a largest magnitude of 1"""
    xp = array_namespace(x)
    largest = xp.max(xp.abs(x), axis=-1, keepdims=True)
    if not bool(xp.all((largest > 0) & xp.isfinite(largest))):
        raise ValueError("x holds a row that is zero throughout, NaN or infinite; leave it out")
    return xp, x / largest
