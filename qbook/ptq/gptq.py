"""GPTQ: round one column; the columns not yet rounded absorb its error.

Frantar et al. 2022, arXiv:2210.17323, section 3: ``quantize`` is Algorithm 1 without lazy blocks,
``quantize_blocks`` is Algorithm 1 with them.  The same order for all rows makes OBQ's inverses
common to them, and a Cholesky factor holds every row of those that is needed.  Book: 4.4
"""

from dataclasses import replace

import numpy as np

from qbook import affine
from qbook.ptq.obq import (
    check_shapes,
    column_qparams,
    dampen,
    hessian,
    invert,
    output_error,
)

__all__ = [
    "act_order",
    "dampen",
    "hessian",
    "inverse_factor",
    "output_error",
    "quantize",
    "quantize_blocks",
    "quantize_groups",
]


def inverse_factor(h):
    """h [in, in] -> u, upper triangular, h^-1 = u^T u.  Raises ValueError as ``obq.invert``.

    Row j is u[j] = [h_F^-1]_{j,:} / sqrt([h_F^-1]_jj), with h_F the rows and columns j, j+1, ...
    """
    return np.linalg.cholesky(invert(h)).T


def act_order(h):
    """h [in, in] -> permutation that puts the inputs of largest diagonal, x_j^2 summed, first"""
    return np.argsort(-np.diag(h), kind="stable")


def quantize(w, h, qparams, *, order=None):
    """w [out, in], h [in, in], qparams.scale [out, 1] or [out, groups, 1] -> codes [out, in]

    order: permutation of the inputs to go through, such as ``act_order(h)``; None: left to
           right.  A weight keeps the scale of its group, whenever its turn comes.
    Raises ValueError for shapes that do not fit, and for a singular h: ``dampen`` it.
    """
    target, u, order, inverse_order = _permute(w, h, order)
    codes = []
    for j in range(target.shape[1]):
        column, own = target[:, [j]], column_qparams(qparams, order[j], len(order))
        codes.append(affine.quantize(column, own))
        error = column - affine.dequantize(codes[j], own)
        target[:, j + 1 :] -= error * u[j, j + 1 :] / u[j, j]
    return np.hstack(codes)[:, inverse_order]


def quantize_blocks(w, h, qparams, *, order=None, block_size=128):
    """``quantize``, with the columns behind a block updated once a block, by a matrix product.

    block_size: columns to a block; the codes do not depend on it, up to ties.
    Raises ValueError as ``quantize``, and for a block_size below 1.
    """
    if block_size < 1:
        raise ValueError(f"block_size={block_size} is not positive; GPTQ uses 128")
    target, u, order, inverse_order = _permute(w, h, order)
    u = u / np.diag(u)[:, None]
    # Transposed, a column of w lies in one piece of memory.
    target = np.ascontiguousarray(target.T)
    codes = []
    for start in range(0, len(target), block_size):
        block = target[start : start + block_size]
        stop = start + len(block)
        errors = np.empty_like(block)
        for j in range(start, stop):
            # What this block owes to column j, in one product, just before its turn.
            column = block[j - start] - u[start:j, j] @ errors[: j - start]
            own = column_qparams(qparams, order[j], len(order))
            codes.append(affine.quantize(column[:, None], own))
            errors[j - start] = column - affine.dequantize(codes[j], own)[:, 0]
        target[stop:] -= u[start:stop, stop:].T @ errors
    return np.hstack(codes)[:, inverse_order]


def quantize_groups(w, h, bits, group_size, *, symmetric=True):
    """w [out, in], h [in, in] -> codes [out, in], qparams with scale [out, in / group_size, 1]

    The scale of a group is chosen when its first column is reached: it covers the weights as they
    stand then, with the errors that they have absorbed.  For another order permute w and h first;
    groups are then of neighbours in that order.
    Raises ValueError as ``quantize``, and as ``affine.choose_qparams`` for bits and group_size.
    """
    target, u, _, _ = _permute(w, h, None)
    # Its scales are those of the original weights, and are replaced one by one.
    qparams = affine.choose_qparams(
        target, bits, axis=1, group_size=group_size, symmetric=symmetric
    )
    scale, zero_point = qparams.scale.copy(), qparams.zero_point.copy()
    codes = []
    for j in range(target.shape[1]):
        if j % group_size == 0:
            group = target[:, j : j + group_size]
            own = affine.choose_qparams(group, bits, axis=1, symmetric=symmetric)
            scale[:, j // group_size], zero_point[:, j // group_size] = own.scale, own.zero_point
        column = target[:, [j]]
        codes.append(affine.quantize(column, own))
        error = column - affine.dequantize(codes[j], own)
        target[:, j + 1 :] -= error * u[j, j + 1 :] / u[j, j]
    return np.hstack(codes), replace(qparams, scale=scale, zero_point=zero_point)


def _permute(w, h, order):
    """-> w in this order (float64, a copy), the factor of h in this order, order and its inverse"""
    target = check_shapes(w, h, order)
    order = np.arange(target.shape[1]) if order is None else np.asarray(order)
    h = np.asarray(h, np.float64)[np.ix_(order, order)]
    return np.ascontiguousarray(target[:, order]), inverse_factor(h), order, np.argsort(order)
