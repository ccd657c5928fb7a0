"""BRECQ: reconstruct block by block, and weigh each element of a block's output by its curvature.

The task loss changes by about dz^T H dz / 2 when a block's output z changes by dz.  H is dense and
too large to keep.  The Fisher information stands for it: its diagonal is a mean of squared slopes.
Li et al. 2021, arXiv:2102.05426, section 3.  Book: 4.2
"""

import contextlib
import copy

import torch
from torch.nn import functional as F

from qbook.models import weights
from qbook.ptq import reconstruction
from qbook.ptq.rounded_layer import RoundedLayer


def order(model, blocks):
    """-> list of (name, whether it is a block): blocks and layers in none, in the model's order.

    Raises ValueError for a block without layers, one inside another, and a name that is missing.
    """
    names = []
    owners = {block: 0 for block in blocks}
    for layer, _ in weights.layers(model):
        inside = [b for b in blocks if layer == b or layer.startswith(b + ".")]
        if len(inside) > 1:
            raise ValueError(f"layer {layer} lies in blocks {inside}; a layer has one block")
        owner = inside[0] if inside else layer
        owners[owner] = owners.get(owner, 0) + 1
        if (owner, bool(inside)) not in names:
            names.append((owner, bool(inside)))
    empty = [block for block, count in owners.items() if count == 0]
    if empty:
        known = ", ".join(n for n, _ in model.named_modules() if n)
        raise ValueError(f"blocks {empty} have no layer in this model, which has {known}")
    return names


class _Reached(Exception):
    """The module whose output was wanted has run; nothing behind it is needed."""


def cache(model, name, inputs, batch_size=250):
    """-> input and output [n, ...] of the module called ``name`` while the model sees ``inputs``"""
    seen = []

    def stop(_, args, output):
        seen.append((args[0].detach(), output.detach()))
        raise _Reached

    handle = model.get_submodule(name).register_forward_hook(stop)
    try:
        for part in inputs.split(batch_size):
            with torch.no_grad(), contextlib.suppress(_Reached):
                model(part)
    finally:
        handle.remove()
    return tuple(torch.cat(part) for part in zip(*seen, strict=True))


def slopes(model, name, inputs, task_loss, batch_size=250):
    """-> d task_loss / d (output of the module called ``name``), [n, ...], sample by sample.

    task_loss: (outputs of the model, slice of the samples) -> the *sum* over those samples; the
    model must treat samples apart, as it does in eval mode.
    """
    parts = []

    def cut(_, args, output):
        parts.append(output.detach().requires_grad_())
        return parts[-1]

    handle = model.get_submodule(name).register_forward_hook(cut)
    try:
        found = []
        for start in range(0, len(inputs), batch_size):
            chosen = slice(start, start + batch_size)
            cost = task_loss(model(inputs[chosen]), chosen)
            found += torch.autograd.grad(cost, parts[-1])
    finally:
        handle.remove()
    return torch.cat(found)


def fisher_diagonal(model, name, inputs, *, draws=None, seed=0):
    """-> E[(d log p(label) / dz)^2] for each element of a block's output z, [n, ...].

    The labels are those of the model's own softmax, so no data are labelled.  draws=None: every
    class, weighted by its probability, for outputs [n, classes]; else that many random labels, for
    outputs [n, ..., classes], whose log-likelihoods add.
    Raises ValueError for draws=None with other outputs, and for draws < 1.
    """
    if draws is None:
        logits = reconstruction.run(model, inputs)
        if logits.ndim != 2:
            raise ValueError(f"outputs are {tuple(logits.shape)}; pass draws=10 or so")
        p = torch.softmax(logits, dim=1)
        fisher = 0
        for label in range(logits.shape[1]):
            slope = slopes(
                model, name, inputs, lambda out, _, k=label: F.log_softmax(out, dim=1)[:, k].sum()
            )
            fisher = fisher + p[:, label].reshape(-1, *[1] * (slope.ndim - 1)) * slope**2
        return fisher
    if draws < 1:
        raise ValueError(f"draws={draws} gives no mean; pass 1 or more, or None for all labels")
    generator = torch.Generator().manual_seed(seed)

    def likelihood(out, _):
        out = out.flatten(0, -2)
        labels = torch.multinomial(torch.softmax(out.detach(), 1), 1, generator=generator)
        return F.log_softmax(out, dim=1).gather(1, labels).sum()

    return sum(slopes(model, name, inputs, likelihood) ** 2 for _ in range(draws)) / draws


def kl_slopes(model, quantized, name, inputs):
    """-> d KL(real || quantized) / dz, [n, ...], of a sample; the released code squares these.

    ``quantized`` is quantized up to and with the block.  Where it equals ``model`` they are 0.
    """
    p = torch.softmax(reconstruction.run(model, inputs), dim=-1)

    def divergence(out, chosen):
        return F.kl_div(F.log_softmax(out, dim=-1), p[chosen], reduction="sum")

    return slopes(quantized, name, inputs, divergence)


def quantize(
    model,
    inputs,
    blocks,
    weight_bits,
    act_bits=None,
    *,
    importance=None,
    end_bits=8,
    **schedule,
):
    """-> a copy of the model, quantized block by block from calibration ``inputs`` [n, ...].

    blocks:      names of modules of one input and one output, in any order; all layers outside them
                 (the first and the last, as a rule) are rounded to nearest with ``end_bits``
    importance:  None: plain squared error; or (model, quantized, name, inputs) -> weights [n, ...]
                 of a block's output, such as ``lambda m, q, n, x: fisher_diagonal(m, n, x)``
    schedule:    keywords of ``reconstruction.fit``; steps=0 leaves every weight at its nearest code
    """
    quantized = copy.deepcopy(model).eval()
    for name, is_block in order(model, blocks):
        real_inputs, targets = cache(model, name, inputs)
        seen, _ = cache(quantized, name, inputs)
        bits = (weight_bits, act_bits) if is_block else (end_bits, act_bits and end_bits)
        block = reconstruction.round_layers(model.get_submodule(name), seen, *bits)
        quantized.set_submodule(name, block)
        if is_block and schedule.get("steps") != 0:
            weight = None if importance is None else importance(model, quantized, name, inputs)
            quantized.set_submodule(
                name,
                reconstruction.fit(
                    block,
                    seen,
                    targets,
                    importance=weight,
                    real_inputs=real_inputs,
                    **schedule,
                ),
            )
    return quantized


def codes(quantized):
    """-> dict: name of the layer -> integer codes [out, in], of what ``quantize`` returns"""
    return {
        name: module.codes()
        for name, module in quantized.named_modules()
        if isinstance(module, RoundedLayer)
    }
