"""Blocks: an array cut into pieces that fit a processor's cache.

Five element-wise steps on a large array read it from memory five times; five steps on each block
read it once.  A GPU, which has no such cache and pays for every launch, takes the array whole.
Book: 2.1.1
"""

import math

from array_api_compat import is_numpy_array

# Values in a block: 2 MiB of float32.  Smaller ones cost torch's threads more meetings.
SIZE = 2**19


def of(x):
    """x [...] -> the index tuples of its blocks, of at most SIZE values each; together all of x."""
    if x.ndim == 0 or not (is_numpy_array(x) or x.device.type == "cpu"):
        return [()]
    return _cut(x.shape)


def part(param, block):
    """The part of ``param``, which broadcasts against x with as many axes, that meets a block."""
    return param[
        tuple(slice(None) if n == 1 else s for s, n in zip(block, param.shape, strict=False))
    ]


def _cut(shape):
    row = math.prod(shape[1:])
    if row <= SIZE:
        step = max(1, SIZE // max(row, 1))
        for start in range(0, shape[0], step):
            yield (slice(start, start + step),)
    else:
        for index in range(shape[0]):
            for rest in _cut(shape[1:]):
                yield (slice(index, index + 1), *rest)
