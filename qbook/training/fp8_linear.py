"""A Linear layer whose three matrix products have FP8 operands, forward and backward.

    y = x w^T         E4M3 x E4M3     sums over the inputs
    dx = g w          E5M2 x E4M3     sums over the outputs
    dw = g^T x        E5M2 x E4M3     sums over the tokens

Master weights, bias, sums and what comes out stay float32.  E4M3 forward, E5M2 backward:
Micikevicius et al. 2022, arXiv:2209.05433; the recipes are those of ``fp8_scaling``
and, for "blockwise" with E4M3 in all three, ``fp8_blocks``.  Values, not codes: a simulation.
Book: 5.2
"""

import copy

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from qbook.formats import E4M3, E5M2
from qbook.training import fp8_blocks, fp8_scaling

RECIPES = ("unscaled", "current", "delayed", "blockwise")
FORMATS = {"x": E4M3, "w": E4M3, "g": E5M2}


class Fp8Linear(nn.Linear):
    """x float32 or float64 [..., in] -> x w^T + bias [..., out]; parameters as in nn.Linear.

    recipe: "unscaled":   factor 1: what underflows is lost
            "current":    each tensor's factor from its own largest magnitude
            "delayed":    from the largest of the last ``history`` steps in training mode
            "blockwise":  tiles and squares of 128, E4M3 in the gradient too
    margin: binades left free below the largest value; not for blockwise
    ``delayed``: dict "x", "w", "g" -> fp8_scaling.Delayed, once seen.  Not in the state dict.
    Raises ValueError for another recipe; blockwise for NaN or infinity in x, weight or gradient.
    """

    def __init__(
        self,
        in_features,
        out_features,
        bias=True,
        *,
        recipe="current",
        margin=0,
        history=fp8_scaling.HISTORY,
        device=None,
        dtype=None,
    ):
        if recipe not in RECIPES:
            raise ValueError(f"recipe={recipe!r}; choose one of {', '.join(RECIPES)}")
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        self.recipe, self.margin, self.history = recipe, margin, history
        self.delayed = {}

    def forward(self, x):
        flat = x.flatten(0, -2) if x.ndim > 1 else x[None]
        if self.recipe == "blockwise":
            y = _Blockwise.apply(flat, self.weight)
        else:
            y = _PerTensor.apply(flat, self.weight, self)
        y = y.reshape(*x.shape[:-1], self.out_features)
        return y if self.bias is None else y + self.bias

    def extra_repr(self):
        return f"{super().extra_repr()}, recipe={self.recipe}"

    def factor(self, name, tensor):
        """What multiplies ``tensor``, the "x", "w" or "g" of this step.  "delayed" takes note."""
        if self.recipe == "unscaled":
            return torch.ones((), device=tensor.device)
        largest, fmt = fp8_scaling.amax(tensor), FORMATS[name]
        if self.recipe == "current":
            return fp8_scaling.linear_factor(largest, fmt, margin=self.margin)
        state = self.delayed.get(name)
        if state is None:
            state = fp8_scaling.delayed(self.history, device=tensor.device)
        if self.training:
            self.delayed[name] = fp8_scaling.update(state, largest, fmt, margin=self.margin)
        return state.factor


class _PerTensor(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w, layer):
        x_values, x_factor = _round("x", x, layer)
        w_values, w_factor = _round("w", w, layer)
        ctx.save_for_backward(x_values, w_values, x_factor, w_factor)
        ctx.layer = layer
        return x_values @ w_values.T / x_factor / w_factor

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        x_values, w_values, x_factor, w_factor = ctx.saved_tensors
        g_values, g_factor = _round("g", g, ctx.layer)
        # One after the other: the product of two factors may leave float32's range.
        dx = g_values @ w_values / g_factor / w_factor
        return dx, g_values.T @ x_values / g_factor / x_factor, None


class _Blockwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w):
        w_hat = fp8_blocks.fake_quantize(w, fp8_blocks.SQUARE)
        ctx.save_for_backward(x, w_hat)
        return fp8_blocks.fake_quantize(x, fp8_blocks.TILE) @ w_hat.T

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        x, w_hat = ctx.saved_tensors
        # Tiles run along the axis that is summed over: outputs for dx, tokens for dw.
        x_hat = fp8_blocks.fake_quantize(x, fp8_blocks.COLUMN)
        g_along_tokens = fp8_blocks.fake_quantize(g, fp8_blocks.COLUMN)
        return fp8_blocks.fake_quantize(g, fp8_blocks.TILE) @ w_hat, g_along_tokens.T @ x_hat


def convert(model, *, recipe="current", skip=(), **settings):
    """-> a copy of the model whose Linears are ``Fp8Linear`` with the same weights and names.

    skip:     names of Linears that stay, such as "head"; a name covers all that lies below it
    settings: margin, history, as ``Fp8Linear``
    Raises ValueError for a name in skip that the model does not have, and for another recipe.
    """
    converted = copy.deepcopy(model)
    modules = dict(converted.named_modules(remove_duplicate=False))
    for name in skip:
        if name not in modules:
            raise ValueError(f"skip={name!r} is not a module of this model")
    # By the old layer: one that stands in two places stays one.
    made = {}
    for name, module in modules.items():
        if type(module) is not nn.Linear or any(f"{name}.".startswith(f"{s}.") for s in skip):
            continue
        new = made.setdefault(module, _from_linear(module, recipe, settings))
        if not name:
            return new
        converted.set_submodule(name, new)
    return converted


def _from_linear(linear, recipe, settings):
    out, in_ = linear.weight.shape
    # Without numbers: drawing first weights would move torch's random state.
    new = Fp8Linear(in_, out, linear.bias is not None, recipe=recipe, device="meta", **settings)
    new.weight, new.bias = linear.weight, linear.bias
    return new.train(linear.training)


def _round(name, tensor, layer):
    factor = layer.factor(name, tensor)
    return fp8_scaling.round_to(tensor * factor, FORMATS[name]), factor
