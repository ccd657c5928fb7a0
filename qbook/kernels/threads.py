"""How many threads a kernel uses: Numba's number, unless the call says otherwise.  Book: 6.2"""

import numba


def count(threads=None):
    """-> threads, or what ``numba.set_num_threads`` or NUMBA_NUM_THREADS set; all cores at first.

    Raises ValueError for a number that this process did not start with.
    """
    if threads is None:
        return numba.get_num_threads()
    most = numba.config.NUMBA_NUM_THREADS
    if not 1 <= threads <= most:
        raise ValueError(f"threads={threads} is not to be had; this process has 1 to {most}")
    return threads
