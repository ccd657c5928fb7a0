import time

import numpy as np
import pytest

from qbook.kernels.peaks import resident


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("passes", [1, 2, 5])
@pytest.mark.parametrize("size", [256, 1024, 1000 * 256])
def test_the_last_pass_reads_every_byte_once(size, passes, threads):
    source = np.random.default_rng(size).integers(-(2**31), 2**31, size // 4).astype(np.int32)
    sums = np.zeros((threads, 16), np.int32)
    resident._read(source.view(np.uint8), passes, sums, threads)
    # A pass begins with four times the last sum, which cancels, and adds every vector once.
    expected = np.bitwise_xor.reduce(source.reshape(-1, 16))
    assert np.array_equal(np.bitwise_xor.reduce(sums), expected)


def test_no_pass_is_left_out():
    # Sums do not tell, time does: a compiler that took the loop away would make both alike.
    source = np.ones(2**20, np.uint8)
    seconds = {1: [], 1000: []}
    for passes, taken in seconds.items():
        for _ in range(5):
            start = time.process_time()
            resident.read(source, passes, num_threads=1)
            taken.append(time.process_time() - start)
    # The call itself costs some microseconds, less than a pass through 1 MiB.
    assert min(seconds[1000]) > 100 * min(seconds[1])


def test_it_says_what_it_read():
    source = np.zeros((100, 13), np.float32)
    assert resident.read(source, 3, num_threads=1) == 3 * (5200 // 256 * 256)
    assert resident.read(np.zeros(10), 3, num_threads=1) == 0


def test_gaps_and_no_passes_are_refused():
    with pytest.raises(ValueError, match=r"strides \(16,\) in passes=1"):
        resident.read(np.zeros(8)[::2], 1)
    with pytest.raises(ValueError, match="passes=0"):
        resident.read(np.zeros(8), 0)
