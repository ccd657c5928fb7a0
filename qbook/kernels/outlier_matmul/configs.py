"""Tiles of the fused product, by shape and architecture.

Chosen by what the hardware asks for and by what fits its registers; timed on nothing yet, see
``candidates``.  Book: 6.2
"""

from typing import NamedTuple


class Config(NamedTuple):
    """rows, outputs, depth: of x, of w, and of the axis they share that a program has at once

    group: tiles of outputs that are walked together, see ``gpu.tiles``
    """

    rows: int
    outputs: int
    depth: int
    num_warps: int
    num_stages: int
    group: int = 8


SMALL, MIDDLE = Config(16, 64, 128, 4, 4), Config(64, 64, 128, 4, 4)
# Depth 64: two programs share the 99 KiB of sm_86, 89 and 120.  256 of x instead of 256 of w spills
# registers on sm_90.  On sm_100 Triton 3.6 multiplies int8 by mma.sync, as on sm_80.
LARGE = {
    80: (Config(128, 128, 128, 8, 3),),
    86: (Config(128, 128, 64, 8, 3),),
    89: (Config(128, 128, 64, 8, 3),),
    90: (Config(128, 128, 128, 8, 4), Config(128, 256, 128, 8, 3)),
    100: (Config(128, 128, 128, 8, 4),),
    120: (Config(128, 128, 64, 8, 3),),
}
# With fewer tiles than this, many of a large GPU's 108 to 148 processors would have none.
ENOUGH = 100


def choose(samples, outputs, architecture, *, full=False, aligned=True):
    """-> ``Config`` for x of so many samples, and so many outputs

    full:     x is float32, whose products no tensor core forms: a large tile would spill registers
    aligned:  rows of codes begin at multiples of 16 bytes; else a thread loads a byte at a time,
              and there is nothing to gain from a large tile or from many loads ahead
    """
    if samples <= SMALL.rows:
        return SMALL if aligned else SMALL._replace(depth=64, num_stages=2)
    fits = [
        config
        for config in (LARGE[architecture] if aligned and not full else ())
        # No tile may be more than half empty.
        if config.rows < 2 * samples and count(config, samples, outputs) >= ENOUGH
    ]
    return fits[-1] if fits else MIDDLE


def count(config, samples, outputs):
    """-> number of tiles of the result"""
    return -(-samples // config.rows) * -(-outputs // config.outputs)


def candidates(architecture):
    """-> every ``Config`` worth a try by a tuner, for x of 16 bits"""
    deeper = SMALL._replace(depth=256, num_stages=3), MIDDLE._replace(num_stages=3)
    wider = MIDDLE._replace(rows=32, outputs=128), *LARGE[architecture]
    grouped = [config._replace(group=16) for config in LARGE[architecture]]
    return [SMALL, MIDDLE, *deeper, *wider, *grouped]
