import math

import array_api_compat.torch
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_array_equal
from scipy import stats
from scipy.spatial import distance
from sklearn.metrics import mean_absolute_error, mean_squared_error

from qbook import affine, metrics

PAIRWISE = [
    metrics.mse,
    metrics.mae,
    metrics.max_error,
    metrics.mean_error,
    metrics.sqnr_db,
    metrics.cosine_similarity,
]
# Largest relative error of a float64 sum of n terms of one sign is (n - 1) 2^-53; the samples here
# have at most 1000 values, and the differences and products add a few roundings more.
RELATIVE = 1000 * 2.0**-52
PAIRS = st.integers(1, 40).flatmap(
    lambda n: st.tuples(
        *[hnp.arrays(np.float32, n, elements=st.floats(-1e3, 1e3, width=32)) for _ in range(2)]
    )
)


def pair(shape=(7, 11), seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape)
    x_hat = x + rng.normal(size=shape) / 10
    return np.asarray(x, dtype), np.asarray(x_hat, dtype)


def test_every_metric_equals_the_values_worked_by_hand():
    # e = 0, -1, -2, 0; the signal power is 14 and <x, x_hat> is 1 + 2 + 15.
    x, x_hat = np.array([1.0, -2.0, 3.0, 0.0]), np.array([1.0, -1.0, 5.0, 0.0])
    assert metrics.mse(x, x_hat) == 5 / 4
    assert metrics.mae(x, x_hat) == 3 / 4
    assert metrics.max_error(x, x_hat) == 2
    assert metrics.mean_error(x, x_hat) == -3 / 4
    # Three correctly rounded operations, each within 2^-53, on values around 5.
    assert abs(metrics.sqnr_db(x, x_hat) - 10 * math.log10(14 / 5)) <= 1e-14
    assert abs(metrics.cosine_similarity(x, x_hat) - 18 / math.sqrt(14 * 27)) <= 1e-15


@given(PAIRS)
def test_the_sums_equal_correctly_rounded_ones(arrays):
    x, x_hat = (a.astype(np.float64) for a in arrays)
    e = x - x_hat  # exact to 2^-53 of each term
    n = len(e)
    magnitude = math.fsum(np.abs(e)) / n
    assert abs(metrics.mse(*arrays) - math.fsum(e * e) / n) <= RELATIVE * math.fsum(e * e) / n
    assert abs(metrics.mae(*arrays) - magnitude) <= RELATIVE * magnitude
    assert abs(metrics.mean_error(*arrays) - math.fsum(e) / n) <= RELATIVE * magnitude
    assert metrics.max_error(*arrays) == max(map(abs, e))


def test_the_metrics_equal_scikit_learn_and_scipy():
    x, x_hat = pair(dtype=np.float64)
    flat = x.ravel(), x_hat.ravel()
    assert abs(metrics.mse(x, x_hat) / mean_squared_error(*flat) - 1) <= RELATIVE
    assert abs(metrics.mae(x, x_hat) / mean_absolute_error(*flat) - 1) <= RELATIVE
    assert abs(metrics.cosine_similarity(x, x_hat) - (1 - distance.cosine(*flat))) <= RELATIVE


@pytest.mark.parametrize("metric", PAIRWISE)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(), (1,), (7, 11), (3, 5, 2)])
def test_numpy_and_torch_give_the_same_float(metric, dtype, shape):
    x, x_hat = pair(shape, dtype=dtype)
    ours, theirs = metric(x, x_hat), metric(torch.from_numpy(x), torch.from_numpy(x_hat))
    assert type(ours) is type(theirs) is float
    # The libraries add in different orders; logarithms magnify that by 10 / ln 10 < 5.
    assert abs(ours - theirs) <= 5 * RELATIVE * max(1, abs(ours))


def test_mse_of_an_axis_equals_mse_of_each_slice():
    x, x_hat = pair((3, 5, 2), dtype=np.float64)
    rows = metrics.mse(x, x_hat, axis=1)
    assert rows.shape == (3, 1, 2)
    for i in range(3):
        for j in range(2):
            one = metrics.mse(x[i, :, j], x_hat[i, :, j])
            assert abs(rows[i, 0, j] - one) <= RELATIVE * one
    both = metrics.mse(torch.from_numpy(x), torch.from_numpy(x_hat), axis=(0, -1))
    assert isinstance(both, torch.Tensor)
    assert both.shape == (1, 5, 1)
    assert np.abs(both.numpy() - ((x - x_hat) ** 2).mean((0, 2), keepdims=True)).max() <= RELATIVE


@pytest.mark.parametrize("make", [np.asarray, torch.tensor], ids=["numpy", "torch"])
def test_sums_that_a_short_float_cannot_hold_are_exact(make):
    # float16: 300^2 overflows.  float32: 2^24 + 1 is lost, 2^24 ones and a half included.
    x = make([300.0, -300.0])
    half = x.astype(np.float16) if make is np.asarray else x.half()
    assert metrics.mse(half, -half) == 360_000
    big = make([4096.0, 1.0])
    assert metrics.mse(big, big * 0) == (2**24 + 1) / 2


@pytest.mark.parametrize("make", [np.asarray, torch.tensor], ids=["numpy", "torch"])
def test_integer_codes_are_compared_without_wrapping(make):
    codes = make([-128, 127, 0])
    codes = codes.astype(np.int8) if make is np.asarray else codes.to(torch.int8)
    assert metrics.max_error(codes, 0 * codes) == 128
    assert metrics.mse(codes, 0 * codes) == (128**2 + 127**2) / 3


def test_a_full_range_uniform_signal_gains_six_decibels_a_bit():
    """SQNR of uniform x in [-1, 1) is 20 log10(2^bits): Bennett's scale^2 / 12 against 1 / 3."""
    x = (np.arange(2**16) + 0.5) / 2**15 - 1
    for bits in (2, 4, 8):
        cells = 2**bits
        x_hat = (np.floor((x + 1) / 2 * cells) + 0.5) / cells * 2 - 1
        # Each cell holds n = 2^(16 - bits) equidistant samples, whose variance is 1 - n^-2 of
        # that of the interval: at n = 256, and likewise the signal's at n = 65536.
        n = 2 ** (16 - bits)
        expected = 10 * math.log10(cells**2 * (1 - 2.0**-32) / (1 - n**-2.0))
        assert abs(metrics.sqnr_db(x, x_hat) - expected) <= 1e-10


def test_no_noise_is_infinitely_good():
    x, _ = pair()
    assert metrics.sqnr_db(x, x.copy()) == math.inf
    assert metrics.mse(x, x.copy()) == metrics.max_error(x, x.copy()) == 0


@pytest.mark.parametrize("factor", [1e-3, 0.5, 7.0])
def test_cosine_similarity_is_blind_to_a_factor_and_sees_the_sign(factor):
    x, _ = pair(dtype=np.float64)
    assert abs(metrics.cosine_similarity(x, factor * x) - 1) <= RELATIVE
    assert abs(metrics.cosine_similarity(x, -factor * x) + 1) <= RELATIVE
    assert metrics.cosine_similarity(np.array([1.0, 0.0]), np.array([0.0, 2.0])) == 0


def test_the_bias_of_truncation_is_half_a_step_and_that_of_rounding_none():
    # 128 values a step of 1/8, all of them exact: the errors are 0/1024 ... 127/1024.
    x = np.arange(-1024, 1024) / 1024
    assert metrics.mean_error(x, np.floor(x * 8) / 8) == 63.5 / 1024
    # Ties go to even, so as many go up as down.
    assert metrics.mean_error(x, np.rint(x * 8) / 8) == 0


@pytest.mark.parametrize("metric", [*PAIRWISE, metrics.kl_divergence])
@pytest.mark.parametrize("make", [np.zeros, torch.zeros], ids=["numpy", "torch"])
def test_shapes_that_differ_are_refused_and_both_named(metric, make):
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(3, 2\)"):
        metric(make((2, 3)), make((3, 2)))
    with pytest.raises(ValueError, match=r"\(3,\) and \(1,\)"):
        metric(make((3,)), make((1,)))


@pytest.mark.parametrize("metric", [*PAIRWISE, metrics.kl_divergence])
def test_nothing_to_measure_is_refused(metric):
    with pytest.raises(ValueError, match=r"empty.*\(0, 3\)"):
        metric(np.zeros((0, 3)), np.zeros((0, 3)))


def test_zero_signals_are_refused_where_the_ratio_is_undefined():
    x, zero = np.ones(3), np.zeros(3)
    with pytest.raises(ValueError, match="no signal power"):
        metrics.sqnr_db(zero, x)
    for arguments in ((zero, x), (x, zero)):
        with pytest.raises(ValueError, match="no direction"):
            metrics.cosine_similarity(*arguments)
    assert metrics.sqnr_db(x, zero) == 0


@pytest.mark.parametrize("metric", PAIRWISE)
@pytest.mark.parametrize("make", [np.asarray, torch.tensor], ids=["numpy", "torch"])
def test_nan_is_never_hidden(metric, make):
    assert math.isnan(metric(make([1.0, math.nan, 2.0]), make([1.0, 2.0, 3.0])))


def test_a_tensor_that_carries_a_gradient_is_read_without_it():
    x, x_hat = map(torch.from_numpy, pair())
    qparams = affine.choose_qparams(x, 4)
    weight = torch.nn.Parameter(x)
    assert metrics.mse(weight, affine.fake_quantize(x, qparams)) > 0
    assert not metrics.mse(weight, x_hat, axis=1).requires_grad


def test_a_device_without_float64_is_measured_in_float32(monkeypatch):
    class Metal:
        def dtypes(self, *, device, kind):
            return {"float32": torch.float32}

    x, x_hat = map(torch.from_numpy, pair(dtype=np.float64))
    exact = metrics.mse(x, x_hat)
    monkeypatch.setattr(array_api_compat.torch, "__array_namespace_info__", Metal)
    assert metrics.mse(x, x_hat, axis=1).dtype == torch.float32
    # The two inputs, |x| < 4 and e near 0.1, are rounded to float32 first: 4 * 2^-24 / 0.1 each.
    assert 0 < abs(metrics.mse(x, x_hat) / exact - 1) <= 1e-5


def test_arguments_are_not_modified():
    x, x_hat = pair()
    copies = x.copy(), x_hat.copy()
    for metric in PAIRWISE:
        metric(x, x_hat)
    metrics.kl_divergence(np.abs(x), np.abs(x_hat))
    assert_array_equal(x, copies[0])
    assert_array_equal(x_hat, copies[1])


@pytest.mark.parametrize("make", [np.asarray, torch.tensor], ids=["numpy", "torch"])
def test_divergence_of_two_coins_has_its_closed_form(make):
    heads, other = 0.3, 0.6
    expected = heads * math.log(heads / other) + 0.7 * math.log(0.7 / 0.4)
    ours = metrics.kl_divergence(make([heads, 0.7]), make([other, 0.4]))
    assert type(ours) is float
    # float32 in torch: each probability is off by 2^-25 of itself.
    assert abs(ours - expected) <= (1e-15 if make is np.asarray else 1e-7)


def test_divergence_equals_scipy_and_does_not_depend_on_the_number_of_samples():
    rng = np.random.default_rng(0)
    p, q = rng.integers(0, 50, 301), rng.integers(1, 50, 301)
    assert (p == 0).any()
    expected = stats.entropy(p, q)
    assert abs(metrics.kl_divergence(p, q) / expected - 1) <= RELATIVE
    assert abs(metrics.kl_divergence(8 * p, 3 * q) / expected - 1) <= RELATIVE
    assert metrics.kl_divergence(p, 2 * p) == 0
    assert metrics.kl_divergence(q, p) == math.inf


@given(PAIRS)
def test_divergence_is_never_negative(arrays):
    p, q = (np.abs(a) + 1 for a in arrays)
    # Gibbs' inequality, up to the rounding of at most 40 terms, each of logarithm below 7.
    assert metrics.kl_divergence(p, q) >= -40 * 7 * 2.0**-52


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
def test_counts_that_are_none_are_refused(bad):
    good = np.array([1.0, 2.0])
    with pytest.raises(ValueError, match="p holds a negative or non-finite"):
        metrics.kl_divergence(np.array([1.0, bad]), good)
    with pytest.raises(ValueError, match="q holds a negative or non-finite"):
        metrics.kl_divergence(good, np.array([1.0, bad]))
    with pytest.raises(ValueError, match="q sums to 0"):
        metrics.kl_divergence(good, np.zeros(2))
