"""Hadamard matrices: rotations whose entries are all +-1 / sqrt(n), multiplied without products.

A rotation by one spreads every coordinate evenly over all others: an outlier of size M becomes n
numbers of size M / sqrt(n).  Orders 2^k are Sylvester's; q + 1 and 2 (q + 1), with q a prime, are
Paley's (1933, "On orthogonal matrices"); the Kronecker product of two is another.  Ashkboos et al.
2024, arXiv:2404.00456, section 2 (QuaRot).  Book: 5.9
"""

import functools
import math

import torch


@functools.cache
def _factors(n):
    """n -> (order of Paley's matrix or 1, a power of two), whose product it is"""
    odd = n // (n & -n)
    if odd == 1:
        return 1, n
    order = 4 * odd
    while n % order == 0:
        if _prime(order - 1) or (_prime(order // 2 - 1) and order % 8 == 4):
            return order, n // order
        order *= 2
    raise ValueError(
        f"no Hadamard matrix of order {n} is built here; choose a power of two, or one that is at "
        "least 4 times 3, 5, 7, 9, 11 or 15"
    )


@functools.cache
def paley(order):
    """-> matrix [order, order] of +-1, float64, h h^T = order I.  Source: Paley 1933

    order: q + 1 with q a prime, 3 mod 4, such as 12;  2 (q + 1) with q = 1 mod 4, such as 28.
    Raises ValueError for another order.
    """
    if order % 4 == 0 and _prime(order - 1):
        # Skew: its transpose is its negative.
        return torch.eye(order, dtype=torch.float64) + _conference(order - 1)
    q = order // 2 - 1
    if order % 8 == 4 and _prime(q):
        one = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
        other = torch.tensor([[1.0, -1.0], [-1.0, -1.0]], dtype=torch.float64)
        eye = torch.eye(q + 1, dtype=torch.float64)
        return torch.kron(_conference(q), one) + torch.kron(eye, other)
    raise ValueError(f"order={order} is none of Paley's; choose 12, 20, 24, 28, 36, 44, 60, ...")


def _conference(q):
    """A prime q -> c [q + 1, q + 1]: 0 on the diagonal, else +-1, with c c^T = q I"""
    squares = {i * i % q for i in range(1, q)}
    # Of a difference: 0, or 1 where it is a square modulo q, else -1.
    symbol = torch.tensor([0.0] + [1.0 if i in squares else -1.0 for i in range(1, q)])
    places = torch.arange(q)
    c = torch.zeros(q + 1, q + 1, dtype=torch.float64)
    c[1:, 1:] = symbol[(places[:, None] - places) % q].double()
    c[0, 1:] = 1
    c[1:, 0] = 1 if q % 4 == 1 else -1
    return c


def _prime(n):
    return n > 2 and all(n % d for d in range(2, math.isqrt(n) + 1))


def matrix(n, *, seed=None):
    """-> orthogonal [n, n] float64 with entries +-1 / sqrt(n): diag(signs) h, h as in ``transform``

    seed: of the random signs of the rows; None: no signs.
    Raises ValueError for an n for which no matrix is built here.
    """
    return transform(torch.diag(signs(n, seed)))


def signs(n, seed):
    """-> [n] of +-1 float64, all 1 without a seed"""
    if seed is None:
        return torch.ones(n, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    return 2.0 * torch.randint(2, (n,), generator=generator).double() - 1


def transform(x, *, inverse=False):
    """torch x [..., n] -> x h [..., n], h the Hadamard matrix of order n over sqrt(n)

    inverse: x h^T, which undoes it; powers of two are their own inverses
    n log2 n additions where n is a power of two.  Raises ValueError as ``matrix``.
    """
    n = x.shape[-1]
    order, power = _factors(n)
    y = x.reshape(-1, order, power)
    half = 1
    while half < power:
        # Butterflies: sums and differences of neighbours at distance half.
        pairs = y.reshape(-1, order, power // (2 * half), 2, half)
        first, second = pairs[..., 0, :], pairs[..., 1, :]
        y = torch.stack([first + second, first - second], dim=-2).reshape(-1, order, power)
        half *= 2
    if order > 1:
        small = paley(order).T if inverse else paley(order)
        y = torch.einsum("nop,oq->nqp", y, small.to(x))
    return (y / math.sqrt(n)).reshape(x.shape)
