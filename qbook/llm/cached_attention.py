"""Attention that reads its keys and values from a quantized cache, at all positions at once.

Decoding appends a token and reads everything before it.  What is quantized once stays as it is, so
for token i the cache holds one prefix rounded and the rest real: all tokens are rounded once, and
each position chooses by its own prefix.  Equal to decoding token by token with ``kivi.Cache``.
Liu et al. 2024, arXiv:2402.02750, Algorithm 1.  Book: 5.11
"""

import math

import torch
from torch import nn

from qbook.llm import kivi
from qbook.models.weights import replace


def attend(q, k, v, **settings):
    """q, k, v [..., t, d] -> causal softmax(q k^T / sqrt(d)) v [..., t, d], read from a cache

    settings: keywords of ``kivi.Cache``.  Position i reads what the cache holds after token i.
    """
    cache, (tokens, d) = kivi.Cache(**settings), q.shape[-2:]
    k_hat, old_keys = _seen(cache, "keys", k)
    v_hat, old_values = _seen(cache, "values", v)
    scores = torch.where(old_keys, q @ k_hat.transpose(-1, -2), q @ k.transpose(-1, -2))
    future = torch.ones(tokens, tokens, dtype=torch.bool, device=q.device).triu(1)
    p = (scores / math.sqrt(d)).masked_fill(future, -math.inf).softmax(dim=-1)
    return (p * old_values) @ v_hat + (p * ~old_values) @ v


def _seen(cache, name, x):
    """x [..., t, d] -> x_hat [..., t, d], and [t, t] bool: position i reads token j rounded"""
    tokens = x.shape[-2]
    settled = torch.tensor([cache.settled(name, i + 1) for i in range(tokens)], device=x.device)
    last = int(settled[-1])
    rounded = kivi.dequantize(cache.quantize(name, x[..., :last, :])) if last else x[..., :0, :]
    old = torch.arange(tokens, device=x.device) < settled[:, None]
    return torch.cat([rounded, x[..., last:, :]], dim=-2), old


class CachedAttention(nn.Module):
    """x [n, t, width] -> [n, t, width]: causal self-attention that reads a ``kivi.Cache``.

    attention: a module with Linears ``query``, ``key``, ``value`` and ``output``
    settings:  keywords of ``kivi.Cache``
    """

    def __init__(self, attention, heads, **settings):
        super().__init__()
        self.attention, self.heads, self.settings = attention, heads, settings

    def forward(self, x):
        linears = (self.attention.query, self.attention.key, self.attention.value)
        q, k, v = (_split(linear(x), self.heads) for linear in linears)
        attended = attend(q, k, v, **self.settings)
        return self.attention.output(attended.transpose(-2, -3).flatten(-2))


def with_cache(model, names, heads, **settings):
    """-> a copy whose attention modules, by name, are ``CachedAttention``"""
    cached = replace(model, {})
    for name in names:
        attention = cached.get_submodule(name)
        cached.set_submodule(name, CachedAttention(attention, heads, **settings))
    return cached


@torch.no_grad()
def record(model, names, heads, run):
    """-> dict: name -> (q, k, v), each a list of [n, heads, t, d], one for each call

    names: of modules with Linears ``query``, ``key`` and ``value``;  run: function of the model
    """
    found = {name: ([], [], []) for name in names}
    hooks = [
        model.get_submodule(f"{name}.{linear}").register_forward_hook(
            lambda _, __, y, into=into: into.append(_split(y, heads))
        )
        for name, lists in found.items()
        for linear, into in zip(("query", "key", "value"), lists, strict=True)
    ]
    try:
        run(model)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _split(x, heads):
    """x [n, t, width] -> [n, heads, t, d]"""
    return x.unflatten(-1, (heads, -1)).transpose(-2, -3)
