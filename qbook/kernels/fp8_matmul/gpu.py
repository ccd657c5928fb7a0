"""FP8 products on a GPU: the public call.  E4M3 codes, a scale per row of x and per row of w.

Micikevicius et al. 2022, arXiv:2209.05433; the peer is ``torch._scaled_mm`` with row-wise scales.
``scaled_matmul`` has the kernels, shared with INT8.

FP8 tensor cores do not add in float32.  DeepSeek-AI 2024, arXiv:2412.19437, section 3.3.2, found
that those of an H800 keep around 14 bits, with a largest relative error of nearly 2 % at k = 4096,
and add to a true float32 register every 128 columns: ``exact_every=128`` here.  It costs a second
accumulator, hence smaller tiles, and a wait in every step.  None is the fast accumulation of
``torch._scaled_mm``.  Book: 6.1
"""

import torch

from qbook.kernels.scaled_matmul import launches, products

E4M3 = torch.float8_e4m3fn
EVERY = (32, 64, 128)


def matmul(
    x_codes, w_codes, x_scale, w_scale, bias=None, out_dtype=torch.bfloat16, exact_every=None
):
    """x_codes E4M3 [m, k], w_codes E4M3 [n, k] -> (x w^T) x_scale w_scale + bias [m, n]

    x_scale:      float32 [m], or a number;  w_scale: float32 [n], or a number
    bias:         [n] float16, bfloat16 or float32, or None
    exact_every:  32, 64 or 128: after at most so many columns their sum is added in float32; None:
                  what the tensor core does.  No difference where sums are float32 anyway: on
                  architectures without FP8 (before sm_89), and on the CPU.
    Products are exact, their sum is rounded in an order that is not promised.  A NaN in a row makes
    the row of y NaN, in a row of w its column.  Raises ValueError for types, shapes and devices
    that do not fit, and for another exact_every.
    """
    factors = x_scale, w_scale, bias
    scales = products.check_scaled(x_codes, w_codes, *factors, out_dtype, E4M3)
    if exact_every is not None and exact_every not in EVERY:
        raise ValueError(f"exact_every={exact_every!r}; choose one of {EVERY}, or None")
    return multiply(x_codes, w_codes, *scales, bias, out_dtype, exact_every)


@torch.library.custom_op("qbook::fp8_matmul", mutates_args=())
def multiply(
    x_codes: torch.Tensor,
    w_codes: torch.Tensor,
    x_scale: torch.Tensor,
    w_scale: torch.Tensor,
    bias: torch.Tensor | None,
    out_dtype: torch.dtype,
    exact_every: int | None,
) -> torch.Tensor:
    return products.multiply(x_codes, w_codes, x_scale, w_scale, bias, out_dtype, exact_every)


@multiply.register_fake
def _(x_codes, w_codes, x_scale, w_scale, bias, out_dtype, exact_every):
    return x_codes.new_empty(x_codes.shape[0], w_codes.shape[0], dtype=out_dtype)


def contracts(architecture):
    """-> name, ``Launch`` of every variant that an architecture runs, for ``gpu.contract``"""
    return launches.contracts(E4M3, architecture, torch.bfloat16)
