"""SmoothQuant: outliers move from the inputs, which round badly, into the weights, which do not.

    s_j = max |x_j|^alpha / max |w_j|^(1 - alpha)        x W^T = (x / s) (W diag(s))^T

Xiao et al. 2023, arXiv:2211.10438, eq. 3 and 4, and the released smooth.py and fake_quant.py.
Afterwards x and W have one scale each (O2, O3) or x has one a token (O1), eight bits.  Book: 5.4
"""

import copy

import torch
from array_api_compat import array_namespace
from torch import nn

from qbook import affine
from qbook.llm import scaling
from qbook.models import weights
from qbook.ptq import simulate as simulation

# Below it the released code clamps: a channel that was always zero keeps a factor.
SMALLEST = 1e-5
LEVELS = ("O1", "O2", "O3")


def scales(x_max, w_max, alpha=0.5):
    """x_max, w_max [channels], largest magnitudes -> s [channels] > 0, what x is divided by

    alpha: 0 flattens the weights' columns, 1 the inputs, 1/2 makes x_max / s equal w_max * s.
    Raises ValueError for alpha outside [0, 1], magnitudes that are negative or not finite, and
    for different shapes.
    """
    xp = array_namespace(x_max, w_max)
    if not (isinstance(alpha, (int, float)) and 0 <= alpha <= 1):
        raise ValueError(f"alpha={alpha!r} is not between 0 and 1; the paper's default is 0.5")
    if x_max.shape != w_max.shape or x_max.ndim != 1:
        raise ValueError(
            f"x_max has shape {tuple(x_max.shape)} and w_max {tuple(w_max.shape)}; "
            "both need one axis, a value for each channel"
        )
    for name, values in (("x_max", x_max), ("w_max", w_max)):
        if not bool(xp.all(xp.isfinite(values) & (values >= 0))):
            raise ValueError(f"{name} must hold finite magnitudes >= 0; pass max |{name[0]}|")
    w_max = xp.maximum(w_max, xp.full_like(w_max, SMALLEST))
    s = x_max**alpha / w_max ** (1 - alpha)
    return xp.maximum(s, xp.full_like(s, SMALLEST))


@torch.no_grad()
def maxima(model, run):
    """-> dict: name of a Linear -> [in], largest |x| of each input in the calls of ``run(model)``

    The model stays as it is.  Raises ValueError for NaN or infinity.
    """
    seen = {}

    def keep(name):
        def heard(_, arguments):
            x = arguments[0].detach().abs()
            largest = x.reshape(-1, x.shape[-1]).amax(dim=0)
            if not bool(torch.isfinite(largest).all()):
                raise ValueError(f"the input of {name} holds NaN or infinity; calibrate on others")
            seen[name] = torch.maximum(seen[name], largest) if name in seen else largest

        return heard

    hooks = [m.register_forward_pre_hook(keep(name)) for name, m in _linears(model).items()]
    try:
        run(model)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def smooth(model, groups, x_maxima, alpha=0.5):
    """-> a copy that computes the same, with smoother inputs of the readers.

    groups:   list of (writer, readers), names of layers; readers are Linears that share one input
              and so one s.  writer: what writes it, and nothing else uses (see
              ``scaling.migrate``); None: readers become ``ScaledLinear``, which divide themselves
    x_maxima: dict, name of a reader -> [in], as ``maxima`` returns it
    Raises ValueError for a reader without maxima, and as ``scales`` and ``migrate``.
    """
    smoothed = copy.deepcopy(model)
    for writer, readers in groups:
        unseen = [name for name in readers if name not in x_maxima]
        if unseen:
            raise ValueError(f"x_maxima lacks {', '.join(unseen)}; calibrate with maxima()")
        layers = [smoothed.get_submodule(name) for name in readers]
        w_max = torch.stack([layer.weight.detach().abs().amax(dim=0) for layer in layers]).amax(0)
        s = scales(x_maxima[readers[0]].to(w_max), w_max, alpha)
        if writer is not None:
            smoothed = scaling.migrate(smoothed, writer, readers, s)
            continue
        for name, layer in zip(readers, layers, strict=True):
            smoothed.set_submodule(name, scaling.ScaledLinear(layer, s))
    return smoothed


def simulate(model, level="O1", *, bits=8, names=None, x_maxima=None, per_row=False):
    """-> a copy whose Linears have weights and inputs of these bits, symmetric.

    level:    of the weights one scale a tensor; of the inputs, from the dearest to the cheapest:
              "O1" one a token, "O2" one a tensor, both in every call; "O3" one a tensor, fixed
    names:    of the Linears to quantize; None: all
    x_maxima: what O3 fixes it from: ``maxima`` of *this* model.  Larger inputs saturate
    per_row:  weights have one scale an output, as in the released scripts for Llama
    Products inside attention stay real.  Raises ValueError for another level, for O3 without the
    maxima of a layer, and as ``affine.choose_qparams``.
    """
    if level not in LEVELS:
        raise ValueError(f"level={level!r} does not exist; choose one of {', '.join(LEVELS)}")
    linears = _linears(model)
    names = list(linears) if names is None else list(names)
    unknown = [name for name in names if name not in linears]
    if unknown:
        raise ValueError(f"no Linear is called {unknown[0]!r}; there are {', '.join(linears)}")
    fixed = {}
    if level == "O3":
        unseen = [name for name in names if name not in (x_maxima or {})]
        if unseen:
            raise ValueError(f"O3 needs x_maxima of {', '.join(unseen)}; pass maxima(model, run)")
        for name in names:
            largest = x_maxima[name].max()
            fixed[name] = affine.qparams_from_range(-largest, largest, bits)

    def round_input(name, x):
        if name not in names:
            return x
        if level == "O3":
            return affine.fake_quantize(x, fixed[name])
        axis = -1 if level == "O1" else None
        return affine.fake_quantize(x, affine.choose_qparams(x, bits, axis=axis))

    rounded = {}
    for name in names:
        w = linears[name].weight.detach()
        rounded[name] = affine.fake_quantize(
            w, affine.choose_qparams(w, bits, axis=1 if per_row else None)
        )
    return simulation.quantize_inputs(weights.replace(model, rounded), round_input)


def _linears(model):
    return {n: layer for n, layer in weights.layers(model) if isinstance(layer, nn.Linear)}
