"""Packing: several codes in one byte, so that a 4-bit weight costs four bits.

Codes of 1, 2, 4 or 8 bits lie side by side, the first in the lowest bits ("little end first"):

    byte = code[0] + code[1] * 2^bits + code[2] * 2^(2 bits) + ...            8 / bits codes a byte

Those of 3, 5, 6 and 7 bits are cut into pieces of 4, 2 and 1 bits, lowest first; the bytes of all
first pieces come before those of all second ones, so that no code straddles two bytes.

Ternary codes are digits of a number to base 3, since 3^5 = 243 fits a byte (8 / 5 = 1.6 bits each;
the bound is log2 3 = 1.585 bits):

    byte = (code[0] + 1) + (code[1] + 1) * 3 + ... + (code[4] + 1) * 3^4      five codes a byte

The last axis is packed and the others are kept: a row of weights stays a row of bytes, as a kernel
that gives each row to one worker wants it.  An incomplete last byte is filled with code 0.
Book: 2.1.3
"""

from array_api_compat import array_namespace, device

TRITS = 5


def pack(codes, bits):
    """codes [..., n] -> bytes uint8, along the last axis: ceil(n * piece / 8) for each piece.

    bits:  1 to 8
    codes: integers, NumPy or torch.  Either all of 0 .. 2^bits - 1, or, once one is negative, all
           of -2^(bits-1) .. 2^(bits-1) - 1; these are stored in two's complement
    Raises ValueError for other bits, for codes that are not integers, have no axis or do not fit.
    """
    pieces = _pieces(bits)
    xp = array_namespace(codes)
    low, high = _extremes(codes)
    qmin, qmax = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if low < 0 else (0, 2**bits - 1)
    if not qmin <= low <= high <= qmax:
        raise ValueError(
            f"codes from {low} to {high} do not fit bits={bits}: "
            f"choose {-(2 ** (bits - 1))} to {2 ** (bits - 1) - 1} or 0 to {2**bits - 1}"
        )
    # Two's complement: the lowest bits of a negative number, whatever its width.
    digits = xp.astype(codes & (2**bits - 1), xp.uint8)
    packed = []
    for piece in pieces:
        packed.append(_join(digits & (2**piece - 1), base=2**piece, count=8 // piece))
        # By 4 twice: a shift by the whole width of a type is undefined.
        digits = digits >> (piece // 2) >> (piece - piece // 2)
    return xp.concat(packed, axis=-1)


def unpack(packed, bits, count, *, signed=False):
    """bytes [..., as pack made] uint8 -> codes [..., count], uint8, or int8 if signed.

    The inverse of ``pack``.  Raises ValueError for bits outside 1..8, for packed that is not
    uint8, and for a count that needs another number of bytes.
    """
    pieces = _pieces(bits)
    xp = array_namespace(packed)
    _check_packed(packed)
    lengths = [-(-count * piece // 8) for piece in pieces]
    if count < 0 or sum(lengths) != packed.shape[-1]:
        raise ValueError(
            f"count={count} codes of bits={bits} take {sum(lengths)} bytes, not the "
            f"{packed.shape[-1]} given; pass the count and the bits that were packed"
        )
    codes, start, place = 0, 0, 0
    for piece, length in zip(pieces, lengths, strict=True):
        part = packed[..., start : start + length]
        codes = codes + (_split(part, base=2**piece, per_byte=8 // piece, count=count) << place)
        start, place = start + length, place + piece
    if not signed:
        return codes
    half = 2 ** (bits - 1)
    # Flipping the sign bit adds half to every code, modulo 2^bits; take it off again.
    return xp.astype(xp.astype(codes ^ half, xp.int16) - half, xp.int8)


def packed_length(count, bits):
    """Bytes that ``pack`` makes of a row of ``count`` codes of ``bits`` bits."""
    return sum(-(-count * piece // 8) for piece in _pieces(bits))


def pack_ternary(codes):
    """codes [..., n] in {-1, 0, 1} -> bytes [..., ceil(n / 5)] uint8, each 0 .. 242.

    Raises ValueError for codes that are not integers, have no axis or are not in {-1, 0, 1}.
    """
    xp = array_namespace(codes)
    low, high = _extremes(codes)
    if low < -1 or high > 1:
        raise ValueError(f"codes from {low} to {high} are not ternary; choose -1, 0 and 1")
    return _join(xp.astype(xp.astype(codes, xp.int8) + 1, xp.uint8), base=3, count=TRITS, zero=1)


def unpack_ternary(packed, count):
    """bytes [..., ceil(count / 5)] uint8 -> codes [..., count] int8 in {-1, 0, 1}.

    The inverse of ``pack_ternary``.  Raises ValueError for packed that is not uint8, for a byte
    above 242, and for a count that needs another number of bytes.
    """
    xp = array_namespace(packed)
    digits = _split(packed, base=3, per_byte=TRITS, count=count)
    high = _extremes(packed)[1]
    if high >= 3**TRITS:
        raise ValueError(f"byte {high} is not five ternary codes; those end at {3**TRITS - 1}")
    return xp.astype(digits, xp.int8) - 1


def _join(digits, *, base, count, zero=0):
    """digits [..., n] uint8 -> [..., ceil(n / count)]: numbers to a base, lowest digit first."""
    xp = array_namespace(digits)
    rows, n = digits.shape[:-1], digits.shape[-1]
    missing = -n % count
    filler = xp.full((*rows, missing), zero, dtype=xp.uint8, device=device(digits))
    digits = xp.reshape(
        xp.concat([digits, filler], axis=-1), (*rows, (n + missing) // count, count)
    )
    packed = digits[..., 0]
    for place in range(1, count):
        packed = packed + digits[..., place] * base**place
    return packed


def _split(packed, *, base, per_byte, count):
    """bytes [..., m] -> their digits [..., count] uint8: the inverse of ``_join``."""
    xp = array_namespace(packed)
    _check_packed(packed)
    rows, n = packed.shape[:-1], packed.shape[-1]
    if count < 0 or -(-count // per_byte) != n:
        raise ValueError(
            f"count={count} does not fill {n} bytes of {per_byte} codes; "
            f"what would work: {max(0, (n - 1) * per_byte + 1)} to {n * per_byte}"
        )
    if per_byte == 1:
        return packed
    digits = xp.stack([packed // base**place % base for place in range(per_byte)], axis=-1)
    return xp.reshape(digits, (*rows, n * per_byte))[..., :count]


def _pieces(bits):
    """The powers of two that sum to bits, each of which divides a byte, largest first."""
    if bits not in range(1, 9):
        raise ValueError(f"bits={bits!r} do not pack into bytes; choose 1 to 8")
    return [piece for piece in (8, 4, 2, 1) if bits & piece]


def _check_packed(packed):
    xp = array_namespace(packed)
    if packed.dtype != xp.uint8 or packed.ndim == 0:
        raise ValueError(
            f"packed is of type {packed.dtype} and shape {tuple(packed.shape)}; "
            "pass the uint8 bytes that pack returned"
        )


def _extremes(codes):
    """-> lowest and highest code, (0, 0) if there are none."""
    # By name, because np.isdtype refuses ml_dtypes' types.
    if "int" not in str(codes.dtype) or codes.ndim == 0:
        raise ValueError(
            f"codes are of type {codes.dtype} and shape {tuple(codes.shape)}; "
            "pass integers with at least one axis"
        )
    if 0 in codes.shape:
        return 0, 0
    xp = array_namespace(codes)
    return int(xp.min(codes)), int(xp.max(codes))
