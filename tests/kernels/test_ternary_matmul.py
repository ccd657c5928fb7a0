import itertools

import numba
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from qbook import integer_product, packing
from qbook.kernels import isa
from qbook.kernels.simd.bytes import triple_bytes, whole_thirds
from qbook.kernels.simd.memory import load_i32, store
from qbook.kernels.ternary_matmul import loops, matmul, packed, panels, reference
from qbook.qat import twn

SETS = isa.available()
PACKINGS = list(panels.DIGITS)
# Rows of x below, at and beyond every tile; outputs and inputs that fill no panel.
SHAPES = [
    (1, 1, 1),
    (1, 1000, 127),
    (3, 7, 33),
    (5, 127, 3),
    (6, 33, 64),
    (33, 127, 7),
    (101, 1003, 65),
]


def draw(samples, in_, out):
    rng = np.random.default_rng(0)
    x = rng.integers(-128, 127, (samples, in_), np.int8, endpoint=True)
    return x, rng.integers(-1, 1, (out, in_), np.int8, endpoint=True)


def product(x, w):
    return x.astype(np.int64) @ w.T.astype(np.int64)


@pytest.mark.parametrize("use", SETS)
@pytest.mark.parametrize("how", PACKINGS)
@pytest.mark.parametrize(("samples", "in_", "out"), SHAPES)
def test_sums_are_those_of_64_bit_integers(samples, in_, out, how, use):
    x, w = draw(samples, in_, out)
    for threads in (1, 2):
        sums = matmul.matmul(x, panels.pack(w, how), use=use, num_threads=threads)
        assert sums.dtype == np.int32
        assert_array_equal(sums, product(x, w))


@pytest.mark.parametrize("use", SETS)
@pytest.mark.parametrize("how", PACKINGS)
def test_every_byte_gives_back_its_digits(how, use):
    # Row r holds the digits of r: in byte t those of the inputs t, 4 + t, 8 + t, ...
    digits = panels.DIGITS[how]
    codes = np.array(list(itertools.product((-1, 0, 1), repeat=digits)), np.int8)
    w = np.repeat(codes, panels.BYTES, axis=1)
    w_packed, ones = panels.pack(w, how), np.eye(w.shape[1], dtype=np.int8)
    assert_array_equal(matmul.matmul(ones, w_packed, use=use), w.T)
    for row, column in zip(ones, w.T, strict=True):
        assert_array_equal(matmul.matmul(row[None], w_packed, use=use), column[None])


def test_a_base_3_byte_is_the_number_of_chapter_2_as_a_fraction():
    codes = np.array(list(itertools.product((-1, 0, 1), repeat=5)), np.int8)
    numbers = packing.pack_ternary(codes[:, ::-1]).astype(np.int64)
    assert_array_equal(numbers[:, 0], np.arange(243))
    w = np.repeat(codes, panels.BYTES, axis=1)
    data = panels.pack(w, "base-3").data.transpose(0, 2, 3, 1, 4).reshape(-1, 4)
    assert_array_equal(data[:243, 0], -(-256 * np.arange(243) // 243))


@numba.njit
def _on_all_bytes(source, tripled, thirds):
    for at in range(0, 256, 64):
        store(tripled, at, triple_bytes(load_i32(source, at)))
        store(thirds, at, whole_thirds(load_i32(source, at)))


def test_bytes_are_tripled_and_divided_as_integers_are():
    source = np.arange(256).astype(np.uint8)
    tripled, thirds = np.full((2, 256), 255, np.uint8)
    _on_all_bytes(source, tripled, thirds)
    assert_array_equal(tripled, 3 * np.arange(256) % 256)
    assert_array_equal(thirds, 3 * np.arange(256) // 256)


@pytest.mark.parametrize("how", PACKINGS)
@pytest.mark.parametrize(("out", "in_"), [(1, 1), (7, 33), (48, 80), (127, 1000), (0, 3), (3, 0)])
def test_unpack_undoes_pack(out, in_, how):
    _, w = draw(1, in_, out)
    w_packed = panels.pack(w, how)
    assert panels.unpack(w_packed).dtype == np.int8
    assert_array_equal(panels.unpack(w_packed), w)
    assert w_packed.data.size == 0 or w_packed.data.ctypes.data % 64 == 0


@pytest.mark.parametrize(("how", "per_byte"), [("2-bit", 4), ("base-3", 5)])
def test_a_byte_holds_as_many_weights_as_the_packing_says(how, per_byte):
    assert panels.pack(np.zeros((64, 160), np.int8), how).nbytes == 64 * 160 // per_byte


@pytest.mark.parametrize("use", SETS)
@pytest.mark.parametrize("how", PACKINGS)
@pytest.mark.parametrize(("samples", "in_", "out"), [(0, 5, 5), (5, 0, 5), (9, 0, 5), (5, 5, 0)])
def test_empty_dimensions_give_empty_or_zero_results(samples, in_, out, how, use):
    x, w = np.zeros((samples, in_), np.int8), np.zeros((out, in_), np.int8)
    sums = matmul.matmul(x, panels.pack(w, how), use=use)
    assert_array_equal(sums, np.zeros((samples, out)))


@pytest.mark.parametrize("use", SETS)
@pytest.mark.parametrize("how", PACKINGS)
@pytest.mark.parametrize("samples", [1, 7])
def test_extreme_codes_do_not_overflow_across_blocks(samples, how, use):
    # Both packings sum blocks in 32 bits, of 32767 chunks of 16 or 1638 of 20: more than one here,
    # the sums within a block the largest that there are.
    in_ = 16 * packed.TWO_BIT_CHUNKS + 33
    w = np.repeat(np.array([[1], [-1]], np.int8), in_, axis=1)
    w_packed = panels.pack(w, how)
    for code in (-128, 127):
        x = np.full((samples, in_), code, np.int8)
        sums = matmul.matmul(x, w_packed, use=use, num_threads=1)
        assert_array_equal(sums, np.full((samples, 2), (code * in_, -code * in_)))


@pytest.mark.parametrize("use", SETS[:-1])
@pytest.mark.parametrize(("how", "byte"), [("2-bit", 0b10101010), ("base-3", 255)])
def test_the_longest_sum_of_extreme_codes_does_not_overflow(how, byte, use):
    # One panel of codes 1, made by hand: pack would take a GiB of room for it.
    chunks = -(-matmul.LONGEST // (4 * panels.DIGITS[how]))
    data = np.full((1, chunks, 2, 16, 4), byte, np.uint8)
    w = panels.Panels(data, (32, matmul.LONGEST), how)
    x = np.full((1, matmul.LONGEST), -128, np.int8)
    sums = matmul.matmul(x, w, use=use, num_threads=1)
    assert_array_equal(sums, np.full((1, 32), -128 * (2**24 - 1)))


@pytest.mark.parametrize("use", SETS)
@pytest.mark.parametrize(("how", "byte"), [("2-bit", 0b10101010), ("base-3", 255)])
def test_what_lies_behind_a_row_of_x_is_not_multiplied(how, byte, use):
    # All digits 2, those behind the 33rd input too; a row of 33 inputs with others behind it.
    w = panels.Panels(np.full((1, 3, 2, 16, 4), byte, np.uint8), (20, 33), how)
    x = np.full(64, 127, np.int8)[:33].reshape(1, 33)
    if how == "base-3":
        w = panels.Panels(w.data[:, :2].copy(), w.shape, how)
    assert_array_equal(matmul.matmul(x, w, use=use), np.full((1, 20), 33 * 127))


def test_a_sum_that_might_not_fit_is_refused():
    longest = matmul.LONGEST
    w = panels.pack(np.zeros((0, longest + 1), np.int8))
    with pytest.raises(ValueError, match=f"pieces of at most {longest}"):
        matmul.matmul(np.zeros((1, longest + 1), np.int8), w)


@pytest.mark.parametrize("use", SETS)
@pytest.mark.parametrize("how", PACKINGS)
def test_strides_do_not_matter(how, use):
    x, w = draw(66, 80, 130)
    w = np.ascontiguousarray(w[:, :60])
    views = [x[::22, 8:68], x[::2, 8:68], x[:, ::-1][:, :60], np.asfortranarray(x[:, :60])]
    views += [x.T[:60].T]
    w_view = np.asfortranarray(w)[::-2]
    for view in views:
        result = matmul.matmul(view, panels.pack(w_view, how), use=use)
        assert_array_equal(result, product(view, w[::-2]))


@pytest.mark.parametrize("use", SETS)
@pytest.mark.parametrize("how", PACKINGS)
@pytest.mark.parametrize("samples", [1, 19])
def test_linear_is_the_integer_product_of_chapter_2_bit_for_bit(samples, how, use):
    rng = np.random.default_rng(0)
    x_codes, _ = draw(samples, 133, 37)
    w = rng.normal(size=(37, 133)).astype(np.float32)
    threshold = twn.threshold(w, axis=1)
    w_codes, w_qparams = twn.quantize(w, threshold), twn.qparams(twn.scale(w, threshold, axis=1))
    x_qparams = twn.qparams(rng.uniform(0.01, 1, (samples, 1)).astype(np.float32))
    expected = integer_product.linear(x_codes, x_qparams, w_codes, w_qparams)
    scales = x_qparams.scale, panels.pack(w_codes, how), w_qparams.scale
    result = matmul.linear(x_codes, *scales, use=use)
    assert result.dtype == np.float32
    assert_array_equal(result, expected)
    bias = rng.normal(size=37).astype(np.float32)
    with_bias = matmul.linear(x_codes, *scales, bias, use=use, num_threads=2)
    assert_array_equal(with_bias, expected + bias)


@pytest.mark.parametrize("use", SETS)
def test_scales_may_be_numbers(use):
    x, w = draw(2, 50, 40)
    result = matmul.linear(x, 0.5, panels.pack(w), 0.25, use=use)
    # Powers of two: every step is exact.
    assert_array_equal(result, product(x, w) / 8)


def test_the_reference_and_the_plain_loops_compute_the_same_product():
    x, w = draw(5, 37, 11)
    out = np.full((5, 11), -1, np.int32)
    loops.naive(x, w, out)
    assert_array_equal(out, product(x, w))
    assert_array_equal(reference.matmul(x, w), product(x, w))


def test_arguments_are_left_as_they_were():
    x, w = draw(3, 33, 5)
    before = x.copy(), w.copy()
    matmul.linear(x, 1.0, panels.pack(w), np.ones(5, np.float32))
    assert_array_equal(x, before[0])
    assert_array_equal(w, before[1])


WRONG = {
    "x_codes is of type float32": lambda x, w: matmul.matmul(x.astype(np.float32), w),
    "x_codes is of type uint8": lambda x, w: matmul.matmul(x.astype(np.uint8), w),
    "x_codes is of type int8 and shape .5, 7.": lambda x, w: matmul.matmul(x[:, :7], w),
    "x_codes is of type int8 and shape .8,.": lambda x, w: matmul.matmul(x[0], w),
    "x_scale is of shape .3,.": lambda x, w: matmul.linear(x, np.ones(3), w, 1.0),
    "w_scale is of shape .5,.": lambda x, w: matmul.linear(x, 1.0, w, np.ones(5)),
    "bias is of shape .2,.": lambda x, w: matmul.linear(x, 1.0, w, 1.0, np.ones(2)),
    "'sse9' is no instruction set": lambda x, w: matmul.matmul(x, w, use="sse9"),
    "threads=1000 is not to be had": lambda x, w: matmul.matmul(x, w, num_threads=1000),
    "w_codes is of type int32": lambda x, w: panels.pack(np.zeros((3, 4), np.int32)),
    "w_codes is of type int8 and shape .3,.": lambda x, w: panels.pack(np.zeros(3, np.int8)),
    "w_codes from 0 to 2 are not ternary": lambda x, w: panels.pack(np.array([[0, 2]], np.int8)),
    "w_codes from -2 to 0 are not": lambda x, w: panels.pack(np.array([[0, -2]], np.int8)),
    "choose 2-bit or base-3": lambda x, w: panels.pack(np.zeros((3, 4), np.int8), "3-bit"),
}


@pytest.mark.parametrize("message", WRONG)
def test_errors_name_the_value_and_what_would_work(message):
    x, w = np.zeros((5, 8), np.int8), panels.pack(np.zeros((4, 8), np.int8))
    with pytest.raises(ValueError, match=message):
        WRONG[message](x, w)
