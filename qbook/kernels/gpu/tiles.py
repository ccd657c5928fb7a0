"""Which tile of the result a program computes.  Book: 6.1"""

import triton
import triton.language as tl


@triton.jit
def place(tile, rows, columns, GROUP: tl.constexpr):
    """Number of a tile of a grid [rows, columns] -> its row, its column

    GROUP rows of tiles are walked column by column, so that the programs that run at one time read
    few rows and few columns of the operands, and find them in the L2 cache.
    """
    first = tile // (GROUP * columns) * GROUP
    height = tl.minimum(rows - first, GROUP)
    within = tile % (GROUP * columns)
    return first + within % height, within // height
