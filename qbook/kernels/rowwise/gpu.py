"""Rows to int8 or FP8 on a GPU, smoothed on the way if asked: the public calls.

    quantize_int8   codes from -127 to 127
    quantize_fp8    E4M3 bytes, torch.float8_e4m3fn

The arithmetic is that of ``affine``: scale = max |x| / largest code, code = round(x * (1 / scale)),
all in float32.  A tensor on the CPU takes the reference below, see ``gpu.device``.  Book: 6.1
"""

import torch

from qbook import affine
from qbook.formats import E4M3
from qbook.kernels.gpu import arguments, device
from qbook.kernels.gpu.launch import Launch

DTYPES = (*arguments.HALF, torch.float32)
LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
# A row of at most so many numbers stays in registers; a program has so many numbers in flight.
SHORT, IN_FLIGHT = 16384, 8192
# First architecture with an instruction that rounds to E4M3.
FP8 = 89


def quantize_int8(x, multiplier=None):
    """x [rows, n] float16, bfloat16 or float32 -> codes int8 [rows, n], scale float32 [rows]

    multiplier:  float32 [n], what each column is multiplied with first: SmoothQuant's 1 / s
                 (Xiao et al. 2022, arXiv:2211.10438, eq. 3), or 0 to leave a column out
    A row of zeros gets scale 1.  NaN and infinity are not looked for: looking would wait for the
    GPU; codes and scale of such a row are undefined.  Raises ValueError for another type, shape,
    device or strides.
    """
    _check(x, multiplier)
    return quantize_rows_int8(x, multiplier)


def quantize_fp8(x, multiplier=None):
    """x [rows, n] -> codes float8_e4m3fn [rows, n], scale float32 [rows]; else as ``quantize_int8``

    Micikevicius et al. 2022, arXiv:2209.05433; a scale per row as in FBGEMM's row-wise product.
    """
    _check(x, multiplier)
    return quantize_rows_fp8(x, multiplier)


@torch.library.custom_op("qbook::quantize_rows_int8", mutates_args=())
def quantize_rows_int8(
    x: torch.Tensor, multiplier: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    return _compute(x, multiplier, torch.int8)


@torch.library.custom_op("qbook::quantize_rows_fp8", mutates_args=())
def quantize_rows_fp8(
    x: torch.Tensor, multiplier: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    return _compute(x, multiplier, torch.float8_e4m3fn)


@quantize_rows_int8.register_fake
def _(x, multiplier):
    return _results(x, torch.int8)


@quantize_rows_fp8.register_fake
def _(x, multiplier):
    return _results(x, torch.float8_e4m3fn)


def _results(x, dtype):
    return x.new_empty(x.shape, dtype=dtype), x.new_empty(x.shape[:1], dtype=torch.float32)


def _compute(x, multiplier, dtype):
    if not device.runs_triton(x):
        return reference(x, multiplier, dtype)
    codes, scale = _results(x, dtype)
    if x.numel() == 0:
        return codes, scale.fill_(1)
    launch(x, multiplier, codes, scale, device.architecture(x)).run()
    return codes, scale


def reference(x, multiplier, dtype):
    """The same on the CPU, an operation at a time"""
    x = x.float() if multiplier is None else x.float() * multiplier
    if dtype == torch.int8:
        qparams = affine.choose_qparams(x, 8, axis=1)
        return affine.quantize(x, qparams), qparams.scale[:, 0]
    largest = x.abs().amax(dim=1, keepdim=True) if x.shape[1] else x.new_zeros(len(x), 1)
    scale = (largest / LARGEST[dtype]).clamp_min(torch.finfo(torch.float32).tiny)
    scale = torch.where(largest == 0, 1, scale)
    codes = torch.from_numpy(E4M3.encode((x * (1 / scale)).numpy(), saturate=True))
    return codes.view(dtype), scale[:, 0]


def launch(x, multiplier, codes, scale, architecture):
    """-> ``Launch`` that fills codes and scale; tensors may be on the "meta" device"""
    from qbook.kernels.rowwise import triton_kernels

    rows, n = x.shape
    native = codes.dtype == torch.float8_e4m3fn and architecture >= FP8 and not device.interpreted()
    if codes.dtype == torch.float8_e4m3fn and not native:
        codes = codes.view(torch.uint8)
    block = min(1 << (n - 1).bit_length(), SHORT)
    block_rows = max(1, min(IN_FLIGHT // block, 1 << (rows - 1).bit_length()))
    parameters = {
        "x_ptr": x,
        "multiplier_ptr": multiplier,
        "codes_ptr": codes,
        "scale_ptr": scale,
        "rows": rows,
        "n": n,
        "stride": x.stride(0),
        "LARGEST_CODE": LARGEST.get(codes.dtype, LARGEST[torch.float8_e4m3fn]),
        "HAS_MULTIPLIER": multiplier is not None,
        "NATIVE": native,
        "BLOCK_ROWS": block_rows,
        "BLOCK": block,
    }
    kernel = triton_kernels.quantize_short
    if n > SHORT:
        kernel = triton_kernels.quantize_long
        parameters["STEPS"] = -(-n // block)
    # 16 to 32 numbers a thread.
    num_warps = max(1, min(block * block_rows // 512, 16))
    does = ("fp8 conversion",) if native else ()
    grid = (-(-rows // block_rows),)
    return Launch(kernel, grid, parameters, num_warps=num_warps, fuse=False, does=does)


def contracts(architecture):
    """-> name, ``Launch`` of every variant that an architecture runs, for ``gpu.contract``"""
    meta = {"device": "meta"}
    for n in (4096, 14336, 28672):
        for dtype in LARGEST:
            x = torch.empty(64, n, dtype=torch.float16, **meta)
            multiplier = torch.empty(n, **meta) if n == 4096 else None
            found = launch(x, multiplier, *_results(x, dtype), architecture)
            yield f"{'smooth, ' if n == 4096 else ''}{dtype} rows of {n}", found


def _check(x, multiplier):
    arguments.matrix(x, "x", DTYPES)
    arguments.same_device(x=x, multiplier=multiplier)
    if multiplier is not None:
        arguments.vector(multiplier, "multiplier", x.shape[1], (torch.float32,))
