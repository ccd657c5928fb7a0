"""Blahut-Arimoto: the rate-distortion function of any discrete source, by alternating minimisation.

Fix the output distribution, and the best channel is a softmax of -beta * distortion; fix the
channel, and the best output distribution is its marginal.  Blahut 1972, IEEE Trans. Inf. Theory 18;
Arimoto 1972.  The check on the closed forms of ``rate_distortion``.  Book: 2.3
"""

from typing import NamedTuple

import numpy as np


class Point(NamedTuple):
    """A point of the curve: rate in bits, distortion, channel [inputs, outputs] = p(x_hat | x), and
    how many bits the rate may lie above R(distortion)."""

    rate: float
    distortion: float
    channel: np.ndarray
    gap: float


def blahut_arimoto(p, distortion, beta, *, tolerance=1e-6, max_steps=100_000):
    """The point of R(D) with slope dR/dD = -beta / ln 2 bits -> Point.

    p:          source probabilities [inputs], summing to 1
    distortion: [inputs, outputs], >= 0
    beta:       > 0; for a Gaussian under squared error beta = 1 / (2 D)
    Ends when the rate is proven to be within ``tolerance`` bits of R(D): the factors by which the
    outputs still grow bracket it (Blahut 1972).
    Raises ValueError for p that is no distribution, for shapes that do not match and for beta <= 0;
    RuntimeError where max_steps do not suffice.
    """
    p = np.asarray(p, np.float64)
    distortion = np.asarray(distortion, np.float64)
    if p.ndim != 1 or not (p >= 0).all() or not abs(p.sum() - 1) <= 1e-9:
        raise ValueError(f"p sums to {p.sum()}; probabilities are not negative and sum to 1")
    if distortion.ndim != 2 or len(distortion) != len(p):
        raise ValueError(f"distortion has shape {distortion.shape}; it needs {len(p)} rows")
    if not beta > 0:
        raise ValueError(f"beta={beta} must be positive")
    # Less the least distortion of each row, so that no row of the kernel underflows to 0.
    kernel = np.exp(-beta * (distortion - distortion.min(axis=1, keepdims=True)))
    output = np.full(distortion.shape[1], 1 / distortion.shape[1])
    for _ in range(max_steps):
        partition = kernel @ output
        growth = (p / partition) @ kernel
        gap = (np.log(growth.max()) - output @ (growth * np.log(growth))) / np.log(2)
        if gap <= tolerance:
            break
        output = output * growth
    else:
        raise RuntimeError(f"{gap:.2g} bits left after max_steps={max_steps}; allow more")
    channel = output * kernel / partition[:, None]
    joint = p[:, None] * channel
    return Point(mutual_information(joint), float(np.sum(joint * distortion)), channel, float(gap))


def mutual_information(joint):
    """Joint probabilities [inputs, outputs] -> I in bits, with 0 log 0 = 0."""
    inputs = np.broadcast_to(joint.sum(axis=1, keepdims=True), joint.shape)
    outputs = np.broadcast_to(joint.sum(axis=0, keepdims=True), joint.shape)
    positive = joint > 0
    # Logarithms before the product: the product of two small marginals underflows.
    ratio = np.log2(joint[positive]) - np.log2(inputs[positive]) - np.log2(outputs[positive])
    return float(np.sum(joint[positive] * ratio))
