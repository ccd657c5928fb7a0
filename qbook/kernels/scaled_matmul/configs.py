"""Which tiles for which shape: a table for every architecture.

Chosen by arithmetic and by what the compiler made of them (registers, shared memory, the tensor
core's instruction), not yet by a clock: ``candidates`` is what a tuner should time first.

Two numbers lead.  An SM of Hopper multiplies and adds 4096 pairs of 8 bits in a clock (NVIDIA,
H100 Tensor Core GPU Architecture, 2022): 128 columns more for a tile 128 x 256 take it 1024 clocks
and 48 KiB from the L2 cache; a tile 128 x 128 asks for 32 KiB every 512 clocks, a third more.  And
up to 64 rows all that counts is bytes of the weight under way: small tiles, deep loops, several
programs to an SM.  Book: 6.1
"""

from typing import NamedTuple

# The tables know these kinds of products: what is multiplied, and how it is summed.
INT8, FP8, FP8_APART, FP8_DECODED = "int8", "fp8", "fp8 apart", "fp8 decoded"

# SMs of A100, RTX 3090, RTX 4090, H100 and H200, B200, RTX 5090: where no device can be asked.
MULTIPROCESSORS = {75: 40, 80: 108, 86: 82, 89: 128, 90: 132, 100: 148, 120: 170}
# Where the copy engine is used.  sm_120 has one, but the compiler gives such kernels a stack there.
DESCRIPTORS = (90, 100)


class Config(NamedTuple):
    """block_m, block_n, block_k:  the tile of y, and the columns that a step adds to it
    num_warps, num_stages:         see ``Launch``
    group:                         see ``tiles.place``
    w_left, strips, flatten:       see ``matmul_descriptors``; strips for 16-bit results
    per_sm:                        programs of ``matmul_descriptors`` to an SM
    """

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    group: int = 8
    w_left: bool = False
    strips: int = 1
    flatten: bool = True
    per_sm: int = 1


# Up to 16, 32 and 64 rows.  8 bits of 64 rows of w and 256 columns: 16 KiB a stage, 64 KiB under
# way for a program.
_FEW = {
    16: Config(16, 64, 256, 4, 4, w_left=True, per_sm=2),
    32: Config(32, 64, 256, 4, 4, w_left=True, per_sm=2),
    64: Config(64, 64, 256, 4, 3, w_left=True, per_sm=2),
}
_FEW_APART = {
    16: Config(16, 64, 128, 4, 8, w_left=True, per_sm=2),
    32: Config(32, 64, 128, 4, 8, w_left=True, per_sm=2),
    64: Config(64, 64, 128, 4, 6, w_left=True, per_sm=2),
}
_MIDDLE = (Config(128, 128, 128, 8, 4), Config(128, 64, 128, 4, 4, per_sm=2))
_HOPPER = {
    # Triton 3.6 waits for every int8 product before it starts the next (an accumulator that is not
    # float32 is never left pending): twice the columns, half the waits.
    INT8: (_FEW, (Config(128, 256, 256, 8, 2, strips=4), *_MIDDLE)),
    FP8: (_FEW, (Config(128, 256, 128, 8, 4, strips=4), *_MIDDLE)),
    # Two accumulators: a tile of 256 columns spills.
    FP8_APART: (_FEW_APART, _MIDDLE),
}
# What else a tuner should try.
_MORE_HOPPER = {
    INT8: (
        Config(128, 256, 128, 8, 4, strips=4),
        Config(256, 128, 256, 8, 2, strips=2),
        # Two programs an SM: one multiplies while the other waits.
        Config(128, 128, 128, 4, 3, strips=2, per_sm=2),
    ),
    FP8: (
        Config(128, 256, 128, 8, 3, strips=2),
        Config(256, 128, 128, 8, 4, strips=2),
        Config(128, 256, 64, 8, 6, strips=2),
    ),
    FP8_APART: (
        Config(64, 256, 128, 8, 3, strips=2),
        Config(64, 128, 128, 4, 4, per_sm=2),
    ),
}
# Tiles for threads that copy: mma.sync, 99 KiB of shared memory at least.
_FEW_COPIED = {
    16: Config(16, 64, 128, 4, 4),
    32: Config(32, 64, 128, 4, 4),
    64: Config(64, 64, 128, 4, 4),
}
_COPIED = (
    Config(128, 256, 64, 8, 3),
    Config(128, 128, 64, 8, 4),
    Config(64, 128, 128, 4, 3),
    Config(64, 64, 128, 4, 4),
)
_COPIED_APART = (Config(128, 64, 128, 8, 3), Config(64, 64, 128, 4, 3))
_COPIED_DECODED = (Config(128, 128, 64, 8, 3), Config(64, 64, 64, 4, 3))
_POINTERS = {
    INT8: (_FEW_COPIED, _COPIED),
    FP8: (_FEW_COPIED, _COPIED),
    FP8_APART: (_FEW_COPIED, _COPIED_APART),
    FP8_DECODED: (_FEW_COPIED, _COPIED_DECODED),
}
# Without tensor cores: products of a block are kept in registers, 2048 of them.
NO_DOT = Config(4, 16, 64, 4, 2)
# Rows that do not start at multiples of 16 bytes are fetched byte by byte, and every byte in flight
# has its own address: a small tile.
UNALIGNED = Config(64, 64, 32, 4, 2)


def choose(m, n, architecture, kind, descriptors, aligned=True):
    """-> ``Config`` for y [m, n]: the largest tile of which there is nearly one for each SM

    aligned: whether rows of y start at multiples of 16 bytes.  Where not, every number is stored
    alone, and in a tile of 256 columns their addresses spill.
    """
    few, many = (_HOPPER if descriptors else _POINTERS)[kind]
    for rows, config in few.items():
        if m <= rows:
            return config
    for config in many:
        if config.block_n > 128 and not aligned:
            continue
        if tile_count(m, n, config) >= 0.9 * MULTIPROCESSORS[architecture]:
            return config
    return many[-1]


def tile_count(m, n, config):
    return -(-m // config.block_m) * -(-n // config.block_n)


def candidates(architecture, kind, m):
    """-> the configs that a tuner should time first for y of m rows, the chosen one among them"""
    descriptors = architecture in DESCRIPTORS
    few, many = (_HOPPER if descriptors else _POINTERS)[kind]
    if m <= max(few):
        first = choose(m, 1, architecture, kind, descriptors)
        yield first
        yield first._replace(num_stages=first.num_stages - 1)
        yield first._replace(block_k=128, num_stages=6)
        if descriptors:
            yield first._replace(block_k=128, num_stages=6, per_sm=3)
            yield first._replace(block_n=128, block_k=128, num_stages=4)
            yield first._replace(flatten=False, per_sm=4, num_stages=2)
        return
    yield from many
    yield many[0]._replace(group=16)
    if descriptors:
        yield many[0]._replace(flatten=False)
        yield from _MORE_HOPPER[kind]
