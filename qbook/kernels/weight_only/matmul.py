"""y = x w_hat^T on a GPU, w_hat in a ``PackedWeight``: the public call.

w_hat is value * scale, rounded to x's type (see ``decode.product``), in each of the three ways;
sums are float32 and rounded at the end, so that ways differ by the order of additions only.  A
tensor on the CPU takes the reference below, see ``gpu.device``.  Book: 6.1
"""

import functools

import torch

from qbook.kernels.gpu import arguments, device
from qbook.kernels.gpu.launch import Launch
from qbook.kernels.weight_only import configs, packed
from qbook.kernels.weight_only.formats import FORMATS
from qbook.kernels.weight_only.packed import PackedWeight

# Rows of x and types for which launches are compiled without a GPU; every other without bfloat16.
CONTRACTS = (
    (1, torch.float16),
    (1, torch.bfloat16),
    (16, torch.float16),
    (64, torch.bfloat16),
    (100, torch.float16),
    (4096, torch.bfloat16),
    (4096, torch.float16),
)


def matmul(x, w, bias=None):
    """x [samples, in] float16 or bfloat16, w ``PackedWeight`` [out, in] -> [samples, out], x's type

    bias:  [out], x's type, or None
    Raises ValueError for another type, shape or device.  Inference only: there is no gradient.
    """
    arguments.matrix(x, "x", arguments.HALF, "[samples, in]")
    arguments.same_length(columns_of_x=x.shape[1], columns_of_w=w.shape[1])
    arguments.same_device(x=x, w=w.codes, bias=bias)
    if bias is not None:
        arguments.vector(bias, "bias", w.shape[0], (x.dtype,))
    return weight_only_matmul(x, w.codes, w.scale, w.tensor_scale, bias, w.format, w.group_size)


@torch.library.custom_op("qbook::weight_only_matmul", mutates_args=())
def weight_only_matmul(
    x: torch.Tensor,
    codes: torch.Tensor,
    scale: torch.Tensor,
    tensor_scale: torch.Tensor | None,
    bias: torch.Tensor | None,
    format: str,
    group_size: int,
) -> torch.Tensor:
    """x and the fields of a ``PackedWeight`` -> y"""
    shape = codes.shape[0], x.shape[1]
    w = PackedWeight(codes, scale, tensor_scale, format, shape, group_size)
    if not device.runs_triton(x):
        return reference(x, w, bias)
    y = x.new_empty(x.shape[0], shape[0])
    if y.numel() == 0:
        return y
    return run(x, w, bias, choose(x, w))


@weight_only_matmul.register_fake
def _(x, codes, scale, tensor_scale, bias, format, group_size):
    return x.new_empty(x.shape[0], codes.shape[0])


def reference(x, w, bias=None):
    """The same in float32, with w_hat rounded to x's type first"""
    y = x.float() @ packed.dequantize(w).to(x.dtype).float().T
    y = y if w.tensor_scale is None else y * w.tensor_scale
    return (y if bias is None else y + bias.float()).to(x.dtype)


def choose(x, w):
    """-> ``Config`` for x on its device"""
    return _choose(x.shape[0], w, device.architecture(x))


def _choose(m, w, architecture):
    fields = FORMATS[w.format].fields
    return configs.choose(m, *w.codes.shape, w.plane, architecture, fields)


def run(x, w, bias, config):
    """y with a given ``Config``"""
    dtype = x.dtype
    bfloat = dtype == torch.bfloat16 and device.interpreted()
    # The interpreter cannot compute with bfloat16: the same numbers as float32.
    if bfloat:
        x, bias = x.float(), None if bias is None else bias.float()
    if config.way == "dequantize":
        w_hat = x.new_empty(w.shape)
        dequantize_launch(w, w_hat, config, bfloat).run()
        if w.tensor_scale is None and bias is None:
            return torch.mm(x, w_hat.T).to(dtype)
        # Before the scale of the tensor a sum may lie beyond float16.
        y = _float32_product(x, w_hat)
        y = y if w.tensor_scale is None else y * w.tensor_scale
        return (y if bias is None else y + bias.float()).to(dtype)
    y = x.new_empty(x.shape[0], w.shape[0])
    for launch in launches(x, w, bias, y, config, bfloat):
        launch.run()
    return y.to(dtype)


def _float32_product(x, w_hat):
    """x w_hat^T, its float32 sums not rounded: a library's product of 16 bits can, on a GPU"""
    if x.device.type == "cpu":
        return x.float() @ w_hat.float().T
    return torch.mm(x, w_hat.T, out_dtype=torch.float32)


def launches(x, w, bias, y, config, bfloat=False):
    """-> the launches, in their order, that fill y; tensors may be on the "meta" device"""
    from qbook.kernels.weight_only import triton_kernels

    m, n = y.shape
    ends = {"tensor_scale_ptr": w.tensor_scale, "bias_ptr": bias, "y_ptr": y}
    shared = weight_arguments(w, x.shape[1], bfloat) | ends
    shared |= {"x_ptr": x, "N": n, "x_stride": x.stride(0), "BLOCK_N": config.block_n}
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    blocks, tiles = -(-n // config.block_n), shared["TILES"]
    if config.way == "row":
        shared |= {"BLOCK_TILES": config.tiles, "STEPS": -(-tiles // config.tiles)}
        return [Launch(triton_kernels.multiply_row, (blocks, m), shared, **options)]
    sums = y if config.parts == 1 else y.new_empty(config.parts, m, n, dtype=torch.float32)
    shared |= {
        "y_ptr": sums,
        "M": m,
        "BLOCK_M": config.block_m,
        "PARTS": config.parts,
        "STEPS": -(-tiles // (config.tiles * config.parts)),
        "TILES_A_STEP": config.tiles,
    }
    grid = (blocks, -(-m // config.block_m), config.parts)
    does = ("fp16 tensor core",)
    found = [Launch(triton_kernels.multiply, grid, shared, **options, does=does)]
    if config.parts > 1:
        ends |= {"parts_ptr": sums, "M": m, "N": n, "PARTS": config.parts, "BLOCK_N": 1024}
        found.append(Launch(triton_kernels.join, (-(-n // 1024), m), ends))
    return found


def dequantize_launch(w, w_hat, config, bfloat=False):
    """-> the launch that fills w_hat [out, in]"""
    from qbook.kernels.weight_only import triton_kernels

    shared = weight_arguments(w, w_hat.shape[1], bfloat)
    shared |= {"w_ptr": w_hat, "N": w_hat.shape[0]}
    shared |= {"BLOCK_N": config.block_n, "BLOCK_TILES": config.tiles}
    grid = (-(-w_hat.shape[0] // config.block_n), -(-shared["TILES"] // config.tiles))
    return Launch(triton_kernels.dequantize, grid, shared, num_warps=config.num_warps)


@functools.cache
def _table(name, place):
    """-> float32 [16] on a device, kept there: a copy at each call would wait, and break a graph"""
    fmt = FORMATS[name]
    return torch.from_numpy(fmt.codes.values.copy()).to(place) if fmt.decode == "lookup" else None


def weight_arguments(w, columns, bfloat):
    """-> what every kernel is told about w"""
    from qbook.kernels.weight_only import decode

    fmt = FORMATS[w.format]
    return {
        "codes_ptr": w.codes,
        "scale_ptr": w.scale,
        "table_ptr": _table(w.format, w.codes.device),
        "K": columns,
        "TILES": w.codes.shape[1] // w.plane,
        "PLANE": w.plane,
        "BITS": fmt.bits,
        "GROUP_SIZE": w.group_size,
        "WORD": w.group_size * fmt.groups_a_word,
        "DECODE": getattr(decode, fmt.decode),
        "SCALE": getattr(decode, fmt.scale),
        "BFLOAT": bfloat,
    }


def contracts(name, architecture, group_size=None):
    """-> name, ``Launch`` of every way that an architecture takes for a format"""
    fmt = FORMATS[name]
    n, k = 8192, 8192
    group_size = group_size or fmt.group_size or k
    empty = {"device": "meta"}
    words = k // (group_size * fmt.groups_a_word)
    scale = torch.empty(words, n, dtype=torch.int32, **empty)
    codes = torch.empty(n, k * fmt.bits // 8, dtype=torch.uint8, **empty)
    w = PackedWeight(codes, scale, None, name, (n, k), group_size)
    for m, dtype in CONTRACTS if architecture > 75 else CONTRACTS[::2]:
        config = _choose(m, w, architecture)
        x, y = torch.empty(m, k, dtype=dtype, **empty), torch.empty(m, n, dtype=dtype, **empty)
        label = f"{name} {str(dtype)[6:]} {m} rows"
        if config.way == "dequantize":
            w_hat = torch.empty(n, k, dtype=dtype, **empty)
            yield f"{label}, dequantize", dequantize_launch(w, w_hat, config)
            continue
        # The second launch adds parts, and is the same for all.
        for launch in launches(x, w, None, y, config)[: 2 if m == 16 else 1]:
            yield f"{label}, {launch.kernel.__name__}", launch
