"""E8P: 2^16 points of a shifted E8 lattice, two bits a weight for eight weights at once.

    point = signs * magnitudes + 1/4 or - 1/4           16 bits: 8 for magnitudes, 7 signs, 1 shift

Magnitudes are those of the half-integer vectors of even sum nearest to zero: 227 of squared length
up to 10, and 29 of length 12.  One sign follows from the others, because the sum is even.
Tseng et al. 2024, arXiv:2402.04396, section 4 (QuIP#).  Book: 5.10

The released table, latticee8_padded12.py, holds one of its 29 twice and therefore has 255 different
magnitudes; the one that its pattern lacks stands here in the duplicate's place.
"""

import functools
import itertools
import math

import torch

SHIFT = 0.25
# Of the sign of each coordinate in a code; bit 0 is the shift.
PLACES = torch.arange(8, 0, -1)


@functools.cache
def magnitudes():
    """-> [256, 8] float64, halves of odd numbers: 227 of squared length up to 10, 29 of 12"""
    short = []
    for odd in itertools.product((1, 3, 5), repeat=8):
        if sum(value**2 for value in odd) <= 40:
            short.append(odd)
    long = []
    for ones in itertools.combinations(range(8), 3):
        # Three of the first four places; one of them and two of the last four; and one more.
        first = sum(place < 4 for place in ones)
        if first in (1, 3) or ones == (2, 3, 7):
            long.append(tuple(1 if place in ones else 3 for place in range(8)))
    return torch.tensor(short + long, dtype=torch.float64) / 2


@functools.cache
def _odd():
    """[256] bool: magnitudes of odd sum, which need an odd number of minus signs"""
    return magnitudes().sum(dim=1) % 2 == 1


def encode(x, *, rows=4096):
    """x [..., 8] floats -> codes int32 [...], 0 to 65535, of the nearest points

    Computed in the type of x.  rows: how many at a time, for memory.
    Raises ValueError unless the last axis has length 8.
    """
    if x.shape[-1] != 8:
        raise ValueError(f"x has shape {tuple(x.shape)}; E8P needs a last axis of length 8")
    parts = [_nearest(part) for part in x.reshape(-1, 8).split(rows)]
    codes = torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int32)
    return codes.reshape(x.shape[:-1])


def decode(codes):
    """codes int [...] from 0 to 65535 -> points [..., 8] float32, multiples of 1/4"""
    codes = codes.to(torch.int64)
    index, shift = codes >> 8, codes & 1
    minus = (codes[..., None] >> PLACES) & 1
    # What stands there is a bit of the index: this sign follows from the other seven.
    minus[..., 0] = (minus[..., 1:].sum(dim=-1) + _odd()[index].long()) % 2
    point = magnitudes()[index] * (1 - 2 * minus)
    return (point + SHIFT * (2 * shift[..., None] - 1)).float()


@functools.cache
def best_scale():
    """-> step of the lattice at which standard normal numbers have the least error, and that error

    Step: what multiplies points.  By 2^12 draws of eight numbers and a golden search, seed 0.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2**12, 8, generator=generator, dtype=torch.float64)

    def error(step):
        return float(((decode(encode(x / step)).double() * step - x) ** 2).mean())

    low, high, golden = 0.7, 1.3, (math.sqrt(5) - 1) / 2
    for _ in range(10):
        left, right = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, right) if error(left) < error(right) else (left, high)
    step = (low + high) / 2
    return step, error(step)


def _nearest(x):
    """x [n, 8] -> codes [n] int32"""
    both = [_nearest_shifted(x - SHIFT * (2 * shift - 1)) for shift in (0, 1)]
    (low, low_distance), (high, high_distance) = both
    return torch.where(high_distance < low_distance, high | 1, low).int()


def _nearest_shifted(y):
    """y [n, 8] -> codes of the nearest signed magnitudes, without shift, and squared distances [n]

    The best signs of any magnitudes are those of y.  Where their number has the wrong parity, the
    coordinate whose sign costs least takes the other one.
    """
    a, size, minus = magnitudes().to(y), y.abs(), y < 0
    distance = (y**2).sum(dim=1, keepdim=True) - 2 * size @ a.T + (a**2).sum(dim=1)
    wrong = (minus.sum(dim=1) % 2 == 1)[:, None] != _odd()
    # (|y| + a)^2 - (|y| - a)^2 = 4 a |y|, coordinate by coordinate: all at once would fill memory.
    repair = torch.full_like(distance, torch.inf)
    for i in range(8):
        torch.minimum(repair, size[:, i, None] * a[:, i], out=repair)
    distance, index = (distance + wrong * (4 * repair)).min(dim=1)
    chosen = torch.arange(len(y))
    place = (size * a[index]).argmin(dim=1)
    minus[chosen, place] ^= wrong[chosen, index]
    signs = (minus[:, 1:].long() << PLACES[1:]).sum(dim=1)
    return (index << 8) | signs, distance
