import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from qbook import affine
from qbook.kernels import isa
from qbook.kernels.rowwise import quantizer, vectors

SETS = isa.available()
FAST = SETS[0]
# Around one vector and four, and a row too long to be fetched during another.
SHAPES = [(1, 1), (3, 7), (7, 16), (33, 33), (5, 127), (2, 1000), (2, 140_001)]
TINY = np.float32(1.1754944e-38)


def draw(shape, seed=0):
    """Normal numbers; rows and columns of very different size, one of each zero."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape) * 10.0 ** rng.uniform(-12, 12, (shape[0], 1))
    x *= 10.0 ** rng.uniform(-12, 12, (1, shape[1]))
    if min(shape) > 2:
        x[1], x[:, 2] = 0, 0
    return x.astype(np.float32)


def equal_bits(found, expected):
    assert found.dtype == expected.dtype
    assert_array_equal(found, expected)


@pytest.mark.parametrize("use", SETS)
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("shape", SHAPES)
def test_codes_and_scales_are_those_of_the_affine_quantizer(shape, axis, use):
    x = draw(shape)
    qparams = affine.choose_qparams(x, 8, axis=axis)
    expected = affine.quantize(x, qparams)
    for threads in (1, 2):
        codes, scale = quantizer.quantize(x, axis, use=use, num_threads=threads)
        equal_bits(codes, expected)
        equal_bits(scale, qparams.scale)


@pytest.mark.parametrize("use", SETS)
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("shift", [0, 1, -1])
@pytest.mark.parametrize("shape", [(3, 7), (33, 70)])
def test_asymmetric_codes_are_those_of_the_affine_quantizer(shape, shift, axis, signed, use):
    x = draw(shape)
    # Ranges about zero, and those that lie to one side of it.
    x = x + np.float32(shift) * np.abs(x).max(axis=axis, keepdims=True)
    qparams = affine.choose_qparams(x, 8, axis=axis, symmetric=False, signed=signed)
    expected = affine.quantize(x, qparams)
    for threads in (1, 2):
        codes, scale, zero_point = quantizer.quantize_asymmetric(
            x, axis, signed=signed, use=use, num_threads=threads
        )
        equal_bits(codes, expected)
        equal_bits(scale, qparams.scale)
        equal_bits(zero_point, qparams.zero_point)


@pytest.mark.parametrize("use", SETS)
@pytest.mark.parametrize(("qmin", "qmax"), [(-127, 127), (-128, 127), (0, 255), (-8, 7), (3, 3)])
@pytest.mark.parametrize("along", ["rows", "columns", "all"])
@pytest.mark.parametrize("shape", [(5, 33), (40, 3)])
def test_given_scales_and_zero_points_are_obeyed(shape, along, qmin, qmax, use):
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape).astype(np.float32)
    size = {"rows": (shape[0], 1), "columns": (1, shape[1]), "all": (1, 1)}[along]
    # Steps so small that most numbers saturate, and so large that most are zero.
    scale = (10.0 ** rng.uniform(-4, 1, size)).astype(np.float32)
    zero_point = rng.integers(qmin, qmax, size, endpoint=True).astype(np.int32)
    expected = affine.quantize(x, affine.QParams(scale, zero_point, qmin, qmax))
    for threads in (1, 2):
        codes = quantizer.quantize_with(
            x, scale, zero_point, qmin, qmax, use=use, num_threads=threads
        )
        equal_bits(codes, expected)


@pytest.mark.parametrize("axis", [0, 1])
def test_given_scales_give_what_torch_gives(axis):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(37, 45)).astype(np.float32)
    scale = rng.uniform(0.005, 0.05, x.shape[axis]).astype(np.float32)
    zero_point = rng.integers(-128, 128, x.shape[axis]).astype(np.int32)
    tensors = (torch.from_numpy(a) for a in (x, scale, zero_point))
    theirs = torch.fake_quantize_per_channel_affine(*tensors, axis, -128, 127)
    shape = (-1, 1) if axis == 0 else (1, -1)
    given = scale.reshape(shape), zero_point.reshape(shape)
    codes = quantizer.quantize_with(x, *given, -128, 127)
    assert_array_equal(quantizer.dequantize(codes, *given), theirs.numpy())


@pytest.mark.parametrize("use", SETS)
@pytest.mark.parametrize("zero_point", [-128, -1, 0, 127])
def test_every_tie_goes_to_the_even_step_and_its_neighbours_to_the_nearest(zero_point, use):
    ties = np.arange(-600, 600, dtype=np.float32) + np.float32(0.5)
    ends = np.float32([-np.inf, np.inf])
    x = np.stack([ties, *(np.nextafter(ties, end) for end in ends)])
    # Python rounds decimal numbers exactly, ties to even.
    steps = np.array([[round(float(value)) for value in row] for row in x])
    codes = quantizer.quantize_with(x, 1.0, zero_point, -128, 127, use=use)
    assert_array_equal(codes, np.clip(steps + zero_point, -128, 127))


@pytest.mark.parametrize("use", SETS)
@pytest.mark.parametrize("size", [1e-45, 1e-40, 1e-37, 1.0, 1e30, 3.4e38])
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_smallest_and_the_largest_floats_have_their_codes(symmetric, size, use):
    x = np.float32(size) * np.float32([[1, -1, 0.5, 0, -0.0, 0.25, -0.3]])
    qparams = affine.choose_qparams(x, 8, axis=1, symmetric=symmetric)
    call = quantizer.quantize if symmetric else quantizer.quantize_asymmetric
    codes, scale = call(x, use=use)[:2]
    equal_bits(codes, affine.quantize(x, qparams))
    equal_bits(scale, qparams.scale)
    assert scale.min() >= TINY


@pytest.mark.parametrize("use", SETS)
@pytest.mark.parametrize("x", np.float32([1e9, -1e9, 3e38, -3e38, 2**23, -(2**23), 2**22 + 0.5]))
def test_numbers_far_beyond_the_range_saturate(x, use):
    for scale in (1.0, 1e-3, float(TINY)):
        codes = quantizer.quantize_with(np.full((2, 17), x), scale, 5, -100, 101, use=use)
        assert_array_equal(codes, np.full((2, 17), 101 if x > 0 else -100))


@pytest.mark.parametrize("use", SETS)
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [(0, 0), (2, 63), (2, 69), (6, 0), (6, 69)])
def test_nan_and_infinity_are_refused_wherever_they_stand(at, bad, use):
    x = np.ones((7, 70), np.float32)
    x[at] = bad
    calls = [lambda x, **more: quantizer.quantize_with(x, 1.0, **more)]
    calls += [
        lambda x, call=call, axis=axis, **more: call(x, axis, **more)
        for call in (quantizer.quantize, quantizer.quantize_asymmetric)
        for axis in (0, 1)
    ]
    for call in calls:
        for threads in (1, 2):
            with pytest.raises(ValueError, match="NaN or infinity"):
                call(x, use=use, num_threads=threads)


@pytest.mark.parametrize("use", SETS)
@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
@pytest.mark.parametrize("along", [0, 1])
def test_every_code_has_its_value_for_every_zero_point(along, dtype, use):
    info = np.iinfo(dtype)
    every = np.arange(info.min, info.max + 1)
    codes = np.broadcast_to(every, (256, 256)).astype(dtype)
    scale = np.linspace(0.001, 3, 256, dtype=np.float32)
    shape = (-1, 1) if along else (1, -1)
    zero_point, scale = every.reshape(shape), scale.reshape(shape)
    # The difference is exact in float32, so that the product is the only rounding.
    expected = (codes.astype(np.int32) - zero_point).astype(np.float32) * scale
    for threads in (1, 2):
        out = np.full(codes.shape, np.nan, np.float32)
        values = quantizer.dequantize(
            codes, scale, zero_point, out=out, use=use, num_threads=threads
        )
        assert values is out
        equal_bits(values, expected)


@pytest.mark.parametrize("use", SETS)
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
def test_empty_dimensions_give_scales_of_one(shape, axis, use):
    x = np.zeros(shape, np.float32)
    codes, scale = quantizer.quantize(x, axis, use=use)
    assert codes.shape == shape
    assert_array_equal(scale, np.ones(affine.choose_qparams(x, 8, axis=axis).scale.shape))
    assert quantizer.quantize_with(x, scale, use=use).shape == shape
    assert quantizer.dequantize(codes, scale, use=use).shape == shape


@pytest.mark.parametrize("use", SETS)
def test_strides_do_not_matter_and_arguments_stay(use):
    x = np.random.default_rng(0).normal(size=(40, 80)).astype(np.float32)
    before = x.copy()
    for view in (x[::3, 5:60], x[:, ::-2], np.asfortranarray(x), x.T):
        codes, scale = quantizer.quantize(view, use=use)
        expected, expected_scale = quantizer.quantize(view.copy(), use="reference")
        equal_bits(codes, expected)
        equal_bits(scale, expected_scale)
        turned = np.asfortranarray(codes)
        expected = quantizer.dequantize(codes, scale, use="reference")
        equal_bits(quantizer.dequantize(turned, scale, use=use), expected)
    assert_array_equal(x, before)


@pytest.mark.parametrize("shape", [(3, 5), (4, 16), (5, 33)])
def test_nothing_is_written_beside_the_result(shape):
    x = draw(shape)
    size = x.size
    codes, values = np.full(size + 128, 77, np.int8), np.full(size + 128, np.nan, np.float32)
    inside = slice(64, 64 + size)
    out, floats = codes[inside].reshape(shape), values[inside].reshape(shape)
    for axis in (0, 1):
        found, scale = quantizer.quantize(x, axis, out=out)
        assert found is out
        quantizer.quantize_with(x, scale, out=out)
        quantizer.dequantize(out, scale, out=floats)
        assert not np.isnan(floats).any()
    outside = np.delete(np.arange(size + 128), np.arange(64, 64 + size))
    assert (codes[outside] == 77).all()
    assert np.isnan(values[outside]).all()


def test_bits_far_from_the_rounder_lie_outside_the_codes_on_the_right_side():
    # What ``codes_of`` relies on, for steps of all sizes and those next to -ROUNDER: the bits rise
    # with the number, or are negative below all codes; no zero-point can make them overflow.
    sizes = 2.0 ** np.arange(9, 128).repeat(2) * np.tile([1, 1.999], 119)
    near = -float(vectors.ROUNDER) + np.arange(-300, 300)
    for steps in (sizes, -sizes, near):
        bits = (steps.astype(np.float32) + vectors.ROUNDER).view(np.int32).astype(np.int64)
        codes = bits - int(vectors.ROUNDER_BITS)
        assert (codes >= 512).all() if steps[0] > 0 else (codes <= -512).all()
        assert bits.min() - 128 >= -(2**31)
        assert bits.max() + 255 < 2**31
    assert vectors.ROUNDER.view(np.int32) == vectors.ROUNDER_BITS


def test_errors_say_what_was_given_and_what_would_work():
    x, scale = np.ones((3, 4), np.float32), np.ones((3, 1), np.float32)
    for wrong in (x.astype(np.float64), x.astype(np.float16), x.astype(int)):
        with pytest.raises(ValueError, match=f"type {wrong.dtype}.*pass float32"):
            quantizer.quantize(wrong)
    with pytest.raises(ValueError, match=r"shape \(3,\).*\[rows, n\]"):
        quantizer.quantize(x[:, 0])
    with pytest.raises(ValueError, match="axis=2"):
        quantizer.quantize(x, 2)
    with pytest.raises(ValueError, match="'sse9'"):
        quantizer.quantize(x, use="sse9")
    for wrong in (np.empty((3, 4)), np.empty((4, 3), np.int8), np.empty((4, 3), np.int8).T, []):
        with pytest.raises(ValueError, match=r"contiguous array of int8 \[3, 4\]"):
            quantizer.quantize(x, out=wrong)
    for wrong in (np.ones((4, 1)), np.ones(3), np.ones((3, 4)), np.ones((3, 1), int)):
        with pytest.raises(ValueError, match=r"shape \(3, 1\) or \(1, 4\)"):
            quantizer.quantize_with(x, wrong)
    for wrong in (0.0, -1.0, np.inf, np.nan, 1e-40):
        with pytest.raises(ValueError, match="no use"):
            quantizer.quantize_with(x, wrong)
    with pytest.raises(ValueError, match="scale's shape"):
        quantizer.quantize_with(x, scale, np.zeros(2, int))
    with pytest.raises(ValueError, match="type float64"):
        quantizer.quantize_with(x, scale, 0.5)
    with pytest.raises(ValueError, match="choose -127 to 127"):
        quantizer.quantize_with(x, scale, -128)
    with pytest.raises(ValueError, match="neither int8 nor uint8"):
        quantizer.quantize_with(x, scale, 0, -1, 200)
    with pytest.raises(ValueError, match="int8 or uint8"):
        quantizer.dequantize(x, scale)
