import numpy as np
import pytest
from numpy.testing import assert_allclose

from qbook import affine
from qbook.llm import llm_int8, outlier_error


def found(n, k, factor, column_scale, samples=256, out=256, seed=0):
    """The three errors of one random product, through the code that the book shows"""
    rng = np.random.default_rng(seed)
    x, w = rng.normal(size=(samples, n)), rng.normal(size=(out, n))
    x[:, :k] = factor * rng.choice([-1, 1], (samples, k))
    w[:, :k] *= column_scale
    exact = x @ w.T
    w_qparams = affine.choose_qparams(w, 8, axis=1)
    w_codes = affine.quantize(w, w_qparams)
    arms = (None, None), (6.0, None), (6.0, w)
    products = (
        llm_int8.linear(x, w_codes, w_qparams, w_float, threshold=threshold)
        for threshold, w_float in arms
    )
    return [np.linalg.norm(y - exact) / np.linalg.norm(exact) for y in products]


@pytest.mark.parametrize(
    ("n", "k", "factor", "column_scale"),
    [
        (512, 5, 20, 1.0),
        (512, 5, 60, 1.0),
        (512, 5, 60, 1 / 60),
        (300, 1, 100, 1 / 100),
        (400, 3, 1000, 1.0),
        # The weights of the outliers have no code but 0.
        (512, 5, 400, 1 / 400),
        (512, 20, 40, 0.2),
    ],
)
def test_the_formulas_are_what_random_products_cost(n, k, factor, column_scale):
    expected = outlier_error.expected(n, k, factor, column_scale=column_scale)
    # 65,536 outputs of 256 rows each way: the norms scatter by a few per cent, and so do scales.
    # The scale of w sees its square: the mean of a ratio, not the ratio of means, 1 % below.
    assert_allclose(found(n, k, factor, column_scale), expected, rtol=0.05)


def test_without_outliers_the_three_are_one():
    assert len({*np.round(outlier_error.expected(512, 0, 6), 15)}) == 1


def test_a_step_that_swallows_the_others_costs_all_of_them():
    # f = 127,000: every normal value becomes 0, and the error of x is their energy, 1 each.
    n, k, r = 512, 2, 1e-6
    error = outlier_error.expected(n, k, 127_000.0, column_scale=r).vector_wise
    only_w = outlier_error.expected(n, k, 127_000.0, column_scale=r).codes
    output = n - k + k * (r * 127_000.0) ** 2
    # Both have the same error of w; ``codes`` has 4e-5 of the energy as its error of x.
    assert_allclose((error**2 - only_w**2) * output / (n - k), 1, atol=1e-4)


@pytest.mark.parametrize(("n", "k"), [(64, 1), (4096, 6), (100_000, 2)])
def test_the_best_row_scale_hardly_clips(n, k):
    # Independent: the cost of every step on a fine grid.
    share = np.linspace(0.5, 1.1, 600_001)
    cost = n * (share / 127) ** 2 / 12 + k * np.maximum(1 - share, 0) ** 2
    best = outlier_error.best_clip(n, k)
    # The grid's spacing is 1e-6, and the cost at its minimum is flat.
    assert abs(share[cost.argmin()] - best) <= 2e-6
    assert_allclose(cost.min() / (n / 127**2 / 12), best, rtol=1e-9)


def test_bad_input_raises():
    for k in (-1, 8):
        with pytest.raises(ValueError, match=f"k={k} outlier features of n=8; choose 0 to 7"):
            outlier_error.expected(8, k, 60)
    with pytest.raises(ValueError, match=r"factor=0 and column_scale=1\.0 must be positive"):
        outlier_error.expected(8, 1, 0)
    with pytest.raises(ValueError, match="n=8 and k=0 must be positive"):
        outlier_error.best_clip(8, 0)
