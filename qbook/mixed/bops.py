"""BOPs: the bit operations of a network, MACs times the widths of both factors.

    BOPs = sum over layers of MACs * bits of the weight * bits of the activation

Van Baalen et al. 2020 (Bayesian Bits), arXiv:2005.07093; Yao et al. 2021 (HAWQ-V3),
arXiv:2011.10680.  A count, not a time: no processor takes half as long for half the bits because
of it.  Book: 3.3
"""

import math

import torch

from qbook.models import weights


def macs(model, run):
    """Multiply-accumulates of every linear and convolution layer in the calls ``run(model)`` makes.

    -> dict: name of the layer -> int, in the model's order; 0 for a layer that was not called.
    An output takes one for each weight that leads to it, those that meet padding included, as is
    usual.  Give ``run`` one input to count for one.  The model stays as it is.
    """
    layers = weights.layers(model)
    counted = {name: 0 for name, _ in layers}

    def count(name):
        def hook(layer, _, output):
            # Weight [out, ...]: what an output takes is a row.  A convolution's outputs are
            # [n, out, ...], a linear layer's [..., out]: either way every element takes a row.
            counted[name] += output.numel() * math.prod(layer.weight.shape[1:])

        return hook

    handles = [layer.register_forward_hook(count(name)) for name, layer in layers]
    try:
        with torch.no_grad():
            run(model)
    finally:
        for handle in handles:
            handle.remove()
    return counted


def bops(macs, weight_bits, activation_bits):
    """-> MACs * weight_bits * activation_bits, summed over the layers.

    macs:  dict, name -> count;  weight_bits, activation_bits: a number, or dict name -> number
    Raises ValueError for a layer without a width, and for a negative width.
    """
    total = 0
    for name, count in macs.items():
        factors = []
        for what, bits in (("weight_bits", weight_bits), ("activation_bits", activation_bits)):
            if isinstance(bits, dict) and name not in bits:
                raise ValueError(f"{what} has no width for {name}; it has {', '.join(bits)}")
            factors.append(bits[name] if isinstance(bits, dict) else bits)
            if not factors[-1] >= 0:
                raise ValueError(f"{what}={factors[-1]} of {name} is not a width")
        total += count * factors[0] * factors[1]
    return total
