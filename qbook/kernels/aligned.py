"""Arrays that begin on a cache line: a load that straddles two lines costs two.  Book: 6.2"""

import numpy as np

LINE = 64


def zeros(shape, dtype):
    """Like ``numpy.zeros``, the first element at an address that 64 divides."""
    bytes_needed = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.zeros(bytes_needed + LINE, np.uint8)
    start = -raw.ctypes.data % LINE
    return raw[start : start + bytes_needed].view(dtype).reshape(shape)
