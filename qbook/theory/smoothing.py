"""What a factor for each channel does to a product that is rounded with one scale a tensor.

    x w^T = (x / s) (s w)^T         both factors rounded, steps of the largest over qmax
    error = x_step^2 / 12 sum_j (s_j w_rms_j)^2 + w_step^2 / 12 sum_j (x_rms_j / s_j)^2

The first order of the error for rounding errors that are uniform and independent (Bennett 1948,
see ``theory.noise``).  The best s of all was worked out here.  Book: 5.4
"""

from array_api_compat import array_namespace

from qbook import affine


def product_error(x_max, x_rms, w_max, w_rms, s, bits=8):
    """All [channels] > 0, of one tensor x and one w -> expected squared error of one output

    Raises ValueError for bits that ``affine.code_range`` does not know.
    """
    xp = array_namespace(x_max, x_rms, w_max, w_rms, s)
    _, qmax, _ = affine.code_range(bits)
    x_step, w_step = xp.max(x_max / s) / qmax, xp.max(w_max * s) / qmax
    by_inputs = x_step**2 * xp.sum((w_rms * s) ** 2)
    by_weights = w_step**2 * xp.sum((x_rms / s) ** 2)
    return float((by_inputs + by_weights) / 12)


def best_scales(x_max, x_rms, w_max, w_rms):
    """All [channels] > 0 -> s [channels] of least ``product_error``, up to a common factor

    Root mean squares are made equal, as far as the product of the two steps does not grow.
    """
    xp = array_namespace(x_max, x_rms, w_max, w_rms)
    root = xp.sqrt(xp.max(x_max * w_max))
    return xp.minimum(xp.maximum(xp.sqrt(x_rms / w_rms), x_max / root), root / w_max)
