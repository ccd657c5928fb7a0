"""INT8 products on a GPU: the public calls.

    matmul        codes, scales, bias -> float16, bfloat16 or float32
    accumulate    codes -> int32 sums

Symmetric codes, a scale per row of x and per row of w: W8A8 as in SmoothQuant (Xiao et al. 2022,
arXiv:2211.10438, section 4) and, for the other columns, LLM.int8().  ``scaled_matmul`` has the
kernels, shared with FP8.  For a few rows on a T4 see ``dp4a_matmul``: four products in an
instruction, here such a GPU forms them one at a time.  Book: 6.1
"""

import torch

from qbook.kernels.scaled_matmul import launches, products


def matmul(x_codes, w_codes, x_scale, w_scale, bias=None, out_dtype=torch.float16):
    """x_codes int8 [m, k], w_codes int8 [n, k] -> (x_codes w_codes^T) x_scale w_scale + bias [m, n]

    x_scale: float32 [m], or a number;  w_scale: float32 [n], or a number
    bias:    [n] float16, bfloat16 or float32, or None
    The sums are exact.  A sum is rounded to float32, multiplied by x_scale * w_scale, rounded
    before; the bias is added, and the result rounded to out_dtype: bit for bit the same on every
    architecture and on the CPU, where ``integer_product.linear`` says it without bias.
    Raises ValueError for types, shapes and devices that do not fit, and for a k whose sum might not
    fit 32 bits.
    """
    factors = x_scale, w_scale, bias
    scales = products.check_scaled(x_codes, w_codes, *factors, out_dtype, torch.int8)
    return multiply(x_codes, w_codes, *scales, bias, out_dtype)


def accumulate(x_codes, w_codes):
    """x_codes int8 [m, k], w_codes int8 [n, k] -> x_codes w_codes^T, int32 [m, n], exact

    Raises ValueError as ``matmul``.
    """
    products.check(x_codes, w_codes, torch.int8)
    return sum_products(x_codes, w_codes)


@torch.library.custom_op("qbook::int8_matmul", mutates_args=())
def multiply(
    x_codes: torch.Tensor,
    w_codes: torch.Tensor,
    x_scale: torch.Tensor,
    w_scale: torch.Tensor,
    bias: torch.Tensor | None,
    out_dtype: torch.dtype,
) -> torch.Tensor:
    return products.multiply(x_codes, w_codes, x_scale, w_scale, bias, out_dtype)


@multiply.register_fake
def _(x_codes, w_codes, x_scale, w_scale, bias, out_dtype):
    return x_codes.new_empty(x_codes.shape[0], w_codes.shape[0], dtype=out_dtype)


@torch.library.custom_op("qbook::int8_accumulate", mutates_args=())
def sum_products(x_codes: torch.Tensor, w_codes: torch.Tensor) -> torch.Tensor:
    return products.multiply(x_codes, w_codes, None, None, None, torch.int32)


@sum_products.register_fake
def _(x_codes, w_codes):
    return x_codes.new_empty(x_codes.shape[0], w_codes.shape[0], dtype=torch.int32)


def contracts(architecture):
    """-> name, ``Launch`` of every variant that an architecture runs, for ``gpu.contract``"""
    return launches.contracts(torch.int8, architecture, torch.float16)
