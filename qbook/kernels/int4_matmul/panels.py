"""Packing: sixteen rows of w side by side, a group of inputs after the other, one stream of bytes.

    data[p, g] = nibbles [group_size / 8, 16 lanes, 4 bytes], scales [16], zero-points [16] or none
    byte b of lane l in step s: code [16 p + l, 8 s + b] + 16 * code [16 p + l, 8 s + 4 + b]

A mask gives four codes of each lane in four bytes, a shift and a mask the next four: both as
``simd.dot.dot4`` eats them.  Scales and zero-points follow their codes, so that memory sees one
stream.  Codes are stored as 0 ... 15, their middle 8, and zero-points, a byte each, only where one
is not the middle.  Book: 6.2
"""

from dataclasses import dataclass

import numpy as np

from qbook import affine, granularity
from qbook.kernels import aligned

LANES, STEP = 16, 8
MIDDLE, CODES = 8, 16


@dataclass(frozen=True)
class Panels:
    """A weight of 4 bits, packed once.

    data:             uint8 [ceil(out / 16), groups, bytes of a group]; the filler is never seen
    shape:            (out, in)
    group_size:       inputs that share a scale
    scale_dtype:      float16 or float32
    has_zero_points:  whether zero-points are stored
    """

    data: np.ndarray
    shape: tuple
    group_size: int
    scale_dtype: np.dtype
    has_zero_points: bool

    @property
    def nbytes(self):
        return self.data.nbytes

    @property
    def groups(self):
        return self.data.shape[1]

    @property
    def steps(self):
        """Steps of 8 inputs in a group; the last may be filled up."""
        return -(-self.group_size // STEP)

    @property
    def group_bytes(self):
        """-> bytes of the 16 scales of a group, bytes of its 16 zero-points"""
        return LANES * self.scale_dtype.itemsize, LANES * self.has_zero_points


def pack(w_codes, scale, zero_point=None, group_size=None, *, scale_dtype=np.float16):
    """w_codes [out, in], scale [out, groups] or [out, groups, 1] -> ``Panels``

    w_codes:      int8 in -8 ... 7 or uint8 in 0 ... 15, any strides; unsigned codes that
                  ``affine.quantize`` holds in int8 need ``.astype(np.uint8)``
    zero_point:   codes: an integer or an array of scale's shape; None: 0 for int8, 8 for uint8
    group_size:   a multiple of 8 that divides ``in``, or None: the whole row
    scale_dtype:  float16 makes 18 bytes of a group of 32, float32 20, which is time where memory is
                  the limit.  Rounded to float16, a scale is off by 2^-11 of itself at most (by 3e-8
                  where it is below 6.1e-5): little beside half a step of a code of 4 bits

    Raises ValueError for codes of another type or range, a group_size or shapes that do not fit,
    and scales that are not finite in ``scale_dtype``.
    """
    codes, added = _checked_codes(w_codes)
    grouped = _split(codes, group_size)
    out, groups, group_size = grouped.shape
    scale = _checked_scale(scale, (out, groups), np.dtype(scale_dtype))
    zero_point = _checked_zero_point(zero_point, (out, groups), added)
    has_zero_points = bool(np.any(zero_point != MIDDLE))

    panels, steps = -(-out // LANES), -(-group_size // STEP)
    nibbles = np.zeros((panels * LANES, groups, steps * STEP), np.uint8)
    nibbles[:out, :, :group_size] = grouped
    nibbles = nibbles.reshape(panels, LANES, groups, steps, 2, STEP // 2)
    both = nibbles[:, :, :, :, 0] | nibbles[:, :, :, :, 1] << 4
    parts = [both.transpose(0, 2, 3, 1, 4), _by_lane(scale, panels)]
    if has_zero_points:
        parts.append(_by_lane(zero_point, panels))
    parts = [_bytes_of(part, (panels, groups)) for part in parts]
    data = aligned.zeros((panels, groups, sum(part.shape[2] for part in parts)), np.uint8)
    data[:] = np.concatenate(parts, axis=2)
    return Panels(data, codes.shape, group_size, scale.dtype, has_zero_points)


def unpack(w):
    """``Panels`` -> codes [out, in] int8 in -8 ... 7, and their ``affine.QParams``, scale float32

    ``affine.dequantize`` of the two is the weight that the kernels multiply with.
    """
    out, in_ = w.shape
    panels, groups = w.data.shape[:2]
    ends = np.cumsum([STEP * LANES // 2 * w.steps, w.group_bytes[0]])
    both, scale, zero_point = np.split(w.data, ends, axis=2)
    both = both.reshape(panels, groups, w.steps, LANES, 1, STEP // 2)
    nibbles = np.concatenate([both & 15, both >> 4], axis=4).transpose(0, 3, 1, 2, 4, 5)
    nibbles = nibbles.reshape(panels * LANES, groups, w.steps * STEP)[:out, :, : w.group_size]
    codes = nibbles.reshape(out, in_).astype(np.int8) - np.int8(MIDDLE)
    scale = _by_row(scale.copy().view(w.scale_dtype), out).astype(np.float32)
    if w.has_zero_points:
        zero_point = _by_row(zero_point, out).astype(np.int32) - MIDDLE
    else:
        zero_point = np.zeros(scale.shape, np.int32)
    if groups <= 1:
        return codes, affine.QParams(scale, zero_point, -MIDDLE, MIDDLE - 1)
    parts = scale[:, :, None], zero_point[:, :, None]
    return codes, affine.QParams(*parts, -MIDDLE, MIDDLE - 1, group_axis=1)


def _by_lane(values, panels):
    """[out, groups] -> [panels, groups, 16], zeros behind"""
    padded = np.zeros((panels * LANES, values.shape[1]), values.dtype)
    padded[: len(values)] = values
    return padded.reshape(panels, LANES, values.shape[1]).transpose(0, 2, 1)


def _by_row(values, out):
    """[panels, groups, 16] -> [out, groups]"""
    panels, groups, lanes = values.shape
    return values.transpose(0, 2, 1).reshape(panels * lanes, groups)[:out]


def _bytes_of(values, leading):
    size = int(np.prod(values.shape[len(leading) :])) * values.itemsize
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8).reshape(*leading, size)


def _checked_codes(w_codes):
    """-> codes uint8 in 0 ... 15, and what was added to them"""
    w = np.asarray(w_codes)
    if w.dtype not in (np.int8, np.uint8) or w.ndim != 2:
        raise ValueError(
            f"w_codes is of type {w.dtype} and shape {w.shape}; pass int8 or uint8 [out, in]"
        )
    added = MIDDLE if w.dtype == np.int8 else 0
    low, high = -added, CODES - 1 - added
    if w.size and not (w.min() >= low and w.max() <= high):
        raise ValueError(
            f"w_codes from {w.min()} to {w.max()} do not fit 4 bits; "
            "int8 takes -8 to 7, uint8 0 to 15"
        )
    return w.astype(np.uint8) + np.uint8(added), added


def _split(codes, group_size):
    """[out, in] -> [out, groups, group_size]"""
    if group_size is None:
        return codes[:, None, :]
    if group_size % STEP and group_size != codes.shape[1]:
        raise ValueError(
            f"group_size={group_size} is no multiple of {STEP}; choose one that divides "
            f"in={codes.shape[1]}, or None for the whole row"
        )
    return granularity.split_groups(codes, group_size)


def _checked_scale(scale, shape, dtype):
    if dtype not in (np.float16, np.float32):
        raise ValueError(f"scale_dtype={dtype} is not supported; choose float16 or float32")
    wide = _per_group(scale, shape, "scale")
    with np.errstate(over="ignore"):
        narrow = wide.astype(dtype)
    if not np.isfinite(narrow).all():
        raise ValueError(
            f"scale from {wide.min()} to {wide.max()} is not finite in {dtype}, which ends at "
            f"{np.finfo(dtype).max}"
        )
    return narrow


def _checked_zero_point(zero_point, shape, added):
    """-> uint8 [out, groups], zero-points of the codes as they are stored"""
    if zero_point is None:
        return np.full(shape, MIDDLE, np.uint8)
    values = np.asarray(zero_point)
    if values.dtype.kind not in "iu":
        raise ValueError(f"zero_point is of type {values.dtype}; pass integers")
    values = np.broadcast_to(values, shape) if values.ndim == 0 else values
    values = _per_group(values, shape, "zero_point")
    low, high = -added, CODES - 1 - added
    if values.size and not (values.min() >= low and values.max() <= high):
        raise ValueError(
            f"zero_point from {values.min()} to {values.max()} is no code; choose {low} to {high}"
        )
    return (values + added).astype(np.uint8)


def _per_group(values, shape, name):
    values = np.asarray(values)
    if values.shape not in (shape, (*shape, 1)):
        raise ValueError(f"{name} is of shape {values.shape}; pass {shape} or {(*shape, 1)}")
    return values.reshape(shape)
