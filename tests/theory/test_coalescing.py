"""Oracle: bytes counted one by one."""

import numpy as np
import pytest

from qbook.theory import coalescing


def counted(addresses, size):
    return len({(a + k) // 32 for a in addresses for k in range(size)})


@pytest.mark.parametrize("size", [1, 2, 3, 4, 8, 16, 31, 32, 33, 64, 100])
def test_sectors_are_those_of_the_bytes(size):
    rng = np.random.default_rng(size)
    for stride in (0, 1, 2, 5, 16, 32, 33, 4096):
        start = int(rng.integers(100))
        addresses = start + stride * np.arange(32)
        assert coalescing.sectors(addresses, size) == counted(addresses.tolist(), size)
    addresses = rng.integers(0, 1000, 17)
    assert coalescing.sectors(addresses, size) == counted(addresses.tolist(), size)


def test_by_hand():
    # 32 threads, 16 bytes each, side by side: 512 bytes are 16 sectors.
    assert coalescing.sectors(16 * np.arange(32), 16) == 16
    assert coalescing.strided(16, 16) == 1
    # A byte out of every row of 2048: a sector each.
    assert coalescing.strided(2048, 1) == 1 / 32
    # Shifted by four bytes, 17 sectors instead of 16.
    assert coalescing.strided(16, 16, start=4) == 16 / 17
    # A scale of two bytes from every row of 64.
    assert coalescing.strided(128, 2) == 1 / 16


def test_no_size_is_refused():
    with pytest.raises(ValueError, match="size=0"):
        coalescing.sectors([0], 0)
