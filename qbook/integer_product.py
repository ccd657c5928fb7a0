"""The integer product: sums of codes, corrected for their zero-points afterwards.

    sum_k (q_x - z_x)(q_w - z_w)
        = sum_k q_x q_w  -  z_w sum_k q_x  -  z_x sum_k q_w  +  n z_x z_w

Jacob et al. 2018, arXiv:1712.05877, section 2.3, eq. 7-9.  Book: 2.1.3
"""

from array_api_compat import array_namespace

from qbook import affine


def accumulate(x_codes, w_codes, x_zero_point=0, w_zero_point=0):
    """x_codes [samples, n], w_codes [out, n] -> int32 sums [samples, out] of the four terms.

    x_zero_point: an integer or [samples, 1];  w_zero_point: an integer or [out, 1]
    The bare product of codes is all that depends on both; the two sums of codes cost one pass each,
    that of the weights once for ever.  Raises ValueError where n or the zero-points do not fit, and
    where int32 could overflow for codes of these types.
    """
    xp = array_namespace(x_codes, w_codes)
    if x_codes.ndim != 2 or w_codes.ndim != 2 or x_codes.shape[1] != w_codes.shape[1]:
        raise ValueError(
            f"x_codes of shape {tuple(x_codes.shape)} and w_codes of shape "
            f"{tuple(w_codes.shape)} do not match; choose [samples, n] and [out, n]"
        )
    n = x_codes.shape[1]
    largest = _largest(xp, x_codes.dtype) * _largest(xp, w_codes.dtype)
    if accumulator_bits(n, largest) > 32:
        raise ValueError(
            f"n={n} products of {x_codes.dtype} and {w_codes.dtype} may overflow int32; "
            f"split the sum into pieces of at most {(2**31 - 1) // largest} terms"
        )
    x, w = xp.astype(x_codes, xp.int32), xp.astype(w_codes, xp.int32)
    row_sums = xp.sum(w, axis=1, dtype=xp.int32)[None, :]
    column_sums = xp.sum(x, axis=1, keepdims=True, dtype=xp.int32)
    if hasattr(w_zero_point, "ndim"):
        w_zero_point = w_zero_point.reshape(1, -1)
    return (
        xp.matmul(x, w.T)
        - w_zero_point * column_sums
        - x_zero_point * row_sums
        + n * x_zero_point * w_zero_point
    )


def linear(x_codes, x_qparams, w_codes, w_qparams):
    """Codes of x [samples, n] and w [out, n] -> the product x_hat w_hat^T [samples, out], real.

    Only the last step leaves the integers: one multiplication by s_x s_w per output.  x may have a
    scale for the tensor or for each sample, w one for the tensor or for each row.
    Raises ValueError as ``accumulate`` does, and for groups, whose scales do not leave the sum.
    """
    for name, qparams in (("x", x_qparams), ("w", w_qparams)):
        if qparams.group_axis is not None or qparams.scale.shape[-1] != 1:
            raise ValueError(
                f"{name} has scales of shape {tuple(qparams.scale.shape)} along the sum; "
                "choose one scale for the tensor or for each row"
            )
    sums = accumulate(x_codes, w_codes, x_qparams.zero_point, w_qparams.zero_point)
    one = affine.QParams(x_qparams.scale * w_qparams.scale.reshape(1, -1), sums[:1, :1] * 0, 0, 0)
    return affine.dequantize(sums, one)


def accumulator_bits(n, largest_product):
    """Bits of a two's complement register that holds any sum of n products up to this size."""
    return (n * largest_product).bit_length() + 1


def _largest(xp, dtype):
    info = xp.iinfo(dtype)
    return max(-int(info.min), int(info.max))
