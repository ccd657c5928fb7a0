"""Bitwise dot products: a logic gate multiplies, a count of ones adds.

    a . b = n - 2 popcount(a xor b) = 2 popcount(a xnor b) - n             a, b in {-1, +1}^n
    x . y = sum_i sum_j 2^(i + j) popcount(plane_i(x) and plane_j(y))      x, y unsigned integers

Courbariaux et al. 2016, arXiv:1602.02830, section 1.4; Zhou et al. 2016 (DoReFa-Net),
arXiv:1606.06160, section 2.1.  Footnote 2 of the latter prints xnor in the first form; it has to be
xor.  Book: 1.2
"""

from array_api_compat import array_namespace, device

from qbook import packing

ONES = [bin(byte).count("1") for byte in range(256)]


def pack_signs(a):
    """a [..., n] of -1 and +1 -> bytes [..., ceil(n / 8)] uint8: bit 1 stands for +1.

    Raises ValueError for any other value.
    """
    xp = array_namespace(a)
    if not bool(xp.all((a == 1) | (a == -1))):
        raise ValueError("a holds a value other than -1 and +1; take signs first, and map 0 to one")
    return packing.pack(xp.astype(a > 0, xp.uint8), 1)


def popcount(packed):
    """bytes [..., m] uint8 -> number of ones [...] int64.  Raises ValueError for other types."""
    xp = array_namespace(packed)
    if packed.dtype != xp.uint8 or packed.ndim == 0:
        raise ValueError(
            f"packed is of type {packed.dtype} and shape {tuple(packed.shape)}; "
            "pass uint8 bytes with at least one axis"
        )
    table = xp.asarray(ONES, dtype=xp.int64, device=device(packed))
    counts = xp.take(table, xp.astype(xp.reshape(packed, (-1,)), xp.int64))
    return xp.sum(xp.reshape(counts, packed.shape), axis=-1)


def dot_signs(a, b, count):
    """Packed signs a, b [..., m], ``count`` each -> dot products [...] int64.

    Counts disagreements: the filler bits of the last byte are zero in both
    and never disagree, while a count of agreements would have to mask them.
    Raises ValueError for a count that does not fill the bytes.
    """
    size = -(-count // 8)
    if not a.shape[-1] == b.shape[-1] == size:
        found = f"{a.shape[-1]} and {b.shape[-1]}"
        raise ValueError(f"count={count} fills {size} bytes, not {found}")
    return count - 2 * popcount(a ^ b)


def dot_planes(x, y, x_bits, y_bits):
    """Unsigned codes x, y [..., n] of these widths -> dot products [...] int64, plane by plane.

    x_bits * y_bits passes over one-bit vectors, which is why the cost grows with the product of
    the widths.  Raises ValueError for codes outside 0 .. 2^bits - 1.
    """
    planes_x, planes_y = _planes(x, x_bits), _planes(y, y_bits)
    total = 0
    for i, plane_x in enumerate(planes_x):
        for j, plane_y in enumerate(planes_y):
            total = total + 2 ** (i + j) * popcount(plane_x & plane_y)
    return total


def _planes(codes, bits):
    """Unsigned codes [..., n] -> their bit planes, lowest first, each packed [..., ceil(n / 8)]."""
    xp = array_namespace(codes)
    # Wide first: 256 is 0 for a tensor of bytes.
    codes = xp.astype(codes, xp.int64)
    if not bool(xp.all((codes >= 0) & (codes < 2**bits))):
        raise ValueError(f"codes do not fit {bits} bits; choose 0 to {2**bits - 1}")
    return [packing.pack(xp.astype((codes // 2**i) % 2, xp.uint8), 1) for i in range(bits)]
