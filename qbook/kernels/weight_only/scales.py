"""Scales in words of 32 bits, the least that a GPU copies to shared memory ahead of its use.

    int4, ternary    low half scale float16, high half 1024 + zero_point float16
    mxfp4, nvfp4     the bytes of four neighbouring groups, the first lowest
    nf4              a float32

1024 + zero_point is what ``decode.integer`` takes off a code whose bits were made the mantissa of
1024.  Book: 6.1
"""

import torch


def to_words(fmt, scale, zero_point, words):
    """scale [out, groups], zero_point [out, groups] or None -> int32 [words, out], zeros to spare

    Raises ValueError for scales that float16 cannot hold.
    """
    padded = torch.nn.functional.pad(scale, (0, words * fmt.groups_a_word - scale.shape[1]))
    if fmt.scales is not None:
        found = padded.contiguous().view(torch.int32)
    elif not fmt.has_zero_point:
        found = padded.float().contiguous().view(torch.int32)
    else:
        half = padded.to(torch.float16)
        if not torch.isfinite(half).all():
            raise ValueError(
                f"a scale of {float(scale.abs().max()):.3g} is not finite in float16; "
                "give the scales as multiples of a tensor_scale"
            )
        offset = torch.full_like(half, 1024.0 + fmt.zero_point)
        if zero_point is not None:
            offset[:, : scale.shape[1]] = 1024.0 + zero_point
        found = torch.stack([half, offset], dim=2).view(torch.int32)[..., 0]
    return found.T.contiguous()


def from_words(fmt, words, groups):
    """int32 [words, out] -> scale float32 [out, groups], zero_point float32 [out, groups] or 0"""
    rows = words.T.contiguous()
    if fmt.scales is not None:
        return fmt.scales.decode(rows.view(torch.uint8))[:, :groups], 0
    if not fmt.has_zero_point:
        return rows.view(torch.float32)[:, :groups], 0
    halves = rows.view(torch.float16).view(*rows.shape, 2).float()[:, :groups]
    return halves[..., 0], halves[..., 1] - 1024
