"""Samples: what every range estimator asks of its input.  Book: 2.7

Not empty, finite, real; the result is in the float type that ``affine`` computes in, so that the
range and the scale made of it agree: float64 for float64, float32 for every shorter type.
"""

import numpy as np
from array_api_compat import array_namespace, is_numpy_array, size


def checked(x):
    """x -> its namespace, and x in float32 or float64 (a view where it is already; no gradient).

    Raises ValueError where x is empty, holds NaN or infinity, or is not of a real float type.
    """
    xp = array_namespace(x)
    if size(x) == 0:
        raise ValueError(f"x is empty, of shape {tuple(x.shape)}; a range needs at least one value")
    # NumPy's isdtype does not know bfloat16 and its like, which ml_dtypes add as kind "V".
    is_real = x.dtype.kind in "fV" if is_numpy_array(x) else xp.isdtype(x.dtype, "real floating")
    if not is_real:
        raise ValueError(f"x is of type {x.dtype}; estimate the range of floating-point values")
    x = x.detach() if hasattr(x, "detach") else x
    x = xp.astype(x, xp.float64 if x.dtype == xp.float64 else xp.float32, copy=False)
    if not bool(xp.all(xp.isfinite(x))):
        raise ValueError("x holds NaN or infinity; estimate the range of finite values only")
    return xp, x


def on_host(x):
    """x -> NumPy array of its values: itself, a view, or a copy from another device."""
    return x if is_numpy_array(x) else np.asarray(x.cpu())
