"""QuIP: make weights and Hessian incoherent, then round with feedback, several weights at a time.

    w' = u w v^T,   h' = v h v^T                    u, v random rotations: tr(e h e^T) stays
    w_hat_k = round(w_k + (w - w_hat)_(later) a_k)  blocks k from the last to the first

Chee et al. 2023, arXiv:2307.13304, section 3 (LDLQ, which is GPTQ in the opposite order) and
section 4 (incoherence); Tseng et al. 2024, arXiv:2402.04396, sections 3 and 4: signed Hadamard
matrices for u and v, and blocks that are rounded together (QuIP#).  Book: 5.10
"""

from typing import NamedTuple

import torch

from qbook.llm import e8p, hadamard

BLOCK = 8


class Rotated(NamedTuple):
    """w [out, in] and h [in, in] after rotation, and the seed of the signs that undoes it"""

    w: torch.Tensor
    h: torch.Tensor
    seed: int


def rotate(w, h, seed=0):
    """w [out, in], h [in, in] float64 -> Rotated: both sides times a signed Hadamard matrix

    Raises ValueError for lengths without one (``hadamard.matrix``) and for shapes that do not fit.
    """
    if h.shape != (w.shape[1], w.shape[1]):
        raise ValueError(f"h has shape {tuple(h.shape)}; {w.shape[1]} inputs need a square of them")
    left, right = _signs(w, seed)
    rotated = hadamard.transform(w * right)
    rotated = hadamard.transform(rotated.T * left).T
    # h' = v h v^T with v = (diag(right) hadamard)^T, on both sides.
    turned = hadamard.transform(h * right).T
    return Rotated(rotated, hadamard.transform(turned * right), seed)


def restore(w_rotated, seed=0):
    """w' [out, in] -> w: what ``rotate`` did to the weight, undone"""
    left, right = _signs(w_rotated, seed)
    w = hadamard.transform(w_rotated.T, inverse=True).T * left[:, None]
    return hadamard.transform(w, inverse=True) * right


def incoherence(matrix):
    """matrix [m, n] -> mu = max |entry| sqrt(m n) / its Frobenius norm: 1 if all are of one size"""
    return float(matrix.abs().max() * matrix.numel() ** 0.5 / torch.linalg.norm(matrix))


def block_factor(h, size=BLOCK):
    """h [n, n] positive definite -> l, unit lower block triangular, with h = l d l^T

    d is block diagonal, blocks of ``size``.
    Raises ValueError where size does not divide n or h is not definite.
    """
    n = len(h)
    if n % size:
        raise ValueError(f"size={size} does not divide the {n} inputs; QuIP# takes 8")
    try:
        lower = torch.linalg.cholesky(h)
    except torch.linalg.LinAlgError as error:
        raise ValueError("h is not positive definite; dampen it (qbook.ptq.obq.dampen)") from error
    diagonal = torch.zeros_like(lower)
    for start in range(0, n, size):
        own = slice(start, start + size)
        diagonal[own, own] = lower[own, own]
    return torch.linalg.solve_triangular(diagonal, lower, upper=False, left=False)


def quantize(w, h, round_block, size=BLOCK):
    """w [out, in], h [in, in] -> w_hat [out, in], blocks of ``size`` columns, the last one first

    round_block: function of [out, size] -> its rounded values, such as ``e8p_rounding(step)``
    With single columns and rounding to nearest it is GPTQ from right to left.
    Raises ValueError as ``block_factor``.
    """
    feedback = block_factor(h, size)
    w_hat = w.clone()
    for start in reversed(range(0, w.shape[1], size)):
        own, later = slice(start, start + size), slice(start + size, None)
        target = w[:, own] + (w - w_hat)[:, later] @ feedback[later, own]
        w_hat[:, own] = round_block(target)
    return w_hat


def e8p_rounding(step):
    """step: real distance that stands for 1 in the lattice -> a ``round_block``, 2 bits a weight"""

    def round_block(target):
        return e8p.decode(e8p.encode(target / step)).to(target) * step

    return round_block


def quantize_e8p(w, h, *, seed=0):
    """w [out, in], h [in, in] float64 -> w_hat [out, in]: QuIP# without fine-tuning, 2 bits

    One step for the whole matrix, ``e8p.best_scale`` of its root mean square.
    """
    rotated = rotate(w, h, seed)
    step = e8p.best_scale()[0] * rotated.w.square().mean().sqrt()
    return restore(quantize(rotated.w, rotated.h, e8p_rounding(step)), seed)


def _signs(w, seed):
    """-> [out], [in] of +-1, different draws for the two sides"""
    left, right = (hadamard.signs(n, 2 * seed + side) for side, n in enumerate(w.shape))
    return left.to(w), right.to(w)
