"""Dynamic quantization: weights once and for all, the input's range anew in every call.

    low, high = min x, max x        of the tensor in hand, or of each token (row) of it

Per token: Yao et al. 2022, arXiv:2206.01861 (ZeroQuant), section 4.1; per tensor: what
``torch.ao.quantization.quantize_dynamic`` does.  Book: 3.1
"""

from typing import Any, NamedTuple

from array_api_compat import array_namespace

from qbook import affine, integer_product


class DynamicLinear(NamedTuple):
    """w_codes [out, in] and w_qparams, scale [out, 1]; the bias [out] stays real; a ReLU or not"""

    w_codes: Any
    w_qparams: affine.QParams
    bias: Any
    relu: bool


def quantize(layers, *, w_bits=8):
    """Layers with fields w [out, in], bias [out], relu -> list of ``DynamicLinear``.

    Symmetric, one scale for each output.  Needs no data.  Raises ValueError for bits outside 1..16.
    """
    network = []
    for layer in layers:
        w_qparams = affine.choose_qparams(layer.w, w_bits, axis=1)
        w_codes = affine.quantize(layer.w, w_qparams)
        network.append(DynamicLinear(w_codes, w_qparams, layer.bias, layer.relu))
    return network


def choose_qparams(x, bits=8, *, per_token=True):
    """x [..., channels] -> asymmetric QParams of its min and max, one scale a row or one in all."""
    return affine.choose_qparams(x, bits, axis=-1 if per_token else None, symmetric=False)


def linear(x, layer, *, x_bits=8, per_token=True):
    """x [samples, in] real -> y [samples, out] real; the product itself in int32.

    A scale per token costs nothing in the sum: it belongs to a row of the result.
    Raises ValueError as ``integer_product.linear`` does.
    """
    xp = array_namespace(x)
    qparams = choose_qparams(x, x_bits, per_token=per_token)
    codes = affine.quantize(x, qparams)
    y = integer_product.linear(codes, qparams, layer.w_codes, layer.w_qparams) + layer.bias
    return xp.maximum(y, xp.zeros_like(y)) if layer.relu else y


def forward(network, x, *, x_bits=8, per_token=True):
    """x [samples, in] real -> the last output [samples, out] real"""
    for layer in network:
        x = linear(x, layer, x_bits=x_bits, per_token=per_token)
    return x
