"""What the INT8 and the FP8 product share: checks, the reference, torch's products for a T4.

A tensor on the CPU takes the reference, see ``gpu.device``.  A T4 (sm_75), where Triton has no
tensor cores, takes torch's products for many rows; all else is a ``launches.launch``.  Book: 6.1
"""

import torch

from qbook.kernels.gpu import arguments, device
from qbook.kernels.scaled_matmul import launches
from qbook.kernels.scaled_matmul.launches import TENSOR_CORES, torch_takes

DTYPES = (*arguments.HALF, torch.float32)
# The longest sum of products of -128...127 that is sure to fit int32.
LONGEST = (2**31 - 1) // 128**2


def check(x_codes, w_codes, dtype):
    """Raises ValueError unless x_codes [m, k] and w_codes [n, k] of dtype can be multiplied."""
    arguments.matrix(x_codes, "x_codes", (dtype,), "[m, k]")
    arguments.matrix(w_codes, "w_codes", (dtype,), "[n, k]")
    arguments.same_device(x_codes=x_codes, w_codes=w_codes)
    k = x_codes.shape[1]
    arguments.same_length(columns_of_x_codes=k, columns_of_w_codes=w_codes.shape[1])
    if dtype == torch.int8 and k > LONGEST:
        raise ValueError(
            f"a sum of k={k} products of int8 may overflow int32; split it at most every {LONGEST}"
        )


def check_scaled(x_codes, w_codes, x_scale, w_scale, bias, out_dtype, dtype):
    """-> x_scale float32 [m] or [1], w_scale float32 [n] or [1]; raises ValueError as ``check``,
    and for scales, bias and out_dtype that do not fit."""
    check(x_codes, w_codes, dtype)
    m, n = len(x_codes), len(w_codes)
    x_scale = _scale(x_scale, "x_scale", m, x_codes.device)
    w_scale = _scale(w_scale, "w_scale", n, x_codes.device)
    if bias is not None:
        arguments.vector(bias, "bias", n, DTYPES)
    arguments.same_device(x_codes=x_codes, x_scale=x_scale, w_scale=w_scale, bias=bias)
    if out_dtype not in DTYPES:
        raise ValueError(f"out_dtype is {out_dtype}; choose {' or '.join(map(str, DTYPES))}")
    return x_scale, w_scale


def _scale(scale, name, count, place):
    if isinstance(scale, (int, float)):
        return torch.full((1,), scale, dtype=torch.float32, device=place)
    if isinstance(scale, torch.Tensor) and scale.numel() == 1:
        scale, count = scale.reshape(1), 1
    arguments.vector(scale, name, count, (torch.float32,))
    return scale


def multiply(x, w, x_scale, w_scale, bias, out_dtype, exact_every=None):
    """x [m, k], w [n, k] of one type, checked -> y of out_dtype [m, n]

    x_scale None: the sums themselves, as int32 for int8.
    """
    if not device.runs_triton(x):
        return finish(_reference_sums(x, w), x_scale, w_scale, bias, out_dtype)
    y = x.new_empty(len(x), len(w), dtype=out_dtype)
    if x.numel() == 0 or y.numel() == 0:
        return finish(torch.zeros_like(y, dtype=torch.float32), x_scale, w_scale, bias, out_dtype)
    architecture = device.architecture(x)
    if architecture < TENSOR_CORES and torch_takes(x, w):
        return finish(_torch_sums(x, w), x_scale, w_scale, bias, out_dtype)
    if device.interpreted() and out_dtype == torch.bfloat16:
        y = y.float()
    if device.interpreted() and bias is not None:
        bias = bias.float()
    launches.launch(x, w, y, x_scale, w_scale, bias, architecture, exact_every).run()
    return y.to(out_dtype)


def finish(sums, x_scale, w_scale, bias, out_dtype):
    """sums [m, n] -> y: the product of the scales is rounded first, as on the CPU"""
    if x_scale is not None:
        sums = sums.float() * (x_scale[:, None] * w_scale)
    if bias is not None:
        sums = sums + bias.float()
    return sums.to(out_dtype)


def _reference_sums(x, w):
    """int8: every sum fits float64, exact.  FP8: products fit float32, their sum is rounded."""
    wide = torch.float64 if x.dtype == torch.int8 else torch.float32
    return x.to(wide) @ w.to(wide).T


def _torch_sums(x, w):
    """Sums by cuBLAS.  E4M3 is exact in float16, but 448 * 448 alone is beyond 65504: the sums
    leave the tensor cores as float32, in which they are formed."""
    if x.dtype == torch.int8:
        return torch._int_mm(x.contiguous(), w.contiguous().T)
    if x.device.type == "cpu":
        return _reference_sums(x, w)
    return torch.mm(x.to(torch.float16), w.to(torch.float16).T, out_dtype=torch.float32)
