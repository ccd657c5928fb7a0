"""Which tiles for W2A8 on a GPU: by arithmetic and the compiler's report, not yet by a clock.

Few rows: what counts is bytes of w under way, and 64 columns of 64 rows are only 1 KiB.  Many:
tensor cores wait for codes to be taken out of their bytes, once for all rows of a tile of x.
Book: 6.1
"""

from qbook.kernels.weight_only.configs import PROGRAMS, Config


def choose(m, n, tiles, architecture):
    """m rows of x, n of w, each of ``tiles`` tiles of columns -> ``weight_only.configs.Config``"""
    block_m = min(max(16, 1 << (m - 1).bit_length()), 128)
    config = tile(block_m, 64 if block_m <= 32 else 128)
    programs = -(-n // config.block_n) * -(-m // block_m)
    parts = 1
    # Two programs to a multiprocessor where there is little for each to do.
    most = PROGRAMS[architecture] * (2 if block_m <= 32 else 1)
    while programs * parts * 2 <= most and tiles // (parts * 2) >= 4:
        parts *= 2
    return config._replace(parts=parts)


def tile(block_m, block_n):
    """-> ``Config`` with as many loads ahead as 99 KiB of shared memory allow, 8 at most"""
    # A step loads 64 bytes of each row of w and 256 of each row of x.
    stages = min(8, 1 + 96 * 1024 // (64 * block_n + 256 * block_m))
    return Config("tile", block_m, block_n, 1, 1, 4 if block_n == 64 else 8, stages)


def candidates(m):
    """-> ``Config``s worth a try for m rows of x"""
    block_m = min(max(16, 1 << (m - 1).bit_length()), 128)
    for block_n in (64, 128):
        for parts in (1, 2, 4):
            for less in (0, 1):
                config = tile(block_m, block_n)
                yield config._replace(parts=parts, num_stages=config.num_stages - less)
