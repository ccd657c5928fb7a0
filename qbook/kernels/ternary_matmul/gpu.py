"""Ternary weights of 2 bits on a GPU: the public calls.

    matmul        W2A16: x of 16 bits, by the kernels of ``weight_only``
    matmul_int8   W2A8: x of int8 codes, as BitNet b1.58 has them; sums exact
    pack          a weight for both

Ma et al. 2024, arXiv:2402.17764, section 2: codes -1, 0, 1 and one scale, mean |w|, for the weight;
int8 codes and a scale for each token.  Triton reaches no tensor core of a T4 (sm_75): there
``matmul_int8`` writes the codes out as int8 and takes torch's product.  Book: 6.1, 6.2
"""

import torch

from qbook.kernels.gpu import arguments, device
from qbook.kernels.gpu.launch import Launch
from qbook.kernels.ternary_matmul import configs
from qbook.kernels.weight_only import matmul as weight_only
from qbook.kernels.weight_only import packed
from qbook.kernels.weight_only.packed import PackedWeight

DTYPES = (*arguments.HALF, torch.float32)
# The largest sum is 128 in: x of -128 and weights of -1 add up to 2^31 - 128 at most.
LONGEST = (2**31 - 1) // 128
# First architecture whose tensor cores Triton uses.
TENSOR_CORES = 80

matmul = weight_only.matmul


def pack(w_codes, scale):
    """w_codes int8 [out, in] of -1, 0, 1 -> ``PackedWeight``

    scale:  a number, kept in float32 and applied to the sums; or floats [out], kept in float16
    Raises ValueError for codes of another type or value, another shape of scale, and scales that
    are not finite.
    """
    arguments.matrix(w_codes, "w_codes", (torch.int8,), "[out, in] of -1, 0, 1")
    low, high = (int(end) for end in w_codes.aminmax()) if w_codes.numel() else (0, 0)
    if not -1 <= low <= high <= 1:
        raise ValueError(f"w_codes from {low} to {high} are not ternary; choose -1, 0, 1")
    digits = (w_codes + 1).view(torch.uint8)
    if isinstance(scale, torch.Tensor) and scale.ndim:
        return packed.pack("ternary", digits, scale)
    number = torch.tensor(float(scale))
    if not torch.isfinite(number):
        raise ValueError(f"scale={float(scale)} is not finite in float32; choose mean |w|")
    ones = torch.ones(len(digits), device=digits.device)
    return packed.pack("ternary", digits, ones, tensor_scale=number)


def matmul_int8(x_codes, x_scale, w, bias=None, out_dtype=torch.float16):
    """x_codes int8 [samples, in], w ``PackedWeight`` -> x_codes x_scale w^T + bias [samples, out]

    x_scale: float32 [samples];  bias: [out], float16, bfloat16, float32 or None
    w:       of ``pack``: one scale a row at most
    The sums are exact.  A sum is rounded to float32, multiplied by x_scale * w_scale, rounded
    before; the bias is added, and the result rounded to out_dtype: bit for bit the same on every
    architecture and on the CPU.  Raises ValueError for types, shapes and devices that do not fit,
    and for in above 2^24 - 1, where a sum might not fit 32 bits.
    """
    arguments.matrix(x_codes, "x_codes", (torch.int8,), "[samples, in]")
    if w.format != "ternary" or w.scale.shape[0] != 1:
        raise ValueError(
            f"w is {w.format} with {w.scale.shape[0]} words of scales a row; pass a ternary weight "
            "with one, of ternary_matmul.gpu.pack"
        )
    arguments.same_length(columns_of_x_codes=x_codes.shape[1], columns_of_w=w.shape[1])
    arguments.vector(x_scale, "x_scale", x_codes.shape[0], (torch.float32,))
    if bias is not None:
        arguments.vector(bias, "bias", w.shape[0], DTYPES)
    arguments.same_device(x_codes=x_codes, x_scale=x_scale, w=w.codes, bias=bias)
    if out_dtype not in DTYPES:
        raise ValueError(f"out_dtype is {out_dtype}; choose {' or '.join(map(str, DTYPES))}")
    if x_codes.shape[1] > LONGEST:
        raise ValueError(
            f"in={x_codes.shape[1]} products of up to 128 may overflow int32; "
            f"split the sum into pieces of at most {LONGEST}"
        )
    parts = w.codes, w.scale, w.tensor_scale
    return ternary_matmul_int8(x_codes, x_scale, *parts, bias, out_dtype, w.group_size)


@torch.library.custom_op("qbook::ternary_matmul_int8", mutates_args=())
def ternary_matmul_int8(
    x_codes: torch.Tensor,
    x_scale: torch.Tensor,
    codes: torch.Tensor,
    scale: torch.Tensor,
    tensor_scale: torch.Tensor | None,
    bias: torch.Tensor | None,
    out_dtype: torch.dtype,
    group_size: int,
) -> torch.Tensor:
    """x_codes, x_scale and the fields of a ``PackedWeight`` -> y"""
    shape = len(codes), x_codes.shape[1]
    w = PackedWeight(codes, scale, tensor_scale, "ternary", shape, group_size)
    y = x_codes.new_empty(len(x_codes), len(codes), dtype=out_dtype)
    if y.numel() == 0:
        return y
    if not device.runs_triton(x_codes):
        return by_torch(x_codes, x_scale, w, bias, out_dtype)
    found = device.architecture(x_codes)
    if found < TENSOR_CORES:
        return by_torch(x_codes, x_scale, w, bias, out_dtype)
    if device.interpreted():
        # The interpreter cannot compute with bfloat16: the same numbers as float32.
        y, bias = y.float(), None if bias is None else bias.float()
    config = configs.choose(*y.shape, codes.shape[1] // w.plane, found)
    for launch in launches(x_codes, x_scale, w, bias, y, config):
        launch.run()
    return y.to(out_dtype)


@ternary_matmul_int8.register_fake
def _(x_codes, x_scale, codes, scale, tensor_scale, bias, out_dtype, group_size):
    return x_codes.new_empty(x_codes.shape[0], codes.shape[0], dtype=out_dtype)


def by_torch(x_codes, x_scale, w, bias, out_dtype):
    """The same with torch's int8 product, an operation at a time

    It takes more than 16 rows on a GPU, and multiples of 8 for the rest: zeros fill them up.
    """
    (samples, in_), out = x_codes.shape, len(w.codes)
    codes = packed.unpack(w).view(torch.int8) - 1
    left = torch.nn.functional.pad(x_codes, (0, -in_ % 8, 0, max(0, 17 - samples)))
    right = torch.nn.functional.pad(codes, (0, -in_ % 8, 0, -out % 8))
    sums = torch._int_mm(left, right.T)[:samples, :out]
    w_scale = w.scale.view(torch.float16)[0, ::2].float()
    w_scale = w_scale if w.tensor_scale is None else w_scale * w.tensor_scale
    y = sums.float() * (x_scale[:, None] * w_scale)
    return (y if bias is None else y + bias.float()).to(out_dtype)


def launches(x_codes, x_scale, w, bias, y, config):
    """-> the launches, in their order, that fill y; tensors may be on the "meta" device"""
    from qbook.kernels.ternary_matmul import triton_kernels

    (m, n), tiles = y.shape, w.codes.shape[1] // w.plane
    by_word = not device.interpreted()
    ends = {
        "w_scale_ptr": w.scale,
        "tensor_scale_ptr": w.tensor_scale,
        "x_scale_ptr": x_scale,
        "bias_ptr": bias,
        "M": m,
        "N": n,
        "PARTS": config.parts,
    }
    sums = y if config.parts == 1 else y.new_empty(config.parts, m, n, dtype=torch.int32)
    parameters = ends | {
        "x_ptr": x_codes,
        "codes_ptr": w.codes,
        "y_ptr": sums,
        "x_stride": x_codes.stride(0),
        "K": x_codes.shape[1],
        "TILES": tiles,
        "PLANE": w.plane,
        "CODES": triton_kernels.codes_by_word if by_word else triton_kernels.codes_by_byte,
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "STEPS": -(-tiles // config.parts),
    }
    grid = (-(-n // config.block_n), -(-m // config.block_m), config.parts)
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages, "fuse": False}
    does = ("int8 tensor core",)
    found = [Launch(triton_kernels.multiply, grid, parameters, **options, does=does)]
    if config.parts > 1:
        ends |= {"parts_ptr": sums, "y_ptr": y, "BLOCK_N": 1024}
        found.append(Launch(triton_kernels.join, (-(-n // 1024), m), ends, fuse=False))
    return found


def contracts(architecture):
    """-> name, ``Launch`` of every way, for ``gpu.contract``"""
    yield from weight_only.contracts("ternary", architecture)
    if architecture < TENSOR_CORES:
        return
    meta = {"device": "meta"}
    for n, k, rows in ((8192, 8192, (1, 32, 64, 128, 4096)), (2560, 6912, (1, 100))):
        codes = torch.empty(n, -(-k // 256) * 64, dtype=torch.uint8, **meta)
        scale = torch.empty(1, n, dtype=torch.int32, **meta)
        w = PackedWeight(codes, scale, torch.empty(1, **meta), "ternary", (n, k), 4 * len(codes[0]))
        for m in rows:
            x_codes, x_scale = torch.empty(m, k, dtype=torch.int8, **meta), torch.empty(m, **meta)
            y = torch.empty(m, n, dtype=torch.float16, **meta)
            config = configs.choose(m, n, codes.shape[1] // w.plane, architecture)
            # The second launch is the same for all.
            found = launches(x_codes, x_scale, w, None, y, config)
            for launch in found if m == 1 else found[:1]:
                yield f"W2A8 {m} x {k} x {n}, {launch.kernel.__name__}", launch
