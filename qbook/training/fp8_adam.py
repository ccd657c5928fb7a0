"""AdamW whose gradient, moments and master weight are stored in 8 and 16 bits: 6 bytes a parameter.

Peng et al. 2023 (FP8-LM), arXiv:2310.18313, section 2.2, "precision decoupling": gradient and first
moment in FP8, second moment and master weight in FP16, each tensor with one scale.  The order is
the released code's, Azure/MS-AMP, optim/adamw_base.py, see ``stored_adam``.  Book: 5.2
"""

import torch

from qbook.training import scaled_tensor, stored_adam
from qbook.training.stored_adam import StoredAdamW, adamw, constants

STORED = ("master", "gradient", "first", "second")


class FP8AdamW(StoredAdamW):
    """AdamW on scaled tensors; ``torch.optim.AdamW`` to the bit where all four are float32.

    master, gradient, first, second: torch dtype each is stored in
    scaled: one power-of-two scale a tensor; False: the bare format
    The other arguments are AdamW's; every argument may differ from group to group.  A parameter
    itself stays float32 and holds the values of its master weight: autograd's working copy.
    Raises ValueError for a dtype without floats, and in ``step`` for a gradient that is not finite.
    """

    def __init__(
        self,
        params,
        lr=1e-3,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=1e-2,
        *,
        master=torch.float16,
        gradient=torch.float8_e4m3fn,
        first=torch.float8_e4m3fn,
        second=torch.float16,
        scaled=True,
    ):
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        stored = {"master": master, "gradient": gradient, "first": first, "second": second}
        for dtype in stored.values():
            scaled_tensor.store(torch.empty(0), dtype)
        super().__init__(params, defaults | stored | {"scaled": scaled})

    def _step_one(self, p, group):
        state = self.state[p]

        def keep(name, x):
            state[name] = scaled_tensor.store(x, group[name], scaled=group["scaled"])

        if not state:
            state["step"] = 0
            keep("master", p)
            keep("first", torch.zeros_like(p))
            keep("second", torch.zeros_like(p))
        state["step"] += 1
        keep("gradient", p.grad)
        w, g, m, v = (scaled_tensor.load(state[name]) for name in STORED)
        w, m, v = adamw(w, g, m, v, state["step"], **constants(group))
        keep("master", w)
        keep("first", m)
        keep("second", v)
        p.copy_(scaled_tensor.load(state["master"]))


def stored_bytes(optimizer):
    """-> {"master": bytes, "gradient": ..., "first": ..., "second": ...} after a step, with scales.

    Counted on the tensors that ``optimizer.state`` holds.  The float32 copy that autograd works on
    is no part of it: where matrix products run in FP8, it is a byte more.
    """
    return stored_adam.stored_bytes(optimizer, STORED)
