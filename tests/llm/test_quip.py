import numpy as np
import pytest
import torch

from qbook import affine
from qbook.llm import e8p, quip
from qbook.ptq import gptq


def problem(out=16, in_=32, seed=0):
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(in_, in_)) / in_**0.5 + np.eye(in_)
    x = rng.normal(size=(4 * in_, in_)) @ mix
    return torch.from_numpy(rng.normal(size=(out, in_))), torch.from_numpy(x.T @ x)


def cost(w, w_hat, h):
    e = w - w_hat
    return float(torch.trace(e @ h @ e.T))


@pytest.mark.parametrize(("out", "in_"), [(16, 32), (12, 24), (8, 128)])
def test_rotating_keeps_every_error_and_restoring_undoes_it(out, in_):
    w, h = problem(out, in_)
    rotated = quip.rotate(w, h, seed=3)
    assert float((quip.restore(rotated.w, 3) - w).abs().max()) <= 1e-13
    w_hat = w + 0.1 * torch.randn(w.shape, generator=torch.Generator().manual_seed(1)).double()
    turned = quip.rotate(w_hat, h, seed=3).w
    expected = cost(w, w_hat, h)
    assert abs(cost(rotated.w, turned, rotated.h) / expected - 1) <= 1e-11


def test_an_outlier_is_spread_over_the_whole_matrix():
    w, h = problem(64, 128)
    w[5, 7] = 200.0
    before, after = quip.incoherence(w), quip.incoherence(quip.rotate(w, h).w)
    assert before > 50
    # Gaussian entries: the largest of 8192 is 3.9 on average.
    assert after < 6


@pytest.mark.parametrize("size", [1, 4, 8])
def test_the_factor_is_block_triangular_with_identities_on_its_diagonal(size):
    _, h = problem()
    factor = quip.block_factor(h, size)
    d = torch.linalg.solve(factor, torch.linalg.solve(factor, h).T)
    for row in range(0, 32, size):
        for column in range(0, 32, size):
            block = factor[row : row + size, column : column + size]
            if column > row:
                assert not bool(block.any())
            if column == row:
                assert float((block - torch.eye(size)).abs().max()) <= 1e-12
            else:
                # h = l d l^T with d block diagonal.
                off = d[row : row + size, column : column + size]
                assert float(off.abs().max()) <= 1e-9 * float(h.abs().max())


def test_single_columns_are_gptq_from_right_to_left():
    w, h = problem()
    qparams = affine.choose_qparams(w.numpy(), 3, axis=1)
    codes = gptq.quantize(w.numpy(), h.numpy(), qparams, order=np.arange(32)[::-1].copy())

    def nearest(column):
        return torch.from_numpy(affine.fake_quantize(column.numpy(), qparams))

    w_hat = quip.quantize(w, h, nearest, size=1)
    np.testing.assert_allclose(w_hat.numpy(), affine.dequantize(codes, qparams), atol=1e-12)


def test_feedback_and_codebook_each_lower_the_cost_at_two_bits():
    w, h = problem(64, 128)
    rotated = quip.rotate(w, h)
    step = e8p.best_scale()[0] * rotated.w.square().mean().sqrt()
    rounding = quip.e8p_rounding(step)
    plain = cost(rotated.w, rounding(rotated.w.reshape(-1, 8)).reshape(w.shape), rotated.h)
    feedback = cost(w, quip.quantize_e8p(w, h), h)
    two_bits = affine.choose_qparams(w, 2, axis=1, symmetric=False)
    nearest = cost(w, affine.fake_quantize(w, two_bits), h)
    assert feedback < 0.8 * plain < 0.8 * nearest


def test_wrong_shapes_are_refused_with_what_would_work():
    w, h = problem()
    with pytest.raises(ValueError, match="32 inputs need a square"):
        quip.rotate(w, h[:8, :8])
    with pytest.raises(ValueError, match="size=5 does not divide the 32"):
        quip.block_factor(h, 5)
    with pytest.raises(ValueError, match="not positive definite"):
        quip.block_factor(0 * h)
