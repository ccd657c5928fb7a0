"""Which tile of the product a program computes.  Chosen by arithmetic, not yet tuned on a GPU.

One choice for all architectures: the kernel has no tensor core, no bulk copy and no pipeline.
Book: 6.1
"""

from typing import NamedTuple

LANES = 32


class Config(NamedTuple):
    """A thread has rows x columns sums; warps stand below each other; unroll: words of 8 codes.

    A step of a thread loads unroll (rows + columns) words for 2 unroll rows columns dp4a.
    """

    rows: int
    columns: int
    warps: int
    unroll: int

    @property
    def tile(self):
        """-> rows and columns of the result that one program computes"""
        return self.rows * self.warps, self.columns * LANES


# Most rows of x -> config.  Few rows: many small programs, each with many loads under way.
BY_ROWS = {
    1: Config(1, 1, 1, 8),
    8: Config(4, 1, 2, 8),
    32: Config(8, 2, 4, 4),
}
# 32 sums and 24 words in flight leave registers for two programs at a time.
LARGE = Config(8, 4, 8, 2)
# The unrolls divide so many words; operands are filled up to that.
WORDS = 8


def choose(m):
    """-> ``Config`` for m rows of x"""
    return next((config for most, config in BY_ROWS.items() if m <= most), LARGE)


def candidates(architecture):
    """-> configs for a tuner to try: the chosen ones, and others without a spill"""
    others = [(8, 4, 8, 4), (8, 2, 8, 2), (8, 2, 8, 4), (4, 4, 8, 4), (8, 2, 4, 2), (4, 2, 4, 8)]
    return [*BY_ROWS.values(), LARGE, *(Config(*other) for other in others)]
