"""Simulation: a model whose weights, and inputs of layers, are rounded on their way in.

The arithmetic stays floating point; the values are those that codes can stand for.  Enough to
measure what a choice of scales costs in any model, without integer kernels for all its layers.
Nagel et al. 2021, arXiv:2106.08295, section 2.4.  Book: 3.1
"""

import torch

from qbook import affine
from qbook.models import weights


def record(model, run):
    """Inputs of every linear and convolution layer in the calls that ``run(model)`` makes.

    -> dict: name of the layer -> list of tensors, one a call.  The model stays as it is.
    """
    seen = {}

    def keep(name):
        return lambda _, inputs: seen.setdefault(name, []).append(inputs[0].detach().clone())

    handles = [layer.register_forward_pre_hook(keep(name)) for name, layer in weights.layers(model)]
    try:
        with torch.no_grad():
            run(model)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def quantize_weights(model, bits=8):
    """-> a copy whose layers have symmetric weights of these bits, one scale for each output"""
    rounded = {}
    for name, w in weights.weights(model).items():
        rounded[name] = affine.fake_quantize(w, affine.choose_qparams(w, bits, axis=1))
    return weights.replace(model, rounded)


def quantize_inputs(model, round_input):
    """-> a copy whose layers compute with ``round_input(name, x)`` in place of their input x"""
    copied = weights.replace(model, {})

    def rounded(name):
        return lambda _, inputs: (round_input(name, inputs[0]), *inputs[1:])

    for name, layer in weights.layers(copied):
        layer.register_forward_pre_hook(rounded(name))
    return copied
