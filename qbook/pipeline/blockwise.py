"""BRECQ and QDrop behind the same call: blocks are reconstructed, then packed layer by layer.

Li et al. 2021, arXiv:2102.05426; Wei et al. 2022, arXiv:2203.05740.  Book: 4.5
"""

import time

import torch

from qbook.pipeline import report
from qbook.pipeline.layers import QuantizedLayer
from qbook.ptq import brecq, qdrop
from qbook.ptq.rounded_layer import RoundedLayer
from qbook.qat import lsq

METHODS = ("brecq", "qdrop")


def quantize(model, batches, *, method, bits, x_bits, blocks=None, seed=0, **schedule):
    """-> (copy of the model with ``QuantizedLayer`` inside, ``Report``), as ``pipeline.quantize``.

    batches:  list of tensors; blocks: names of modules of one input and one output each.  Layers
    outside blocks get eight bits.  schedule: keywords of ``reconstruction.fit``, and QDrop's p.
    Raises ValueError for blocks that the model does not have, missing or unsuitable batches, and
    for QDrop without x_bits.
    """
    start = time.perf_counter()
    known = dict(model.named_modules())
    unknown = [name for name in blocks or () if name not in known]
    if not blocks or unknown:
        raise ValueError(
            f"method={method!r} needs blocks=[...], names of modules of one input and output; "
            f"unknown: {unknown}, the model has {', '.join(name for name in known if name)}"
        )
    if not batches or not all(isinstance(batch, torch.Tensor) for batch in batches):
        raise ValueError(f"method={method!r} needs calibration data: batches, a list of tensors")
    if method == "qdrop" and x_bits is None:
        raise ValueError(
            "QDrop drops the quantization of inputs; pass x_bits, the paper's are 2, 4"
        )
    apply = qdrop.quantize if method == "qdrop" else brecq.quantize
    real = {name: layer for name, layer in known.items() if name}
    rounded = apply(model, torch.cat(batches), blocks, bits, x_bits, seed=seed, **schedule)
    rows = []
    for name, layer in list(rounded.named_modules()):
        if isinstance(layer, RoundedLayer):
            done = pack(layer, real[name])
            rounded.set_submodule(name, done)
            rows.append(report.row(name, real[name], done))
    return rounded, report.Report(rows, report.kept(rounded), time.perf_counter() - start)


def pack(rounded, layer):
    """``RoundedLayer`` and the real layer it stands for -> ``QuantizedLayer``, the same outputs"""
    x_qparams = None
    if rounded.step is not None:
        x_qparams = lsq.qparams(rounded.step.detach(), rounded.bits, signed=rounded.signed)
    with torch.no_grad():
        return QuantizedLayer(layer, rounded.codes(), rounded.qparams, x_qparams)
