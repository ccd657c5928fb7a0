"""W4A16 on a GPU: weights of 4 bits with a scale and a zero-point a group.

What GPTQ (arXiv:2210.17323) and AWQ (arXiv:2306.00978) leave: w_hat = scale * (code - zero_point).
The kernels are those of ``weight_only``.  Book: 6.1
"""

import torch

from qbook.kernels.weight_only import matmul as weight_only
from qbook.kernels.weight_only import packed

matmul = weight_only.matmul


def pack(w_codes, qparams):
    """w_codes integers [out, in], ``affine.QParams`` of 4 bits, groups along in -> ``PackedWeight``

    Scales are stored in float16.  group_size: that of qparams; a multiple of 16, or the whole row.
    Raises ValueError for codes of more than 4 bits, a scale that float16 does not hold, and a
    group_size that does not fit.
    """
    codes, scale = torch.as_tensor(w_codes), torch.as_tensor(qparams.scale)
    if qparams.qmax - qparams.qmin > 15:
        raise ValueError(f"codes from {qparams.qmin} to {qparams.qmax} need more than 4 bits")
    out, in_ = codes.shape
    groups = scale.numel() // out
    # Stored codes start at 0; the symmetric middle, 0, becomes 8.
    shift = 8 if qparams.qmin < 0 else 0
    zero_point = torch.as_tensor(qparams.zero_point).reshape(out, groups) + shift
    return packed.pack(
        "int4",
        (codes.short() + shift).to(torch.uint8).contiguous(),
        scale.reshape(out, groups),
        zero_point,
        group_size=None if groups == 1 else in_ // groups,
    )


def contracts(architecture):
    """-> name, ``Launch`` of every way"""
    return weight_only.contracts("int4", architecture, group_size=128)
