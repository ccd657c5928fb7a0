"""What the decomposition of LLM.int8() costs on top of the vector-wise int8 product.

Weights are packed before.  "vector-wise" is that product alone: x quantized by rows, no column
looked at.  The others look, and find 0, 1 or 16 of 4096 columns.
"""

import numpy as np
import torch

from qbook.kernels.int8_matmul import matmul as int8
from qbook.kernels.outlier_matmul import matmul, panels
from qbook.kernels.rowwise import quantizer
from qbook.lab.timing import Group, Target

SIZE, COLUMNS = 4096, 16


def groups():
    w = np.random.default_rng(0).normal(size=(SIZE, SIZE)).astype(np.float32)
    packed, with_floats = panels.pack(w), panels.pack(w, keep_floats=True)
    for samples in (1, 16, 256):
        yield product(samples, w, packed, with_floats)


def product(samples, w, packed, with_floats):
    rng = np.random.default_rng(samples)
    x = {0: rng.uniform(-3, 3, (samples, SIZE)).astype(np.float32)}
    for count in (1, COLUMNS):
        x[count] = x[0].copy()
        x[count][:, rng.choice(SIZE, count, replace=False)] *= 20
    tensor, weight = torch.from_numpy(x[COLUMNS]), torch.from_numpy(w)
    cases = {
        "torch linear fp32": lambda: torch.nn.functional.linear(tensor, weight),
        "vector-wise": lambda: vector_wise(x[0], packed),
        "no outlier": lambda: matmul.matmul(x[0], packed),
        "1 column": lambda: matmul.matmul(x[1], packed),
        "qbook": lambda: matmul.matmul(x[COLUMNS], packed),
        "qbook, floats kept": lambda: matmul.matmul(x[COLUMNS], with_floats),
    }
    if not np.array_equal(cases["vector-wise"](), cases["no outlier"]()):
        raise ValueError("without outliers the product is not the vector-wise one")
    exact = cases["torch linear fp32"]().numpy()
    for name in ("qbook", "qbook, floats kept"):
        error = np.linalg.norm(cases[name]() - exact) / np.linalg.norm(exact)
        # Steps of 1/127 of the largest value, in x and in w: a hundredth of the values' size each.
        if not error <= 0.02:
            raise ValueError(f"{name} is off by {error:.3f} of the product of {samples} samples")
    operations = 2 * samples * SIZE**2
    targets = (Target("qbook", "torch linear fp32", 5.0), Target("qbook", "vector-wise", 0.75))
    name = f"LLM.int8() {samples}x{SIZE}x{SIZE}, {COLUMNS} outlier columns"
    return Group(name, cases, operations, targets=targets)


def vector_wise(x, packed):
    codes, scale = quantizer.quantize(x)
    return int8.linear(codes, scale.reshape(-1), packed.codes, packed.scale[:SIZE])
