"""Which kernel a product of 8-bit codes gets, and with which tiles.

    sm_75            ``matmul_no_dot`` for a few rows and odd shapes of int8, else torch
    sm_80, sm_86     ``matmul``; FP8 is decoded to float16 on the way to the tensor cores
    sm_89, sm_120    ``matmul``
    sm_90, sm_100    ``matmul_descriptors`` where rows start at multiples of 16 bytes, or ``matmul``

The number of columns is a constant of the compiled kernel, the number of rows is not.  Book: 6.1
"""

import torch

from qbook.kernels.gpu import device
from qbook.kernels.gpu.launch import Launch
from qbook.kernels.scaled_matmul import configs

# First architectures with tensor cores that Triton knows, and with tensor cores for FP8.
TENSOR_CORES, FP8 = 80, 89


def launch(x, w, y, x_scale, w_scale, bias, architecture, exact_every=None, config=None):
    """-> ``Launch`` that fills y [m, n]; tensors may be on the "meta" device

    exact_every:  see ``fp8_matmul.gpu``
    config:       instead of that of ``configs.choose``, for a tuner
    """
    from qbook.kernels.scaled_matmul import triton_kernels

    (m, k), n = x.shape, len(w)
    kind = _kind(x.dtype, architecture, exact_every)
    inputs_aligned = _aligned(x) and _aligned(w)
    y_aligned = _aligned(y)
    descriptors = architecture in configs.DESCRIPTORS and inputs_aligned and y_aligned
    decode = triton_kernels.keep
    # The interpreter takes a NaN of E4M3 for 480.
    if kind == configs.FP8_DECODED or (device.interpreted() and kind != configs.INT8):
        x, w, decode = x.view(torch.uint8), w.view(torch.uint8), triton_kernels.decode_e4m3
    if architecture < TENSOR_CORES:
        config = configs.NO_DOT
    elif not inputs_aligned:
        config = configs.UNALIGNED
    elif config is None:
        config = configs.choose(m, n, architecture, kind, descriptors, y_aligned)
    block_k = config.block_k
    if kind == configs.FP8_APART:
        block_k = min(block_k, exact_every)
    factors = {
        "x_scale_ptr": x_scale,
        "w_scale_ptr": w_scale,
        "bias_ptr": bias,
        "m": m,
        "n": n,
        "x_scale_stride": 0 if x_scale is None or x_scale.numel() == 1 else 1,
        "w_scale_stride": 0 if w_scale is None or w_scale.numel() == 1 else 1,
        "STEPS": -(-k // block_k),
        "DECODE": decode,
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCK_K": block_k,
    }
    # Not fused: the bias is added to a rounded product, as on the CPU.
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages, "fuse": False}
    count = configs.tile_count(m, n, config)
    if descriptors:
        operands = _descriptors(x, w, y, config, block_k)
        programs = min(count, config.per_sm * _multiprocessors(x, architecture))
        schedule = {
            "programs": programs,
            "ROUNDS": -(-count // programs) if device.interpreted() else None,
            "APART": kind == configs.FP8_APART,
            "W_LEFT": config.w_left,
            "FLATTEN": config.flatten,
            "GROUP": config.group,
        }
        does = (*_claims(kind, config, architecture), "bulk copy")
        parameters = {**operands, **factors, **schedule}
        kernel = triton_kernels.matmul_descriptors
        return Launch(kernel, (programs,), parameters, **options, does=does)
    operands = {"x_ptr": x, "w_ptr": w, "y_ptr": y, "k": k}
    strides = {"x_stride": x.stride(0), "w_stride": w.stride(0)}
    parameters = {**operands, **factors, **strides}
    if architecture < TENSOR_CORES:
        grid = (-(-n // config.block_n), -(-m // config.block_m))
        return Launch(triton_kernels.matmul_no_dot, grid, parameters, **options)
    parameters["EVEN_K"] = k % block_k == 0
    parameters["APART"] = kind == configs.FP8_APART
    parameters["GROUP"] = config.group
    does = _claims(kind, config, architecture)
    return Launch(triton_kernels.matmul, (count,), parameters, **options, does=does)


def _kind(dtype, architecture, exact_every):
    if dtype == torch.int8:
        return configs.INT8
    if architecture < FP8:
        # Their sums are float32 throughout.
        return configs.FP8_DECODED
    return configs.FP8 if exact_every is None else configs.FP8_APART


def _aligned(matrix):
    """Whether the copy engine takes it: rows start at multiples of 16 bytes and do not overlap"""
    stride = matrix.stride(0)
    start = 0 if matrix.device.type == "meta" else matrix.data_ptr()
    return start % 16 == 0 and stride * matrix.itemsize % 16 == 0 and stride >= matrix.shape[1]


def _descriptors(x, w, y, config, block_k):
    from triton.tools.tensor_descriptor import TensorDescriptor

    # A strip takes as much shared memory in 32 bits as in 16.
    strips = config.strips * y.itemsize // 2
    blocks = {
        "x_desc": (x, [config.block_m, block_k]),
        "w_desc": (w, [config.block_n, block_k]),
        "y_desc": (y, [config.block_m, config.block_n // strips]),
    }
    made = {
        name: TensorDescriptor(base, list(base.shape), list(base.stride()), block)
        for name, (base, block) in blocks.items()
    }
    return {**made, "PARTS": strips}


def _multiprocessors(x, architecture):
    if x.device.type == "cuda":
        return torch.cuda.get_device_properties(x.device).multi_processor_count
    return configs.MULTIPROCESSORS[architecture]


def _claims(kind, config, architecture):
    """What the machine code must hold.  Triton 3.6 has no tcgen05 for int8 on sm_100, and wgmma and
    tcgen05 take 64 rows: a smaller tile gets mma.sync, which has other names."""
    left = config.block_n if config.w_left else config.block_m
    if architecture in configs.DESCRIPTORS and left < 64:
        return ()
    if kind == configs.INT8:
        return ("int8 tensor core",)
    return ("fp16 tensor core",) if kind == configs.FP8_DECODED else ("fp8 tensor core",)


def torch_takes(x, w):
    """Whether torch's products are used where Triton has no tensor cores

    ``torch._int_mm`` wants more than 16 rows and multiples of 8.  For few rows of E4M3 a kernel
    that reads a byte for each weight moves less than one that writes and reads float16.
    """
    aligned = x.shape[1] % 8 == 0 and len(w) % 8 == 0
    return len(x) > 16 and (aligned or x.dtype != torch.int8)


def contracts(dtype, architecture, out_dtype):
    """-> name, ``Launch`` of every variant that an architecture runs, for ``gpu.contract``"""
    shapes = [(m, n, 8192) for m in (1, 32, 64, 128, 1024, 8192) for n in (4096, 8192)]
    # Results and rows that do not start at multiples of 16 bytes.
    shapes += [(16, 4097, 4096), (1000, 4097, 4096), (1000, 4096, 4001)]
    ways = [(shape, out_dtype, None) for shape in shapes]
    ways += [((8192, 8192, 8192), torch.float32, None)]
    if dtype == torch.int8:
        ways += [((8192, 8192, 8192), torch.int32, None)]
    elif architecture >= FP8:
        ways += [(shape, out_dtype, 128) for shape in shapes[:-3]]
        ways += [((8192, 8192, 8192), out_dtype, every) for every in (32, 64)]
    seen = set()
    for (m, n, k), out, exact_every in ways:
        x = torch.empty(m, k, dtype=dtype, device="meta")
        w = torch.empty(n, k, dtype=dtype, device="meta")
        y = torch.empty(m, n, dtype=out, device="meta")
        if architecture < TENSOR_CORES and torch_takes(x, w):
            continue
        factors = [torch.empty(size, device="meta") for size in (m, n, n)]
        if out == torch.int32:
            factors = [None] * 3
        found = launch(x, w, y, *factors, architecture, exact_every)
        constants = {key: v for key, v in found.arguments.items() if key.isupper()}
        constants["STEPS"] = n % 16, k % 16, out
        variant = found.kernel, found.num_stages, tuple(constants.values())
        if variant in seen:
            continue
        seen.add(variant)
        exact = "" if exact_every is None else f" exact every {exact_every}"
        yield f"{m}x{n}x{k} {str(out)[6:]}{exact}", found
