"""Static quantization: ranges are measured once, and the network then runs on integers alone.

    sums    = sum_k (x_codes - z_x) w_codes + bias_codes              bias_codes = bias / (s_x s_w)
    y_codes = clamp(z_y + round(s_x s_w / s_y * sums), qmin, qmax)    multiplier in fixed point

Jacob et al. 2018, arXiv:1712.05877, sections 2.2-2.4, eq. 4, 10-12; scales per output channel:
Krishnamoorthi 2018, arXiv:1806.08342, section 3.1.  Book: 3.1

A network is a chain of linear layers, each with or without a ReLU, which the clamp does for free.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from qbook import affine, integer_product, requantize
from qbook.ranges.minmax import minmax


class Linear(NamedTuple):
    """A layer in real numbers: w [out, in], bias [out], and whether a ReLU follows."""

    w: Any
    bias: Any
    relu: bool


@dataclass(frozen=True)
class IntegerLinear:
    """A layer in integers: what an accelerator stores.

    w_codes [out, in] int8 and w_qparams, scale [out, 1];  bias_codes [out] int32
    x_qparams, y_qparams: of its input and of its output, one scale each
    m0, shift [out] int32: s_x s_w / s_y as ``requantize.quantize_multiplier`` writes it
    """

    w_codes: Any
    w_qparams: affine.QParams
    bias_codes: Any
    x_qparams: affine.QParams
    y_qparams: affine.QParams
    m0: Any
    shift: Any
    relu: bool


def chain(model):
    """torch ``Sequential`` of Linear and ReLU -> list of ``Linear`` in float64.

    Raises ValueError for any other layer, and for a ReLU that follows no Linear.
    """
    layers = []
    for module in model:
        kind = type(module).__name__
        if kind == "Linear":
            w = module.weight.detach().double().numpy()
            bias = (
                np.zeros(len(w)) if module.bias is None else module.bias.detach().double().numpy()
            )
            layers.append(Linear(w, bias, relu=False))
        elif kind == "ReLU" and layers and not layers[-1].relu:
            layers[-1] = layers[-1]._replace(relu=True)
        else:
            raise ValueError(f"{kind} at this place is not supported; a chain is Linear(+ReLU) ...")
    return layers


def activations(layers, x):
    """x [samples, in] -> list: x itself, then the output of each layer [samples, out], real."""
    outputs = [x]
    for layer in layers:
        y = outputs[-1] @ layer.w.T + layer.bias
        outputs.append(np.maximum(y, 0) if layer.relu else y)
    return outputs


def calibrate(layers, batches, estimate=minmax):
    """Ranges of the input and of each output over all batches -> list of len(layers) + 1 ranges.

    batches:   iterable of x [samples, in]; all are kept, so that a percentile is one of the whole
    estimate:  values -> (low, high): any of ``qbook.ranges``, e.g.
               ``lambda x: percentile(x, 99.9)``.  The network in front runs in real numbers
    Raises ValueError where there is no batch, and as the estimator does.
    """
    seen = [activations(layers, x) for x in batches]
    if not seen:
        raise ValueError("batches is empty; calibrate on at least one batch")
    return [estimate(np.concatenate(values)) for values in zip(*seen, strict=True)]


def quantize(layers, ranges, *, x_bits=8, w_bits=8):
    """Layers and their ranges -> list of ``IntegerLinear``.

    Weights: symmetric, one scale for each output; activations: asymmetric, signed codes, one scale
    for the tensor.  A bias beyond int32 saturates.  Raises ValueError where the numbers of ranges
    and layers do not match, and for bits outside 1..8.
    """
    if len(ranges) != len(layers) + 1:
        raise ValueError(
            f"{len(layers)} layers have {len(layers) + 1} ranges, input first; got {len(ranges)}"
        )
    for name, bits in (("x_bits", x_bits), ("w_bits", w_bits)):
        if not 1 <= bits <= 8:
            raise ValueError(f"{name}={bits} is outside 1..8, whose products int32 sums")
    qparams = [
        affine.qparams_from_range(np.float64(low), np.float64(high), x_bits, symmetric=False)
        for low, high in ranges
    ]
    pairs = zip(layers, qparams[:-1], qparams[1:], strict=True)
    return [quantize_layer(layer, x, y, w_bits) for layer, x, y in pairs]


def quantize_layer(layer, x_qparams, y_qparams, w_bits=8):
    """One ``Linear``, and the parameters of its two ends -> ``IntegerLinear``."""
    w_qparams = affine.choose_qparams(layer.w, w_bits, axis=1)
    # One scale for each output: a unit of the sum is worth s_x s_w.
    unit = (x_qparams.scale * w_qparams.scale)[:, 0]
    int32 = requantize.INT32
    bias_codes = np.clip(np.rint(layer.bias / unit), int32.min, int32.max)
    m0, shift = requantize.quantize_multiplier(unit / y_qparams.scale)
    return IntegerLinear(
        affine.quantize(layer.w, w_qparams),
        w_qparams,
        bias_codes.astype(np.int32),
        x_qparams,
        y_qparams,
        m0,
        shift,
        layer.relu,
    )


def integer_forward(network, x_codes):
    """Codes of the input [samples, in] -> codes of the last output [samples, out]; integers only.

    Raises ValueError as ``integer_product.accumulate`` does, and where a bias would carry a sum
    beyond int32.
    """
    codes = x_codes
    for layer in network:
        codes = integer_layer(layer, codes)
    return codes


def integer_layer(layer, x_codes):
    """Codes of x [samples, in] -> codes of y [samples, out]: product, bias, rounding."""
    zero_point = int(layer.x_qparams.zero_point)
    sums = integer_product.accumulate(x_codes, layer.w_codes, zero_point)
    sums = sums.astype(np.int64) + layer.bias_codes
    codes = requantize.requantize(sums, layer.m0, layer.shift, layer.y_qparams)
    if layer.relu:
        # Where the range starts at 0 this is qmin, and the clamp has done it.
        codes = np.maximum(codes, codes.dtype.type(layer.y_qparams.zero_point))
    return codes


def simulated_forward(network, x):
    """x [samples, in] real -> y [samples, out] real: the same network by fake quantization.

    What a framework computes before export: reconstructions multiplied in floating point, and a
    division where the integers have a multiplier in fixed point.  Equal to the dequantized result
    of ``integer_forward`` but for sums so close to a tie that the multiplier decides it.
    """
    for layer in network:
        x = affine.fake_quantize(x, layer.x_qparams)
        unit = (layer.x_qparams.scale * layer.w_qparams.scale)[:, 0]
        y = x @ affine.dequantize(layer.w_codes, layer.w_qparams).T + layer.bias_codes * unit
        x = affine.fake_quantize(np.maximum(y, 0) if layer.relu else y, layer.y_qparams)
    return x
