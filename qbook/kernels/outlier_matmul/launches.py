"""The launches of LLM.int8() as values: which kernel, which tiles.  Book: 6.1"""

import torch

from qbook.kernels.gpu import arguments
from qbook.kernels.gpu.launch import Launch
from qbook.kernels.outlier_matmul import configs

DTYPES = (*arguments.HALF, torch.float32)
# The first architecture whose tensor cores Triton uses.
TENSOR_CORES = 80
# Where the bulk copy engine fetches tiles; sm_120 has it, and its code would need a stack.
BULK_COPIES = (90, 100)
# Columns with outliers that are multiplied at once: the least that a tensor core takes.
BLOCK_OUTLIERS = 16


def tops(x, out):
    """-> ``Launch`` that raises out int32 [n] to the bits of the largest |x|"""
    from qbook.kernels.outlier_matmul import triton_kernels

    samples, n = x.shape
    rows = min(32, 1 << (samples - 1).bit_length())
    parameters = {
        "x_ptr": x,
        "tops_ptr": out,
        "samples": samples,
        "n": n,
        "stride": x.stride(0),
        "STEPS": min(4, -(-samples // rows)),
        "BLOCK_ROWS": rows,
        "BLOCK": 128,
    }
    grid = (-(-n // 128), -(-samples // (rows * parameters["STEPS"])))
    return Launch(triton_kernels.column_tops, grid, parameters)


def product(codes, scale, columns, x, w_float, w_codes, w_scale, bias, out, architecture):
    """-> ``Launch`` that fills out; tensors may be on the "meta" device"""
    from qbook.kernels.outlier_matmul import triton_kernels

    (samples, n), outputs = x.shape, len(w_codes)
    full = x.dtype == torch.float32
    aligned = _aligned(codes) and _aligned(w_codes)
    config = configs.choose(samples, outputs, architecture, full=full, aligned=aligned)
    steps = -(-len(columns) // BLOCK_OUTLIERS)
    parameters = {
        "codes_ptr": codes,
        "scale_ptr": scale,
        "x_ptr": x,
        "columns_ptr": columns,
        "w_codes_ptr": w_codes,
        "w_scale_ptr": w_scale,
        "w_float_ptr": w_float,
        "bias_ptr": bias,
        "out_ptr": out,
        "samples": samples,
        "outputs": outputs,
        "n": n,
        "outliers": len(columns),
        "x_stride": x.stride(0),
        "w_stride": w_codes.stride(0),
        "w_float_stride": w_float.stride(0),
        "HAS_BIAS": bias is not None,
        "STEPS": -(-n // config.depth),
        # A power of two: a few kernels serve every number of outliers.
        "OUTLIER_STEPS": 1 << (steps - 1).bit_length() if steps else 0,
        "BLOCK_ROWS": config.rows,
        "BLOCK_OUTPUTS": config.outputs,
        "BLOCK": config.depth,
        "BLOCK_OUTLIERS": BLOCK_OUTLIERS,
        "GROUP": config.group,
        "BULK": False,
    }
    does = ["int8 tensor core"]
    if steps and not full:
        does.append("fp16 tensor core")
    if aligned and architecture in BULK_COPIES:
        from triton.tools.tensor_descriptor import TensorDescriptor

        for name, height in (("codes_ptr", config.rows), ("w_codes_ptr", config.outputs)):
            block = [height, config.depth]
            parameters[name] = TensorDescriptor.from_tensor(parameters[name], block)
        parameters["BULK"] = True
        does.append("bulk copy")
    return Launch(
        triton_kernels.multiply,
        (configs.count(config, samples, outputs),),
        parameters,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        fuse=False,
        does=tuple(does),
    )


def _aligned(codes):
    """Whether each row begins at a multiple of 16 bytes, as the copy engine wants it"""
    return codes.stride(0) % 16 == 0 and codes.data_ptr() % 16 == 0


def contracts(architecture):
    """-> name, ``Launch`` of every variant that an architecture runs, for ``gpu.contract``"""
    meta = {"device": "meta"}
    for dtype in DTYPES:
        x = torch.empty(2048, 4096, dtype=dtype, **meta)
        yield f"column_tops {dtype}", tops(x, torch.empty(4096, dtype=torch.int32, **meta))
    if architecture < TENSOR_CORES:
        return
    # No outliers, a few, many; a shape that the copy engine does not take.
    kinds = (
        (torch.float16, 4096, 0),
        (torch.float16, 4096, 6),
        (torch.bfloat16, 4096, 100),
        (torch.float16, 4095, 17),
        (torch.float32, 4096, 17),
    )
    for samples, of_these in ((1, kinds[1:2]), (64, kinds[2:3]), (256, kinds[3:]), (2048, kinds)):
        for dtype, n, outliers in of_these:
            x = torch.empty(samples, n, dtype=dtype, **meta)
            w = torch.empty(11008, n, dtype=dtype, **meta)
            codes, w_codes = (torch.empty(t.shape, dtype=torch.int8, **meta) for t in (x, w))
            scale, w_scale = (torch.empty(len(t), **meta) for t in (x, w))
            columns = torch.empty(outliers, dtype=torch.int32, **meta)
            bias, out = w[:, 0].contiguous(), torch.empty(samples, len(w), dtype=dtype, **meta)
            operands = codes, scale, columns, x, w, w_codes, w_scale, bias, out
            yield f"{samples} x {n} {dtype}, {outliers} outliers", product(*operands, architecture)
