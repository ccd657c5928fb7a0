"""Arguments that many launchers take, checked, in the form that a compiled kernel wants.

Book: 6.2
"""

import numpy as np


def result(out, shape, dtype):
    """-> out, if it has this shape and type and is contiguous; a new array where out is None

    A new array of megabytes costs a page fault for every 4 KiB, which takes longer than a kernel
    that only waits for memory.  Raises ValueError for an out that does not fit.
    """
    if out is None:
        return np.empty(shape, dtype)
    fits = isinstance(out, np.ndarray) and (out.dtype, out.shape) == (dtype, tuple(shape))
    if not fits or not out.flags.c_contiguous or not out.flags.writeable:
        found = f"{out.dtype} {list(out.shape)}" if hasattr(out, "dtype") else type(out).__name__
        raise ValueError(
            f"out is {found}; pass a contiguous array of {np.dtype(dtype)} {list(shape)}"
        )
    return out


def floats(values, count, name, lanes=0):
    """A number or [count] -> float32 [count], or [lanes] with zeros behind where that is more

    Itself where it is that already.  Raises ValueError, with the argument's name, for other shapes.
    """
    values = np.asarray(values, np.float32)
    if values.size not in (1, count) or values.ndim > 2:
        raise ValueError(f"{name} is of shape {values.shape}; pass a number or {count} numbers")
    # An array that is read-only is another type to Numba, and would be compiled for once more.
    if values.size == count and lanes <= count and values.flags.writeable:
        return np.ascontiguousarray(values.reshape(-1))
    padded = np.zeros(max(count, lanes), np.float32)
    padded[:count] = values.reshape(-1)
    return padded
