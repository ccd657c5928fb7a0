"""DNAS: draw the width of each layer at random, and learn the odds from the loss.

    P(width k) = softmax(theta)_k,   shares = softmax((theta + g) / tau),   g standard Gumbel noise
    loss = cross-entropy * beta * log(cost)^gamma

Wu et al. 2018, arXiv:1812.00090, sections 4 and 5; Gumbel-softmax: Jang et al. 2017,
arXiv:1611.01144, and Maddison et al. 2017, arXiv:1611.00712.  Book: 3.3
"""

import math

import torch

from qbook.mixed import supernet


def gumbel(shape, generator, dtype=torch.float64):
    """Standard Gumbel noise, -log(-log(u)) of u uniform on (0, 1), from this torch.Generator."""
    u = torch.rand(shape, generator=generator, dtype=dtype, device=generator.device)
    # rand may return 0, whose noise would be -inf; the smallest number above it gives about -6.6.
    u = u.clamp_min(torch.finfo(dtype).tiny)
    return -torch.log(-torch.log(u))


def sample(theta, generator):
    """theta [..., width] -> one-hot [..., width]: width k with probability softmax(theta)_k.

    The Gumbel-max trick: the largest of theta + noise.  Carries no gradient.
    """
    noisy = theta.detach() + gumbel(theta.shape, generator, theta.dtype)
    return torch.nn.functional.one_hot(noisy.argmax(-1), theta.shape[-1]).to(theta.dtype)


def relax(theta, noise, temperature):
    """theta, noise [..., width] -> shares [..., width], positive and of sum 1.

    Towards temperature 0 the one-hot that ``sample`` draws with this noise, towards infinity
    equal shares.  Raises ValueError for a temperature that is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"temperature={temperature} must be positive; for 0 use sample")
    return torch.softmax((theta + noise) / temperature, -1)


def anneal(step, start, rate):
    """-> temperature start * exp(-rate * step)"""
    return start * math.exp(-rate * step)


def size(shares, counts, widths):
    """Bits of all weights: shares [layer, width], counts: weights of each layer -> scalar."""
    counts = torch.as_tensor(counts, dtype=shares.dtype, device=shares.device)
    return (counts * supernet.mean_widths(shares, widths)).sum()


def loss(task, cost, beta, gamma):
    """-> task * beta * log(cost)^gamma, section 5; gamma = 0 leaves the task loss alone.

    beta: makes the factor 1 at the start; it has no part in where the minimum lies
    Raises ValueError unless cost > 1: below, the logarithm is negative and has no such power.
    """
    if not bool(cost > 1):
        raise ValueError(f"cost={float(cost)} must exceed 1; count it in a smaller unit")
    return task * beta * torch.log(cost) ** gamma
