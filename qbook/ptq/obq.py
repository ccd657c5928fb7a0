"""OBQ: round the weight that costs least; the rest of its row absorbs the error; repeat.

Frantar, Singh and Alistarh 2022, arXiv:2208.11580, section 5 (the Optimal Brain Quantizer); the
update is Optimal Brain Surgeon's, Hassibi and Stork 1992.  The layer-wise objective, its matrix H
and what makes H invertible stand here too: GPTQ starts from the same ones.  Book: 4.4
"""

from dataclasses import replace

import numpy as np

from qbook import affine

# A pivot below this share of its diagonal entry is rounding noise, not information.
SINGULAR = 1e-12


def hessian(x):
    """x [samples, in] -> x^T x [in, in], float64: half the Hessian of |x w^T - x w_hat^T|^2.

    The papers' factor 2 cancels in every step.  Raises ValueError for NaN or infinity, and for an
    x that is not a matrix.
    """
    x = np.asarray(x, np.float64)
    if x.ndim != 2:
        raise ValueError(f"x has shape {x.shape}; flatten it to [samples, in]")
    if not np.all(np.isfinite(x)):
        raise ValueError("x holds NaN or infinity; calibrate on finite inputs")
    return x.T @ x


def dampen(h, damping=0.01):
    """h [in, in] -> h + damping * mean(diag h) * I, positive definite for every h = x^T x but 0.

    damping: share of the mean diagonal; 0.01 is GPTQ's.  An input that was always zero (a dead
    column) then has a diagonal entry of its own, meets no other, and is rounded to nearest.
    Raises ValueError for a negative damping, and as ``invert`` does for a wrong shape.
    """
    h = _square(h)
    if not damping >= 0:
        raise ValueError(f"damping={damping} is not a share >= 0; GPTQ uses 0.01")
    return h + damping * np.mean(np.diag(h)) * np.eye(len(h))


def invert(h):
    """h [in, in], symmetric and positive definite -> h^-1.

    Raises ValueError for an h that is not a finite symmetric matrix, and for a singular or
    indefinite one, with the damping that would make it definite.
    """
    h = _square(h)
    try:
        pivots = np.diag(np.linalg.cholesky(h)) ** 2
        definite = np.all(pivots > SINGULAR * np.diag(h))
    except np.linalg.LinAlgError:
        definite = False
    if not definite:
        raise ValueError(_what_would_work(h))
    return np.linalg.inv(h)


def output_error(w, w_hat, h):
    """w, w_hat [out, in], h = x^T x -> tr((w - w_hat) h (w - w_hat)^T) = |x w^T - x w_hat^T|^2"""
    error = np.asarray(w, np.float64) - np.asarray(w_hat, np.float64)
    return float(np.sum((error @ h) * error))


def quantize(w, h, qparams, *, order=None):
    """w [out, in], h [in, in], qparams.scale [out, 1] or [out, groups, 1] -> codes [out, in]

    order: None: each row rounds next the weight whose rounding costs least, outliers first;
           a permutation of the inputs: every row goes through it
    Costs out * in^3 operations: for layers of a few hundred inputs.  Raises ValueError for shapes
    that do not fit and, through ``invert``, for a singular h.
    """
    w = check_shapes(w, h, order)
    columns = [column_qparams(qparams, j, w.shape[1]) for j in range(w.shape[1])]
    scale, zero_point = (
        np.concatenate([np.broadcast_to(getattr(c, name), (len(w), 1)) for c in columns], axis=1)
        for name in ("scale", "zero_point")
    )
    inverse = invert(h)
    rows = [
        _quantize_row(
            w[i], inverse, replace(qparams, scale=s, zero_point=z, group_axis=None), order
        )
        for i, (s, z) in enumerate(zip(scale, zero_point, strict=True))
    ]
    return np.stack(rows)


def _quantize_row(row, inverse, qparams, order):
    """row [in], inverse = h^-1, qparams.scale [in] -> codes [in]"""
    target, inverse = row.copy(), inverse.copy()
    chosen = affine.quantize(target, qparams)
    left = np.ones(len(row), bool)
    for step in range(len(row)):
        codes = affine.quantize(target, qparams)
        error = target - affine.dequantize(codes, qparams)
        if order is None:
            p = _cheapest(error, np.diag(inverse), qparams.scale, left)
        else:
            p = order[step]
        chosen[p] = codes[p]
        left[p] = False
        target -= error[p] / inverse[p, p] * inverse[:, p]
        # Gaussian elimination: the inverse of h without row and column p.
        inverse -= np.outer(inverse[:, p], inverse[p]) / inverse[p, p]
        inverse[p, :] = inverse[:, p] = 0
    return chosen


def _cheapest(error, diagonal, scale, left):
    """Index of the next weight: the least error^2 / [h^-1]_pp among outliers, if any, or all."""
    # Beyond the last level an error only grows while others are absorbed: round it at once.
    outliers = left & (np.abs(error) > scale / 2 * (1 + 1e-9))
    candidates = np.flatnonzero(outliers if outliers.any() else left)
    return candidates[np.argmin(error[candidates] ** 2 / diagonal[candidates])]


def column_qparams(qparams, j, in_):
    """The QParams of column j of w [out, in_]: scale [out, 1], of the group that j lies in.

    Raises ValueError for a scale that is neither [out, 1], a single one, nor [out, groups, 1].
    """
    scale = qparams.scale
    if qparams.group_axis is None and (scale.ndim == 0 or scale.shape[-1] == 1):
        return qparams
    if qparams.group_axis != 1 or scale.ndim != 3 or in_ % scale.shape[1]:
        raise ValueError(
            f"scale has shape {scale.shape} for {in_} inputs; choose_qparams(w, bits, axis=1) "
            "gives [out, 1], with group_size [out, groups, 1]"
        )
    group = j // (in_ // scale.shape[1])
    return replace(
        qparams, scale=scale[:, group], zero_point=qparams.zero_point[:, group], group_axis=None
    )


def check_shapes(w, h, order=None):
    """-> w as float64.  Raises ValueError unless w [out, in], h [in, in], order fit."""
    w = np.asarray(w, np.float64)
    if w.ndim != 2 or np.shape(h) != (w.shape[-1],) * 2:
        raise ValueError(f"w {w.shape} and h {np.shape(h)} do not fit; give [out, in], [in, in]")
    if order is not None and not np.array_equal(np.sort(order), np.arange(w.shape[1])):
        raise ValueError(f"order={order} is not a permutation of the {w.shape[1]} inputs")
    return w


def _square(h):
    h = np.asarray(h, np.float64)
    if h.ndim != 2 or h.shape[0] != h.shape[1] or h.shape[0] == 0:
        raise ValueError(f"h has shape {h.shape}; hessian(x) gives [in, in]")
    if not np.all(np.isfinite(h)):
        raise ValueError("h holds NaN or infinity; calibrate on finite inputs")
    if not np.allclose(h, h.T, rtol=1e-6, atol=1e-9 * np.abs(h).max()):
        raise ValueError("h is not symmetric; hessian(x) gives x^T x")
    return h


def _what_would_work(h):
    mean = np.mean(np.diag(h))
    lowest = np.linalg.eigvalsh(h)[0]
    if not mean > 0:
        return f"h has a mean diagonal of {mean:.3g}: no input was ever active; round to nearest"
    dead = np.flatnonzero(np.diag(h) == 0)
    blame = f"the inputs {dead.tolist()} were always zero" if len(dead) else "inputs are dependent"
    # An indefinite h is no x^T x; then damping must first lift its lowest eigenvalue.
    damping = max(0.01, 2 * -lowest / mean)
    return (
        f"h is singular (lowest eigenvalue {lowest:.3g}, mean diagonal {mean:.3g}): {blame}; "
        f"dampen(h, {damping:.3g}) would work, and so may more samples"
    )
