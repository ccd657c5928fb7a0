"""EdMIPS: no drawing; a layer computes with the mean of its widths, and the largest share wins.

    w_mix = sum_k softmax(alpha)_k Q_k(w)
    loss = task + eta * sum over layers of MACs * mean weight width * mean activation width

Cai & Vasconcelos 2020, arXiv:2004.05795, and the authors' code, github.com/zhaoweicai/EdMIPS.
Book: 3.3
"""

import torch

from qbook.mixed import supernet

# Every logit at the start, in the authors' code: all shares are equal, and no noise moves them.
FIRST_LOGIT = 0.01


def shares(alpha):
    """alpha [..., width] -> softmax over the widths"""
    return torch.softmax(alpha, -1)


def composite(branches, alpha):
    """branches [width, ...], alpha [width] -> the mixture [...] with which one layer computes."""
    return supernet.mix(branches, shares(alpha))


def bit_operations(macs, weight_shares, widths, input_shares=None, input_widths=(1,)):
    """Mean number of one-bit products, widths of weights and inputs drawn apart -> scalar.

    macs: multiply-accumulates of each layer;  shares [layer, width]
    Without input shares an input counts one bit: the size in bits, if macs are weights.
    """
    macs = torch.as_tensor(macs, dtype=weight_shares.dtype, device=weight_shares.device)
    if input_shares is None:
        input_shares = torch.ones_like(weight_shares[..., :1])
    of_weights = supernet.mean_widths(weight_shares, widths)
    return (macs * of_weights * supernet.mean_widths(input_shares, input_widths)).sum()


def loss(task, cost, eta):
    """-> task + eta * cost; eta in units of the task loss per unit of cost"""
    return task + eta * cost
