import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_array_equal

from qbook import formats, packing

BITS = [1, 2, 4]
LIBRARIES = [np.asarray, torch.from_numpy]
EVERY_BYTE = np.arange(256, dtype=np.uint8)
SHAPES = hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=19)


def pack_by_strings(codes, bits):
    """Naive reference: write the codes as binary digits, last code first, and read bytes."""
    per_byte = 8 // bits
    codes = [int(code) & (2**bits - 1) for code in codes] + [0] * (-len(codes) % per_byte)
    chunks = [codes[i : i + per_byte] for i in range(0, len(codes), per_byte)]
    return [int("".join(f"{code:0{bits}b}" for code in reversed(chunk)), 2) for chunk in chunks]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("library", LIBRARIES)
def test_every_byte_survives_unpacking_and_packing(bits, signed, library):
    count = 256 * 8 // bits
    codes = packing.unpack(library(EVERY_BYTE), bits, count, signed=signed)
    assert str(codes.dtype).endswith("int8" if signed else "uint8")
    assert_array_equal(np.asarray(packing.pack(codes, bits)), EVERY_BYTE)
    low = -(2 ** (bits - 1)) if signed else 0
    assert set(np.asarray(codes).tolist()) == set(range(low, low + 2**bits))


@pytest.mark.parametrize("library", LIBRARIES)
def test_every_ternary_byte_survives_unpacking_and_packing(library):
    codes = packing.unpack_ternary(library(EVERY_BYTE[:243]), 5 * 243)
    assert_array_equal(np.asarray(packing.pack_ternary(codes)), EVERY_BYTE[:243])
    # All 3^5 words of five codes, each once.
    assert len({tuple(word) for word in np.asarray(codes).reshape(243, 5)}) == 243


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_first_code_is_in_the_lowest_bits(library):
    assert_array_equal(np.asarray(packing.pack(library(np.array([1, 2, 3])), 4)), [0x21, 0x03])
    assert_array_equal(
        np.asarray(packing.pack(library(np.array([1, 2, 3, 0, 2])), 2)), [0b00111001, 2]
    )
    assert_array_equal(np.asarray(packing.pack(library(np.array([1, 0, 0, 1])), 1)), [0b1001])
    # -1 in two's complement is all ones.
    assert_array_equal(np.asarray(packing.pack(library(np.array([-1, 7, -8])), 4)), [0x7F, 0x08])
    # Digits to base 3: (1 + 1) + (0 + 1) * 3 + (-1 + 1) * 9, then two zeros: 27 + 81.
    assert_array_equal(np.asarray(packing.pack_ternary(library(np.array([1, 0, -1])))), [5 + 108])


@pytest.mark.parametrize("bits", BITS)
@given(data=st.data())
def test_odd_lengths_survive_in_both_libraries(bits, data):
    signed = data.draw(st.booleans())
    low = -(2 ** (bits - 1)) if signed else 0
    elements = st.integers(low, low + 2**bits - 1)
    dtype = data.draw(st.sampled_from([np.int8, np.int16, np.int32, np.int64]))
    codes = data.draw(hnp.arrays(dtype, SHAPES, elements=elements))
    count = codes.shape[-1]
    packed = packing.pack(codes, bits)
    assert packed.dtype == np.uint8
    assert packed.shape == (*codes.shape[:-1], -(-count * bits // 8))
    assert_array_equal(packing.unpack(packed, bits, count, signed=signed), codes)
    for row in np.ndindex(codes.shape[:-1]):
        assert packed[row].tolist() == pack_by_strings(codes[row], bits)
    in_torch = packing.pack(torch.from_numpy(codes), bits)
    assert in_torch.dtype == torch.uint8
    assert_array_equal(in_torch.numpy(), packed)
    assert_array_equal(packing.unpack(in_torch, bits, count, signed=signed).numpy(), codes)


@pytest.mark.parametrize("bits", [3, 5, 6, 7, 8])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("count", [0, 1, 7, 8, 33])
def test_widths_that_do_not_divide_a_byte_are_stored_piece_by_piece(bits, signed, library, count):
    low = -(2 ** (bits - 1)) if signed else 0
    codes = np.random.default_rng(count).integers(low, low + 2**bits, size=(3, count))
    packed = packing.pack(library(codes), bits)
    # Binary digits of bits: 3 = 2 + 1, 5 = 4 + 1, 6 = 4 + 2, 7 = 4 + 2 + 1.
    pieces = {3: (2, 1), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1), 8: (8,)}[bits]
    assert packed.shape == (3, sum(-(-count * piece // 8) for piece in pieces))
    assert packing.packed_length(count, bits) == packed.shape[-1]
    restored = packing.unpack(packed, bits, count, signed=signed)
    assert str(restored.dtype).endswith("int8" if signed else "uint8")
    assert_array_equal(np.asarray(restored), codes)
    start, place = 0, 0
    for piece in pieces:
        length = -(-count * piece // 8)
        digits = (codes[0] % 2**bits) // 2**place % 2**piece
        assert np.asarray(packed)[0, start : start + length].tolist() == pack_by_strings(
            digits, piece
        )
        start, place = start + length, place + piece


@given(codes=hnp.arrays(np.int8, SHAPES, elements=st.integers(-1, 1)))
def test_odd_lengths_of_ternary_codes_survive_in_both_libraries(codes):
    count = codes.shape[-1]
    packed = packing.pack_ternary(codes)
    assert packed.dtype == np.uint8
    assert packed.shape == (*codes.shape[:-1], -(-count // 5))
    assert packed.size == 0 or packed.max() <= 242
    assert_array_equal(packing.unpack_ternary(packed, count), codes)
    for row in np.ndindex(codes.shape[:-1]):
        digits = "".join(str(code + 1) for code in [*codes[row], *[0] * (-count % 5)])
        words = [digits[i : i + 5][::-1] for i in range(0, len(digits), 5)]
        assert packed[row].tolist() == [int(word, 3) for word in words]
    in_torch = packing.pack_ternary(torch.from_numpy(codes))
    assert_array_equal(in_torch.numpy(), packed)
    assert_array_equal(packing.unpack_ternary(in_torch, count).numpy(), codes)


@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 1000, 1001])
def test_one_bit_equals_numpy_packbits(n):
    codes = np.random.default_rng(0).integers(0, 2, size=(3, n)).astype(np.uint8)
    assert_array_equal(packing.pack(codes, 1), np.packbits(codes, axis=-1, bitorder="little"))
    packed = packing.pack(codes, 1)
    assert_array_equal(
        packing.unpack(packed, 1, n), np.unpackbits(packed, axis=-1, count=n, bitorder="little")
    )


@pytest.mark.parametrize(
    ("bits", "size"), [(1, 3 * 1251), (2, 3 * 2501), (4, 3 * 5001), ("ternary", 3 * 2001)]
)
def test_sizes_in_bytes_are_exact(bits, size):
    # Rows of 10 001 codes: 1251 = ceil(10001 / 8), 2501 of four, 5001 of two, 2001 of five.
    codes = np.zeros((3, 10_001), np.int8)
    packed = packing.pack_ternary(codes) if bits == "ternary" else packing.pack(codes, bits)
    assert packed.nbytes == size


@pytest.mark.parametrize("library", LIBRARIES)
def test_codes_of_the_number_formats_can_be_packed_and_read_as_integers(library):
    x = library(np.random.default_rng(0).normal(size=(3, 33)) * 3)
    for fmt in (formats.BINARY, formats.INT2, formats.INT4, formats.E2M1, formats.NF4):
        codes = fmt.encode(x)
        packed = packing.pack(codes, fmt.bits)
        assert_array_equal(np.asarray(packing.unpack(packed, fmt.bits, 33)), np.asarray(codes))
    packed = packing.pack(formats.INT4.encode(x), 4)
    integers = packing.unpack(packed, 4, 33, signed=True)
    assert_array_equal(np.asarray(integers), np.asarray(formats.INT4.round(x)))
    # TERNARY's two-bit codes read as signed integers are what pack_ternary takes.
    trits = packing.unpack(packing.pack(formats.TERNARY.encode(x), 2), 2, 33, signed=True)
    assert_array_equal(np.asarray(trits), np.asarray(formats.TERNARY.round(x)))
    assert packing.pack_ternary(trits).shape == (3, 7)


def test_arguments_are_not_modified_and_layout_does_not_matter():
    codes = np.random.default_rng(0).integers(-8, 8, size=(6, 10)).astype(np.int8)
    before = codes.copy()
    for view in (codes.T, codes[::2, ::-1], codes[:, ::3]):
        assert_array_equal(packing.pack(view, 4), packing.pack(view.copy(), 4))
        assert_array_equal(
            packing.pack(torch.from_numpy(codes).T, 4).numpy(), packing.pack(codes.T, 4)
        )
    assert_array_equal(codes, before)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("bits", BITS)
def test_codes_that_do_not_fit_are_refused(library, bits):
    half, full = 2 ** (bits - 1), 2**bits
    for wrong in ([0, full], [-half - 1, 0], [-1, half], [1000], [-1, full - 1]):
        with pytest.raises(ValueError, match=rf"do not fit bits={bits}: choose -{half} to"):
            packing.pack(library(np.array(wrong)), bits)
    for wrong in ([2, 0], [-2], [0, 300]):
        with pytest.raises(ValueError, match=r"are not ternary; choose -1, 0 and 1"):
            packing.pack_ternary(library(np.array(wrong)))


@pytest.mark.parametrize("library", LIBRARIES)
def test_what_is_not_an_array_of_integers_is_refused(library):
    for wrong in (np.zeros(3), np.zeros(3, bool), np.zeros(3, np.float16), np.zeros((), int)):
        for call in (lambda codes: packing.pack(codes, 4), packing.pack_ternary):
            with pytest.raises(ValueError, match="pass integers with at least one axis"):
                call(library(wrong))
    for wrong in (np.zeros(3), np.zeros(3, np.int8), np.zeros(3, int), np.zeros((), np.uint8)):
        for call in (
            lambda packed: packing.unpack(packed, 4, 5),
            lambda p: packing.unpack_ternary(p, 5),
        ):
            with pytest.raises(ValueError, match="pass the uint8 bytes that pack returned"):
                call(library(wrong))
    with pytest.raises(ValueError, match="codes are of type bfloat16"):
        packing.pack(np.zeros(3, ml_dtypes.bfloat16), 4)


@pytest.mark.parametrize("library", LIBRARIES)
def test_bits_and_counts_that_do_not_work_are_refused(library):
    codes = library(np.zeros(3, np.uint8))
    for bits in (0, 9, -1, None, 2.5):
        with pytest.raises(ValueError, match="do not pack into bytes; choose 1 to 8"):
            packing.pack(codes, bits)
        with pytest.raises(ValueError, match="do not pack into bytes; choose 1 to 8"):
            packing.unpack(codes, bits, 3)
    for count in (4, 7, -1, 0):
        with pytest.raises(ValueError, match=rf"count={count} codes .* not the 3 given"):
            packing.unpack(codes, 4, count)
    for count in (10, 16, -5):
        with pytest.raises(ValueError, match=rf"count={count} .* what would work: 11 to 15"):
            packing.unpack_ternary(codes, count)
    with pytest.raises(ValueError, match="byte 243 is not five ternary codes; those end at 242"):
        packing.unpack_ternary(library(np.array([0, 243], np.uint8)), 10)
