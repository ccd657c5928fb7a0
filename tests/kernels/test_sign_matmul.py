import numpy as np
import pytest
from numpy.testing import assert_array_equal

from qbook import bitwise
from qbook.kernels import isa
from qbook.kernels.sign_matmul import loops, matmul, panels, reference

SETS = isa.available()
# Rows below, at and beyond every tile; outputs and inputs that fill no panel and no word.
SHAPES = [(1, 1, 1), (3, 7, 33), (7, 63, 8), (13, 64, 16), (33, 127, 70), (98, 1000, 37)]


def signs(rng, shape, dtype=np.int8):
    return rng.choice([-1, 1], shape).astype(dtype)


def product(x, w):
    """The oracle: real numbers, exact for sums of so few ones."""
    return x.astype(np.float64) @ w.astype(np.float64).T


@pytest.mark.parametrize("use", SETS)
@pytest.mark.parametrize(("samples", "in_", "out"), SHAPES)
def test_the_product_is_that_of_the_signs_as_numbers(samples, in_, out, use):
    rng = np.random.default_rng(0)
    x, w = signs(rng, (samples, in_)), signs(rng, (out, in_))
    packed, words = panels.pack(w), panels.pack_rows(x)
    # Both are kept: memory that is handed out again would hold the right sums already.
    both = [matmul.matmul(words, packed, use=use, num_threads=threads) for threads in (1, 2)]
    for result in both:
        assert result.dtype == np.int32
        assert_array_equal(result, product(x, w))
    assert_array_equal(matmul.matmul(x, packed, use=use), product(x, w))


@pytest.mark.parametrize("use", SETS)
@pytest.mark.parametrize(("samples", "in_", "out"), [(0, 5, 5), (5, 0, 5), (5, 5, 0), (0, 0, 0)])
def test_empty_dimensions_give_empty_or_zero_results(samples, in_, out, use):
    x, w = np.ones((samples, in_), np.int8), panels.pack(np.ones((out, in_)))
    assert_array_equal(matmul.matmul(x, w, use=use), np.zeros((samples, out)))
    zeros = matmul.linear(x, 1.0, w, 1.0, np.full(out, 2.5), use=use)
    assert_array_equal(zeros, np.full((samples, out), 2.5 if in_ == 0 else 0)[:samples, :out])


@pytest.mark.parametrize("use", SETS)
def test_long_rows_that_agree_or_disagree_everywhere_are_counted_in_full(use):
    # Past 2^16 ones, and a last word of one bit.
    in_ = 2**16 + 65
    w = np.stack([np.ones(in_), -np.ones(in_)] * 5)
    x = np.ones((3, in_), np.float32)
    expected = np.tile([in_, -in_], (3, 5))
    assert_array_equal(matmul.matmul(x, panels.pack(w), use=use), expected)
    assert_array_equal(matmul.matmul(-x, panels.pack(w), use=use), -expected)


@pytest.mark.parametrize("use", SETS)
def test_every_single_disagreement_costs_two(use):
    in_ = 130
    x = 1 - 2 * np.eye(in_, dtype=np.int8)
    result = matmul.matmul(x, panels.pack(np.ones((9, in_))), use=use)
    assert_array_equal(result, np.full((in_, 9), in_ - 2))
    # One sign against another of two such rows: they disagree at two places, or at none.
    assert_array_equal(matmul.matmul(x, panels.pack(x), use=use), in_ - 4 + 4 * np.eye(in_))


@pytest.mark.parametrize("in_", [1, 8, 9, 63, 64, 65, 200])
def test_the_bits_of_a_row_are_those_of_chapter_1(in_):
    x = signs(np.random.default_rng(0), (5, in_))
    expected = bitwise.pack_signs(x)
    for words in (panels.pack_rows(x), panels.unpack(panels.pack(x))):
        octets = words.astype("<u8").view(np.uint8)
        assert_array_equal(octets[:, : expected.shape[1]], expected)
        # The filler: zeros, so that it never disagrees.
        assert not octets[:, expected.shape[1] :].any()
    assert_array_equal(bitwise.dot_signs(expected[0], expected[1], in_), product(x, x)[0, 1])


@pytest.mark.parametrize("in_", [3, 64, 150])
@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.float16, np.float32, np.float64])
def test_rows_are_packed_by_sign_and_zero_counts_as_positive(in_, dtype):
    x = np.random.default_rng(0).normal(scale=40, size=(4, in_)).astype(dtype)
    x[0, :3], x[1, -1], x[2, -1] = 0, 0, -1
    if np.issubdtype(dtype, np.floating):
        # The smallest numbers of their type; as float32 those of float64 would be zeros.
        tiny = np.finfo(dtype).smallest_subnormal
        x[3, :3] = -0.0, -tiny, tiny
    assert_array_equal(reference.unpack_signs(panels.pack_rows(x), in_), np.where(x >= 0, 1, -1))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("place", [0, 63, 64, 69])
def test_a_number_without_a_sign_is_refused_wherever_it_stands(place, dtype):
    x = np.ones((3, 70), dtype)
    x[1, place] = np.nan
    with pytest.raises(ValueError, match="NaN, which has no sign"):
        panels.pack_rows(x)


@pytest.mark.parametrize("use", SETS)
def test_strides_do_not_matter(use):
    rng = np.random.default_rng(0)
    x, w = signs(rng, (66, 80)), signs(rng, (90, 48))
    views = [x[::2, 8:56], x[:, ::-1][:, :48], np.asfortranarray(x[:, :48]), x.T[:48].T]
    packed = panels.pack(w.T[:48].T[::-1])
    for view in views:
        expected = product(view, w[::-1])
        assert_array_equal(matmul.matmul(view, packed, use=use), expected)
        words = np.repeat(panels.pack_rows(view), 2, axis=0)[::2]
        assert_array_equal(matmul.matmul(words, packed, use=use), expected)


@pytest.mark.parametrize("use", SETS)
@pytest.mark.parametrize(("samples", "out"), [(1, 1), (19, 37), (40, 16)])
def test_linear_scales_the_sums_bit_for_bit(samples, out, use):
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(samples, 100)).astype(np.float32), rng.normal(size=(out, 100))
    # XNOR-Net's scales: the mean magnitudes of what is replaced by its signs.
    x_scale = np.abs(x).mean(axis=1)
    w_scale = np.abs(w).mean(axis=1).astype(np.float32)
    bias = rng.normal(size=out).astype(np.float32)
    w_signs = np.where(w >= 0, 1, -1)
    sums = product(np.where(x >= 0, 1, -1), w_signs).astype(np.float32)
    expected = sums * (x_scale[:, None] * w_scale) + bias
    packed = panels.pack(w_signs)
    both = [
        matmul.linear(x, x_scale, packed, w_scale, bias, use=use, num_threads=threads)
        for threads in (1, 2)
    ]
    for result in both:
        assert result.dtype == np.float32
        assert_array_equal(result, expected)
    half = matmul.linear(panels.pack_rows(x), 0.5, packed, 1, use=use)
    assert_array_equal(half, sums * np.float32(0.5))


@pytest.mark.parametrize("name", ["swar", "ctpop", "lanes"])
def test_the_plain_loops_compute_the_same_product(name):
    rng = np.random.default_rng(0)
    x, w = signs(rng, (5, 150)), signs(rng, (11, 150))
    out = np.full((5, 11), 999, np.int32)
    rows = panels.pack_rows(w)
    rows = np.ascontiguousarray(rows.T) if name == "lanes" else rows
    getattr(loops, name)(panels.pack_rows(x), rows, 150, out)
    assert_array_equal(out, product(x, w))


def test_the_bit_hack_counts_the_ones_of_every_byte_at_every_place():
    for byte in range(256):
        for place in range(0, 64, 8):
            assert loops.count_ones_swar(np.uint64(byte << place)) == byte.bit_count()
    assert loops.count_ones_swar(np.uint64(2**64 - 1)) == 64


WRONG = {
    "holds a value other than -1 and": lambda x, w: panels.pack([[1, 0]]),
    "signs is of shape .2,.; pass": lambda x, w: panels.pack([1, -1]),
    "x is of type complex128": lambda x, w: panels.pack_rows(np.ones((2, 2), complex)),
    "x is of type int8 and shape .70,.": lambda x, w: panels.pack_rows(x[0]),
    "x is of shape .5, 69.; pass numbers .samples, 70.": lambda x, w: matmul.matmul(x[:, 1:], w),
    "x is words of shape .5, 1.; pass .samples, 2.": lambda x, w: matmul.matmul(
        panels.pack_rows(x)[:, :1], w
    ),
    "x_scale is of shape .3,.": lambda x, w: matmul.linear(x, np.ones(3), w, 1.0),
    "w_scale is of shape .5,.": lambda x, w: matmul.linear(x, 1.0, w, np.ones(5)),
    "bias is of shape .2,.": lambda x, w: matmul.linear(x, 1.0, w, 1.0, np.ones(2)),
    "'sse9' is no instruction set": lambda x, w: matmul.matmul(x, w, use="sse9"),
    "threads=1000 is not to be had": lambda x, w: matmul.matmul(x, w, num_threads=1000),
}


@pytest.mark.parametrize("message", WRONG)
def test_errors_name_the_value_and_what_would_work(message):
    x, w = np.ones((5, 70), np.int8), panels.pack(np.ones((4, 70)))
    with pytest.raises(ValueError, match=message):
        WRONG[message](x, w)
