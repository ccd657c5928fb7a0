"""AdamW whose states are stored in some short form: what such optimizers share.

The order is that of the released codes (MS-AMP, bitsandbytes): states are read, updated in float32,
used, and only then rounded.  The update is Loshchilov and Hutter 2019, arXiv:1711.05101.  Book: 5.2
"""

import math

import torch


class StoredAdamW(torch.optim.Optimizer):
    """Walks over the parameters; a subclass says in ``_step_one(p, group)`` how states are kept."""

    @torch.no_grad()
    def step(self, closure=None):
        """One step on every parameter with a gradient -> the closure's loss, or None."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._step_one(p, group)
        return loss


def adamw(w, g, m, v, step, *, lr, betas, eps, weight_decay):
    """A step on float32 tensors w, g, m, v of one shape -> the new w, m, v; step is 1 or more."""
    m = m.lerp(g, 1 - betas[0])
    v = (v * betas[1]).addcmul(g, g, value=1 - betas[1])
    size = lr / (1 - betas[0] ** step)
    rms = v.sqrt() / math.sqrt(1 - betas[1] ** step)
    return (w * (1 - lr * weight_decay)).addcdiv(m, rms + eps, value=-size), m, v


def constants(group):
    """A parameter group -> the keywords of ``adamw``"""
    return {name: group[name] for name in ("lr", "betas", "eps", "weight_decay")}


def stored_bytes(optimizer, names):
    """names of states -> {name: bytes} after a step, codes and scales, over all parameters"""
    states = list(optimizer.state.values())
    return {name: sum(state[name].nbytes for state in states) for name in names}
