"""int8 products by dp4a on a GPU: the public calls.

    matmul   codes -> int32 sums, or, with scales, float32
    pack     a weight that stays, rearranged once

For GPUs whose tensor cores Triton cannot reach (sm_75), and as the survey's kernel, completed.  The
same kernel runs on every architecture from sm_75 on.  A tensor on the CPU takes the reference
below, see ``gpu.device``.  Versions: ``reference`` (NumPy, word by word: what dp4a is),
``triton_kernels`` (this one), ``cuda_kernel`` (CUDA in Python, tiles in shared memory).  Book: 6.1
"""

import torch

from qbook.kernels.dp4a_matmul import configs
from qbook.kernels.dp4a_matmul.reference import LONGEST
from qbook.kernels.gpu import arguments, device
from qbook.kernels.gpu.launch import Launch

# Codes of a word of 64 bits: what a lane loads at a time.
WORD = 8
FILL = WORD * configs.WORDS


def matmul(x_codes, w_codes, x_scale=None, w_scale=None):
    """x_codes int8 [samples, in], w_codes int8 [out, in] or packed -> x w^T [samples, out]

    x_scale:  float32 [samples], and w_scale: float32 [out] -> float32, the sums times x_scale
              w_scale; the product of the scales is rounded first, as in ``int8_matmul.linear``
    None:     int32, the sums.  Exact.
    Raises ValueError for other types, shapes or devices, for one scale without the other, and
    for more than 131071 inputs, whose sum might not fit 32 bits.
    """
    arguments.matrix(x_codes, "x_codes", (torch.int8,), "[samples, in]")
    if x_codes.shape[1] > LONGEST:
        raise ValueError(
            f"{x_codes.shape[1]} inputs: their sum may not fit 32 bits; split it, "
            f"{LONGEST} inputs fit"
        )
    words = _packed(w_codes, x_codes.shape[1])
    arguments.same_device(x_codes=x_codes, w_codes=w_codes, x_scale=x_scale, w_scale=w_scale)
    if (x_scale is None) != (w_scale is None):
        missing = "w_scale" if w_scale is None else "x_scale"
        raise ValueError(f"{missing} is missing; pass both scales, or none for the int32 sums")
    if x_scale is not None:
        arguments.vector(x_scale, "x_scale", x_codes.shape[0], (torch.float32,))
        arguments.vector(w_scale, "w_scale", words.shape[1], (torch.float32,))
    return dp4a_matmul(x_codes, words, x_scale, w_scale)


def pack(w_codes):
    """w_codes int8 [out, in] -> int64 [words, out]: eight inputs a word, outputs side by side

    Inputs are filled up with zeros to a multiple of 64.  Raises ValueError for another type.
    """
    arguments.matrix(w_codes, "w_codes", (torch.int8,), "[out, in]")
    return _words(w_codes).T.contiguous()


def unpack(words, in_):
    """The inverse of ``pack`` -> int8 [out, in_]"""
    return words.T.contiguous().view(torch.int8)[:, :in_]


def _words(codes):
    """codes int8 [rows, n] -> int64 [rows, words], a view where the memory allows"""
    in_words = codes.stride(0) % WORD == 0 and codes.storage_offset() % WORD == 0
    if codes.shape[1] % FILL or not in_words or codes.stride(1) != 1:
        codes = torch.nn.functional.pad(codes, (0, -codes.shape[1] % FILL)).contiguous()
    if not codes.numel():
        return codes.new_zeros(codes.shape[0], codes.shape[1] // WORD, dtype=torch.int64)
    return codes.view(torch.int64)


def _packed(w_codes, in_):
    if isinstance(w_codes, torch.Tensor) and w_codes.dtype == torch.int64:
        wanted = -(-in_ // FILL) * configs.WORDS
        if w_codes.ndim != 2 or w_codes.shape[0] != wanted or not w_codes.is_contiguous():
            raise ValueError(
                f"w_codes is {arguments.describe(w_codes)}; a packed weight of {in_} inputs is "
                f"int64 [{wanted}, out], as pack(w_codes) returns it"
            )
        return w_codes
    arguments.matrix(w_codes, "w_codes", (torch.int8,), "[out, in], or pack(w_codes)")
    arguments.same_length(inputs_of_x=in_, inputs_of_w=w_codes.shape[1])
    return pack(w_codes)


@torch.library.custom_op("qbook::dp4a_matmul", mutates_args=())
def dp4a_matmul(
    x: torch.Tensor,
    words: torch.Tensor,
    x_scale: torch.Tensor | None,
    w_scale: torch.Tensor | None,
) -> torch.Tensor:
    if not device.runs_triton(x):
        return reference(x, words, x_scale, w_scale)
    out = _result(x, words, x_scale)
    if 0 in (x.shape[0], words.shape[0], words.shape[1]):
        return out.zero_()
    launch(x, words, x_scale, w_scale, out, device.architecture(x)).run()
    return out


@dp4a_matmul.register_fake
def _(x, words, x_scale, w_scale):
    return _result(x, words, x_scale)


def _result(x, words, x_scale):
    dtype = torch.int32 if x_scale is None else torch.float32
    return x.new_empty(x.shape[0], words.shape[1], dtype=dtype)


def reference(x, words, x_scale, w_scale):
    """The same on the CPU: float64 holds these sums exactly"""
    sums = (x.double() @ unpack(words, x.shape[1]).double().T).to(torch.int32)
    if x_scale is None:
        return sums
    return sums.float() * (x_scale[:, None] * w_scale)


def launch(x, words, x_scale, w_scale, out, architecture, config=None):
    """-> ``Launch`` that fills out; tensors may be on the "meta" device"""
    from qbook.kernels.dp4a_matmul import triton_kernels

    m, n = out.shape
    config = config or configs.choose(m)
    kernels = triton_kernels
    x_words = _words(x)
    parameters = {
        "x_ptr": x_words,
        "w_ptr": words,
        "x_scale_ptr": x_scale,
        "w_scale_ptr": w_scale,
        "c_ptr": out,
        "m": m,
        "n": n,
        "stride": x_words.stride(0),
        "DP4A": kernels.dp4a_by_shifts if device.interpreted() else kernels.dp4a_by_instruction,
        "HAS_SCALES": x_scale is not None,
        "STEPS": words.shape[0] // config.unroll,
        "UNROLL": config.unroll,
        "ROWS": config.rows,
        "COLUMNS": config.columns,
        "WARP_ROWS": config.warps,
    }
    rows, columns = config.tile
    grid = (-(-m // rows), -(-n // columns))
    return Launch(
        kernels.multiply,
        grid,
        parameters,
        num_warps=config.warps,
        fuse=False,
        does=("dp4a",),
    )


def contracts(architecture):
    """-> name, ``Launch`` of every variant that an architecture runs, for ``gpu.contract``"""
    meta = {"device": "meta"}
    for m in (1, 8, 32, 4096):
        for n, scaled in ((4096, True), (4095, False)):
            x = torch.empty(m, 4096, dtype=torch.int8, **meta)
            words = torch.empty(4096 // WORD, n, dtype=torch.int64, **meta)
            scales = [torch.empty(size, **meta) if scaled else None for size in (m, n)]
            found = launch(x, words, *scales, _result(x, words, scales[0]), architecture)
            yield f"{m} x {n}, {'float32' if scaled else 'int32'}", found
