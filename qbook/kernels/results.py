"""Where results go: a new array, or one that the caller keeps, so that no page is touched first.

A new array of megabytes costs a page fault for every 4 KiB, which takes longer than a kernel that
only waits for memory.  Book: 6.2
"""

import numpy as np


def result(out, shape, dtype):
    """-> out, if it has this shape and type and is contiguous; a new array where out is None

    Raises ValueError otherwise.
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
