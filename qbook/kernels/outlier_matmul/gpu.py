"""LLM.int8() on a GPU: columns of x with outliers are multiplied in 16 bits, the others in int8.

    x w^T  =  s_x s_w sum_(k not in O) q_x q_w  +  sum_(k in O) x_k w_k
    O      =  the columns k in which some |x| >= threshold

Dettmers et al. 2022, arXiv:2208.07339, section 3.2.  Three passes: the columns are found, the rest
of x is quantized by ``rowwise.gpu`` with these columns left out, and one kernel forms both sums.

What costs: x is read twice before a product is formed, and the number of columns is known only
once the GPU has counted them; until then the CPU, which sizes the kernel by it, waits.  This is one
reason why LLM.int8() is slower than its int8 product.  Columns that are known before, from a
calibration, spare the first pass and the wait, and a CUDA graph can hold the rest.

A tensor on the CPU takes ``by_torch``, and so does a T4 (sm_75), where Triton has no tensor cores
and torch's int8 product has.  Book: 5.1, 6.1
"""

import torch

from qbook.kernels.gpu import arguments, device
from qbook.kernels.outlier_matmul import launches
from qbook.kernels.outlier_matmul.launches import DTYPES, contracts
from qbook.kernels.rowwise import gpu as rowwise

__all__ = ["contracts", "matmul", "outlier_columns"]

# The longest sum of products of -127...127 and -128...127 that is sure to fit int32.
LONGEST = (2**31 - 1) // (127 * 128)


def outlier_columns(x, threshold=6.0):
    """x [samples, n] float16, bfloat16 or float32 -> the columns that reach the threshold anywhere

    -> int32, ascending.  threshold: >= 0, rounded to float32; 0 takes every column, infinity none
    Waits for the GPU, as their number is not known before.  Raises ValueError for another type or
    shape of x, and for a threshold that is negative or NaN.
    """
    arguments.matrix(x, "x", DTYPES, "[samples, n]")
    if not threshold >= 0:
        raise ValueError(f"threshold={threshold} is no magnitude; choose 0 or more, 6.0 is usual")
    if not len(x):
        return torch.empty(0, dtype=torch.int32, device=x.device)
    reached = column_tops(x) >= torch.tensor(threshold, dtype=torch.float32)
    return torch.nonzero(reached)[:, 0].int()


def matmul(x, w_codes, w_scale, w_float, threshold=6.0, *, columns=None, bias=None):
    """x [samples, n], w_codes int8 [outputs, n] -> x w^T + bias, of x's type [samples, outputs]

    x:          float16, bfloat16 or float32; a GPU does not look for NaN and infinity, which would
                make it wait: they leave their own row of the result undefined
    w_scale:    float32 [outputs]
    w_float:    of x's type [outputs, n], what outliers are multiplied with: the weight itself, or
                w_codes * w_scale as in bitsandbytes
    columns:    None: ``outlier_columns`` finds them; or int32, ascending, each once: threshold is
                not used, and a GPU does not look whether they ascend
    bias:       [outputs], of any of the types of x, or None
    The integer sums are exact.  They are rounded to float32, multiplied by x_scale * w_scale, and
    the bias is added: without outliers, float32 is bit for bit the product of the CPU's room.  Then
    the products of outliers are added in float32, in no promised order, and the result is rounded
    to x's type once.  Raises ValueError for types, shapes and devices that do not fit, and for a
    sum that might not fit 32 bits.
    """
    _check(x, w_codes, w_scale, w_float, columns, bias)
    if columns is None:
        columns = outlier_columns(x, threshold)
    return multiply(x, columns, w_codes, w_scale, w_float, bias)


@torch.library.custom_op("qbook::column_tops", mutates_args=())
def column_tops(x: torch.Tensor) -> torch.Tensor:
    """x [samples, n] -> the largest |x| of each column, float32 [n]; 0 without samples"""
    if not device.runs_triton(x):
        return x.float().abs().amax(dim=0) if len(x) else x.new_zeros(x.shape[1]).float()
    tops = torch.zeros(x.shape[1], dtype=torch.int32, device=x.device)
    if x.numel():
        launches.tops(x, tops).run()
    return tops.view(torch.float32)


@column_tops.register_fake
def _(x):
    return x.new_empty(x.shape[1], dtype=torch.float32)


@torch.library.custom_op("qbook::outlier_matmul", mutates_args=())
def multiply(
    x: torch.Tensor,
    columns: torch.Tensor,
    w_codes: torch.Tensor,
    w_scale: torch.Tensor,
    w_float: torch.Tensor,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    if x.device.type == "cpu":
        _check_columns(columns, x.shape[1])
    out = x.new_empty(len(x), len(w_codes))
    if x.numel() == 0 or out.numel() == 0:
        return out.copy_(bias.expand_as(out)) if bias is not None else out.zero_()
    # An infinite outlier times 0 is NaN, which spoils its own row and no other.
    kept = None
    if len(columns):
        kept = torch.ones(x.shape[1], device=x.device).index_fill_(0, columns.long(), 0)
    codes, scale = rowwise.quantize_int8(x, kept)
    floats = x, w_float
    architecture = device.architecture(x) if device.runs_triton(x) else 0
    if architecture < launches.TENSOR_CORES:
        return by_torch(codes, scale, columns, *floats, w_codes, w_scale, bias)
    if device.interpreted() and x.dtype == torch.bfloat16:
        floats, out = (x.float(), w_float.float()), out.float()
    operands = codes, scale, columns, *floats, w_codes, w_scale, bias, out
    launches.product(*operands, architecture).run()
    return out.to(x.dtype)


@multiply.register_fake
def _(x, columns, w_codes, w_scale, w_float, bias):
    return x.new_empty(x.shape[0], w_codes.shape[0])


def by_torch(codes, scale, columns, x, w_float, w_codes, w_scale, bias):
    """The same with torch's products, an operation at a time"""
    samples, outputs = len(codes), len(w_codes)
    # What torch's int8 product asks for on a GPU: more than 16 rows, the rest multiples of 8.
    left = _padded(codes, max(0, 17 - samples))
    right = _padded(w_codes, -outputs % 8)
    sums = torch._int_mm(left, right.T)[:samples, :outputs]
    total = sums.float() * (scale[:, None] * w_scale)
    if bias is not None:
        total += bias
    if len(columns):
        total += x.index_select(1, columns).float() @ w_float.index_select(1, columns).float().T
    return total.to(x.dtype)


def _padded(codes, rows):
    """codes [r, n] -> [r + rows, n rounded up to a multiple of 8], by zeros; a copy if it must"""
    more = -codes.shape[1] % 8
    return torch.nn.functional.pad(codes, (0, more, 0, rows)) if more or rows else codes


def _check(x, w_codes, w_scale, w_float, columns, bias):
    arguments.matrix(x, "x", DTYPES, "[samples, n]")
    arguments.matrix(w_codes, "w_codes", (torch.int8,), "[outputs, n]")
    arguments.matrix(w_float, "w_float", (x.dtype,), "[outputs, n]")
    n, outputs = x.shape[1], len(w_codes)
    arguments.same_length(columns_of_x=n, columns_of_w_codes=w_codes.shape[1])
    arguments.same_length(columns_of_x=n, columns_of_w_float=w_float.shape[1])
    arguments.same_length(rows_of_w_codes=outputs, rows_of_w_float=len(w_float))
    arguments.vector(w_scale, "w_scale", outputs, (torch.float32,))
    if bias is not None:
        arguments.vector(bias, "bias", outputs, DTYPES)
    if columns is not None:
        count = columns.numel() if isinstance(columns, torch.Tensor) else 0
        arguments.vector(columns, "columns", count, (torch.int32,))
    found = {"x": x, "w_codes": w_codes, "w_scale": w_scale, "w_float": w_float}
    arguments.same_device(**found, columns=columns, bias=bias)
    if n > LONGEST:
        raise ValueError(
            f"a sum of n={n} products of int8 may overflow int32; split it at most every {LONGEST}"
        )


def _check_columns(columns, n):
    """Of a GPU's columns the same is expected, and not looked at: that would wait for it."""
    inside = not len(columns) or (columns[0] >= 0 and columns[-1] < n)
    if not inside or not (columns[1:] > columns[:-1]).all():
        raise ValueError(
            f"columns={columns.tolist()} for x of {n}; pass each once, ascending, from 0 to {n - 1}"
        )
