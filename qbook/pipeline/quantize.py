"""Quantize the layers of any model, one after the other, with a method of the book.

Each layer is calibrated on what it really gets: the output of the layers already quantized
(Nagel et al. 2020, arXiv:2004.10568, section 3.3, the asymmetric reconstruction).  Book: 4.5
"""

import copy
import time

import torch
from tqdm import tqdm

from qbook import affine
from qbook.pipeline import blockwise, capture, report, supported
from qbook.pipeline.layers import QuantizedLayer
from qbook.pipeline.roundings import ROUNDINGS
from qbook.ranges import mse


def quantize(
    model,
    batches=(),
    *,
    method="nearest",
    bits=8,
    group_size=None,
    symmetric=True,
    clip="minmax",
    x_bits=None,
    x_estimate=None,
    skip=(),
    max_samples=4096,
    seed=0,
    progress=None,
    **options,
):
    """-> (a copy of the model with ``QuantizedLayer`` in place of its layers, a ``Report``)

    model:       any module that holds Linear, Conv1d or Conv2d layers; it stays as it is
    batches:     iterable of calibration inputs: tensors, tuples of arguments or dicts of keywords.
                 "nearest" with real or dynamic inputs needs none
    method:      "nearest", "adaround", "gptq", "obq", or a function (w, x, qparams, y) -> codes
                 with w [out, in], x [samples, in], y [samples, out], all torch.  "brecq" and
                 "qdrop" take blocks=[names of modules] and choose their scales themselves
    bits:        1 to 8 for all layers, or a dict: name -> bits, for mixed precision
    group_size:  neighbouring inputs that share a scale; None: one scale for each output
    clip:        "minmax", or "mse": the range of least squared error
    x_bits:      None: inputs of layers stay real; else they are rounded, with asymmetric codes
    x_estimate:  None: dynamic, a range for each token or image at run time.  A function
                 values -> (low, high), such as ``ranges.minmax.minmax``: static, from the batches
    skip:        names of layers, or of modules above them, that stay real
    max_samples: rows of inputs that a method sees, drawn with ``seed`` from all batches
    progress:    True, False, or None: a bar where the output is a terminal
    options:     keywords of the method, such as steps=2000 for AdaRound

    Raises ValueError for a model without such layers, for modules that cannot be quantized and are
    not skipped, for calibration data that are missing, too few, NaN or infinite.  Interrupted, it
    leaves nothing behind.
    """
    start = time.perf_counter()
    names = supported.layers(model, skip)
    if method in blockwise.METHODS:
        chosen = {"group_size": group_size, "x_estimate": x_estimate, "skip": skip or None}
        wrong = ", ".join(name for name, value in chosen.items() if value is not None)
        if wrong or isinstance(bits, dict):
            raise ValueError(
                f"method={method!r} has one width and learns the rest; leave out "
                f"{wrong or 'the dict'}"
            )
        return blockwise.quantize(
            model, _listed(batches), method=method, bits=bits, x_bits=x_bits, seed=seed, **options
        )
    rounding = _rounding(method)
    widths = _widths(bits, names)
    batches = _listed(batches)
    if max_samples < 1:
        raise ValueError(
            f"max_samples={max_samples} leaves a method nothing to see; the default is 4096"
        )
    static = x_bits is not None and x_estimate is not None
    if static and not callable(x_estimate):
        raise ValueError(
            f"x_estimate={x_estimate!r} cannot be called; pass a function values -> (low, high), "
            "such as qbook.ranges.minmax.minmax"
        )
    if not batches and (static or rounding is not ROUNDINGS["nearest"]):
        need = "a static input range" if static else f"method={method!r}"
        raise ValueError(f"{need} needs calibration data; pass batches, an iterable of inputs")
    real = copy.deepcopy(model).eval()
    quantized = copy.deepcopy(real)
    if batches:
        names = capture.order_of_calls(real, batches[0], names)
    seeds = {name: seed + index for index, name in enumerate(names)}
    wanted = {}
    if batches and rounding is not ROUNDINGS["nearest"]:
        wanted = capture.samples(real, seeds, batches, max_samples)
    rows = []
    for name in tqdm(names, disable=_disabled(progress), unit="layer"):
        layer = real.get_submodule(name)
        x = y = None
        x_qparams = x_bits
        try:
            if batches:
                # The same places as in the real network's rows.
                x = capture.samples(quantized, {name: seeds[name]}, batches, max_samples)[name]
                y = wanted.pop(name, None)
                if static:
                    x_qparams = _static(quantized, name, batches, x_bits, x_estimate)
            qparams = _qparams(layer, widths[name], group_size, symmetric, clip)
            codes = _round(rounding, layer, x, y, qparams, options)
        except ValueError as error:
            raise ValueError(f"layer {name}: {error}") from error
        done = QuantizedLayer(layer, codes, qparams, x_qparams)
        quantized.set_submodule(name, done)
        rows.append(report.row(name, layer, done, x))
    return quantized, report.Report(rows, report.kept(quantized), time.perf_counter() - start)


def _listed(batches):
    if isinstance(batches, torch.Tensor):
        raise ValueError(
            f"batches is one tensor of shape {tuple(batches.shape)}; pass a list of batches, such "
            "as [x] or x.split(32)"
        )
    return list(batches)


def _rounding(method):
    if callable(method):
        return method
    if method not in ROUNDINGS:
        known = ", ".join([*ROUNDINGS, *blockwise.METHODS])
        raise ValueError(f"method={method!r} is unknown; choose from {known}")
    return ROUNDINGS[method]


def _widths(bits, names):
    if not isinstance(bits, dict):
        bits = dict.fromkeys(names, bits)
    missing = [name for name in names if name not in bits]
    if missing:
        raise ValueError(f"bits names no width for {', '.join(missing)}; add it, or skip the layer")
    wrong = {name: b for name, b in bits.items() if b not in range(1, 9)}
    if wrong:
        raise ValueError(f"bits={wrong} are not widths that can be packed; choose 1 to 8")
    return bits


def _qparams(layer, bits, group_size, symmetric, clip):
    w = layer.weight.detach().flatten(1)
    if clip == "minmax":
        return affine.choose_qparams(w, bits, axis=1, group_size=group_size, symmetric=symmetric)
    if clip != "mse" or group_size is not None:
        raise ValueError(
            f"clip={clip!r} with group_size={group_size} is not supported; choose 'minmax', or "
            "'mse' without groups"
        )
    low, high = mse.search(w, bits, axis=1, symmetric=symmetric)
    return affine.qparams_from_range(low, high, bits, symmetric=symmetric)


def _round(rounding, layer, x, y, qparams, options):
    """Codes [out, in] of a layer; the groups of a convolution are layers of their own."""
    w = capture.at_least_float32(layer.weight.detach().flatten(1))
    groups = getattr(layer, "groups", 1)
    if groups == 1 or y is None:
        x, y = (None, None) if y is None else (x[:, 0], y[:, 0] @ w.T)
        return rounding(w, x, qparams, y, **options)
    size = len(w) // groups
    parts = []
    for group in range(groups):
        own = slice(group * size, (group + 1) * size)
        part = affine.QParams(
            qparams.scale[own],
            qparams.zero_point[own],
            qparams.qmin,
            qparams.qmax,
            qparams.group_axis,
        )
        parts.append(rounding(w[own], x[:, group], part, y[:, group] @ w[own].T, **options))
    return torch.cat(parts)


def _static(quantized, name, batches, x_bits, estimate):
    seen = capture.inputs(quantized, name, batches)
    low, high = estimate(torch.cat([x.flatten() for x in seen]))
    low, high = (torch.as_tensor(end, dtype=torch.float32) for end in (low, high))
    return affine.qparams_from_range(low, high, x_bits, symmetric=False)


def _disabled(progress):
    return None if progress is None else not progress
