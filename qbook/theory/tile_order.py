"""The order of tiles: what the programs that run at one time read together.

A product y [m, n] = x w^T is computed tile by tile.  A tile needs its rows of x and its rows of w;
the programs of a wave that share some fetch them once and find them in the L2 cache.  A wave of p
tiles that covers r rows of tiles and p / r columns fetches

    k (r block_m + (p / r) block_n)

numbers, least where r block_m = (p / r) block_n: where what it covers is a square.
Triton's tutorial 03, "L2 Cache Optimizations".  Book: 6.1
"""

import numpy as np


def place(tile, rows, columns, group):
    """Numbers of tiles [n] of a grid [rows, columns] -> their rows [n], their columns [n]

    group:  rows of tiles that are walked column by column, 1: row after row.  The kernels' own
            ``qbook.kernels.gpu.tiles.place`` says the same.
    Raises ValueError for tiles that are not in the grid, and for a group below 1.
    """
    tile = np.asarray(tile)
    if group < 1:
        raise ValueError(f"group={group} has no rows; choose 1 or more")
    if tile.size and not 0 <= tile.min() <= tile.max() < rows * columns:
        raise ValueError(
            f"tiles {tile.min()} to {tile.max()} of a grid {rows} x {columns}; "
            f"choose 0 to {rows * columns - 1}"
        )
    first = tile // (group * columns) * group
    height = np.minimum(rows - first, group)
    within = tile % (group * columns)
    return first + within % height, within // height


def waves(m, n, block_m, block_n, programs, group):
    """-> rows of x and rows of w that each wave of a product [m, n] fetches: int [waves, 2]

    programs:  that run at one time
    """
    rows, columns = -(-m // block_m), -(-n // block_n)
    row, column = place(np.arange(rows * columns), rows, columns, group)
    fetched = []
    for start in range(0, rows * columns, programs):
        now = slice(start, start + programs)
        fetched.append(
            [
                _covered(np.unique(row[now]), block_m, m),
                _covered(np.unique(column[now]), block_n, n),
            ]
        )
    return np.array(fetched).reshape(-1, 2)


def _covered(tiles, block, length):
    return int((np.minimum((tiles + 1) * block, length) - tiles * block).sum())


def best_rows(block_m, block_n, programs):
    """-> rows of tiles, a real number, of the wave that fetches least"""
    return float(np.sqrt(programs * block_n / block_m))
