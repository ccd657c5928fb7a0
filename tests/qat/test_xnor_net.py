import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from qbook.qat import xnor_net
from qbook.theory import lloyd_max

SHAPES = [(1, 1), (3, 7), (4, 2, 3, 3)]


def draw(shape, seed=0, spread=1.0):
    return torch.from_numpy(spread * np.random.default_rng(seed).normal(size=shape))


@pytest.mark.parametrize("n", [1, 2, 5, 9])
def test_no_sign_vector_with_its_best_scale_comes_closer(n):
    w = draw((20, n), seed=n)
    vectors = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=n)), dtype=torch.float64)
    # For each b the best alpha is w . b / n: a projection.  Every b, so no better pair exists.
    alphas = w @ vectors.T / n
    errors = ((w[:, None] - alphas[..., None] * vectors) ** 2).sum(-1)
    ours = ((w - xnor_net.binarize(w)) ** 2).sum(-1)
    # Sums of n squares of size about 1, in two orders.
    assert bool(((ours - errors.min(dim=1).values).abs() <= 1e-13).all())
    # And the error that the page predicts.
    predicted = (w**2).sum(1) - n * xnor_net.scale(w)[:, 0] ** 2
    assert bool(((ours - predicted).abs() <= 1e-13).all())


def test_normal_weights_meet_lloyd_and_max_at_one_bit():
    from scipy import stats

    p = (torch.arange(200_000).double() + 0.5) / 200_000
    w = torch.special.ndtri(p)[None]
    error = ((w - xnor_net.binarize(w)) ** 2).mean().item()
    levels = lloyd_max.design(stats.norm(), 2).levels
    # Midpoint quantiles of 200 000 miss the tail's share of the variance by a few 1e-5.
    assert abs(xnor_net.scale(w).item() - levels[1]) <= 1e-4
    assert abs(error - lloyd_max.mse(stats.norm(), levels)) <= 1e-4
    assert abs(error - (1 - 2 / np.pi)) <= 1e-4


@pytest.mark.parametrize("shape", SHAPES)
def test_the_full_gradient_is_autograds_of_the_composed_function(shape):
    w, grad = draw(shape, spread=0.8).requires_grad_(), draw(shape, seed=1)
    # The mean of |w| by torch, the sign by a hard tanh that reports sign(w): its slope is the STE.
    alpha = w.abs().flatten(1).mean(1).reshape(-1, *[1] * (w.ndim - 1))
    straight = F.hardtanh(w)
    composed = alpha * (straight + (torch.sign(w) - straight).detach())
    composed.backward(grad)
    found = xnor_net.full_gradient(w.detach(), grad)
    # Sums of at most 18 terms of size about 1, in two orders.
    assert bool(((found - w.grad).abs() <= 1e-14).all())
    through = draw(shape, spread=0.8).requires_grad_()
    xnor_net.binarize(through, xnor_net.full_gradient).backward(grad)
    assert torch.equal(through.grad, found)


def jacobian(gradient, w):
    """Of one filter w [1, n]: row j holds the gradient of output j."""
    n = w.shape[1]
    return torch.cat([gradient(w, row[None]) for row in torch.eye(n, dtype=w.dtype)])


def test_the_printed_gradient_is_the_diagonal_of_the_full_one():
    w = draw((1, 9), seed=3)
    assert 0 < int((w.abs() < 1).sum()) < 9
    full, printed = (jacobian(f, w) for f in (xnor_net.full_gradient, xnor_net.printed_gradient))
    assert bool(((printed - torch.diag(torch.diag(full))).abs() <= 1e-16).all())
    # What is left out is of the same size: 1 / n in every place off the diagonal.
    off = full - torch.diag(torch.diag(full))
    assert bool((off.abs() - (1 - torch.eye(9)) / 9 <= 1e-16).all())
    assert (
        torch.linalg.matrix_rank(full - xnor_net.scale(w) * torch.diag((w[0].abs() < 1) * 1.0)) == 1
    )


def test_the_full_gradient_along_the_signs_moves_alpha_and_across_them_only_the_ste_is_left():
    w = draw((1, 8), spread=0.2)
    alpha, signs = xnor_net.scale(w), torch.sign(w)
    across = draw((1, 8), seed=5)
    across -= signs * (across * signs).mean()
    for grad, factor in ((signs, alpha + 1), (across, alpha)):
        found = xnor_net.full_gradient(w, grad)
        assert bool(((found - factor * grad).abs() <= 1e-15).all())


@pytest.mark.parametrize("shape", [(3, 7), (4, 2, 3, 3)])
def test_the_released_factor_is_the_scripts(shape):
    # util.lua, updateBinaryGradWeight, a filter and a weight at a time.
    w, grad = draw(shape, spread=0.8), draw(shape, seed=1)
    found = xnor_net.released_gradient(w, grad)
    c, n = shape[1], w[0].numel()
    for k in range(shape[0]):
        alpha = sum(abs(v) for v in w[k].flatten().tolist()) / n
        for v, g, result in zip(
            *(t.flatten().tolist() for t in (w[k], grad[k], found[k])), strict=True
        ):
            m = 0.0 if v <= -1 or v >= 1 else alpha
            # A few roundings of a number below 10 * 18.
            assert abs(result - g * (m + 1 / n) * (1 - 1 / c) * n) <= 1e-13


def test_centring_has_the_diagonal_that_the_released_code_multiplies_by():
    w = draw((1, 5))
    derivative = torch.autograd.functional.jacobian(xnor_net.center, w)[0, :, 0]
    assert bool((torch.diag(derivative) - (1 - 1 / 5)).abs().max() <= 1e-15)
    images = xnor_net.center(draw((4, 3, 2, 2)))
    assert images.mean(dim=1).abs().max() <= 1e-15


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(1, 1, 0), (3, 1, 1), (3, 2, 0)])
def test_the_input_scale_is_the_mean_of_each_patch(kernel, stride, padding):
    x = draw((2, 3, 7, 7))
    patches = F.unfold(x.abs(), kernel, padding=padding, stride=stride).mean(dim=1)
    found = xnor_net.input_scale(x, kernel, stride=stride, padding=padding)
    assert bool(((found.flatten(1) - patches).abs() <= 1e-14).all())
    rows = draw((5, 9))
    assert torch.equal(xnor_net.input_scale(rows), rows.abs().mean(dim=1, keepdim=True))


def test_arguments_stay_as_they_are():
    w = draw((3, 7))
    copy = w.clone()
    xnor_net.binarize(w), xnor_net.center(w), xnor_net.released_gradient(w, w)
    assert torch.equal(w, copy)
