"""Weights in four-bit floating-point formats on a GPU: three ways to pack, one product.

    pack_mxfp4   E2M1, 32 share a power of two: OCP Microscaling Formats (MX) v1.0, section 6.3
    pack_nvfp4   E2M1, 16 share a scale of E4M3, and the tensor one of float32: NVIDIA, "Pretraining
                 Large Language Models with NVFP4", arXiv:2509.25149, its procedure without the
                 training around it
    pack_nf4     NormalFloat, a block shares its largest magnitude: Dettmers et al. 2023,
                 arXiv:2305.14314, section 3, as bitsandbytes has it

Tensor cores of Blackwell multiply E2M1 by E2M1; here x keeps 16 bits, and w is widened on its way
to them, on every GPU.  The kernels are those of ``weight_only``; codes that are packed already
elsewhere go to ``weight_only.packed.pack``.

w_hat is rounded to x's type.  That loses nothing of NVFP4, whose scale of the tensor is applied to
the sums, nor of MXFP4 while it is inside the type's range: from 65520 on float16 has infinity, and
a sum with infinity in it is infinite or NaN.  Weights that large ask for bfloat16.  Book: 2.5, 6.1
"""

import torch

from qbook.formats import E2M1, NF4, microscaling
from qbook.kernels.gpu import arguments
from qbook.kernels.weight_only import matmul as weight_only
from qbook.kernels.weight_only import packed
from qbook.kernels.weight_only.formats import FORMATS

FLOATS = (*arguments.HALF, torch.float32, torch.float64)
# What a smaller largest magnitude counts as when it divides, in bitsandbytes.
SMALLEST = 1e-38

matmul = weight_only.matmul


def pack_mxfp4(w):
    """w [out, in] floats -> ``PackedWeight``; in: a multiple of 32

    scale = 2^(floor(log2 max |block|) - 2): what lies beyond 6 scale saturates.  A block of zeros
    has the smallest scale.  Raises ValueError for another type, shape or length, NaN and infinity.
    """
    blocks = _blocks(w, FORMATS["mxfp4"].group_size)
    return _pack_scaled("mxfp4", microscaling.quantize_mx(blocks.flatten(1), E2M1))


def pack_nvfp4(w):
    """w [out, in] floats -> ``PackedWeight``; in: a multiple of 16

    tensor_scale = max |w| / (6 * 448), scale = max |block| / 6 / tensor_scale, rounded to E4M3: the
    largest is 448.  One that would round to 0 becomes the smallest that is not.  Zeros only:
    tensor_scale 1.  Raises ValueError as ``pack_mxfp4``.
    """
    blocks = _blocks(w, FORMATS["nvfp4"].group_size)
    return _pack_scaled("nvfp4", microscaling.quantize_nvfp4(blocks.flatten(1)))


def pack_nf4(w, group_size=64):
    """w [out, in] floats -> ``PackedWeight``; group_size: a multiple of 16 that divides in

    Codes are those of blocks times 1 / absmax, rounded.  Raises ValueError as ``pack_mxfp4``.
    """
    blocks = _blocks(w, group_size)
    absmax = _largest(blocks)
    codes = NF4.encode(blocks * (1 / absmax.clamp_min(SMALLEST)))
    return packed.pack("nf4", codes.flatten(1), absmax[..., 0], group_size=group_size)


def _blocks(w, group_size):
    """w [out, in] -> float32 [out, blocks, group_size]"""
    arguments.matrix(w, "w", FLOATS, "[out, in]")
    out, in_ = w.shape
    if group_size < 1 or group_size % min(packed.PLANES):
        raise ValueError(
            f"group_size={group_size} does not fit in={in_}; "
            f"pass a multiple of {min(packed.PLANES)} that divides it"
        )
    if in_ % group_size:
        raise ValueError(
            f"in={in_} is not a multiple of the {group_size} neighbours that share a scale; fill "
            f"w up with zeros to in={-(-in_ // group_size) * group_size}, and x likewise"
        )
    return w.detach().float().reshape(out, in_ // group_size, group_size)


def _largest(blocks):
    """-> max |block| [out, blocks, 1]; raises ValueError for NaN and infinity"""
    largest = blocks.abs().amax(dim=2, keepdim=True)
    if not bool(torch.isfinite(largest).all()):
        raise ValueError("w holds NaN or infinity; pack finite values only")
    return largest


def _pack_scaled(name, stored):
    """``microscaling.Blocks`` of w [out, in] -> ``PackedWeight``"""
    tensor = {} if stored.tensor_scale is None else {"tensor_scale": stored.tensor_scale}
    return packed.pack(name, stored.codes, stored.scale[..., 0], **tensor)


def contracts(architecture):
    """-> name, ``Launch`` of every way for every format, for ``gpu.contract``"""
    for name, group_size in (("mxfp4", None), ("nvfp4", None), ("nf4", 64)):
        yield from weight_only.contracts(name, architecture, group_size)
