"""LLM.int8(): what the decomposition costs on top of the int8 product, and beside 16 bits.

To find the outliers, the CPU waits for the GPU: that case is in no graph.  Columns known before, as
from a calibration, spare the wait.  "vector-wise" quantizes x by rows and looks at no column.
"""

import functools
from unittest import mock

import torch

from benchmarks.gpu import clock, compare, tune
from benchmarks.gpu.group import Group
from qbook.kernels.gpu import device as architectures
from qbook.kernels.int8_matmul import gpu as int8
from qbook.kernels.outlier_matmul import configs, gpu, launches
from qbook.kernels.rowwise import gpu as rowwise

SIZE, COLUMNS, THRESHOLD = 8192, 16, 6.0
FP16, VECTOR_WISE = "torch.mm fp16", "vector-wise"
KNOWN, NONE = "qbook, columns known", "qbook, no outlier"
# Rows of x, inputs, outputs, columns with outliers.
ODD = ((1, 33, 7, 1), (3, 64, 65, 0), (17, 130, 64, 3), (70, 272, 144, 17), (129, 400, 130, 40))


def draw(m, in_, out, columns, device, dtype=torch.float16):
    """-> x [m, in] with outliers in so many columns, w [out, in], columns int32"""
    generator = torch.Generator(device).manual_seed(m)
    # Uniform: within the threshold but for the columns that are made to exceed it.
    x, w = (torch.rand(rows, in_, device=device, generator=generator) * 6 - 3 for rows in (m, out))
    where = torch.randperm(in_, device=device, generator=generator)[:columns].sort().values
    # In every such column the first row is sure to be beyond the threshold.
    x[:, where] *= 20
    x[0, where] = 50.0
    w = w / 64
    scale = w.abs().amax(dim=1) / 127
    codes = (w / scale[:, None]).round().to(torch.int8)
    return x.to(dtype), w.to(dtype), codes, scale, where.int()


def right(name, found, x, w, codes, scale, columns):
    """Raises ValueError where found is not the definition's, in float64, rounded once

    The codes of x are those of ``rowwise``, which has checks of its own.  Sums in float32 of at
    most 64 columns, rounded or cut off, lose less than 2^-18 of the terms' size.
    """
    outliers = columns.long()
    kept = torch.ones(x.shape[1], device=x.device).index_fill_(0, outliers, 0)
    x_codes, x_scale = rowwise.quantize_int8(x, kept)
    sums = x_codes.double() @ codes.double().T
    regular = (sums.float() * (x_scale[:, None] * scale)).double()
    a, b = x[:, outliers].double(), w[:, outliers].double()
    y, root = regular + a @ b.T, (a.square() @ b.square().T).sqrt()
    unit = torch.finfo(found.dtype).eps / 2
    limit = unit * y.abs() + 2.0**-18 * (regular.abs() + root) + 2.0**-24
    compare.within(name, found, y, limit)


def checks(device):
    types = (torch.float16, torch.bfloat16)
    if architectures.architecture(torch.empty(0, device=device)) < 80:
        types = types[:1]
    for m, in_, out, columns in ODD:
        for dtype in types:
            yield (
                f"{m}x{in_}x{out}, {columns} columns, {dtype}",
                functools.partial(odd_shape, m, in_, out, columns, dtype, device),
            )


def odd_shape(m, in_, out, columns, dtype, device):
    x, w, codes, scale, where = draw(m, in_, out, columns, device, dtype)
    found = gpu.outlier_columns(x, THRESHOLD)
    compare.equal("columns", found, where)
    with compare.poisoned():
        y = gpu.matmul(x, codes, scale, w, THRESHOLD)
        same = gpu.matmul(x, codes, scale, w, columns=where)
    for name, result in (("columns found", y), ("columns given", same)):
        right(name, result, x, w, codes, scale, where)


def groups(device, quick=False):
    for m in (1, 16, 64) if quick else (1, 16, 256, 2048):
        yield group(m, 128 if quick else SIZE, device)


def group(m, size, device):
    x, w, codes, scale, columns = draw(m, size, size, COLUMNS, device)
    weights = [clock.copies(a, codes.nbytes, device) for a in (codes, w)]
    none = columns[:0]

    def vector_wise(codes):
        x_codes, x_scale = rowwise.quantize_int8(x)
        return int8.matmul(x_codes, codes, x_scale, scale)

    cases = {
        FP16: clock.rotate(lambda w: torch.mm(x, w.t()), weights[1]),
        VECTOR_WISE: clock.rotate(vector_wise, weights[0]),
        NONE: clock.rotate(lambda codes, w: gpu.matmul(x, codes, scale, w, columns=none), *weights),
        KNOWN: clock.rotate(
            lambda codes, w: gpu.matmul(x, codes, scale, w, columns=columns), *weights
        ),
        "qbook": clock.rotate(lambda codes, w: gpu.matmul(x, codes, scale, w), *weights),
    }

    def check():
        for name, where in (("qbook", columns), (KNOWN, columns), (NONE, none)):
            with compare.poisoned():
                found = cases[name]()
            right(name, found, x, w, codes, scale, where)

    moved = dict.fromkeys(cases, size * size + 2 * m * 2 * size)
    moved[FP16] += size * size
    units = dict.fromkeys(cases, "int8") | {FP16: "fp16"}
    name = f"LLM.int8() {m}x{size}x{size}, {COLUMNS} outlier columns"
    return Group(name, cases, 2 * m * size * size, moved, units=units, check=check)


def tunings(device, quick=False):
    for m in (16,) if quick else (1, 16, 64, 256, 2048):
        size = 128 if quick else SIZE
        x, w, codes, scale, columns = draw(m, size, size, COLUMNS, device)
        architecture = architectures.architecture(x)
        if architecture < launches.TENSOR_CORES:
            return
        weights = [clock.copies(a, codes.nbytes, device) for a in (codes, w)]

        def run(codes, w, config, x=x, scale=scale, columns=columns):
            with mock.patch.object(configs, "choose", return_value=config):
                return gpu.matmul(x, codes, scale, w, columns=columns)

        chosen = configs.choose(m, size, architecture)
        yield tune.Problem(
            f"LLM.int8() {m}x{size}x{size}",
            {
                config: clock.rotate(functools.partial(run, config=config), *weights)
                for config in dict.fromkeys((chosen, *configs.candidates(architecture)))
            },
            functools.partial(
                right, "product", x=x, w=w, codes=codes, scale=scale, columns=columns
            ),
        )
