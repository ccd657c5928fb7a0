"""Packing for a GPU: neighbouring bytes hold neighbouring columns, and one shift gives all of them.

A row of ``in`` codes is cut into tiles of ``fields`` planes, each of ``plane`` columns; byte r of a
tile holds column r of every plane:

    byte[tile, r] = sum over field: code[(tile * fields + field) * plane + r] << (bits * field)

Sixteen bytes are one load of a thread, a plane is what one instruction of a tensor core eats, and
it lies within one group, which has one scale.  Scales lie [words, out], see ``scales``, so that
the rows of a program read neighbours.  Book: 2.1.3, 6.1
"""

from dataclasses import dataclass

import torch

from qbook.kernels.gpu import arguments
from qbook.kernels.weight_only import scales
from qbook.kernels.weight_only.formats import FORMATS

# Largest first: wide planes make wide loads.  16 is the least that a tensor core takes.
PLANES = (64, 32, 16)


@dataclass(frozen=True)
class PackedWeight:
    """A weight [out, in] for the products of this room.

    codes:        uint8 [out, tiles * plane]; columns beyond ``in`` hold code 0
    scale:        int32 [words, out], scales and zero-points, see ``scales``
    tensor_scale: float32 [1], a factor of every scale, or None
    group_size:   columns that share a scale
    """

    codes: torch.Tensor
    scale: torch.Tensor
    tensor_scale: torch.Tensor | None
    format: str
    shape: tuple
    group_size: int

    @property
    def plane(self):
        return plane(self.group_size)

    @property
    def nbytes(self):
        parts = (self.codes, self.scale, self.tensor_scale)
        return sum(part.nbytes for part in parts if part is not None)

    def to(self, device):
        """-> the same weight there"""
        tensor_scale = None if self.tensor_scale is None else self.tensor_scale.to(device)
        moved = self.codes.to(device), self.scale.to(device), tensor_scale
        return PackedWeight(*moved, self.format, self.shape, self.group_size)


def plane(group_size):
    """-> columns of a plane: the widest that lies within one group, 16 divides group_size"""
    return next(width for width in PLANES if group_size % width == 0)


def pack(name, codes, scale, zero_point=None, *, group_size=None, tensor_scale=None):
    """codes [out, in] of a format of ``formats`` -> ``PackedWeight`` on codes' device

    name:          int4, ternary, mxfp4, nvfp4 or nf4
    codes:         uint8, 0 to the format's highest
    scale:         [out, groups], floats; uint8 bits for mxfp4 and nvfp4
    zero_point:    codes [out, groups] for int4, or None: 8
    group_size:    inputs that share a scale, a multiple of 16; None: the format's, or the whole row
    tensor_scale:  a number that multiplies every scale (nvfp4 has one), or None

    Raises ValueError for another format, type, range or shape, and scales that are not finite.
    """
    if name not in FORMATS:
        raise ValueError(f"format {name!r} is not known; choose one of {', '.join(FORMATS)}")
    fmt = FORMATS[name]
    _check_codes(codes, fmt)
    out, in_ = codes.shape
    group_size, groups = _groups(fmt, in_, group_size)
    width = plane(group_size)
    tiles = max(1, -(-in_ // (width * fmt.fields)))
    scale = _scale(scale, (out, groups), fmt)
    zero_point = _zero_point(zero_point, (out, groups), fmt)
    # The kernels look up a scale for every column of the last tile.
    columns = tiles * width * fmt.fields
    words = -(-columns // (group_size * fmt.groups_a_word))
    stored = scales.to_words(fmt, scale, zero_point, words)
    if tensor_scale is not None:
        tensor_scale = torch.tensor([float(tensor_scale)], device=codes.device)
    padded = codes.new_zeros(out, columns)
    padded[:, :in_] = codes
    planes = padded.view(out, tiles, fmt.fields, width)
    data = codes.new_zeros(out, tiles, width)
    for field in range(fmt.fields):
        data |= planes[:, :, field] << (fmt.bits * field)
    data = data.view(out, tiles * width)
    return PackedWeight(data, stored, tensor_scale, name, (out, in_), group_size)


def unpack(packed):
    """``PackedWeight`` -> codes uint8 [out, in]: the inverse of ``pack``"""
    fmt, in_ = FORMATS[packed.format], packed.shape[1]
    tiles = packed.codes.unflatten(1, (-1, packed.plane))
    planes = [tiles >> (fmt.bits * field) & (2**fmt.bits - 1) for field in range(fmt.fields)]
    return torch.stack(planes, dim=2).flatten(1)[:, :in_]


def dequantize(packed):
    """``PackedWeight`` -> w_hat float32 [out, in]: value * scale, without the tensor's scale"""
    fmt, in_ = FORMATS[packed.format], packed.shape[1]
    group = torch.arange(in_, device=packed.codes.device) // packed.group_size
    found = scales.from_words(fmt, packed.scale, -(-in_ // packed.group_size))
    scale, zero_point = (part if isinstance(part, int) else part[:, group] for part in found)
    return fmt.values(unpack(packed), zero_point) * scale


def _check_codes(codes, fmt):
    arguments.matrix(codes, "codes", (torch.uint8,), "[out, in]")
    if codes.numel() and int(codes.max()) > fmt.top:
        raise ValueError(f"codes reach {int(codes.max())}; those of {fmt.name} are 0 to {fmt.top}")


def _groups(fmt, in_, group_size):
    """-> group_size, number of groups"""
    asked = group_size or fmt.group_size
    if fmt.group_size not in (None, asked):
        raise ValueError(f"group_size={asked} is not that of {fmt.name}; pass {fmt.group_size}")
    if asked is None:
        # One scale for the row and for the columns that fill its last tile.
        widest = max(PLANES) * fmt.fields
        return widest * max(1, -(-in_ // widest)), 1
    if asked % min(PLANES) or in_ % asked:
        raise ValueError(
            f"group_size={asked} does not fit in={in_}; pass a multiple of {min(PLANES)} that "
            "divides it, or None where the whole row has one scale"
        )
    return asked, in_ // asked


def _scale(scale, shape, fmt):
    wanted = "torch.uint8" if fmt.scales is not None else "floats"
    fits = isinstance(scale, torch.Tensor) and scale.numel() == shape[0] * shape[1]
    if not fits or scale.is_floating_point() != (fmt.scales is None):
        raise ValueError(
            f"scale is {arguments.describe(scale)}; {fmt.name} takes {wanted} {list(shape)}"
        )
    scale = scale.reshape(shape)
    wrong = [] if fmt.scales is None else scale[torch.isnan(fmt.scales.decode(scale))]
    if len(wrong):
        raise ValueError(f"scale holds {int(wrong[0])}, a NaN of {fmt.scales.name}; pass numbers")
    return scale


def _zero_point(zero_point, shape, fmt):
    if zero_point is None:
        return None
    if not fmt.has_zero_point:
        raise ValueError(f"{fmt.name} has no zero_point; pass None")
    if zero_point.numel() != shape[0] * shape[1]:
        raise ValueError(f"zero_point has shape {list(zero_point.shape)}; pass {list(shape)}")
    low, high = (int(end) for end in zero_point.aminmax()) if zero_point.numel() else (0, 0)
    if not 0 <= low <= high <= fmt.top:
        raise ValueError(
            f"zero_point lies from {low} to {high}; codes of {fmt.name} are 0 to {fmt.top}"
        )
    return zero_point.reshape(shape)
