"""QDrop: while the roundings are learnt, each activation is quantized only with probability p.

Always quantized, the weights learn the rounding errors of the calibration samples by heart; never
quantized, they learn nothing about them.  A coin for each element and each step lies between.
Weights are always rounded (softly), and after training every activation is quantized.
Wei et al. 2022, arXiv:2203.05740, section 3.  Book: 4.3
"""

import torch

from qbook.ptq import brecq


def drop(x_hat, x, p, generator):
    """x_hat, x [...] -> x_hat where a fresh uniform number is below p, x elsewhere.

    p: the probability of *keeping* the quantization; the released code calls it drop_prob.
    Raises ValueError for p outside [0, 1].
    """
    if not 0 <= p <= 1:
        raise ValueError(f"p={p} is no probability; choose 0 (never quantized) to 1 (always)")
    return torch.where(torch.rand(x.shape, generator=generator, dtype=x.dtype) < p, x_hat, x)


def linear_loss(w, w_hat, x, x_hat, p):
    """Mean over all 2^in patterns of |w_hat x_dropped - w x|^2, in closed form -> [samples].

    w, w_hat [out, in], x, x_hat [samples, in].  The loss at the mean input plus a ridge penalty,
    p (1 - p) sum_j (x_hat - x)_j^2 |w_hat_j|^2, which vanishes at p = 0 and p = 1.
    """
    error = x_hat - x
    centre = (x + p * error) @ w_hat.T - x @ w.T
    return (centre**2).sum(1) + p * (1 - p) * error**2 @ (w_hat**2).sum(0)


def quantize(model, inputs, blocks, weight_bits, act_bits, *, p=0.5, seed=0, **schedule):
    """-> a copy of the model: ``brecq.quantize`` with dropped activation quantization.

    p = 1 is BRECQ with activations quantized, p = 0 learns roundings that never see one.  Dropped
    are a block's input, against the real network's, and the inputs of the layers inside.
    """
    generator = torch.Generator().manual_seed(seed)
    # A p that is no probability is refused before the work begins.
    drop(torch.empty(0), torch.empty(0), p, generator)
    return brecq.quantize(
        model,
        inputs,
        blocks,
        weight_bits,
        act_bits,
        mix=lambda x_hat, x: drop(x_hat, x, p, generator),
        seed=seed,
        **schedule,
    )
