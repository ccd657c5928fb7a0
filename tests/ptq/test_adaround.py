from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import expit, logit

from qbook import affine
from qbook.ptq import adaround, exhaustive


def layer(out, in_, samples=64, seed=0):
    """A random layer whose inputs are correlated, as activations are: float64 w, x."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(samples, in_)) @ rng.normal(size=(in_, in_))
    return rng.normal(size=(out, in_)), x


def every_element(qparams, shape):
    """scale and zero_point of each weight, by hand, for scales per tensor, channel and group."""
    scale, zero_point = qparams.scale, qparams.zero_point
    if qparams.group_axis is not None:
        repeats = shape[1] // scale.shape[1]
        scale, zero_point = (np.repeat(a[..., 0], repeats, axis=1) for a in (scale, zero_point))
    return np.broadcast_to(scale, shape), np.broadcast_to(zero_point, shape)


def error(w, codes, x, qparams, y=None):
    """The calibration error of every row from the samples, without a Gram matrix."""
    y = x @ w.T if y is None else y
    return np.mean((y - x @ affine.dequantize(codes, qparams).T) ** 2, axis=0)


SCHEMES = [
    {"axis": 1},
    {"axis": None},
    {"axis": 1, "symmetric": False},
    {"axis": 1, "symmetric": False, "signed": False},
    {"group_size": 4, "symmetric": False},
]


@pytest.mark.parametrize(("zeta", "gamma"), [(1.1, -0.1), (1.5, -0.5), (1, 0)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_rectified_sigmoid_is_a_clipped_stretched_logistic(dtype, zeta, gamma):
    v = np.concatenate([np.linspace(-9, 9, 333), [-1e4, 1e4]]).astype(dtype)
    expected = np.clip(expit(v.astype(np.float64)) * (zeta - gamma) + gamma, 0, 1)
    # Two operations on numbers below 1.5, and a tanh good to an ulp or two.
    tolerance = 8 * np.finfo(dtype).eps
    assert_allclose(
        adaround.rectified_sigmoid(v, zeta=zeta, gamma=gamma), expected, rtol=0, atol=tolerance
    )
    theirs = adaround.rectified_sigmoid(torch.from_numpy(v), zeta=zeta, gamma=gamma)
    assert isinstance(theirs, torch.Tensor)
    assert_allclose(theirs.numpy(), expected, rtol=0, atol=tolerance)


def test_only_the_stretched_sigmoid_reaches_zero_and_one():
    v = np.array([-2.5, 2.5])
    assert_array_equal(adaround.rectified_sigmoid(v), [0.0, 1.0])
    plain = adaround.rectified_sigmoid(4 * v, zeta=1, gamma=0)
    assert 0 < plain[0]
    assert plain[1] < 1


def test_the_initial_logits_reproduce_the_fraction():
    fraction = np.linspace(0, 1, 200, endpoint=False)
    v = adaround.initial_logits(fraction)
    # The inverse by another library: logit of the unstretched value.
    assert_allclose(v, logit((fraction + 0.1) / 1.2), rtol=1e-12, atol=1e-14)
    assert_allclose(adaround.rectified_sigmoid(v), fraction, rtol=0, atol=1e-14)


def test_the_plain_sigmoid_has_no_start_for_a_weight_on_the_grid():
    with pytest.raises(ValueError, match="stretch the sigmoid"):
        adaround.initial_logits(np.array([0.0, 0.3]), zeta=1.0, gamma=0.0)


@pytest.mark.parametrize("beta", [1, 2, 5, 20])
def test_the_regulariser_equals_exact_rational_arithmetic(beta):
    h = [Fraction(k, 16) for k in range(17)]
    exact = sum(1 - abs(2 * value - 1) ** beta for value in h)
    # Seventeen terms of at most 1, each good to a few ulp.
    assert abs(adaround.regulariser(np.array(h, np.float64), beta) - float(exact)) <= 1e-14


def test_the_regulariser_vanishes_at_binary_values_only_and_is_the_survey_s_at_beta_1():
    h = np.array([0.0, 1.0, 1.0, 0.0])
    assert adaround.regulariser(h, 7.5) == 0
    assert adaround.regulariser(h + np.array([0.1, 0, 0, 0]), 7.5) > 0
    h = np.random.default_rng(0).random(99)
    assert_allclose(adaround.regulariser(h, 1), 2 * np.minimum(h, 1 - h).sum(), rtol=1e-13)
    with pytest.raises(ValueError, match="beta"):
        adaround.regulariser(h, 0.5)


def test_the_exponent_waits_and_then_falls_linearly():
    values = [adaround.anneal(step, 100) for step in range(100)]
    assert values[:20] == [None] * 20
    # From 20 at step 20 down by 18 / 80 a step: step 100 would give 2.
    assert_allclose(values[20:], 20 - 18 / 80 * np.arange(80), rtol=1e-14)


@pytest.mark.parametrize("asymmetric", [False, True])
def test_the_descent_equals_autograd_and_torch_s_adam_on_the_samples(asymmetric):
    w, x = layer(3, 7, seed=1)
    # A range that clips some weights and puts none on the grid.
    qparams = affine.choose_qparams(0.83 * w, 3, axis=1, symmetric=False)
    y = x @ w.T + 0.3 * np.random.default_rng(2).normal(size=(64, 3)) if asymmetric else None
    steps, lam = 60, 0.05
    logits = [*adaround.descend(w, x, qparams, y=y, steps=steps, lam=lam, learning_rate=0.1)]

    x_, w_ = torch.from_numpy(x), torch.from_numpy(w)
    target = x_ @ w_.T if y is None else torch.from_numpy(y)
    scale, zero_point = torch.from_numpy(qparams.scale), torch.from_numpy(qparams.zero_point)
    fraction = w_ / scale - torch.floor(w_ / scale)
    v = torch.logit((fraction + 0.1) / 1.2).requires_grad_()
    optimizer = torch.optim.Adam([v], lr=0.1)
    for step in range(steps):
        h = torch.clamp(torch.sigmoid(v) * 1.2 - 0.1, 0, 1)
        codes = torch.clamp(torch.floor(w_ / scale) + zero_point + h, qparams.qmin, qparams.qmax)
        w_hat = scale * (codes - zero_point)
        loss = ((target - x_ @ w_hat.T) ** 2).sum(dim=1).mean()
        if step >= 12:
            beta = 2 + 18 * (60 - step) / 48
            loss = loss + lam * (1 - (2 * h - 1).abs() ** beta).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert len(logits) == steps + 1
    # Some weights must have run into the corners, where the slope ends, and some not.
    saturated = np.isin(adaround.rectified_sigmoid(logits[30]), [0, 1])
    assert 0.1 < saturated.mean() < 0.9
    # Rounding of 1e-16 grows over 60 steps, at worst where a gradient crosses zero.
    assert_allclose(logits[-1], v.detach().numpy(), rtol=0, atol=1e-8)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize(("out", "in_", "bits"), [(1, 4, 2), (3, 12, 3), (5, 8, 4)])
def test_codes_are_floor_or_floor_plus_one_inside_the_range(out, in_, bits, scheme):
    w, x = layer(out, in_, seed=bits)
    qparams = affine.choose_qparams(0.9 * w, bits, **scheme)
    codes = adaround.optimise(w, x, qparams, steps=100)
    scale, zero_point = every_element(qparams, w.shape)
    down = np.clip(np.floor(w * (1 / scale)) + zero_point, qparams.qmin, qparams.qmax)
    up = np.clip(np.floor(w * (1 / scale)) + 1 + zero_point, qparams.qmin, qparams.qmax)
    assert np.all((codes == down) | (codes == up))
    assert codes.dtype == affine.quantize(w, qparams).dtype


def test_hard_rounding_goes_up_where_h_is_at_least_one_half():
    w = np.random.default_rng(0).uniform(-2.9, 2.9, size=(3, 50))
    v = np.random.default_rng(1).normal(size=w.shape)
    qparams = affine.QParams(np.array([1.0]), np.array([0], np.int32), qmin=-3, qmax=3)
    expected = np.floor(w) + np.round(expit(v))
    assert_array_equal(adaround.hard_round(w, v, qparams), expected)
    assert_array_equal(adaround.hard_round(w, np.zeros_like(w), qparams), np.floor(w) + 1)


def test_the_end_state_is_binary():
    w, x = layer(6, 33, samples=99)
    qparams = affine.choose_qparams(w, 3, axis=1)
    # A thousand steps leave one weight in fifty on its way.
    start, *_, end = (
        adaround.rectified_sigmoid(v) for v in adaround.descend(w, x, qparams, steps=3000)
    )
    assert np.mean((start > 0.05) & (start < 0.95)) > 0.8
    assert np.all((end == 0) | (end == 1))


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_ten_inputs_come_near_the_best_of_all_1024_roundings_and_beat_nearest(bits):
    ratios = []
    for seed in range(12):
        w, x = layer(1, 10, seed=seed)
        qparams = affine.choose_qparams(w, bits, axis=1)
        _, every = exhaustive.search(w[0], x, qparams)
        nearest, found = (
            error(w, codes, x, qparams)[0]
            for codes in (affine.quantize(w, qparams), adaround.optimise(w, x, qparams))
        )
        assert np.abs(every - found).min() <= 1e-9 * found
        assert found <= nearest
        ratios.append((found / every.min(), nearest / every.min()))
    found, nearest = np.exp(np.log(ratios).mean(axis=0))
    # The stated factor: geometric mean over twelve layers.
    assert 1 <= found <= 1.5
    assert found <= 0.85 * nearest


@given(
    st.integers(0, 10_000),
    st.sampled_from([2, 3, 4]),
    st.sampled_from([0, 1, 40]),
    st.sampled_from([0.0, 1e-3, 1e3]),
)
def test_no_row_is_ever_worse_than_nearest(seed, bits, steps, lam):
    w, x = layer(3, 6, samples=9, seed=seed)
    qparams = affine.choose_qparams(w, bits, axis=1)
    codes = adaround.optimise(w, x, qparams, steps=steps, lam=lam, learning_rate=0.3)
    nearest = error(w, affine.quantize(w, qparams), x, qparams)
    # Summation in another order.
    assert np.all(error(w, codes, x, qparams) <= nearest * (1 + 1e-10))


def test_the_guard_replaces_rows_that_the_descent_made_worse():
    # A huge rate overshoots.
    w, x = layer(40, 6, samples=9)
    qparams = affine.choose_qparams(w, 3, axis=1)
    *_, v = adaround.descend(w, x, qparams, steps=3, learning_rate=5.0)
    raw, nearest = adaround.hard_round(w, v, qparams), affine.quantize(w, qparams)
    worse = error(w, raw, x, qparams) > error(w, nearest, x, qparams)
    assert worse.any()
    assert not worse.all()
    kept = adaround.optimise(w, x, qparams, steps=3, learning_rate=5.0)
    assert_array_equal(kept[worse], nearest[worse])


def test_errors_equal_the_samples_without_a_gram_matrix():
    w, x = layer(5, 7)
    y = x @ w.T + np.random.default_rng(1).normal(size=(64, 5))
    qparams = affine.choose_qparams(w, 3, axis=1)
    codes = affine.quantize(w, qparams)
    assert adaround.errors(w, codes, x, qparams).shape == (5, 1)
    for target in (None, y):
        found = adaround.errors(w, codes, x, qparams, y=target)[:, 0]
        assert_allclose(found, error(w, codes, x, qparams, target), rtol=1e-11)


def test_rows_do_not_see_each_other():
    w, x = layer(4, 9)
    qparams = affine.choose_qparams(w, 3, axis=1)
    together = adaround.optimise(w, x, qparams, steps=200)
    for row in range(4):
        own = affine.choose_qparams(w[[row]], 3, axis=1)
        assert_array_equal(adaround.optimise(w[[row]], x, own, steps=200), together[[row]])


@pytest.mark.parametrize("unit", [2.0**-8, 2.0**8])
def test_the_unit_of_the_input_does_not_matter(unit):
    w, x = layer(4, 9)
    qparams = affine.choose_qparams(w, 3, axis=1)
    assert_array_equal(adaround.optimise(w, unit * x, qparams), adaround.optimise(w, x, qparams))


def test_a_target_from_other_inputs_is_met_better_than_without_it():
    w, x = layer(6, 12, samples=200)
    seen = x + 0.3 * np.random.default_rng(1).normal(size=x.shape)
    qparams = affine.choose_qparams(w, 3, axis=1)
    y = x @ w.T
    symmetric = adaround.optimise(w, x, qparams)
    asymmetric = adaround.optimise(w, seen, qparams, y=y)
    assert (
        error(w, asymmetric, seen, qparams, y).sum() < error(w, symmetric, seen, qparams, y).sum()
    )
    # The layer's own output as the target is the symmetric problem.
    assert_array_equal(adaround.optimise(w, x, qparams, y=y), symmetric)


def test_torch_and_numpy_agree_and_arguments_stay_as_they_are():
    w, x = layer(3, 8)
    before = w.copy(), x.copy()
    codes = adaround.optimise(w, x, affine.choose_qparams(w, 3, axis=1), steps=200)
    assert_array_equal(w, before[0])
    assert_array_equal(x, before[1])
    w_, x_ = torch.from_numpy(w), torch.from_numpy(x)
    theirs = adaround.optimise(w_, x_, affine.choose_qparams(w_, 3, axis=1), steps=200)
    assert theirs.dtype == torch.int8
    assert_array_equal(theirs.numpy(), codes)


def test_float32_works_in_float32_and_comes_close():
    w, x = layer(3, 8)
    qparams = affine.choose_qparams(w, 3, axis=1)
    wide = error(w, adaround.optimise(w, x, qparams), x, qparams)
    w_, x_ = w.astype(np.float32), x.astype(np.float32)
    narrow_qparams = affine.choose_qparams(w_, 3, axis=1)
    for v in adaround.descend(w_, x_, narrow_qparams, steps=2):
        assert v.dtype == np.float32
    narrow = error(w, adaround.optimise(w_, x_, narrow_qparams), x, qparams)
    assert_allclose(narrow.sum(), wide.sum(), rtol=0.2)


def test_a_weight_on_the_grid_stays_when_nothing_pulls():
    w = np.array([[3.0, -2.0, 1.0, 0.0]])
    qparams = affine.choose_qparams(w, 3, axis=1)
    assert qparams.scale.item() == 1
    assert_array_equal(adaround.optimise(w, np.eye(4), qparams, steps=50), w)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"w": np.full((2, 4), np.nan)}, "NaN"),
        ({"x": np.full((9, 4), np.nan)}, "NaN"),
        ({"x": np.full((9, 4), np.inf)}, "infinity"),
        ({"y": np.full((9, 2), np.nan)}, "NaN"),
        ({"x": np.ones((9, 5))}, r"\[n, in\]"),
        ({"x": np.ones(9)}, r"\[n, in\]"),
        ({"y": np.ones((9, 3))}, r"\[samples, out\]"),
        ({"x": np.ones((3, 4))}, "at least 4"),
        ({"x": np.ones((0, 4))}, "at least 4"),
        ({"beta": (20, 0.5)}, "beta"),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("error")
def test_bad_input_is_named(change, message):
    w, x = layer(2, 4, samples=9)
    arguments = {"w": w, "x": x, "qparams": affine.choose_qparams(w, 3, axis=1)} | change
    with pytest.raises(ValueError, match=message):
        adaround.optimise(**arguments)
