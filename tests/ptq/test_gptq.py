import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from qbook import affine
from qbook.ptq import gptq


def layer(out, in_, seed=0, samples=None):
    """w [out, in] and x [samples, in] with correlated columns."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(samples or 3 * in_ + 8, in_)) @ rng.normal(size=(in_, in_))
    return rng.normal(size=(out, in_)), x


def error(w, codes, qparams, h):
    return gptq.output_error(w, affine.dequantize(codes, qparams), h)


def quantize_by_solving(w, h, qparams, order):
    """Independent: before each column, the normal equations of all columns not yet rounded."""
    codes, w_hat = np.empty(w.shape, int), np.full(w.shape, np.nan)
    for step, j in enumerate(order):
        done, left = order[:step], order[step:]
        owed = (w[:, done] - w_hat[:, done]) @ h[np.ix_(done, left)]
        target = w[:, left] + np.linalg.solve(h[np.ix_(left, left)], owed.T).T
        codes[:, [j]] = affine.quantize(target[:, [0]], qparams)
        w_hat[:, [j]] = affine.dequantize(codes[:, [j]], qparams)
    return codes


def babai(w, x, scale):
    """Independent: the nearest planes of the lattice {x diag(scale) codes}, by Gram-Schmidt.

    Column j is projected off the columns that are still to come.
    """
    codes = np.empty(w.shape, int)
    for row in range(len(w)):
        basis = x * scale[row]
        rest = basis @ (w[row] / scale[row])
        for j in range(w.shape[1]):
            direction = basis[:, j].copy()
            if j + 1 < w.shape[1]:
                span = np.linalg.qr(basis[:, j + 1 :])[0]
                direction -= span @ (span.T @ direction)
            codes[row, j] = np.rint(direction @ rest / (direction @ direction))
            rest -= codes[row, j] * basis[:, j]
    return codes


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("out", "in_"), [(1, 1), (3, 7), (8, 33), (1, 130)])
@pytest.mark.parametrize("ordered", [False, True])
def test_equals_solving_the_normal_equations_at_each_step(out, in_, bits, ordered):
    w, x = layer(out, in_, seed=in_)
    h = gptq.dampen(gptq.hessian(x))
    qparams = affine.choose_qparams(w, bits, axis=1)
    order = gptq.act_order(h) if ordered else np.arange(in_)
    expected = quantize_by_solving(w, h, qparams, order)
    chosen = order if ordered else None
    assert_array_equal(gptq.quantize(w, h, qparams, order=chosen), expected)
    assert_array_equal(gptq.quantize_blocks(w, h, qparams, order=chosen), expected)


def test_equals_babais_nearest_plane_where_nothing_is_clipped():
    w, x = layer(5, 9, seed=2)
    # A range that holds the weights and all that they absorb.
    qparams = affine.qparams_from_range(np.full((5, 1), -40.0), np.full((5, 1), 40.0), 8)
    codes = gptq.quantize(w, gptq.hessian(x), qparams)
    assert np.abs(codes).max() < qparams.qmax
    assert_array_equal(codes, babai(w, x, qparams.scale[:, 0]))


@pytest.mark.parametrize("block_size", [1, 3, 16, 33, 128])
@pytest.mark.parametrize("group_size", [None, 11])
@pytest.mark.parametrize("symmetric", [True, False])
def test_blocks_equal_the_plain_loop(block_size, group_size, symmetric):
    w, x = layer(6, 33, seed=block_size)
    h = gptq.dampen(gptq.hessian(x))
    qparams = affine.choose_qparams(w, 3, axis=1, group_size=group_size, symmetric=symmetric)
    for order in (None, gptq.act_order(h)):
        plain = gptq.quantize(w, h, qparams, order=order)
        blocks = gptq.quantize_blocks(w, h, qparams, order=order, block_size=block_size)
        assert plain.dtype == blocks.dtype == np.int8
        assert_array_equal(blocks, plain)


def test_an_order_is_the_same_as_permuting_the_layer():
    w, x = layer(4, 20, seed=1)
    h = gptq.dampen(gptq.hessian(x))
    qparams = affine.choose_qparams(w, 3, axis=1)
    order = gptq.act_order(h)
    assert np.all(np.diff(np.diag(h)[order]) <= 0)
    permuted = gptq.quantize(w[:, order], h[np.ix_(order, order)], qparams)
    assert_array_equal(gptq.quantize(w, h, qparams, order=order)[:, order], permuted)
    # The order matters here, or the equality would be empty.
    assert np.any(gptq.quantize(w, h, qparams) != gptq.quantize(w, h, qparams, order=order))


def test_a_weight_keeps_the_scale_of_its_own_group_in_any_order():
    # On a diagonal h nothing is absorbed: every order is rounding to nearest with static groups.
    w, _ = layer(3, 12)
    qparams = affine.choose_qparams(w, 3, axis=1, group_size=4, symmetric=False)
    h = np.diag(np.random.default_rng(0).uniform(1, 2, 12))
    codes = gptq.quantize(w, h, qparams, order=gptq.act_order(h))
    assert_array_equal(codes, affine.quantize(w, qparams))


def test_the_error_is_the_sum_of_rounding_errors_over_the_pivots():
    w, x = layer(7, 15)
    h = gptq.dampen(gptq.hessian(x))
    qparams, u = affine.choose_qparams(w, 3, axis=1), gptq.inverse_factor(h)
    codes = gptq.quantize(w, h, qparams)
    diff = w - affine.dequantize(codes, qparams)
    # e_j = what was rounded away at step j, from the codes alone: diff u^-1 has e_j / u_jj.
    parts = np.sum(np.linalg.solve(u.T, diff.T) ** 2)
    # Damped, h has a condition below 1e3: float64 keeps 12 of its 15 digits.
    assert_allclose(error(w, codes, qparams, h), parts, rtol=1e-10)


def test_rows_of_the_factor_are_the_rows_of_the_inverses_that_obq_needs():
    _, x = layer(1, 8)
    h = gptq.hessian(x)
    u = gptq.inverse_factor(h)
    for j in range(8):
        inverse = np.linalg.inv(h[j:, j:])
        # Condition below 1e5: float64 keeps 10 of its 15 digits; entries are below 1.
        assert_allclose(u[j, j:], inverse[0] / np.sqrt(inverse[0, 0]), rtol=1e-8, atol=1e-11)
    assert_array_equal(np.tril(u, -1), 0)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("seed", range(5))
def test_never_worse_than_rounding_to_nearest_on_a_layer(bits, seed):
    w, x = layer(32, 24, seed=seed)
    h, qparams = gptq.dampen(gptq.hessian(x)), affine.choose_qparams(w, bits, axis=1)
    nearest = error(w, affine.quantize(w, qparams), qparams, h)
    for order in (None, gptq.act_order(h)):
        assert error(w, gptq.quantize(w, h, qparams, order=order), qparams, h) < nearest


def test_groups_are_chosen_when_they_are_reached():
    w, x = layer(5, 12, seed=4)
    h = gptq.dampen(gptq.hessian(x))
    codes, qparams = gptq.quantize_groups(w, h, 3, 4, symmetric=False)
    assert qparams.scale.shape == qparams.zero_point.shape == (5, 3, 1)
    # Independent: weights as they stand at the group's first column, by the normal equations.
    w_hat = affine.dequantize(codes, qparams)
    for start in (0, 4, 8):
        owed = (w[:, :start] - w_hat[:, :start]) @ h[:start, start:]
        target = w[:, start:] + np.linalg.solve(h[start:, start:], owed.T).T
        expected = affine.choose_qparams(target[:, :4], 3, axis=1, symmetric=False)
        # Damped, h has a condition below 1e3: float64 keeps 12 of its 15 digits.
        assert_allclose(qparams.scale[:, start // 4], expected.scale, rtol=1e-9)
        assert_array_equal(qparams.zero_point[:, start // 4], expected.zero_point)
    # With these scales given beforehand the loop makes the same codes.
    assert_array_equal(codes, gptq.quantize(w, h, qparams))


def test_a_dead_column_is_rounded_to_nearest_and_changes_no_other():
    w, x = layer(4, 10, seed=5)
    dead, alive = [0, 7], [1, 2, 3, 4, 5, 6, 8, 9]
    x[:, dead] = 0
    h = gptq.hessian(x)
    qparams = affine.choose_qparams(w, 4, axis=1)
    with pytest.raises(ValueError, match=r"\[0, 7\] were always zero"):
        gptq.quantize(w, h, qparams)
    damped = gptq.dampen(h)
    codes = gptq.quantize(w, damped, qparams)
    assert_array_equal(codes[:, dead], affine.quantize(w[:, dead], qparams))
    rest = gptq.quantize(w[:, alive], damped[np.ix_(alive, alive)], qparams)
    assert_array_equal(codes[:, alive], rest)


def test_a_singular_hessian_raises_and_damping_repairs_it():
    w, x = layer(2, 12, samples=5)
    h, qparams = gptq.hessian(x), affine.choose_qparams(w, 4, axis=1)
    for function in (gptq.quantize, gptq.quantize_blocks):
        with pytest.raises(ValueError, match=r"singular .* dampen\(h, 0\.01\) would work"):
            function(w, h, qparams)
        assert function(w, gptq.dampen(h, 0.01), qparams).shape == w.shape


def test_bad_input_raises():
    w, x = layer(2, 6)
    h, qparams = gptq.hessian(x), affine.choose_qparams(w, 4, axis=1)
    with pytest.raises(ValueError, match="block_size=0"):
        gptq.quantize_blocks(w, h, qparams, block_size=0)
    with pytest.raises(ValueError, match="group_size=4 does not divide"):
        gptq.quantize_groups(w, h, 4, 4)
    with pytest.raises(ValueError, match="bits=99"):
        gptq.quantize_groups(w, h, 99, 3)
    with pytest.raises(ValueError, match="permutation of the 6 inputs"):
        gptq.quantize(w, h, qparams, order=[0])
    with pytest.raises(ValueError, match="do not fit"):
        gptq.quantize(w[:, :5], h, qparams)
    with pytest.raises(ValueError, match=r"scale has shape"):
        gptq.quantize(w, h, affine.choose_qparams(w, 4, axis=0))


def test_arguments_stay_as_they_are():
    w, x = layer(3, 6)
    h = gptq.hessian(x)
    qparams = affine.choose_qparams(w, 3, axis=1)
    before = w.copy(), h.copy()
    gptq.quantize(w, h, qparams)
    gptq.quantize_blocks(w, h, qparams, block_size=2)
    gptq.quantize_groups(w, h, 3, 3)
    assert_array_equal(w, before[0])
    assert_array_equal(h, before[1])
