import itertools
from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from qbook import affine
from qbook.ptq import gptq, obq


def layer(out, in_, seed=0, samples=None):
    """w [out, in] and x [samples, in] with correlated columns."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(samples or 4 * in_ + 8, in_)) @ rng.normal(size=(in_, in_))
    return rng.normal(size=(out, in_)), x


def error(w, codes, qparams, h):
    return obq.output_error(w, affine.dequantize(codes, qparams), h)


def absorb(w, w_hat, x, done):
    """w [in] after the weights `done` became w_hat: the others by least squares on the outputs."""
    left = np.setdiff1d(np.arange(len(w)), done)
    owed = x[:, done] @ (w[done] - w_hat[done])
    target = w.copy()
    target[done] = w_hat[done]
    target[left] += np.linalg.lstsq(x[:, left], owed, rcond=None)[0]
    return target, left


def quantize_by_solving(w, x, qparams, orders):
    """Independent: no inverse, no Hessian; a least-squares problem for each rounded weight."""
    codes = np.empty(w.shape, int)
    w_hat = np.full(w.shape, np.nan)
    for row, order in enumerate(orders):
        own = replace(qparams, scale=qparams.scale[row], zero_point=qparams.zero_point[row])
        for step, p in enumerate(order):
            target, _ = absorb(w[row], w_hat[row], x, np.array(order[:step], int))
            codes[row, p] = affine.quantize(target[[p]], own)[0]
            w_hat[row, p] = affine.dequantize(codes[row, [p]], own)[0]
    return codes


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("out", "in_"), [(1, 1), (3, 7), (5, 2), (2, 17)])
def test_forced_order_equals_solving_the_normal_equations_at_each_step(out, in_, bits):
    w, x = layer(out, in_, seed=in_)
    qparams = affine.choose_qparams(w, bits, axis=1)
    order = np.random.default_rng(bits).permutation(in_)
    codes = obq.quantize(w, obq.hessian(x), qparams, order=order)
    assert_array_equal(codes, quantize_by_solving(w, x, qparams, [order] * out))


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("narrow", [1.0, 0.4])
def test_greedy_order_equals_measuring_what_every_candidate_would_cost(bits, narrow):
    w, x = layer(6, 7, seed=bits)
    # A narrow range clips, so that outliers go first.
    qparams = affine.choose_qparams(narrow * w, bits, axis=1)
    codes = obq.quantize(w, obq.hessian(x), qparams)
    orders, outliers_seen = [], 0
    for row in range(len(w)):
        own = replace(qparams, scale=qparams.scale[row], zero_point=qparams.zero_point[row])
        order, w_hat = [], np.full(7, np.nan)
        while len(order) < 7:
            target, left = absorb(w[row], w_hat, x, np.array(order, int))
            rounded = affine.fake_quantize(target, own)
            outliers = [p for p in left if np.abs(target[p] - rounded[p]) > own.scale[0] / 2]
            outliers_seen += 0 < len(outliers) < len(left)
            costs = {}
            for p in outliers or left:
                trial = np.where(np.isin(np.arange(7), order), w_hat, np.nan)
                trial[p] = rounded[p]
                best, _ = absorb(w[row], trial, x, np.array([*order, p]))
                costs[p] = np.sum((x @ (w[row] - best)) ** 2)
            p = min(costs, key=costs.get)
            order.append(p)
            w_hat[p] = rounded[p]
        orders.append(order)
    assert_array_equal(codes, quantize_by_solving(w, x, qparams, orders))
    assert outliers_seen > 0 or narrow == 1
    # Rows take different orders, or the comparison would show little.
    assert len({tuple(order) for order in orders}) > 1


@pytest.mark.parametrize("symmetric", [True, False])
def test_left_to_right_is_gptq(symmetric):
    for out, in_, group_size in [(3, 8, None), (4, 12, 4), (2, 9, 3)]:
        w, x = layer(out, in_, seed=out)
        h = obq.dampen(obq.hessian(x))
        qparams = affine.choose_qparams(w, 3, axis=1, group_size=group_size, symmetric=symmetric)
        forced = obq.quantize(w, h, qparams, order=np.arange(in_))
        assert_array_equal(forced, gptq.quantize(w, h, qparams))


def test_error_lies_between_the_best_codes_and_rounding_to_nearest():
    # Every assignment of 3 levels to 5 weights; on average over rows the order holds strictly.
    w, x = layer(30, 5, seed=3)
    h, qparams = obq.hessian(x), affine.choose_qparams(w, 2, axis=1)
    every = np.array(list(itertools.product((-1, 0, 1), repeat=5)))
    candidates = w[:, None, :] - every * qparams.scale[:, :, None]
    best = np.einsum("rci,ij,rcj->rc", candidates, h, candidates).min(axis=1)
    diff = w - affine.dequantize(obq.quantize(w, h, qparams), qparams)
    ours = np.einsum("ri,ij,rj->r", diff, h, diff)
    # Float64 sums of 25 products: relative error below 1e-13.
    assert np.all(best <= ours * (1 + 1e-12))
    assert best.sum() < ours.sum() < error(w, affine.quantize(w, qparams), qparams, h)


def test_a_diagonal_hessian_is_rounding_to_nearest():
    w, _ = layer(4, 6)
    qparams = affine.choose_qparams(w, 3, axis=1)
    h = np.diag(np.arange(1.0, 7.0))
    assert_array_equal(obq.quantize(w, h, qparams), affine.quantize(w, qparams))


def test_output_error_is_the_squared_distance_of_the_outputs():
    w, x = layer(3, 5)
    w_hat = np.round(w)
    expected = np.linalg.norm(x @ w.T - x @ w_hat.T) ** 2
    # Sums of 5 x 5 products against sums over 28 samples, both float64.
    assert_allclose(obq.output_error(w, w_hat, obq.hessian(x)), expected, rtol=1e-12)


def test_damping_adds_a_share_of_the_mean_diagonal():
    h = np.array([[4.0, 1.0], [1.0, 2.0]])
    assert_array_equal(obq.dampen(h, 0.5), [[5.5, 1.0], [1.0, 3.5]])
    assert h[0, 0] == 4


@pytest.mark.parametrize("in_", [5, 40])
def test_fewer_samples_than_inputs_raise_and_the_damping_named_works(in_):
    _, x = layer(1, in_, samples=3)
    h = obq.hessian(x)
    with pytest.raises(ValueError, match=r"singular .* dependent; dampen\(h, 0\.01\) would work"):
        obq.invert(h)
    assert np.all(np.isfinite(obq.invert(obq.dampen(h, 0.01))))


def test_all_but_dependent_inputs_are_singular_and_small_ones_are_not():
    with pytest.raises(ValueError, match="dependent"):
        obq.invert(np.array([[1.0, 1 - 1e-14], [1 - 1e-14, 1.0]]))
    assert_allclose(obq.invert(np.diag([1.0, 1e-20])), np.diag([1.0, 1e20]), rtol=1e-15)


def test_dead_columns_are_named():
    _, x = layer(1, 6)
    x[:, [1, 4]] = 0
    with pytest.raises(ValueError, match=r"inputs \[1, 4\] were always zero; dampen\(h, 0\.01\)"):
        obq.invert(obq.hessian(x))


def test_an_indefinite_matrix_is_told_a_damping_that_works():
    h = np.array([[1.0, 3.0], [3.0, 1.0]])
    with pytest.raises(ValueError, match=r"dampen\(h, 4\) would work"):
        obq.invert(h)
    assert np.all(np.isfinite(obq.invert(obq.dampen(h, 4))))


def test_inputs_that_were_never_active_leave_nothing_to_optimise():
    with pytest.raises(ValueError, match="round to nearest"):
        obq.invert(np.zeros((3, 3)))


def test_bad_input_raises():
    w, x = layer(2, 3)
    h, qparams = obq.hessian(x), affine.choose_qparams(w, 4, axis=1)
    with pytest.raises(ValueError, match="flatten"):
        obq.hessian(x[None])
    with pytest.raises(ValueError, match="finite inputs"):
        obq.hessian(np.full((2, 2), np.nan))
    with pytest.raises(ValueError, match=r"damping=-1"):
        obq.dampen(h, -1)
    with pytest.raises(ValueError, match="not symmetric"):
        obq.invert(np.triu(h))
    with pytest.raises(ValueError, match=r"h has shape \(2, 3\)"):
        obq.invert(h[:2])
    with pytest.raises(ValueError, match="finite inputs"):
        obq.invert(np.full((2, 2), np.inf))
    with pytest.raises(ValueError, match="do not fit"):
        obq.quantize(w, h[:2, :2], qparams)
    with pytest.raises(ValueError, match="permutation of the 3 inputs"):
        obq.quantize(w, h, qparams, order=[0, 1, 1])
    with pytest.raises(ValueError, match=r"scale has shape \(1, 3\)"):
        obq.quantize(w, h, affine.choose_qparams(w, 4, axis=0))


def test_arguments_stay_as_they_are():
    w, x = layer(3, 4)
    h = obq.hessian(x)
    before = w.copy(), h.copy()
    obq.quantize(w, h, affine.choose_qparams(w, 3, axis=1))
    assert_array_equal(w, before[0])
    assert_array_equal(h, before[1])
