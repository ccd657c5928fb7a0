"""Which way, and with which tiles, by shape and architecture.

Few rows of x: memory is the limit, a program a few rows of w.  More: tensor cores.  Many:
arithmetic is the limit, a packed weight has nothing left to win, and a library's product of the
dequantized weight loses least.  The figures here are estimates until a GPU has measured them:
``python -m benchmarks.gpu --tune int4_matmul``.  Book: 6.1
"""

from typing import NamedTuple

from qbook.kernels.gpu.device import SHARED_MEMORY

# Rows of x from which on the weight is dequantized first: where the time of one more write and read
# of the weight is small beside the product's.  The T4 has no tensor cores through Triton.
MANY_ROWS = {75: 9, 80: 256, 86: 128, 89: 128, 90: 256, 100: 256, 120: 256}
# Rows up to which each row of x is multiplied alone.
FEW_ROWS = {75: 8}
# Multiprocessors.
PROGRAMS = {75: 40, 80: 108, 86: 84, 89: 58, 90: 132, 100: 148, 120: 170}


class Config(NamedTuple):
    """way:      "row", "tile" or "dequantize": see ``triton_kernels``
    block_m:     rows of x in a tile
    block_n:     rows of w in a program
    tiles:       tiles of columns (see ``packed``) in a step of the loop
    parts:       programs that share the inputs of one tile of the result
    """

    way: str
    block_m: int = 16
    block_n: int = 64
    tiles: int = 1
    parts: int = 1
    num_warps: int = 4
    num_stages: int = 4


def choose(m, n, packed_bytes, plane, architecture, fields=2):
    """m rows of x, n of w, each of packed_bytes in planes of ``plane`` columns -> ``Config``

    fields:  codes in a byte
    """
    if m <= FEW_ROWS.get(architecture, 1):
        return row(packed_bytes, plane)
    if m >= MANY_ROWS[architecture]:
        return Config("dequantize", block_n=8, tiles=max(1, 512 // plane))
    room = SHARED_MEMORY[architecture] * 1024
    block_m = min(max(16, 1 << (m - 1).bit_length()), 128 if room > 99 * 1024 else 64)
    # A warpgroup of sm_90 takes 64 rows of w; more of them reuse a tile of x.  Four fields of 128
    # rows spill on sm_80.
    block_n = 64 if block_m <= 32 or (fields == 4 and block_m == 64) else 128
    # Triton 3.6 compiles wide tiles of narrow planes, or of four fields, for sm_100 to a kernel
    # that does nothing; those of the narrowest spill elsewhere where 16 does not divide m.
    spills = plane == 16 and architecture not in (90, 100)
    if spills or (architecture == 100 and (plane < 64 or fields == 4)):
        block_m, block_n = min(block_m, 64), 64
    tiles = 64 // plane
    steps = -(-packed_bytes // (plane * tiles))
    programs = -(-n // block_n) * -(-m // block_m)
    # Small tiles leave registers for several programs at a time, which hide each other's waiting.
    wanted = PROGRAMS[architecture] * (4 if block_m <= 32 else 2)
    parts = 1
    while programs * parts * 2 <= wanted and steps // (parts * 2) >= 4:
        parts *= 2
    stages = 5 if block_m <= 32 else 4 if block_m <= 64 else 3
    # What one of them loads, and some memory for the rest.
    loaded = plane * tiles * (block_n + 2 * fields * block_m)
    stages = min(stages, 1 + (room - 8192) // loaded)
    warps = 4 if block_n == 64 else 8
    return Config("tile", block_m, block_n, tiles, parts, warps, stages)


def row(packed_bytes, plane):
    """-> ``Config`` for one row of x: a step takes 512 bytes of 8 rows of w, or all there are"""
    tiles = max(1, min(512 // plane, 1 << (packed_bytes // plane - 1).bit_length()))
    return Config("row", block_n=8, tiles=tiles, num_warps=4, num_stages=2)


def candidates(m, plane):
    """-> ``Config``s worth a try for m rows of x"""
    wide = 64 // plane
    if m == 1:
        for block_n in (2, 4, 8, 16):
            for size in (256, 512, 1024):
                for warps in (2, 4, 8):
                    yield Config("row", 1, block_n, size // plane, num_warps=warps, num_stages=2)
    block_m = min(max(16, 1 << (m - 1).bit_length()), 128)
    for block_n in (64, 128):
        for parts in (1, 2, 4):
            for warps in (4, 8):
                for stages in (3, 4, 6):
                    yield Config("tile", block_m, block_n, wide, parts, warps, stages)
    yield Config("dequantize", block_n=8, tiles=512 // plane)
