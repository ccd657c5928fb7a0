"""AdamW whose two moments are stored in 8 bits: a scale for each 256 neighbours, a dynamic code.

    x_hat = table[code] * scale,    scale = max|x| of 256 neighbours / largest value of the table

Dettmers et al. 2022, arXiv:2110.02861: blocks of section 2.1 (there 2048 neighbours), the dynamic
code of section 1.2, signed for the first moment and unsigned for the second.  As in the released
code, bitsandbytes, optim/optimizer.py: 256 neighbours of the flattened tensor, tensors of fewer
than 4096 elements in float32; moments are read, updated, used, and only then rounded.  Book: 5.2
"""

import math
from dataclasses import dataclass

import torch

from qbook.formats import scaled
from qbook.formats.dynamic import DYNAMIC, DYNAMIC_UNSIGNED
from qbook.formats.table import Format
from qbook.training import stored_adam
from qbook.training.stored_adam import StoredAdamW, adamw, constants


@dataclass(frozen=True)
class BlockTensor:
    """codes [...] uint8, or the float32 values where fmt is None;  scales [blocks] float32.

    fmt, group_size: as in ``store``.  Not iterable, so that ``load_state_dict`` leaves it as it is.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    fmt: Format | None
    group_size: int | None

    @property
    def nbytes(self):
        """Bytes of the codes and of the scales."""
        return self.codes.nbytes + self.scales.nbytes


def store(x, fmt, group_size=256):
    """torch x [...] -> BlockTensor, rounded to nearest with ``scaled.absmax_scale``.

    fmt:        a Format of 8 bits or fewer, each code in a byte; None: float32, without scales
    group_size: neighbours of the flattened tensor that share a scale, fewer in the last block if it
                does not divide their number; None: the whole tensor
    Raises ValueError for a group_size below 1 and for NaN or infinity in x.
    """
    if group_size is not None and group_size < 1:
        raise ValueError(f"group_size={group_size} holds no number; choose 256, or None for all")
    x = x.detach().float()
    if fmt is None or x.numel() == 0:
        return BlockTensor(x.clone(), x.new_empty(0), None, group_size)
    blocks = _blocks(x, group_size)
    scales = scaled.absmax_scale(blocks, fmt, axis=1)
    codes = fmt.encode(blocks * (1 / scales))
    codes = codes.flatten()[: x.numel()].reshape(x.shape)
    return BlockTensor(codes, scales.flatten(), fmt, group_size)


def load(stored):
    """BlockTensor -> float32 [...], each value times the scale of its block"""
    if stored.fmt is None:
        return stored.codes
    values = stored.fmt.decode(stored.codes)
    blocks = _blocks(values, stored.group_size) * stored.scales[:, None]
    return blocks.flatten()[: values.numel()].reshape(values.shape)


class AdamW8bit(StoredAdamW):
    """AdamW with moments as BlockTensors; ``torch.optim.AdamW`` to the bit where they are float32.

    first, second: Format of the first and second moment; None: float32
    group_size:    as in ``store``
    min_8bit_size: a parameter of fewer elements has float32 moments
    The other arguments are AdamW's; every argument may differ from group to group: embeddings have
    ``first=None, second=None`` in the released code.
    Raises ValueError for a group_size below 1 or a table that is no Format, and in ``step`` for a
    gradient that is not finite.
    """

    def __init__(
        self,
        params,
        lr=1e-3,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=1e-2,
        *,
        first=DYNAMIC,
        second=DYNAMIC_UNSIGNED,
        group_size=256,
        min_8bit_size=4096,
    ):
        for fmt in (first, second):
            if not (fmt is None or isinstance(fmt, Format)):
                raise ValueError(f"{fmt!r} is no table of numbers; pass a Format, or None: float32")
            store(torch.empty(0), fmt, group_size)
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        stored = {"first": first, "second": second, "group_size": group_size}
        super().__init__(params, defaults | stored | {"min_8bit_size": min_8bit_size})

    def _step_one(self, p, group):
        state = self.state[p]

        def keep(name, x):
            fmt = group[name] if p.numel() >= group["min_8bit_size"] else None
            state[name] = store(x, fmt, group["group_size"])

        if not state:
            state["step"] = 0
            keep("first", torch.zeros_like(p))
            keep("second", torch.zeros_like(p))
        if not bool(torch.isfinite(p.grad).all()):
            raise ValueError("a gradient holds NaN or infinity; skip the step or lower the rate")
        state["step"] += 1
        m, v = load(state["first"]), load(state["second"])
        w, m, v = adamw(p.float(), p.grad.float(), m, v, state["step"], **constants(group))
        p.copy_(w)
        keep("first", m)
        keep("second", v)


def stored_bytes(optimizer):
    """-> {"first": bytes, "second": bytes} after a step, codes and scales, over all parameters."""
    return stored_adam.stored_bytes(optimizer, ("first", "second"))


def _blocks(x, group_size):
    """x [...] -> [blocks, group_size] of the flattened x, zeros behind its end"""
    size = x.numel() if group_size is None else group_size
    padding = math.ceil(x.numel() / size) * size - x.numel()
    return torch.nn.functional.pad(x.flatten(), (0, padding)).reshape(-1, size)
