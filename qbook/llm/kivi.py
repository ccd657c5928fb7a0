"""KIVI: keys are rounded along tokens, a range for each channel; values along channels.

    x_hat = low + scale * codes        low, scale: of a group of neighbours that share a range

A key channel that is large is large at every token: grouped with its own past, it harms nobody
else.  A value is averaged over tokens, so its error should stay with its token.  The last tokens
stay real.  Liu et al. 2024, arXiv:2402.02750, section 3 and Algorithm 1; ranges end at the group's
minimum and maximum and need not hold 0, as in the released quant/new_pack.py.  Book: 5.11
"""

from typing import NamedTuple

import torch

from qbook import granularity, packing


class Grouped(NamedTuple):
    """Codes with real minima, for x [..., t, d] grouped along ``axis``, -1 or -2.

    packed: uint8, codes along the grouped axis, which comes last: [..., groups, bytes of a group]
    scale, low: of x's type [..., groups, 1]
    """

    packed: torch.Tensor
    scale: torch.Tensor
    low: torch.Tensor
    bits: int
    group_size: int
    axis: int

    @property
    def nbytes(self):
        """Bytes of codes, scales and minima"""
        return self.packed.nbytes + self.scale.nbytes + self.low.nbytes


def own_ends(low, high):
    """Smallest and largest number of each group -> the ends of its range: these two, KIVI's choice

    Source: quant/new_pack.py.  ``with_zero`` and ``symmetric`` are others to compare with.
    """
    return low, high


def with_zero(low, high):
    """As ``own_ends``, stretched until 0 lies inside, as an integer zero-point needs it"""
    return low.clamp(max=0), high.clamp(min=0)


def symmetric(low, high):
    """As ``own_ends``, -m and m with m the largest magnitude: no minimum needs to be stored"""
    reach = torch.maximum(low.abs(), high.abs())
    return -reach, reach


def quantize(x, bits, group_size, axis, *, ends=own_ends):
    """x [..., t, d] -> Grouped.  axis: -2: groups of neighbouring tokens; -1: of channels

    bits: 1 to 8.  ends: function (low, high) of the groups -> ends of their ranges.
    Raises ValueError for NaN or infinity, for bits that do not pack, for another axis and for a
    group_size that does not divide.
    """
    if axis not in (-1, -2):
        raise ValueError(f"axis={axis} is neither channels, -1, nor tokens, -2")
    if not bool(torch.isfinite(x).all()):
        raise ValueError("x holds NaN or infinity; a cache of it cannot be read again")
    x = x.detach() if axis == -1 else x.detach().transpose(-1, -2)
    groups = granularity.split_groups(x, group_size)
    low, high = ends(groups.amin(dim=-1, keepdim=True), groups.amax(dim=-1, keepdim=True))
    scale = (high - low) / (2**bits - 1)
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    codes = ((groups - low) / scale).round().clamp(0, 2**bits - 1).to(torch.uint8)
    return Grouped(packing.pack(codes, bits), scale, low, bits, group_size, axis)


def dequantize(grouped):
    """Grouped -> x_hat [..., t, d], in the type of its scale"""
    codes = packing.unpack(grouped.packed, grouped.bits, grouped.group_size)
    x = granularity.merge_groups(grouped.low + grouped.scale * codes.to(grouped.scale.dtype))
    return x if grouped.axis == -1 else x.transpose(-1, -2)


class Cache:
    """The keys and values of one attention layer, [..., t, d], as decoding appends to them.

    bits:       of a code; the paper takes 2
    group_size: tokens of a key channel, channels of a value, that share a range (paper: 32)
    residual:   how many of the last tokens may stay real (paper: 128), a multiple of group_size
    key_axis, value_axis: -2, tokens, and -1, channels, in the paper; others to compare with
    ends:       as ``quantize``
    in_blocks:  tokens that could leave one at a time leave in blocks too: the same tokens are
                real for every choice of axes
    Raises ValueError for a residual that group_size does not divide.
    """

    def __init__(
        self,
        *,
        bits=2,
        group_size=32,
        residual=128,
        key_axis=-2,
        value_axis=-1,
        ends=own_ends,
        in_blocks=False,
    ):
        if residual < 0 or residual % group_size:
            raise ValueError(
                f"residual={residual} is no multiple of group_size={group_size}; the paper's are "
                "128 and 32"
            )
        self.bits, self.group_size, self.residual = bits, group_size, residual
        self.axes = {"keys": key_axis, "values": value_axis}
        self.ends, self.in_blocks = ends, in_blocks
        self.stored = {"keys": [], "values": []}
        self.recent = {}

    def append(self, keys, values):
        """keys, values [..., new tokens, d] join the cache.  Full parts of it are quantized."""
        for name, new in (("keys", keys), ("values", values)):
            held = torch.cat([self.recent[name], new], dim=-2) if name in self.recent else new
            full = self.settled(name, held.shape[-2])
            if full:
                self.stored[name].append(self.quantize(name, held[..., :full, :]))
            self.recent[name] = held[..., full:, :]

    def read(self):
        """-> keys, values [..., t, d] as attention sees them"""
        return tuple(
            torch.cat(
                [dequantize(part) for part in self.stored[name]] + [self.recent[name]], dim=-2
            )
            for name in ("keys", "values")
        )

    @property
    def nbytes(self):
        """Bytes of all that is stored"""
        parts = (part for parts in self.stored.values() for part in parts)
        return sum(p.nbytes for p in parts) + sum(t.nbytes for t in self.recent.values())

    def quantize(self, name, x):
        """name: "keys" or "values", x [..., t, d] of them -> Grouped, as this cache stores it"""
        return quantize(x, self.bits, self.group_size, self.axes[name], ends=self.ends)

    def settled(self, name, tokens):
        """How many of the first ``tokens`` keys or values are quantized, the others being real"""
        if self.axes[name] == -1 and not self.in_blocks:
            # A token has all its channels: it can leave alone.
            return max(tokens - self.residual, 0)
        block = max(self.residual, self.group_size)
        return tokens // block * block


def bits_per_number(bits, group_size, *, float_bits=16):
    """Bits of a code, its scale and its minimum, in the long run: 3 for 2 bits in groups of 32"""
    return bits + 2 * float_bits / group_size
