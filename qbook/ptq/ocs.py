"""OCS: duplicate the input channel of the largest value and give each copy half of it.

    w x = w_a x + w_b x,    w_a = (w - scale / 2) / 2,    w_b = (w + scale / 2) / 2

Zhao et al. 2019, arXiv:1901.09504.  The shift by half a step is the paper's quantization-aware
splitting: the codes of both halves add up to the code of w.  Without it w_a = w_b = w / 2, whose
rounding errors are equal and add up.  Book: 3.1

A split is described by ``pieces``, a list of channels: step k splits channel ``pieces[k]`` of the
in + k channels that exist by then; one half stays in its place, the other becomes channel in + k.
"""

import math

import torch

from qbook import affine


def largest(w, axis=1):
    """Largest magnitude of each channel: w [out, in, ...] -> [in]; inputs [..., in]: axis=-1"""
    return w.detach().movedim(axis, 0).flatten(1).abs().amax(1)


def count(ratio, channels):
    """How many channels an expand ratio adds: ceil(ratio * channels).

    Raises ValueError for a negative ratio.
    """
    if not ratio >= 0:
        raise ValueError(f"ratio={ratio} is negative; 0.01 to 0.05 is the paper's range")
    return math.ceil(ratio * channels)


def choose(maxima, splits):
    """Halve the largest, over and over: magnitudes maxima [in] -> pieces, a list of ``splits``.

    Of equals the first.  Raises ValueError for a negative number of splits.
    """
    if splits < 0:
        raise ValueError(f"splits={splits} is negative; count(ratio, channels) makes a number")
    sizes = [float(m) for m in maxima]
    pieces = []
    for _ in range(splits):
        j = max(range(len(sizes)), key=sizes.__getitem__)
        pieces.append(j)
        sizes[j] /= 2
        sizes.append(sizes[j])
    return pieces


def needed(maxima, target):
    """How many splits bring every magnitude down to the target: sum of 2^ceil(log2(m / T)) - 1.

    Raises ValueError unless target > 0.
    """
    if not target > 0:
        raise ValueError(f"target={target} is never reached by halving; choose one above 0")
    total = 0
    for m in (float(m) for m in maxima):
        halvings = 0
        while m > target:
            m, halvings = m / 2, halvings + 1
        total += 2**halvings - 1
    return total


def split(w, pieces, scale=None, *, axis=1):
    """The channels along an axis, split: w [out, in, ...] -> [out, in + len(pieces), ...].

    scale: None: equal halves; else, a scalar or one that fits one channel, half of
           w - scale / 2 and half of w + scale / 2
    Inputs x [..., in] are split with axis=-1.  Raises ValueError for a piece that does not exist.
    """
    channels = list(w.detach().movedim(axis, 0))
    shift = 0.0 if scale is None else _one_channel(scale, w.ndim, axis) / 2
    for j in pieces:
        if not 0 <= j < len(channels):
            raise ValueError(f"piece {j} does not exist among {len(channels)} channels")
        channels.append((channels[j] + shift) / 2)
        channels[j] = (channels[j] - shift) / 2
    return torch.stack(channels).movedim(0, axis)


def source(pieces, in_):
    """Which of the in_ channels each piece is made of: -> int64 [in_ + len(pieces)]"""
    origin = list(range(in_))
    for j in pieces:
        origin.append(origin[j])
    return torch.tensor(origin)


def merge(w, pieces, *, axis=1):
    """Add the pieces up again: w [out, in + len(pieces), ...] -> [out, in, ...].

    With equal inputs for all copies of a channel, this is the weight that the split layer has.
    """
    in_ = w.shape[axis] - len(pieces)
    shape = list(w.shape)
    shape[axis] = in_
    return w.new_zeros(shape).index_add(axis, source(pieces, in_).to(w.device), w.detach())


def fake_quantize(w, pieces, choose_qparams, *, axis=1, aware=True):
    """Split, quantize, merge: w [out, in, ...] -> the weight that the layer computes with.

    choose_qparams:  equal halves of w -> QParams, as ``affine.choose_qparams`` makes them;
                     their scale fits the shifted halves, whose largest sticks out by a
                     quarter of a step and rounds to the last code
    aware:           shift the halves by half a step, as ``split`` does with a scale
    """
    qparams = choose_qparams(split(w, pieces, axis=axis))
    parts = split(w, pieces, qparams.scale if aware else None, axis=axis)
    return merge(affine.fake_quantize(parts, qparams), pieces, axis=axis)


def _one_channel(scale, ndim, axis):
    """A scale that broadcasts against w, made to broadcast against one of w's channels."""
    scale = torch.as_tensor(scale)
    return scale.movedim(axis, 0)[0] if scale.ndim == ndim else scale
