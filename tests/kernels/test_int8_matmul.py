import itertools

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from qbook import affine, integer_product, requantize
from qbook.kernels import isa
from qbook.kernels.int8_matmul import loops, matmul, panels, reference

SETS = isa.available()
# Rows below, at and beyond every tile; outputs and inputs that fill no panel.
SHAPES = [(1, 1, 1), (3, 7, 33), (7, 33, 127), (13, 127, 7), (33, 1000, 3), (98, 65, 64)]
TYPES = list(itertools.product((np.int8, np.uint8), repeat=2))


def draw(rng, dtype, shape):
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, shape, dtype, endpoint=True)


@pytest.mark.parametrize("use", SETS)
@pytest.mark.parametrize(("x_type", "w_type"), TYPES)
@pytest.mark.parametrize(("samples", "in_", "out"), SHAPES)
def test_sums_are_those_of_64_bit_integers(samples, in_, out, x_type, w_type, use):
    rng = np.random.default_rng(0)
    x, w = draw(rng, x_type, (samples, in_)), draw(rng, w_type, (out, in_))
    x_zero, w_zero = draw(rng, x_type, samples), draw(rng, w_type, out)
    expected = reference.accumulate(x, w, x_zero, w_zero)
    packed = panels.pack(w, w_zero)
    # Both are kept: memory that is given back may be handed out again with the right sums in it.
    results = [matmul.matmul(x, packed, x_zero, use=use, num_threads=n) for n in (1, 2)]
    for sums in results:
        assert sums.dtype == np.int32
        assert_array_equal(sums, expected)


@pytest.mark.parametrize("use", SETS)
@pytest.mark.parametrize(("samples", "in_", "out"), [(0, 5, 5), (5, 0, 5), (5, 5, 0), (0, 0, 0)])
def test_empty_dimensions_give_empty_or_zero_results(samples, in_, out, use):
    x, w = np.zeros((samples, in_), np.int8), np.zeros((out, in_), np.int8)
    assert_array_equal(matmul.matmul(x, panels.pack(w), use=use), np.zeros((samples, out)))


@pytest.mark.parametrize("use", SETS)
@pytest.mark.parametrize("codes", [(-128, -128), (-128, 127), (127, 127)])
def test_the_longest_sum_of_extreme_codes_does_not_overflow(codes, use):
    longest = (2**31 - 1) // 128**2
    x = np.full((7, longest), codes[0], np.int8)
    w = np.full((17, longest), codes[1], np.int8)
    sums = matmul.matmul(x, panels.pack(w), use=use, num_threads=2)
    assert_array_equal(sums, np.full((7, 17), longest * codes[0] * codes[1]))


def test_a_sum_that_might_not_fit_is_refused():
    longest = (2**31 - 1) // 128**2
    x, w = np.zeros((1, longest + 1), np.int8), np.zeros((1, longest + 1), np.int8)
    with pytest.raises(ValueError, match=f"pieces of at most {longest}"):
        matmul.matmul(x, panels.pack(w))
    with pytest.raises(ValueError, match=f"pieces of at most {(2**31 - 1) // 255**2}"):
        matmul.matmul(x[:, :40000], panels.pack(w[:, :40000], -128), 127)


@pytest.mark.parametrize("use", SETS)
def test_strides_do_not_matter(use):
    rng = np.random.default_rng(0)
    x, w = draw(rng, np.int8, (66, 80)), draw(rng, np.int8, (130, 48))
    views = [x[::2, 8:56], x[:, ::-1][:, :48], np.asfortranarray(x[:, :48]), x.T[:48].T]
    for view in views:
        result = matmul.matmul(view, panels.pack(w.T[:48].T[::-1]), use=use)
        assert_array_equal(result, reference.accumulate(view, w[::-1]))


@pytest.mark.parametrize("w_type", [np.int8, np.uint8])
@pytest.mark.parametrize(("out", "in_"), [(1, 1), (7, 33), (48, 64), (0, 3)])
def test_unpack_undoes_pack(out, in_, w_type):
    w = draw(np.random.default_rng(0), w_type, (out, in_))
    packed = panels.pack(w)
    assert_array_equal(panels.unpack(packed), w)
    assert packed.data.size == 0 or packed.data.ctypes.data % 64 == 0


@pytest.mark.parametrize("use", SETS)
def test_linear_is_the_integer_product_of_chapter_2_bit_for_bit(use):
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(19, 133)).astype(np.float32), rng.normal(size=(37, 133))
    x_qparams = affine.choose_qparams(x, 8, axis=1, symmetric=False)
    w_qparams = affine.choose_qparams(w.astype(np.float32), 8, axis=1)
    x_codes = affine.quantize(x, x_qparams)
    w_codes = affine.quantize(w.astype(np.float32), w_qparams)
    expected = integer_product.linear(x_codes, x_qparams, w_codes, w_qparams)
    packed = panels.pack(w_codes)
    scales = x_qparams.scale, packed, w_qparams.scale
    zero_point = x_qparams.zero_point
    result = matmul.linear(x_codes, *scales, x_zero_point=zero_point, use=use)
    assert result.dtype == np.float32
    assert_array_equal(result, expected)
    bias = rng.normal(size=37).astype(np.float32)
    with_bias = matmul.linear(x_codes, *scales, bias, zero_point, use=use, num_threads=2)
    assert_array_equal(with_bias, expected + bias)


@pytest.mark.parametrize("use", SETS)
@pytest.mark.parametrize(("qmin", "qmax", "zero_point"), [(-128, 127, -5), (0, 255, 3), (-7, 7, 0)])
def test_requantized_codes_are_those_of_gemmlowp_bit_for_bit(qmin, qmax, zero_point, use):
    rng = np.random.default_rng(0)
    x, w = draw(rng, np.int8, (33, 127)), draw(rng, np.int8, (21, 127))
    x_zero, bias = draw(rng, np.int8, 33), rng.integers(-(2**20), 2**20, 21, np.int32)
    y_qparams = affine.QParams(np.float32(1), np.int32(zero_point), qmin, qmax)
    packed, sums = panels.pack(w), reference.accumulate(x, w, x_zero).astype(np.int32)
    # From multipliers that make every code 0 to those that saturate, above 1 too.
    for size in (1e-11, 1e-4, 3e-3, 0.7, 5.0):
        multiplier = requantize.quantize_multiplier(size * rng.uniform(0.5, 2, 21))
        expected = requantize.requantize(sums + bias, *multiplier, y_qparams)
        codes = matmul.requantized(x, packed, *multiplier, y_qparams, bias, x_zero, use=use)
        assert codes.dtype == expected.dtype
        assert_array_equal(codes, expected)


def test_torch_computes_the_same_product():
    rng = np.random.default_rng(0)
    x, w = draw(rng, np.int8, (64, 96)), draw(rng, np.int8, (48, 96))
    theirs = torch._int_mm(torch.from_numpy(x), torch.from_numpy(w).T)
    assert_array_equal(matmul.matmul(x, panels.pack(w)), theirs)


@pytest.mark.parametrize("name", ["naive", "dot", "lanes"])
def test_the_plain_loops_compute_the_same_product(name):
    rng = np.random.default_rng(0)
    x, w = draw(rng, np.int8, (5, 37)), draw(rng, np.int8, (11, 37))
    out = np.full((5, 11), -1, np.int32)
    getattr(loops, name)(x, w if name == "dot" else np.ascontiguousarray(w.T), out)
    assert_array_equal(out, reference.accumulate(x, w))


WRONG = {
    "x_codes is of type float32": lambda x, w: matmul.matmul(x.astype(np.float32), w),
    "x_codes is of type int8 and shape .5, 7.": lambda x, w: matmul.matmul(x[:, :7], w),
    "x_codes is of type int8 and shape .8,.": lambda x, w: matmul.matmul(x[0], w),
    "x_zero_point is of type int64 and shape .4,.": lambda x, w: matmul.matmul(x, w, [1, 2, 3, 4]),
    "x_zero_point from 200 to 200 is no code of int8": lambda x, w: matmul.matmul(x, w, 200),
    "x_zero_point is of type float64": lambda x, w: matmul.matmul(x, w, 0.5),
    "x_scale is of shape .3,.": lambda x, w: matmul.linear(x, np.ones(3), w, 1.0),
    "w_scale is of shape .5,.": lambda x, w: matmul.linear(x, 1.0, w, np.ones(5)),
    "bias is of shape .2,.": lambda x, w: matmul.linear(x, 1.0, w, 1.0, np.ones(2)),
    "'sse9' is no instruction set": lambda x, w: matmul.matmul(x, w, use="sse9"),
    "threads=1000 is not to be had": lambda x, w: matmul.matmul(x, w, num_threads=1000),
    "w_codes is of type int32": lambda x, w: panels.pack(np.zeros((3, 4), np.int32)),
    "w_codes is of type int8 and shape .3,.": lambda x, w: panels.pack(np.zeros(3, np.int8)),
    "codes -300..300": lambda x, w: matmul.requantized(
        x, w, 2**30, 3, affine.QParams(np.float32(1), np.int32(0), -300, 300)
    ),
}


@pytest.mark.parametrize("message", WRONG)
def test_errors_name_the_value_and_what_would_work(message):
    x, w = np.zeros((5, 8), np.int8), panels.pack(np.zeros((4, 8), np.int8))
    with pytest.raises(ValueError, match=message):
        WRONG[message](x, w)
