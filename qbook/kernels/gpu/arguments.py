"""Checks that launchers share.  Each error names what was given and what would work.  Book: 6.1"""

import torch

HALF = (torch.float16, torch.bfloat16)


def matrix(x, name, dtypes, shape="[rows, n]"):
    """Raises ValueError unless x is a tensor of two axes, one of dtypes, with rows contiguous."""
    if not isinstance(x, torch.Tensor) or x.ndim != 2 or x.dtype not in dtypes:
        found = describe(x)
        wanted = " or ".join(str(dtype) for dtype in dtypes)
        raise ValueError(f"{name} is {found}; pass {wanted} {shape}")
    if x.shape[1] > 1 and x.stride(1) != 1:
        raise ValueError(
            f"{name} has strides {tuple(x.stride())}; pass {name}.contiguous(), rows side by side"
        )


def vector(values, name, count, dtypes):
    """Raises ValueError unless values is a contiguous tensor [count] of one of dtypes."""
    fits = isinstance(values, torch.Tensor) and values.shape == (count,)
    if not fits or values.dtype not in dtypes or not values.is_contiguous():
        wanted = " or ".join(str(dtype) for dtype in dtypes)
        raise ValueError(f"{name} is {describe(values)}; pass {wanted} [{count}], contiguous")


def same_device(**tensors):
    """Raises ValueError unless all, None aside, are on one device."""
    present = {name: tensor.device for name, tensor in tensors.items() if tensor is not None}
    if len(set(present.values())) > 1:
        found = ", ".join(f"{name} on {place}" for name, place in present.items())
        raise ValueError(f"{found}; move all to one device with .to(device)")


def same_length(**lengths):
    """Raises ValueError unless all lengths are equal: name of a dimension -> its size."""
    if len(set(lengths.values())) > 1:
        found = " and ".join(f"{name.replace('_', ' ')} {size}" for name, size in lengths.items())
        raise ValueError(f"{found} differ; they must be equal")


def describe(value):
    if not isinstance(value, torch.Tensor):
        return f"a {type(value).__name__}"
    return f"{value.dtype} {list(value.shape)} on {value.device}"
