"""What a user would pick instead: the same product by other libraries.

Each function prepares a weight and gives call(x) -> y, for ``attempt``, which tells why a library
has no part in a comparison: not installed, or its own error.

    matmul          cuBLAS through torch.mm
    int8, scaled    torch._int_mm and torch._scaled_mm: cuBLASLt, or CUTLASS for scales of rows
    int4_tinygemm   torch._weight_int4pack_mm, the kernel behind torchao's Int4WeightOnlyConfig on
                    NVIDIA GPUs; torchao itself would add only its tensor subclass
    gemlite         Mobius Labs, Triton; picks its tiles by the configurations that it carries
    bitsandbytes    NF4 by matmul_4bit, which is what its Linear4bit calls
"""

import importlib.metadata
import importlib.util

import torch

LIBRARIES = ("gemlite", "bitsandbytes")


def versions():
    """-> name of a library -> its version or None"""
    return {name: _version(name) for name in LIBRARIES}


def _version(name):
    if importlib.util.find_spec(name) is None:
        return None
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def attempt(name, absent, build, expected):
    """build() -> call, called once; None where that fails, and absent[name] says why

    expected:  what a call must give, but for what other roundings of w and x cost
    """
    try:
        call = build()
        found = call()
    # Of other people's libraries any error may come; it costs their column, not the run.
    except Exception as error:
        message = str(error).strip().partition("\n")[0]
        absent[name] = f"{type(error).__name__}: {message}"[:160]
        return None
    away = (found.double() - expected).norm() / expected.norm()
    # bfloat16 scales and sums cost a hundredth or less; another layout of the weight costs all.
    if not away <= 0.05:
        absent[name] = f"computes something else: {away:.3f} away"
        return None
    return call


def matmul(w):
    """w [out, in] float16 or bfloat16 -> call(x [m, in])"""
    return lambda x: torch.mm(x, w.t())


def int8(w_codes):
    """w_codes int8 [out, in] -> call(x_codes) -> int32; needs m > 16, in and out multiples of 8"""
    return lambda x_codes: torch._int_mm(x_codes, w_codes.t())


def scaled(w_codes, w_scale, dtype=torch.bfloat16, fast=False):
    """w_codes float8_e4m3fn [out, in], w_scale float32 [out] or [] -> call(x_codes, x_scale)

    Scales of rows: x_scale [m, 1], w_scale [1, out], y bfloat16; one scale for all: scalars.
    """
    w_scale = w_scale[None, :] if w_scale.ndim else w_scale

    def call(x_codes, x_scale):
        return torch._scaled_mm(
            x_codes,
            w_codes.t(),
            scale_a=x_scale[:, None] if x_scale.ndim else x_scale,
            scale_b=w_scale,
            out_dtype=dtype,
            use_fast_accum=fast,
        )

    return call


def int4_tinygemm(codes, scale, zero_point, group_size):
    """codes uint8 [out, in] 0 to 15, scale, zero_point [out, groups] -> call(x bfloat16 [m, in])

    Its w_hat = (code - 8) * scale + zero, with scale and zero in bfloat16.
    """
    pairs = (codes[:, ::2] << 4 | codes[:, 1::2]).contiguous()
    weight = torch.ops.aten._convert_weight_to_int4pack(pairs, 8)
    zero = (8 - zero_point.float()) * scale.float()
    parameters = torch.stack([scale.float(), zero], dim=2).transpose(0, 1).bfloat16().contiguous()
    return TinyGemm(weight, parameters, group_size)


class TinyGemm:
    def __init__(self, weight, parameters, group_size):
        self.weight, self.parameters, self.group_size = weight, parameters, group_size

    def __call__(self, x):
        multiply = torch.ops.aten._weight_int4pack_mm
        return multiply(x, self.weight, self.group_size, self.parameters)


def gemlite(codes, scale, zero_point, group_size, bits):
    """codes uint8 [out, in], scale, zero_point [out, groups] -> call(x float16 [m, in])"""
    from gemlite.core import DType, GemLiteLinearTriton

    out, in_ = codes.shape
    layer = GemLiteLinearTriton(
        bits,
        group_size=group_size,
        in_features=in_,
        out_features=out,
        input_dtype=DType.FP16,
        output_dtype=DType.FP16,
    )
    return layer.pack(codes.contiguous(), scale.half(), zero_point.half())


def gemlite_fp4(codes, scale):
    """MXFP4: codes uint8 [out, in] 0 to 15, scale float32 [out, in / 32], powers of two"""
    from gemlite.helper import A16W4_MXFP

    return A16W4_MXFP(device=codes.device, dtype=torch.float16).from_weights(codes, scale)


def bitsandbytes_nf4(w, block_size):
    """w float16 or bfloat16 [out, in] -> call(x [m, in] of w's type), scales float32"""
    from bitsandbytes import functional

    packed, state = functional.quantize_4bit(w, blocksize=block_size, quant_type="nf4")
    return Nf4(packed, state)


class Nf4:
    def __init__(self, packed, state):
        self.packed, self.state = packed, state

    def __call__(self, x):
        import bitsandbytes

        return bitsandbytes.matmul_4bit(x, self.packed.t(), self.state)
