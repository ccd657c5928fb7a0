import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from qbook import affine, integer_product

SHAPES = [(1, 1, 1), (3, 7, 5), (2, 64, 33)]


def codes(shape, dtype, seed):
    info = np.iinfo(dtype)
    return np.random.default_rng(seed).integers(info.min, info.max + 1, shape).astype(dtype)


@pytest.mark.parametrize("x_type", [np.int8, np.uint8])
@pytest.mark.parametrize("w_type", [np.int8, np.uint8])
@pytest.mark.parametrize(("samples", "n", "out"), SHAPES)
def test_the_four_sums_are_the_product_of_the_shifted_codes(samples, n, out, x_type, w_type):
    x, w = codes((samples, n), x_type, 0), codes((out, n), w_type, 1)
    z_x = codes((samples, 1), x_type, 2).astype(np.int32)
    z_w = codes((out, 1), w_type, 3).astype(np.int32)
    # Python's integers have no width: nothing can overflow in the expected value.
    shifted = (x.astype(object) - z_x.astype(object)) @ (w.astype(object) - z_w.astype(object)).T
    sums = integer_product.accumulate(x, w, z_x, z_w)
    assert sums.dtype == np.int32
    assert_array_equal(sums, shifted.astype(np.int64))
    theirs = integer_product.accumulate(*map(torch.from_numpy, (x, w, z_x, z_w)))
    assert_array_equal(theirs.numpy(), sums)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("axis", [None, 1])
@pytest.mark.parametrize(("samples", "n", "out"), SHAPES)
def test_the_integer_product_is_the_product_of_the_reconstructions(
    samples, n, out, axis, symmetric
):
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(samples, n)) + 0.5, rng.normal(size=(out, n))
    x_qparams = affine.choose_qparams(x, 8, axis=axis, symmetric=False)
    w_qparams = affine.choose_qparams(w, 4, axis=axis, symmetric=symmetric)
    x_codes, w_codes = affine.quantize(x, x_qparams), affine.quantize(w, w_qparams)
    expected = affine.dequantize(x_codes, x_qparams) @ affine.dequantize(w_codes, w_qparams).T
    found = integer_product.linear(x_codes, x_qparams, w_codes, w_qparams)
    # float64 rounds each of n products and sums; the integers round twice in all.
    size = np.abs(affine.dequantize(x_codes, x_qparams)).max() * np.abs(w).max() * n
    assert (np.abs(found - expected) <= 4 * n * 2.0**-53 * size).all()


@pytest.mark.parametrize("n", [1, 2, 3, 127, 128, 133_144, 133_145])
def test_accumulator_bits_hold_the_largest_sum_and_one_bit_less_does_not(n):
    bits = integer_product.accumulator_bits(n, 127 * 127)
    assert n * 127 * 127 <= 2 ** (bits - 1) - 1
    assert n * 127 * 127 > 2 ** (bits - 2) - 1


def test_a_sum_that_could_overflow_is_refused_with_the_length_that_fits():
    n = 2**31 // 128**2
    x = np.full((1, n), -128, np.int8)
    with pytest.raises(ValueError, match=f"n={n} .* at most {n - 1} terms"):
        integer_product.accumulate(x, x)
    sums = integer_product.accumulate(x[:, :-1], x[:, :-1])
    assert sums.item() == (n - 1) * 128**2


def test_shapes_and_groups_that_do_not_fit_are_refused():
    x, w = np.ones((2, 3), np.int8), np.ones((2, 4), np.int8)
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(2, 4\)"):
        integer_product.accumulate(x, w)
    real = np.random.default_rng(0).normal(size=(2, 4))
    whole = affine.choose_qparams(real, 8)
    groups = affine.choose_qparams(real, 8, group_size=2)
    with pytest.raises(ValueError, match="w has scales"):
        integer_product.linear(w, whole, w, groups)
