import bitsandbytes.functional as bnb
import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from qbook import formats
from qbook.formats import E2M1, E2M3, E3M2, E4M3, E5M2, NF4
from qbook.kernels import isa
from qbook.kernels.minifloat_cast import loops, minifloat, nf4, reference

SETS = isa.available()
ALL = [E4M3, E5M2, E3M2, E2M3, E2M1]
THEIRS = {"E4M3": ml_dtypes.float8_e4m3fn, "E5M2": ml_dtypes.float8_e5m2}
SIZES = [1, 3, 15, 16, 17, 63, 127, 1000]
# A prime number of bit patterns apart: every exponent, and every residue of the lowest bits.
STRIDE = 7919


def name(fmt):
    return fmt.name


def patterns():
    """Half a million float32: every 7919th of all there are, NaN and infinity among them."""
    return np.arange(0, 2**32, STRIDE, dtype=np.uint64).astype(np.uint32).view(np.float32)


def edges(fmt):
    """Values, midpoints between neighbours and where the range ends; the floats next to them."""
    levels = fmt.levels.astype(np.float64)
    spots = np.concatenate([levels, (levels[1:] + levels[:-1]) / 2, fmt.limits or levels[[0, -1]]])
    spots = np.concatenate([spots.astype(np.float32), np.float32([0, 1e-45, 1e-40, 3.4e38])])
    spots = np.concatenate([spots, -spots])
    around = [np.nextafter(spots, np.float32(end)) for end in (-np.inf, np.inf)]
    return np.concatenate([spots, *around])


def hard(fmt):
    """patterns and edges that the format can express"""
    x = np.concatenate([patterns(), edges(fmt), np.float32([np.inf, -np.inf, np.nan, -np.nan])])
    return x if fmt.nan is not None else x[~np.isnan(x)]


def equal_bits(found, expected):
    """Signs and payloads of NaN included."""
    assert found.dtype == expected.dtype
    kind = np.uint32 if found.dtype == np.float32 else found.dtype
    assert_array_equal(found.view(kind), expected.view(kind))


@pytest.mark.parametrize("use", SETS)
@pytest.mark.parametrize("saturate", [True, False])
@pytest.mark.parametrize("fmt", ALL, ids=name)
def test_codes_are_those_of_the_table(fmt, saturate, use):
    x = hard(fmt)
    if not saturate and fmt.nan is None:
        x = x[np.abs(x.astype(np.float64)) <= fmt.limits[1]]
    expected = fmt.encode(x, saturate)
    for threads in (1, 2):
        equal_bits(minifloat.encode(x, fmt, saturate, use=use, num_threads=threads), expected)


@pytest.mark.parametrize("fmt", [E4M3, E5M2], ids=name)
def test_codes_are_those_of_ml_dtypes(fmt):
    x = hard(fmt)
    with np.errstate(all="ignore"):
        expected = x.astype(THEIRS[fmt.name]).view(np.uint8)
    equal_bits(minifloat.encode(x, fmt, saturate=False), expected)


@pytest.mark.parametrize(
    ("fmt", "theirs", "saturate"),
    [(E4M3, torch.float8_e4m3fn, True), (E5M2, torch.float8_e5m2, False)],
    ids=["E4M3", "E5M2"],
)
def test_codes_are_those_of_torch(fmt, theirs, saturate):
    # torch saturates E4M3 and not E5M2; infinity and NaN are its own affair.
    x = hard(fmt)
    x = x[np.isfinite(x)]
    expected = torch.from_numpy(x).to(theirs).view(torch.uint8).numpy()
    equal_bits(minifloat.encode(x, fmt, saturate), expected)


@pytest.mark.parametrize("use", SETS)
@pytest.mark.parametrize("fmt", ALL, ids=name)
def test_every_code_is_decoded_to_its_value_and_encoded_to_itself(fmt, use):
    codes = np.arange(2**fmt.bits, dtype=np.uint8)
    expected = fmt.values[codes]
    for threads in (1, 2):
        out = np.full(codes.shape, 77, np.float32)
        values = minifloat.decode(codes, fmt, out=out, use=use, num_threads=threads)
        assert values is out
        equal_bits(values, expected)
    real = codes[~np.isnan(expected)]
    equal_bits(minifloat.encode(expected[real], fmt, saturate=False, use=use), real)


@pytest.mark.parametrize("fmt", [E4M3, E5M2], ids=name)
def test_the_loop_over_a_table_decodes_the_same(fmt):
    codes, out = np.arange(256, dtype=np.uint8), np.full(256, 77, np.float32)
    loops.decode(codes, np.array(fmt.values), out)
    equal_bits(out, minifloat.decode(codes, fmt))


@pytest.mark.parametrize("size", SIZES)
def test_nothing_is_written_beside_the_result(size):
    x = np.random.default_rng(0).uniform(-1, 1, size).astype(np.float32)
    codes, values = np.full(size + 128, 77, np.uint8), np.full(size + 128, np.nan, np.float32)
    out, floats = codes[64 : 64 + size], values[64 : 64 + size]
    outside = np.delete(np.arange(size + 128), np.arange(64, 64 + size))
    for threads in (1, 2):
        minifloat.encode(x, E4M3, out=out, num_threads=threads)
        equal_bits(out, E4M3.encode(x))
        minifloat.decode(out, E4M3, out=floats, num_threads=threads)
        equal_bits(floats, E4M3.round(x))
        nf4.encode(x, out=out, num_threads=threads)
        equal_bits(out, NF4.encode(x))
        nf4.decode(out, out=floats, num_threads=threads)
        equal_bits(floats, NF4.round(x))
        half = (size + 1) // 2
        absmax = np.full(-(-size // 32), np.nan, np.float32)
        nf4.quantize(x, 32, out=(out[:half], absmax), num_threads=threads)
        equal_bits(out[:half], reference.quantize_nf4(x, 32)[0])
        nf4.dequantize(out[:half], absmax, (size,), 32, out=floats, num_threads=threads)
        equal_bits(floats, reference.dequantize_nf4(out[:half], absmax, size, 32))
        assert (codes[outside] == 77).all()
        assert np.isnan(values[outside]).all()


@pytest.mark.parametrize("use", SETS)
@pytest.mark.parametrize("fmt", [E3M2, E2M3, E2M1], ids=name)
def test_what_a_format_cannot_express_is_refused(fmt, use):
    x = np.zeros(70, np.float32)
    for at in (0, 40, 69):
        x[at] = np.nan
        for saturate in (True, False):
            with pytest.raises(ValueError, match="has no NaN"):
                minifloat.encode(x, fmt, saturate, use=use)
        # The smallest number that overflows: the tie between the largest value and the next.
        x[at] = -np.float32(np.nextafter(fmt.limits[1], np.inf))
        with pytest.raises(ValueError, match="pass saturate=True"):
            minifloat.encode(x, fmt, saturate=False, use=use)
        assert minifloat.encode(x, fmt, use=use)[at] == 2**fmt.bits - 1
        x[at] = 0


@pytest.mark.parametrize("use", SETS)
def test_nf4_codes_are_those_of_the_table(use):
    x = hard(NF4)
    inside = np.random.default_rng(0).uniform(-1.1, 1.1, 100_000).astype(np.float32)
    x = np.concatenate([x, inside])
    expected = NF4.encode(x)
    assert set(expected.tolist()) == set(range(16))
    for threads in (1, 2):
        equal_bits(nf4.encode(x, use=use, num_threads=threads), expected)


@pytest.mark.parametrize("use", SETS)
def test_every_nf4_code_is_decoded_to_its_level(use):
    codes = np.tile(np.arange(16, dtype=np.uint8), 5)[:-1]
    for threads in (1, 2):
        equal_bits(nf4.decode(codes, use=use, num_threads=threads), NF4.values[codes])


def test_bitsandbytes_differs_on_midpoints_rounded_up_only():
    levels = NF4.levels
    theirs = (levels[1:] + levels[:-1]) / np.float32(2)
    one_up = np.nextafter(nf4.BOUNDARIES, np.float32(2))
    # Numbers up to a boundary go down: ours is theirs, or the float below it.
    assert ((theirs == nf4.BOUNDARIES) | (theirs == one_up)).all()
    exact = (levels[1:].astype(np.float64) + levels[:-1]) / 2
    tie_up = (theirs == exact) & (np.arange(15) % 2 == 1)
    assert_array_equal(theirs == one_up, (theirs > exact) | tie_up)


@pytest.mark.parametrize("use", SETS)
@pytest.mark.parametrize("block_size", [32, 64, 4096])
@pytest.mark.parametrize("size", [1.0, 1e-4, 37.0])
def test_blocks_are_those_of_bitsandbytes_bit_for_bit(size, block_size, use):
    x = np.random.default_rng(5).normal(size=(64, 2048)).astype(np.float32) * np.float32(size)
    x[3, 64:192], x[5, :40] = 0, 0
    theirs, state = bnb.quantize_4bit(torch.from_numpy(x), blocksize=block_size, quant_type="nf4")
    expected = bnb.dequantize_4bit(theirs, state).numpy()
    for threads in (1, 2):
        packed, absmax = nf4.quantize(x, block_size, use=use, num_threads=threads)
        equal_bits(packed, theirs.numpy().reshape(-1))
        equal_bits(absmax, state.absmax.numpy())
        values = nf4.dequantize(packed, absmax, x.shape, block_size, use=use, num_threads=threads)
        assert_array_equal(values, expected)


@pytest.mark.parametrize("use", SETS)
@pytest.mark.parametrize("shape", [(1,), (2,), (5, 13), (3, 7, 11), (127,), (1000,)])
def test_the_last_block_may_be_short_and_the_count_odd(shape, use):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    expected_packed, expected_absmax = reference.quantize_nf4(x.reshape(-1), 64)
    for threads in (1, 2):
        packed, absmax = nf4.quantize(x, use=use, num_threads=threads)
        equal_bits(packed, expected_packed)
        equal_bits(absmax, expected_absmax)
        values = nf4.dequantize(packed, absmax, shape, use=use, num_threads=threads)
        expected = reference.dequantize_nf4(packed, absmax, x.size, 64).reshape(shape)
        equal_bits(values, expected)
    if x.size % 2:
        assert packed[-1] & 15 == NF4.encode(np.zeros(1))[0]


@pytest.mark.parametrize("use", SETS)
def test_a_block_is_relative_to_its_largest_magnitude(use):
    # Tiny, huge and empty blocks; the largest magnitude, whatever its sign, is kept.
    x = np.zeros((6, 32), np.float32)
    x[:5, 7] = np.float32([1e-45, -1e-39, 1e-37, -3.4e38, 2.5])
    packed, absmax = nf4.quantize(x, 32, use=use)
    assert_array_equal(absmax, np.abs(x).max(axis=1))
    values = nf4.dequantize(packed, absmax, x.shape, 32, use=use)
    # Below 1e-38 a block is divided by 1e-38: 1e-45 / 1e-38 is next to nothing, -0.1 is a level.
    assert_array_equal(values[2:], x[2:])
    assert_array_equal(values[0], np.zeros(32))
    assert np.sign(values[1, 7]) == -1


@pytest.mark.parametrize("use", SETS)
@pytest.mark.parametrize("at", [0, 30, 33, 69])
def test_nf4_refuses_nan_and_blocks_refuse_infinity_too(at, use):
    x = np.ones(70, np.float32)
    for bad in (np.nan, -np.nan, np.inf, -np.inf):
        x[at] = bad
        for threads in (1, 2):
            with pytest.raises(ValueError, match="NaN"):
                nf4.quantize(x, 32, use=use, num_threads=threads)
        if np.isnan(bad):
            with pytest.raises(ValueError, match="NaN"):
                nf4.encode(x, use=use)
        else:
            assert nf4.encode(x, use=use)[at] == (15 if bad > 0 else 0)


@pytest.mark.parametrize("use", SETS)
def test_shapes_strides_and_empty_arrays_do_not_matter(use):
    x = np.random.default_rng(0).uniform(-2, 2, (6, 40, 7)).astype(np.float32)
    before = x.copy()
    views = [x[::2, 3:33], x[:, ::-1], x.transpose(2, 0, 1), x[:0], np.float32(0.3), x[1, 2, 3:3]]
    for view in views:
        view = np.asarray(view)
        for encode, decode, fmt in (
            (lambda v: minifloat.encode(v, E5M2, use=use), minifloat.decode, (E5M2,)),
            (lambda v: nf4.encode(v, use=use), nf4.decode, ()),
        ):
            codes = encode(view)
            assert codes.shape == view.shape
            equal_bits(codes, encode(view.copy()))
            assert decode(codes, *fmt, use=use).shape == view.shape
        packed, absmax = nf4.quantize(view, use=use)
        equal_bits(packed, nf4.quantize(view.copy(), use="reference")[0])
        assert nf4.dequantize(packed, absmax, view.shape, use=use).shape == view.shape
    assert_array_equal(x, before)


def test_errors_say_what_was_given_and_what_would_work():
    x, codes = np.ones((2, 3), np.float32), np.full((2, 3), 16, np.uint8)
    for call in (lambda x: minifloat.encode(x, E4M3), nf4.encode, nf4.quantize):
        with pytest.raises(ValueError, match="type float64; pass float32"):
            call(x.astype(np.float64))
    for fmt in (formats.E8M0, formats.INT8, NF4, "E4M3"):
        with pytest.raises(ValueError, match="choose E4M3 or E5M2"):
            minifloat.encode(x, fmt)
    for call in (lambda c: minifloat.decode(c, E2M1), nf4.decode):
        for wrong in (codes, codes.astype(np.int8)):
            with pytest.raises(ValueError, match="pass uint8 from 0 to 15"):
                call(wrong)
    with pytest.raises(ValueError, match="pass uint8 from 0 to 255"):
        minifloat.decode(codes.astype(np.int8), E4M3)
    for wrong in (np.empty((3, 2), np.uint8), np.empty((2, 3)), codes[:, ::-1]):
        with pytest.raises(ValueError, match=r"contiguous array of uint8 \[2, 3\]"):
            minifloat.encode(x, E4M3, out=wrong)
    for wrong in (0, 16, 48 + 1, 64.0, None):
        with pytest.raises(ValueError, match=f"block_size={wrong}.*multiple of 32"):
            nf4.quantize(x, wrong)
    packed, absmax = nf4.quantize(x)
    for given in (
        (packed[1:], absmax),
        (packed, absmax[1:]),
        (packed.view(np.int8), absmax),
        (packed, absmax.astype(np.float64)),
    ):
        with pytest.raises(ValueError, match=r"needs uint8 \(3,\) and float32 \(1,\)"):
            nf4.dequantize(*given, x.shape)
    with pytest.raises(ValueError, match="'sse9'"):
        minifloat.encode(x, E4M3, use="sse9")
