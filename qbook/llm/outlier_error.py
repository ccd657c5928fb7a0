"""What outlier features cost a product of 8-bit codes, and what taking them out leaves: by formula.

A row of x has n - k values of variance 1 and k of magnitude f; the weights have variance 1, those
of the k columns r^2.  With E(s, v) the mean squared rounding error of a normal value of standard
deviation v at step s, gamma = E max^2 / (12 127^2) of n values, and t^2 = 12 gamma the step of w
squared, the squared error over the squared output, times n - k + k r^2 f^2, is

    vector-wise            (n - k) E(f / 127, 1)   + (n - k) gamma + k f^2 E(t, r)
    decomposed, codes      (n - k) gamma           + (n - k) gamma + k f^2 E(t, r)
    decomposed, floats     (n - k) gamma           + (n - k) gamma

The first term is what rounding x costs, the others what rounding w costs.  The project's
own derivation.  Book: 5.1
"""

from typing import NamedTuple

import numpy as np
from scipy import stats

from qbook.theory.noise import granular_mse
from qbook.theory.order_statistics import abs_max_moment


class Errors(NamedTuple):
    """Root of the mean squared error of x w^T over its mean square

    codes, floats: decomposed, and the outliers meet the codes of their weights, or the weights
    """

    vector_wise: float
    codes: float
    floats: float


def expected(n, k, factor, *, column_scale=1.0):
    """-> ``Errors`` at 8 bits, a scale for each row of x and of w

    n, k:          inputs, and how many of them are outlier features, 0 <= k < n
    factor:        magnitude of those, in standard deviations of the others; with k > 0 at least the
                   largest of them, about 4
    column_scale:  size of the weights in these columns, r; 1 / factor where a LayerNorm's gain grew
                   and its readers shrank, which leaves the function as it was
    Raises ValueError for k outside of 0...n - 1, and for a factor or column_scale that is not > 0.
    """
    if not 0 <= k < n:
        raise ValueError(f"k={k} outlier features of n={n}; choose 0 to {n - 1}")
    if not (factor > 0 and column_scale > 0):
        raise ValueError(f"factor={factor} and column_scale={column_scale} must be positive")
    normal, columns = stats.norm(), stats.norm(scale=column_scale)
    gamma_w = abs_max_moment(normal, n if column_scale >= 1 else n - k) / (12 * 127**2)
    gamma_x = abs_max_moment(normal, n - k) / (12 * 127**2)
    others, output = n - k, n - k + k * (column_scale * factor) ** 2
    vector_wise = others * (granular_mse(normal, factor / 127) if k else gamma_x)
    of_columns = k * factor**2 * granular_mse(columns, np.sqrt(12 * gamma_w))
    squares = (
        vector_wise + others * gamma_w + of_columns,
        others * (gamma_x + gamma_w) + of_columns,
        others * (gamma_x + gamma_w),
    )
    return Errors(*(float(np.sqrt(square / output)) for square in squares))


def best_clip(n, k):
    """-> the row scale of least squared error, relative to the one that clips nothing

    For k outliers of one magnitude among n values whose rounding errors are uniform; the squared
    errors of the two have the same ratio.  Raises ValueError unless n and k are positive.
    """
    if not (n > 0 and k > 0):
        raise ValueError(f"n={n} and k={k} must be positive")
    return 1 / (1 + n / (12 * 127**2 * k))
