"""Memory read again and again: what each level of the cache gives to an array that it holds.

``bandwidth.read`` with the loop over the passes inside, since an array of a few KiB is read before
a call has begun.  Each thread keeps its own part through all passes.  The prefetches, made for far
memory, run 4 KiB ahead, also beyond the end: of the first level they leave a little less.
Book: 6.2.2
"""

import numpy as np
from numba import prange

from qbook.kernels import threads
from qbook.kernels.compiled import kernel
from qbook.kernels.peaks.bandwidth import UNROLLED, _read_part


def read(source, passes, *, num_threads=None):
    """Load every byte of a contiguous array ``passes`` times -> bytes read

    The last 255 bytes may be left out.  Raises ValueError for an array with gaps and for no pass.
    """
    if not source.flags.c_contiguous or passes < 1:
        raise ValueError(
            f"an array of strides {source.strides} in passes={passes}; "
            "pass a contiguous one and 1 or more"
        )
    count = threads.count(num_threads)
    _read(source.reshape(-1).view(np.uint8), passes, np.zeros((count, 16), np.int32), count)
    return source.nbytes // UNROLLED * UNROLLED * passes


@kernel(parallel=True)
def _read(source, passes, sums, threads):
    blocks = source.shape[0] // UNROLLED
    if threads == 1:
        _passes(source, 0, blocks, passes, sums, 0)
    else:
        for t in prange(threads):
            _passes(source, blocks * t // threads, blocks * (t + 1) // threads, passes, sums, t)


@kernel
def _passes(source, first, last, passes, sums, t):
    for _ in range(passes):
        _read_part(source, first, last, sums, t)
