from itertools import product

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy import integrate, stats

from qbook import affine, packing
from qbook.qat import twn
from qbook.theory import lloyd_max


def best_by_enumeration(w):
    """Every one of the 3^n codes, each with its least-squares scale -> smallest squared error."""
    errors = [np.sum(w**2)]
    for codes in product((-1, 0, 1), repeat=len(w)):
        codes = np.array(codes)
        if codes.any():
            scale = codes @ w / (codes @ codes)
            errors.append(np.sum((w - scale * codes) ** 2))
    return min(errors)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("seed", range(4))
def test_the_optimal_scale_is_the_best_of_all_codes(n, seed):
    w = np.random.default_rng(seed).standard_t(df=3, size=n)
    qparams = twn.qparams(twn.optimal_scale(w))
    w_hat = affine.fake_quantize(w, qparams)
    # At most 8 squares of numbers below 10 are added: 1e-13 is far above their rounding.
    assert abs(np.sum((w - w_hat) ** 2) - best_by_enumeration(w)) <= 1e-13


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize(
    ("shape", "axis"), [((3, 7), 1), ((3, 7), 0), ((4, 33), None), ((1, 1), 1)]
)
def test_each_slice_is_solved_alone_and_half_the_scale_separates_its_codes(shape, axis, library):
    w = np.random.default_rng(1).normal(size=shape)
    scale = np.asarray(
        twn.optimal_scale(w if library == "numpy" else torch.from_numpy(w), axis=axis)
    )
    slices = [w.ravel()] if axis is None else list(np.moveaxis(w, axis, -1))
    assert scale.ravel().shape == (len(slices),)
    for values, found in zip(slices, scale.ravel(), strict=True):
        magnitude = np.sort(np.abs(values))[::-1]
        saved = [magnitude[:k].sum() ** 2 / k for k in range(1, len(magnitude) + 1)]
        k = int(np.argmax(saved)) + 1
        # Sums of at most 132 numbers.
        assert_allclose(found, magnitude[:k].mean(), rtol=1e-14)
        assert magnitude[k - 1] > found / 2
        assert k == len(magnitude) or magnitude[k] < found / 2


@pytest.mark.parametrize("factor", [0.3, 0.7, 1.0])
def test_the_scale_of_a_threshold_solves_its_normal_equation(factor):
    w = np.random.default_rng(2).normal(size=(5, 9))
    at = twn.threshold(w, axis=1, factor=factor)
    codes = twn.quantize(w, at)
    for row, row_codes, scale in zip(w, codes, twn.scale(w, at, axis=1), strict=True):
        found = np.linalg.lstsq(row_codes[:, None].astype(float), row, rcond=None)[0]
        # The condition number of one column is 1.
        assert_allclose(scale, found, rtol=1e-14)


def test_by_hand():
    # Mean 1, so the rule keeps 2.4 and 0.8 and saves 3.2^2 / 2 = 5.12; 2.4 alone saves 5.76.
    w = np.array([2.4, -0.8, 0.5, 0.3])
    at = twn.threshold(w)
    # Four numbers are added and one product is rounded.
    assert_allclose(at, [0.7], rtol=1e-15)
    assert_allclose(twn.threshold(w, factor=1.25), [1.25], rtol=1e-15)
    codes = twn.quantize(w, at)
    assert codes.dtype == np.int8
    assert_array_equal(codes, [1, -1, 0, 0])
    assert_allclose(twn.scale(w, at), [1.6], rtol=1e-15)
    assert_array_equal(twn.optimal_scale(w), [2.4])
    assert_array_equal(affine.quantize(w, twn.qparams(np.array([2.4]))), [1, 0, 0, 0])


# Maximum of (integral of x p over x > t)^2 / P(x > t), by the derivative: 2 t = E[x | x > t].
# Uniform: 2 t = (1 + t) / 2.  Laplace: 2 t = t + 1.  Both over the mean of |x|, 1 / 2 and 1.
@pytest.mark.parametrize(
    ("dist", "ratio"),
    [(stats.uniform(-1, 2), 2 / 3), (stats.laplace(), 1.0), (stats.norm(), None)],
)
def test_the_optimal_threshold_of_a_density_in_units_of_its_mean(dist, ratio):
    def saved(t):
        end = min(dist.support()[1], 40.0)
        first = integrate.quad(lambda x: x * dist.pdf(x), t, end, epsabs=1e-13)[0]
        return first**2 / dist.sf(t)

    mean = 2 * integrate.quad(lambda x: x * dist.pdf(x), 0, min(dist.support()[1], 40.0))[0]
    levels = lloyd_max.design(dist, 3).levels
    if ratio is not None:
        assert abs(levels[2] / 2 / mean - ratio) <= 1e-9
    best = levels[2] / 2
    # An independent maximum: nothing near it, on either side, saves more.
    assert all(saved(best) >= saved(best + step) for step in (-0.1, -0.01, 0.01, 0.1))


@pytest.mark.parametrize("dist", [stats.norm(), stats.laplace()])
def test_a_large_sample_has_the_scale_of_its_density(dist):
    w = dist.ppf((np.arange(200_000) + 0.5) / 200_000)
    # 1e5 quantiles a side miss a moment's tail of about 1e-5 x log 1e5.
    assert abs(twn.optimal_scale(w)[0] - lloyd_max.design(dist, 3).levels[2]) <= 1e-3


def test_codes_fit_both_packings():
    w = np.random.default_rng(3).normal(size=(3, 11))
    codes = twn.quantize(w, twn.threshold(w))
    two = packing.pack(codes, 2)
    assert two.shape == (3, 3)
    assert_array_equal(packing.unpack(two, 2, 11, signed=True), codes)
    assert packing.pack_ternary(codes).shape == (3, 3)
    assert_array_equal(packing.unpack_ternary(packing.pack_ternary(codes), 11), codes)


@pytest.mark.parametrize("axis", [None, 1])
def test_training_sees_the_ternary_weights_and_passes_the_gradient_on(axis):
    w = torch.from_numpy(np.random.default_rng(4).normal(size=(3, 7))).requires_grad_()
    w_hat = twn.fake_quantize(w, axis=axis)
    at = twn.threshold(w.detach(), axis=axis)
    scale = twn.scale(w.detach(), at, axis=axis)
    assert torch.equal(w_hat, torch.sign(w) * (w.abs() > at) * scale)
    weights = torch.linspace(-1, 2, 21, dtype=torch.float64).reshape(3, 7)
    (w_hat * weights).sum().backward()
    assert torch.equal(w.grad, weights)


def test_a_slice_of_zeros_gets_scale_one_and_codes_zero():
    w = np.array([[0.0, 0.0], [1.0, -3.0]])
    assert_array_equal(twn.optimal_scale(w, axis=1), [[1.0], [3.0]])
    at = twn.threshold(w, axis=1)
    assert_array_equal(twn.scale(w, at, axis=1)[0], [1.0])
    assert_array_equal(twn.quantize(w, at)[0], [0, 0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_types_stay_and_arguments_stay(dtype):
    w = np.random.default_rng(5).normal(size=(3, 5)).astype(dtype)
    copy = w.copy()
    assert twn.optimal_scale(w, axis=1).dtype == dtype
    assert twn.scale(w, twn.threshold(w)).dtype == dtype
    twn.quantize(w, twn.threshold(w))
    assert_array_equal(w, copy)
