"""Blocked matrix products: n^3 multiplications on n^2 numbers, and how few of these must move.

A block of r x r sums stays while k runs: 2 n^3 / r + n^2 words are fetched, if r^2 + 3 r + 1 words
have room.  In any order, with room for M words, n^3 / (2 sqrt(2 M)) - M must move.

Hong and Kung 1981, STOC (the order of magnitude); Irony, Toledo and Tiskin 2004, J. Parallel and
Distributed Computing 64(9), section 3 (the constant).  Book: 6.2.2
"""

import math

import numpy as np


def trace(n, block):
    """Words that a blocked product of n x n matrices touches, in order -> int [3 n^3]

    y_ij += x_ik w_kj for every i and j of a block of y, for k = 0 ... n - 1, for every block.  x is
    words 0 ... n^2 - 1, w and y follow; a step touches x_ik, w_kj and y_ij.
    Raises ValueError unless block divides n.
    """
    if not 1 <= block <= n or n % block:
        raise ValueError(f"block={block} does not divide n={n}; choose a divisor")
    count = n // block
    # One axis a loop, the innermost last.
    rows, columns, k, i, j = np.ogrid[:count, :count, :n, :block, :block]
    row, column = rows * block + i, columns * block + j
    words = (row * n + k, n * n + k * n + column, 2 * n * n + row * n + column)
    return np.stack(np.broadcast_arrays(*words), axis=-1).reshape(-1)


def words_moved(n, block):
    """Words that ``trace`` fetches into a memory with room for ``words_needed`` -> int

    Of x and w n^3 / r each: one for every row or column of a block and every k; of y each once.
    """
    return 2 * n**3 // block + n * n


def words_needed(block):
    """Words that stay where ``words_moved`` holds: the sums, and what two steps of k touch."""
    return block * block + 3 * block + 1


def least_words(n, capacity):
    """Words fetched and stored by a memory of ``capacity`` words, at least, in whatever order."""
    return max(0.0, n**3 / (2 * math.sqrt(2 * capacity)) - capacity)
