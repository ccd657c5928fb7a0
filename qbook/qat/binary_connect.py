"""BinaryConnect: the network computes with signs, the updates gather in real numbers behind them.

    deterministic:  w_b = +1 if w >= 0, else -1
    stochastic:     w_b = +1 with probability clip((w + 1) / 2, 0, 1), else -1, so that E w_b = w

Courbariaux et al. 2015, arXiv:1511.00363, sections 2.2 to 2.4 and Algorithm 1.  Book: 3.2
"""

import torch


class _Signs(torch.autograd.Function):
    """Forward: signs chosen elsewhere.  Backward: the gradient by the signs, as it is."""

    @staticmethod
    def forward(ctx, w, signs):
        return signs.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad, None


def signs(w):
    """torch w [...] -> +1 where w >= 0, else -1, of w's type; no gradient.

    Unlike ``torch.sign``, which gives 0 for 0: a third value, and no bit for it.
    Raises ValueError for NaN, which has no sign.
    """
    if bool(torch.isnan(w).any()):
        raise ValueError("w holds NaN, which has no sign; look for a step that diverged")
    return torch.where(w >= 0, 1.0, -1.0).to(w.dtype)


def hard_sigmoid(w):
    """torch w [...] -> clip((w + 1) / 2, 0, 1): the probability of +1."""
    return ((w + 1) / 2).clamp(0, 1)


def binarize(w):
    """torch w [...] -> ``signs(w)``, with the gradient passed to w unchanged.

    Unchanged also where |w| > 1, so call ``clip`` after each step: beyond 1 a weight is a sign that
    no small step can turn.
    """
    return _Signs.apply(w, signs(w.detach()))


def binarize_stochastic(w, uniform):
    """torch w [...], uniform [...] in [0, 1) -> signs, +1 where uniform < hard_sigmoid(w).

    Their mean over uniform is w for -1 <= w <= 1; gradient as for ``binarize``.
    Raises ValueError where the shapes differ or uniform leaves [0, 1).
    """
    if uniform.shape != w.shape:
        raise ValueError(
            f"uniform has shape {tuple(uniform.shape)}, w {tuple(w.shape)}; draw one per weight"
        )
    if not bool(((0 <= uniform) & (uniform < 1)).all()):
        raise ValueError("uniform leaves [0, 1); draw it by torch.rand or numpy's random")
    chosen = torch.where(uniform < hard_sigmoid(w.detach()), 1.0, -1.0).to(w.dtype)
    return _Signs.apply(w, chosen)


def clip(w):
    """torch w [...] -> w clipped to [-1, 1], as after every update in Algorithm 1; no gradient."""
    return w.detach().clamp(-1, 1)
