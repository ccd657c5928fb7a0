"""Keys times a matrix, queries times its inverse transposed: every score stays as it is.

    (q m^-T) (k m)^T = q k^T

A diagonal m makes key channels as large as one likes, an orthogonal one mixes them.  Where
positions rotate queries and keys (RoPE), m must stand behind the rotation and cannot be folded
into the weights; here it is.  The diagonal case is Xiao et al. 2023, arXiv:2211.10438, eq. 3,
the orthogonal one Ashkboos et al. 2024, arXiv:2404.00456, section 4.2.  Book: 5.11
"""

import torch

from qbook.models.weights import replace


@torch.no_grad()
def transform(model, query, key, m):
    """-> a copy of the same function: each head's keys are multiplied by m [d, d], invertible

    query, key: names of the Linears that write queries and keys
    Raises ValueError for an m that is singular or whose order does not divide their width.
    """
    moved = replace(model, {})
    width, d = moved.get_submodule(key).weight.shape[0], len(m)
    if m.shape != (d, d) or width % d:
        raise ValueError(
            f"m of shape {tuple(m.shape)} does not divide the {width} channels of keys"
        )
    m = m.double()
    if not int(torch.linalg.matrix_rank(m)) == d:
        raise ValueError(
            f"m has rank {int(torch.linalg.matrix_rank(m))}, not {d}; scores need m^-1"
        )
    for name, factor in ((key, m), (query, torch.linalg.inv(m).T)):
        layer = moved.get_submodule(name)
        for tensor in (layer.weight, layer.bias):
            if tensor is not None:
                # Rows [width, ...] as heads of d rows each.
                rows = tensor.double().unflatten(0, (-1, d))
                tensor.copy_(torch.einsum("hc...,ce->he...", rows, factor).flatten(0, 1))
    return moved


def plant(model, query, key, channels, factor, *, head_size):
    """-> a copy of the same function: these channels of all heads' keys are ``factor`` times larger

    channels: of a head, ints below head_size.  Raises ValueError as ``transform``.
    """
    m = torch.ones(head_size, dtype=torch.float64)
    m[list(channels)] = factor
    return transform(model, query, key, torch.diag(m))


@torch.no_grad()
def shift(model, key, offset):
    """-> a copy of the same function: ``offset`` [width] is added to the keys of all tokens

    All scores of a query move by the same amount, which softmax does not see.
    Raises ValueError for a key layer without bias and for an offset of another shape.
    """
    moved = replace(model, {})
    bias = moved.get_submodule(key).bias
    if bias is None or bias.shape != offset.shape:
        found = None if bias is None else tuple(bias.shape)
        raise ValueError(f"offset of shape {tuple(offset.shape)} does not fit a bias of {found}")
    bias += offset.to(bias)
    return moved
