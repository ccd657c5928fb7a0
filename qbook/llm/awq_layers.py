"""AWQ for a whole model: scale what shares an input, move the scales out, clamp the weights.

Lin et al. 2024, arXiv:2306.00978, section 3.2; the released code's pre_quant.py.  Book: 5.5

Nothing is rounded here: ``scale`` and ``clip`` return models to be rounded to nearest, or with
GPTQ, on the grid that they were searched for.
"""

from typing import NamedTuple

import torch

from qbook.llm import awq, scaling
from qbook.models.weights import replace
from qbook.ptq import simulate


class Group(NamedTuple):
    """Linears that share an input and get one s.

    writer:  name of what writes the input and can take the division (``scaling.migrate``), or
             None: the readers divide their input themselves (``scaling.ScaledLinear``)
    readers: names of the Linears
    block:   name of the module above them whose output is judged; None: the only reader's own
    """

    writer: str | None
    readers: tuple
    block: str | None = None


def scale(model, groups, run, **rounding):
    """-> (a scaled copy of the same function, to be rounded on this grid; dict, reader -> Found)

    groups:   list of ``Group``;  run: function that runs its argument, a model, on calibration data
    rounding: bits, group_size, symmetric, grid of ``awq.search_scales``
    A reader without a writer becomes a ``ScaledLinear``; its ``linear`` is to be quantized.  All
    searches see the real model, as in the released code.  found has one entry a group, under its
    first reader.  Raises ValueError for readers that do not read one input or are never called,
    and as ``awq.search_scales`` and ``scaling.migrate``.
    """
    for group in groups:
        if group.block is None and len(group.readers) != 1:
            raise ValueError(f"readers {', '.join(group.readers)} need a block to be judged by")
    inputs, calls = _observe(model, groups, run)
    scaled, found = replace(model, {}), {}
    for group in groups:
        block = group.readers[0] if group.block is None else group.block
        inside = [name.removeprefix(block).removeprefix(".") for name in group.readers]
        x = _shared(group.readers, inputs)
        best = awq.search_scales(model.get_submodule(block), inside, x, calls[block], **rounding)
        scaled, found[group.readers[0]] = _move(scaled, group, best.s), best
    return scaled, found


def clip(model, names, run, **rounding):
    """-> a copy whose named Linears are clamped, so that a grid covering them has this range

    names:    of Linears; the paper's code leaves out query and key, whose outputs meet in a product
    rounding: bits, group_size, symmetric, grid, max_shrink of ``awq.search_clip``
    run:      as for ``scale``.  Raises ValueError for a name that is never called.
    """
    seen = simulate.record(model, run)
    clamped = {}
    for name in names:
        if name not in seen:
            raise ValueError(f"calibration never calls {name}; it calls {', '.join(seen)}")
        w = model.get_submodule(name).weight.detach()
        x = torch.cat([x.flatten(0, -2) for x in seen[name]])
        clamped[name] = awq.clamp(w, awq.search_clip(w, x, **rounding))
    return replace(model, clamped)


def _move(model, group, s):
    """-> a copy in which the group's readers are scaled, by their writer or by themselves"""
    if group.writer is not None:
        writer = group.writer
        if isinstance(model.get_submodule(writer), scaling.ScaledLinear):
            writer = f"{writer}.linear"
        return scaling.migrate(model, writer, group.readers, s)
    copied = replace(model, {})
    for name in group.readers:
        copied.set_submodule(name, scaling.ScaledLinear(copied.get_submodule(name), s))
    return copied


@torch.no_grad()
def _observe(model, groups, run):
    """-> dict: reader -> its inputs [n, in], one a call;  dict: block -> its calls"""
    inputs = {name: [] for group in groups for name in group.readers}
    blocks = [group.readers[0] if group.block is None else group.block for group in groups]
    calls = {name: [] for name in blocks}
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, arguments, name=name: inputs[name].append(arguments[0].flatten(0, -2))
        )
        for name in inputs
    ] + [
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, *call, name=name: calls[name].append(call), with_kwargs=True
        )
        for name in calls
    ]
    try:
        run(model)
    finally:
        for hook in hooks:
            hook.remove()
    silent = [name for name, seen in (inputs | calls).items() if not seen]
    if silent:
        raise ValueError(f"calibration never calls {', '.join(silent)}; run the model on data")
    return inputs, calls


def _shared(readers, inputs):
    """-> x [n, in], which all readers read.  Raises ValueError where they do not."""
    x, *others = (torch.cat(inputs[name]) for name in readers)
    for name, other in zip(readers[1:], others, strict=True):
        if not torch.equal(x, other):
            raise ValueError(f"{name} does not read what {readers[0]} reads")
    return x
