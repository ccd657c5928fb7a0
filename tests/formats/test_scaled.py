from fractions import Fraction

import bitsandbytes.functional as bnb
import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from qbook import affine, formats
from qbook.formats import E2M1, E2M3, E3M2, E4M3, E5M2, E8M0, INT4, INT8, NF4
from qbook.formats.scaled import absmax_scale, fake_quantize, power_of_two_scale

SHAPES = [(1, 1), (3, 7), (5, 64), (2, 3, 33)]
# The element types of MX, and the exponents of their largest numbers as the specification has them.
MX = {
    "E4M3": (ml_dtypes.float8_e4m3fn, 8),
    "E5M2": (ml_dtypes.float8_e5m2, 15),
    "E2M3": (ml_dtypes.float6_e2m3fn, 2),
    "E3M2": (ml_dtypes.float6_e3m2fn, 4),
    "E2M1": (ml_dtypes.float4_e2m1fn, 2),
}


def blocks(shape, seed=0):
    """Gaussian numbers in rows of very different size; the first number of all is 0."""
    rng = np.random.default_rng(seed)
    sizes = 2.0 ** rng.integers(-20, 20, size=(*shape[:-1], 1))
    x = (rng.normal(size=shape) * sizes).astype(np.float32)
    x.flat[0] = 0
    return x


def floor_log2(value):
    """By comparing fractions, where a logarithm may round to the next integer."""
    value, exponent = Fraction(float(value)), 0
    while Fraction(2) ** (exponent + 1) <= value:
        exponent += 1
    while Fraction(2) ** exponent > value:
        exponent -= 1
    return exponent


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("shape", SHAPES)
def test_integers_scaled_by_absmax_are_the_symmetric_affine_quantizer(shape, bits):
    x, fmt = blocks(shape), getattr(formats, f"INT{bits}")
    qparams = affine.choose_qparams(x, bits, axis=-1)
    scale = absmax_scale(x, fmt, axis=-1)
    assert_array_equal(scale, qparams.scale)
    assert_array_equal(fake_quantize(x, fmt, scale), affine.fake_quantize(x, qparams))


def test_the_scale_is_applied_as_in_torch_even_beside_ties():
    # Half-odd multiples of a rounded 0.1: dividing and multiplying by the reciprocal differ here.
    x = torch.tensor((np.arange(-130, 130) + 0.5) * 0.1, dtype=torch.float32)
    theirs = torch.fake_quantize_per_tensor_affine(x, 0.1, 0, -128, 127)
    assert torch.equal(fake_quantize(x, INT8, torch.tensor([0.1])), theirs)


def test_nf4_blocks_are_those_of_bitsandbytes_to_the_last_bit():
    x = torch.from_numpy(np.random.default_rng(1).normal(size=(2**14, 64)).astype(np.float32))
    packed, state = bnb.quantize_4bit(x.reshape(-1), blocksize=64, quant_type="nf4")
    theirs = bnb.dequantize_4bit(packed, state).reshape(-1, 64)
    scale = absmax_scale(x, NF4, axis=1)
    # Its boundaries are midpoints rounded to float32, ours are exact: only a number that lies on a
    # rounded midpoint may differ (test_normal_float.py).
    levels = torch.tensor(NF4.values)
    settled = ~torch.isin(x * (1.0 / scale), (levels[1:] + levels[:-1]) / 2)
    assert int((~settled).sum()) <= 20
    assert torch.equal(fake_quantize(x, NF4, scale)[settled], theirs[settled])


@pytest.mark.parametrize("name", MX)
@pytest.mark.parametrize("shape", SHAPES)
def test_mx_blocks_equal_a_naive_loop_with_ml_dtypes_casts(shape, name):
    fmt, (their_type, emax), x = getattr(formats, name), MX[name], blocks(shape)
    expected = np.full_like(x, np.nan)
    for index in np.ndindex(shape[:-1]):
        largest = np.abs(x[index]).max()
        scale = 2.0 ** (floor_log2(largest) - emax) if largest else 2.0**-127
        # ml_dtypes turns what overflows E4M3 and E5M2 into NaN and infinity: saturate first.
        relative = np.clip(x[index].astype(np.float64) / scale, fmt.min, fmt.max)
        expected[index] = relative.astype(their_type).astype(np.float64) * scale
    assert_array_equal(fake_quantize(x, fmt, power_of_two_scale(x, fmt, axis=-1)), expected)


def test_mxint8_steps_are_a_64th_of_the_shared_power_of_two():
    # The specification: elements -2 ... 1 63/64 in steps of 2^-6, emax 0.
    x = np.float32([[1.0, 1.99, -2.0 + 2.0**-7, 0.3]])
    scale = power_of_two_scale(x, INT8, axis=1)
    assert scale == 2.0**-6
    assert_array_equal(fake_quantize(x, INT8, scale) * 64, np.clip(np.rint(x * 64), -128, 127))


@pytest.mark.parametrize("fmt", [E2M1, E2M3, E3M2, E4M3, E5M2, INT4, NF4], ids=lambda f: f.name)
def test_the_largest_of_a_block_becomes_the_largest_value_up_to_rounding(fmt):
    x = blocks((40, 33))
    scale = absmax_scale(x, fmt, axis=1)
    largest = np.abs(x).max(axis=1)
    found = np.abs(fake_quantize(x, fmt, scale)).max(axis=1)
    # One rounding of the scale and one of the product, 2^-24 relative each.
    assert np.all(np.abs(found - largest) <= 2.0**-22 * largest)


@pytest.mark.parametrize("fmt", [E2M1, E4M3, E5M2, NF4], ids=lambda f: f.name)
@pytest.mark.parametrize("scale_of", [absmax_scale, power_of_two_scale])
def test_both_scales_commute_with_powers_of_two(scale_of, fmt):
    x = blocks((9, 64), seed=2)
    once = fake_quantize(x, fmt, scale_of(x, fmt, axis=1))
    twice = fake_quantize(x * 8, fmt, scale_of(x * 8, fmt, axis=1))
    assert_array_equal(twice, once * 8)


def test_a_power_of_two_scale_is_a_number_of_e8m0_even_at_its_ends():
    x = np.array([[2.0**-149], [2.0**-120], [1.0], [3.9], [4.0], [2.0**127], [0.0]], np.float32)
    scale = power_of_two_scale(x, E2M1, axis=1)
    assert_array_equal(scale[:, 0], 2.0 ** np.array([-127, -122, -2, -1, 0, 125, -127]))
    assert_array_equal(E8M0.decode(E8M0.encode(scale)), scale)
    assert_array_equal(power_of_two_scale(x, E5M2, axis=1)[[0, 1]], np.full((2, 1), 2.0**-127))
    assert power_of_two_scale(np.array([1e300]), E2M1) == 2.0**127


def test_between_six_and_eight_steps_the_largest_of_an_mxfp4_block_is_clipped():
    x = np.float32([[7.9, 1.0], [6.0, 1.0], [4.0, 1.0]])
    scale = power_of_two_scale(x, E2M1, axis=1)
    assert_array_equal(scale, np.ones((3, 1)))
    assert_array_equal(fake_quantize(x, E2M1, scale)[:, 0], [6, 6, 4])


@pytest.mark.parametrize("scale_of", [absmax_scale, power_of_two_scale])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_torch_equals_numpy(scale_of, dtype):
    tensor = torch.from_numpy(blocks((6, 5))).to(dtype).requires_grad_()
    array = tensor.detach().to(torch.float64 if dtype == torch.float64 else torch.float32).numpy()
    scale, expected = scale_of(tensor, E4M3, axis=1), scale_of(array, E4M3, axis=1)
    assert_array_equal(scale.numpy(), expected)
    x_hat = fake_quantize(tensor, E4M3, scale)
    assert x_hat.dtype == dtype
    assert not x_hat.requires_grad
    theirs = torch.from_numpy(fake_quantize(array, E4M3, expected)).to(dtype)
    assert torch.equal(x_hat, theirs)


def test_one_scale_for_all_or_for_several_axes():
    x = blocks((2, 3, 4))
    assert absmax_scale(x, E4M3).shape == (1, 1, 1)
    assert absmax_scale(x, E4M3, axis=(0, 2)).shape == (1, 3, 1)
    assert_array_equal(absmax_scale(x, E4M3), np.abs(x).max(keepdims=True) / np.float32(448))


def test_zeros_stay_zeros_and_tiny_blocks_finite():
    zeros = np.zeros((2, 5), np.float32)
    assert_array_equal(absmax_scale(zeros, E2M1, axis=1), np.ones((2, 1)))
    for scale_of in (absmax_scale, power_of_two_scale):
        assert_array_equal(fake_quantize(zeros, E2M1, scale_of(zeros, E2M1, axis=1)), zeros)
        tiny = np.full((1, 3), 2.0**-149, np.float32)
        assert np.all(np.isfinite(fake_quantize(tiny, E4M3, scale_of(tiny, E4M3, axis=1))))


def test_arguments_are_not_modified():
    x = blocks((3, 7))
    before, scale = x.copy(), absmax_scale(x, E2M1, axis=1)
    scale_before = scale.copy()
    fake_quantize(x, E2M1, scale)
    assert_array_equal(x, before)
    assert_array_equal(scale, scale_before)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(bad):
    x = np.float32([[1.0, bad]])
    for scale_of in (absmax_scale, power_of_two_scale):
        with pytest.raises(ValueError, match="x holds NaN or infinity"):
            scale_of(x, E4M3)
    for scale in (bad, 0.0):
        with pytest.raises(ValueError, match="scale holds 0, NaN or infinity"):
            fake_quantize(np.ones(2, np.float32), E4M3, np.float32([scale]))
    with pytest.raises(ValueError, match="axis=2 does not exist"):
        absmax_scale(x[:, :1], E4M3, axis=2)
