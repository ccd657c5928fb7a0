"""Reconstruction: learn the roundings of a whole block at once, from what the block puts out.

Every layer of a copy of the block computes with a softly rounded weight (AdaRound's) and, if
wanted, an input on a learnt grid (LSQ's).  Adam moves all logits and steps together, so that the
block's output follows the real one.  A block may be one layer: then this is AdaRound.
Li et al. 2021, arXiv:2102.05426, section 3.4 and algorithm 1.  Book: 4.2
"""

import copy

import torch
from torch import nn

from qbook.models import weights
from qbook.ptq import adaround
from qbook.ptq.rounded_layer import RoundedLayer


def round_layers(block, inputs, weight_bits, act_bits=None):
    """-> a copy of the block with ``RoundedLayer`` for each Linear and Conv2d, rounded to nearest.

    block:  any module of one input and one output;  inputs [n, ...]: what the first steps are
    chosen on, passing through the real weights;  act_bits: None leaves activations alone.
    Scales of weights are those of least MSE, one a row, with a zero-point.
    Raises ValueError for a block without such layers, and for inputs that are empty or not finite.
    """
    _check(inputs, "inputs")
    holder = nn.ModuleDict({"block": copy.deepcopy(block)}).requires_grad_(False)
    found = [(n, m) for n, m in weights.layers(holder) if not isinstance(m, nn.Conv1d)]
    if not found:
        raise ValueError("the block has no Linear or Conv2d layer; name a module that has one")
    for name, layer in found:
        holder.set_submodule(name, RoundedLayer(layer, weight_bits))
    block = holder["block"].eval()
    if act_bits is not None:
        # In the order of the forward pass: a layer sees inputs that its predecessors rounded.
        handles = [
            layer.register_forward_pre_hook(lambda m, args: m.quantize_inputs(args[0], act_bits))
            for layer in rounded_layers(block)
        ]
        with torch.no_grad():
            block(inputs)
        for handle in handles:
            handle.remove()
    return _set(block, hard=True)


def fit(
    block,
    inputs,
    targets,
    *,
    importance=None,
    real_inputs=None,
    mix=None,
    p=2.0,
    steps=500,
    batch_size=32,
    learning_rate=0.01,
    step_learning_rate=1e-3,
    lam=None,
    beta=(20, 2),
    warmup=0.2,
    seed=0,
):
    """-> a copy of the block whose logits and steps were learnt, rounded hard.

    block:       as ``round_layers`` returns it
    inputs:      [n, ...] from the quantized network before;  targets: [n, ...] real outputs
    importance:  weight of every squared error, as ``loss`` takes it
    mix:         (x_hat, x) -> x used, for inputs of layers and, with real_inputs [n, ...], for
                 those of the block;  None: the quantized ones
    batch_size:  samples a step, drawn from ``seed``;  None: all of them
    lam:         weight of the regulariser; None: 30 * (nearest rounding's loss) / (weights)
    The paper takes 20 000 steps of 1e-3 for logits and 4e-5 for steps, and lam = 0.01 for a loss
    that is a mean over pixels; this takes fewer and larger steps.
    Raises ValueError for tensors that are empty, not finite or of different lengths.
    """
    for name, tensor in (("inputs", inputs), ("targets", targets), ("importance", importance)):
        if tensor is not None:
            _check(tensor, name, len(inputs))
    if mix is not None and real_inputs is not None:
        _check(real_inputs, "real_inputs", len(inputs))
    if lam is None:
        count = sum(layer.logits.numel() for layer in rounded_layers(block))
        with torch.no_grad():
            nearest = loss(run(block, inputs), targets, importance=importance, p=p)
        lam = 30.0 * float(nearest) / count
    block = _set(copy.deepcopy(block), hard=False, mix=mix)
    layers = rounded_layers(block)
    grids = [layer.step for layer in layers if layer.step is not None]
    least = [1e-3 * float(grid.detach()) for grid in grids]
    groups = [{"params": [layer.logits for layer in layers]}]
    groups += [{"params": grids, "lr": step_learning_rate}] if grids else []
    optimizer = torch.optim.Adam(groups, lr=learning_rate)
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        chosen = slice(None)
        if batch_size is not None and batch_size < len(inputs):
            chosen = torch.randperm(len(inputs), generator=generator)[:batch_size]
        x = inputs[chosen]
        if mix is not None and real_inputs is not None:
            x = mix(x, real_inputs[chosen])
        weight = None if importance is None else importance[chosen]
        cost = loss(block(x), targets[chosen], importance=weight, p=p)
        exponent = adaround.anneal(step, steps, beta=beta, warmup=warmup)
        if exponent is not None:
            cost = cost + lam * regulariser(block, exponent)
        optimizer.zero_grad()
        cost.backward()
        if grids:
            # A cosine down to 0, for the grids only.
            optimizer.param_groups[1]["lr"] = step_learning_rate * _cosine(step / steps)
        optimizer.step()
        for grid, floor in zip(grids, least, strict=True):
            grid.data.clamp_(min=floor)
    return _set(block, hard=True)


def loss(output, target, *, importance=None, p=2.0):
    """output, target [n, ...] -> mean over samples of sum(importance * |output - target|^p).

    importance [n, ...]: one non-negative number for each element of each sample; None: 1
    """
    error = (output - target).abs() ** p
    return (error if importance is None else importance * error).flatten(1).sum(dim=1).mean()


def regulariser(block, beta):
    """``adaround.regulariser`` summed over the layers of a block, as a tensor with a gradient."""
    h = [adaround.rectified_sigmoid(layer.logits) for layer in rounded_layers(block)]
    return sum((1 - (2 * part - 1).abs() ** beta).sum() for part in h)


def rounded_layers(block):
    """-> list of the block's ``RoundedLayer`` modules, in its order"""
    return [m for m in block.modules() if isinstance(m, RoundedLayer)]


def run(block, inputs, batch_size=250):
    """inputs [n, ...] -> outputs [n, ...] without gradients, some samples at a time"""
    with torch.no_grad():
        return torch.cat([block(part) for part in inputs.split(batch_size)])


def _set(block, **attributes):
    for layer in rounded_layers(block):
        for name, value in ({"mix": None} | attributes).items():
            setattr(layer, name, value)
    return block


def _cosine(part):
    return 0.5 + 0.5 * float(torch.cos(torch.tensor(torch.pi * part, dtype=torch.float64)))


def _check(tensor, name, length=None):
    if len(tensor) == 0 or (length is not None and len(tensor) != length):
        wanted = "at least one" if length is None or length == 0 else length
        raise ValueError(f"{name} holds {len(tensor)} samples; pass {wanted}")
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{name} holds NaN or infinity; calibrate on finite values only")
