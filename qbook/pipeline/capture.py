"""What a layer sees: its inputs in a run, as the rows that its weight multiplies.

A convolution is a matrix product over unfolded patches: Chellapilla et al. 2006, inria-00112631.
Book: 4.5
"""

import torch
from torch import nn
from torch.nn import functional as F


class _Reached(Exception):
    """Raised in a hook to leave the forward pass: what follows the layer is not needed."""


def call(model, batch):
    """Run the model on a batch: a tensor, a tuple of arguments or a dict of keywords."""
    if isinstance(batch, dict):
        return model(**batch)
    return model(*batch) if isinstance(batch, (tuple, list)) else model(batch)


@torch.no_grad()
def order_of_calls(model, batch, names):
    """-> list of the named layers in the order in which one forward pass first calls them.

    Raises ValueError for layers that are never called, as those of ``nn.MultiheadAttention``,
    whose weights are read past them.
    """
    order = []
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda *_, name=name: order.append(name)
        )
        for name in names
    ]
    try:
        call(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    missing = [name for name in names if name not in order]
    if missing:
        raise ValueError(
            f"the calibration batch never calls {', '.join(missing)}; "
            "name them in skip, or calibrate on inputs that reach them"
        )
    return list(dict.fromkeys(order))


def inputs(model, name, batches):
    """-> list of the input tensors of a layer, one a call, over all batches.

    The forward pass ends at the layer's last call.  Raises ValueError for NaN or infinity.
    """
    seen = []
    _watch(model, {name: seen.append}, batches)
    return seen


def samples(model, seeds, batches, count):
    """-> dict: name -> rows [n, groups, in] of the layer's inputs, about ``count`` of them.

    seeds: dict, name -> int.  As many rows from each batch, so that every batch has its say; equal
    seeds choose equal places, whatever the values there.  Raises ValueError for NaN or infinity.
    """
    share = -(-count // len(batches))
    found = {name: [] for name in seeds}

    def keep(name):
        layer = model.get_submodule(name)
        generator = torch.Generator().manual_seed(seeds[name])

        def chosen(x):
            unfolded = at_least_float32(rows(layer, x))
            if len(unfolded) > share:
                unfolded = unfolded[torch.randperm(len(unfolded), generator=generator)[:share]]
            found[name].append(unfolded.clone())

        return chosen

    _watch(model, {name: keep(name) for name in seeds}, batches)
    return {name: torch.cat(parts) for name, parts in found.items()}


def at_least_float32(x):
    """Statistics of 16-bit tensors are taken in float32."""
    return x if x.dtype == torch.float64 else x.float()


@torch.no_grad()
def _watch(model, listeners, batches):
    """Run all batches; each call of a named layer hands its input to the layer's listener.

    With one name a pass ends at that layer's last call.
    """
    calls = {"expected": None, "now": 0}

    def hook(name):
        def heard(_, arguments):
            x = arguments[0].detach()
            if not bool(torch.isfinite(x).all()):
                raise ValueError(
                    f"the input of {name} holds NaN or infinity; calibrate on finite inputs, "
                    "and check the layers before it"
                )
            listeners[name](x)
            calls["now"] += 1
            if len(listeners) == 1 and calls["now"] == calls["expected"]:
                raise _Reached

        return heard

    hooks = [model.get_submodule(name).register_forward_pre_hook(hook(name)) for name in listeners]
    try:
        for batch in batches:
            calls["now"] = 0
            try:
                call(model, batch)
            except _Reached:
                pass
            # The first batch says how often a pass calls the layer.
            calls["expected"] = calls["expected"] or calls["now"]
    finally:
        for each in hooks:
            each.remove()


def rows(layer, x):
    """Input x of a Linear or convolution -> [n, groups, in / groups * k * k], what a weight meets.

    A Linear has one group.
    """
    if isinstance(layer, nn.Linear):
        return x.reshape(-1, 1, x.shape[-1])
    kernel, dilation, stride = layer.kernel_size, layer.dilation, layer.stride
    # How far each axis is padded before and behind, the last axis first, as F.pad wants it.
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
    if isinstance(layer, nn.Conv1d):
        x, kernel, dilation, stride = (
            x.unsqueeze(-2),
            (1, *kernel),
            (1, *dilation),
            (1, *stride),
        )
    patches = F.unfold(x, kernel, dilation, stride=stride)
    return patches.transpose(1, 2).reshape(-1, layer.groups, patches.shape[1] // layer.groups)
