import itertools

import numpy as np
import pytest
import torch

from qbook import affine
from qbook.qat import lsq, lsq_plus

WIDTHS = [(1, False), (2, True), (2, False), (3, False), (4, True), (8, False)]


def values(qmin, qmax, scale, beta):
    """Every quarter step from two steps below the range to two above."""
    return scale * torch.arange(4 * (qmin - 2), 4 * (qmax + 2) + 1).double() / 4 + beta


def ends(bits, signed):
    half = 2 ** (bits - 1) if signed else 0
    return -half, 2**bits - 1 - half


@pytest.mark.parametrize(("bits", "signed"), WIDTHS)
@pytest.mark.parametrize("beta", [-0.75, 0.0, 0.5])
def test_value_and_slopes_are_the_papers_cases(bits, signed, beta):
    # A scale and offsets that are sums of few powers of two: the edges are hit exactly.
    qmin, qmax = ends(bits, signed)
    v = values(qmin, qmax, 0.25, beta)
    scale, offset = (torch.tensor(x, dtype=torch.float64) for x in (0.25, beta))
    slopes = lsq_plus.slopes(v, scale, offset, bits, signed=signed)
    value = lsq_plus.fake_quantize(v, scale, offset, bits, signed=signed)
    for x, found, *by in zip(
        v.tolist(), value.tolist(), *(s.tolist() for s in slopes), strict=True
    ):
        steps = (x - beta) / 0.25
        assert found == 0.25 * round(min(max(steps, qmin), qmax)) + beta
        inside = qmin < steps < qmax
        clipped = qmin if steps <= qmin else qmax
        assert by == [inside, round(steps) - steps if inside else clipped, not inside]


@pytest.mark.parametrize(("bits", "signed"), WIDTHS)
@pytest.mark.parametrize("shape", [(31,), (3, 17), (2, 3, 5)])
def test_gradients_are_those_of_the_expression_with_a_straight_through_rounding(
    bits, signed, shape
):
    rng = np.random.default_rng(bits)
    v = torch.from_numpy(rng.normal(size=shape) * 2 ** (bits - 1) * 0.3)
    weights = torch.from_numpy(rng.normal(size=shape))
    qmin, qmax = ends(bits, signed)

    def by_autograd(v, scale, beta):
        steps = ((v - beta) / scale).clamp(qmin, qmax)
        return scale * (steps + (steps.round() - steps).detach()) + beta

    def ours(v, scale, beta):
        return lsq_plus.fake_quantize(v, scale, beta, bits, signed=signed, factor=1.0)

    results = []
    for function in (by_autograd, ours):
        leaves = [v.clone(), torch.tensor(0.3).double(), torch.tensor(-0.17).double()]
        for leaf in leaves:
            leaf.requires_grad_()
        out = function(*leaves)
        (out * weights).sum().backward()
        results.append([out.detach(), *(leaf.grad for leaf in leaves)])
    for theirs, found in zip(*results, strict=True):
        # Sums of at most 51 terms of a size of up to 255.
        assert torch.allclose(found, theirs, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize(("bits", "signed"), WIDTHS)
def test_without_an_offset_it_is_lsq_bit_for_bit(bits, signed):
    qmin, qmax = ends(bits, signed)
    v = values(qmin, qmax, 0.3, 0.0)
    grads = []
    for function in (
        lambda v, s: lsq_plus.fake_quantize(v, s, torch.zeros(()).double(), bits, signed=signed),
        lambda v, s: lsq.fake_quantize(v, s, bits, signed=signed),
    ):
        leaf, scale = v.clone().requires_grad_(), torch.tensor(0.3).double().requires_grad_()
        out = function(leaf, scale)
        (out * torch.linspace(-2, 3, v.numel())).sum().backward()
        grads.append((out.detach(), leaf.grad, scale.grad))
    for one, other in zip(*grads, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(("bits", "zero_point"), [(2, 1), (3, 2), (4, 5), (8, 40)])
def test_on_integer_offsets_torch_gives_the_same_values_and_the_chain_rules_gradients(
    bits, zero_point
):
    qmax = 2**bits - 1
    scale = torch.tensor([0.25])
    v = values(0, qmax, 0.25, -0.25 * zero_point).float()
    steps = v / 0.25 + zero_point
    # Half a step beyond the ends the two conventions differ; see test_lsq.  Ties go to the even
    # code there and to the even number of steps from beta here.
    v, steps = v[steps.frac().abs() != 0.5], steps[steps.frac().abs() != 0.5]
    v = v[
        ((steps <= 0) & (steps.round() < 0)) | ((0 < steps) & (steps < qmax)) | (steps > qmax + 1)
    ]

    def slopes(function, *parameters):
        rows = []
        for x in v:
            leaves = [p.clone().requires_grad_() for p in (x.reshape(1), *parameters)]
            out = function(*leaves)
            out.sum().backward()
            rows.append([out.detach(), *(leaf.grad for leaf in leaves)])
        return [torch.cat(column) for column in zip(*rows, strict=True)]

    theirs = slopes(
        lambda x, s, z: torch._fake_quantize_learnable_per_tensor_affine(x, s, z, 0, qmax, 1.0),
        scale,
        torch.tensor([float(zero_point)]),
    )
    found = slopes(
        lambda x, s, beta: lsq_plus.fake_quantize(x, s, beta, bits, factor=1.0),
        scale,
        torch.tensor([-0.25 * zero_point]),
    )
    assert torch.equal(found[0], theirs[0])
    assert torch.equal(found[1], theirs[1])
    # beta = -scale z: by z it is -scale times that by beta, and by scale -z times more.
    assert torch.equal(-0.25 * found[3], theirs[3])
    assert torch.equal(found[2] - zero_point * found[3], theirs[2])


def test_factor_multiplies_the_gradients_of_both_parameters_and_not_of_the_values():
    rng = np.random.default_rng(0)
    v = torch.from_numpy(rng.normal(size=(6, 5)))
    results = []
    for factor in (1.0, 0.25, None):
        leaves = [v.clone(), torch.tensor(0.4).double(), torch.tensor(-0.3).double()]
        for leaf in leaves:
            leaf.requires_grad_()
        lsq_plus.fake_quantize(*leaves, 2, factor=factor).square().sum().backward()
        results.append([leaf.grad for leaf in leaves])
    for factor, grads in zip((0.25, 1 / np.sqrt(30 * 3)), results[1:], strict=True):
        assert torch.equal(grads[0], results[0][0])
        assert torch.allclose(grads[1], factor * results[0][1], rtol=1e-14)
        assert torch.allclose(grads[2], factor * results[0][2], rtol=1e-14)


def test_one_scale_and_offset_a_channel_get_the_sums_over_their_channel():
    rng = np.random.default_rng(0)
    v, weights = (torch.from_numpy(rng.normal(size=(7, 3))) for _ in range(2))
    scale = torch.tensor([[0.2, 0.5, 0.9]]).double().requires_grad_()
    beta = torch.tensor([[-0.4, 0.0, 0.3]]).double().requires_grad_()
    out = lsq_plus.fake_quantize(v, scale, beta, 2, factor=1.0)
    (out * weights).sum().backward()
    _, to_scale, to_beta = lsq_plus.slopes(v, scale, beta, 2)
    assert torch.allclose(scale.grad, (weights * to_scale).sum(0, keepdim=True), rtol=1e-13)
    assert torch.allclose(beta.grad, (weights * to_beta).sum(0, keepdim=True), rtol=1e-13)


def test_weight_scale_reaches_three_deviations_beyond_the_mean():
    w = torch.tensor([-1.0, 0.0, 2.0, 3.0], dtype=torch.float64)
    mean, deviation = np.mean(w.numpy()), np.std(w.numpy(), ddof=1)
    for sign in (1, -1):
        found = lsq_plus.initial_weight_scale(sign * w, 3).item()
        expected = max(abs(mean - 3 * deviation), abs(mean + 3 * deviation)) / 4
        assert abs(found - expected) <= 1e-15


def least_error(x, codes, line):
    """Every way to give ascending values ascending codes: the least squares of each."""
    x = np.sort(x)
    best = np.inf
    for chosen in itertools.combinations_with_replacement(codes, len(x)):
        q = np.array(chosen, dtype=float)
        columns = np.stack([q, np.ones_like(q)], axis=1) if line else q[:, None]
        solution = np.linalg.lstsq(columns, x, rcond=None)[0]
        if solution[0] > 0:
            best = min(best, ((x - columns @ solution) ** 2).sum())
    return best


@pytest.mark.parametrize(("bits", "count"), [(1, 9), (2, 9), (3, 7)])
@pytest.mark.parametrize("seed", range(4))
def test_fit_comes_to_the_least_error_of_all_assignments_or_near_it(bits, count, seed):
    x = np.random.default_rng(seed).normal(size=count) ** 3
    scale, beta = lsq_plus.fit(torch.from_numpy(x), bits)
    x_hat = lsq_plus.fake_quantize(torch.from_numpy(x), scale, beta, bits).numpy()
    found, least = ((x - x_hat) ** 2).sum(), least_error(x, range(2**bits), line=True)
    assert found >= least * (1 - 1e-9)
    # A descent from 36 starts: a few samples of so few values end beside the minimum.
    assert found <= 1.5 * least + 1e-12


@pytest.mark.parametrize("zero_point", range(4))
def test_fit_of_the_scale_alone_comes_to_the_least_error_of_all_assignments(zero_point):
    x = np.random.default_rng(zero_point).normal(size=9)
    scale = lsq_plus.fit_scale(torch.from_numpy(x), 2, zero_point)
    beta = -scale * zero_point
    x_hat = lsq_plus.fake_quantize(torch.from_numpy(x), scale, beta, 2).numpy()
    least = least_error(x, range(-zero_point, 4 - zero_point), line=False)
    assert ((x - x_hat) ** 2).sum() <= 1.1 * least
    assert ((x - x_hat) ** 2).sum() >= least * (1 - 1e-9)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_fit_beats_the_range_of_min_and_max_and_every_integer_zero_point(bits):
    x = torch.nn.functional.gelu(torch.from_numpy(np.random.default_rng(0).normal(size=5001)))

    def error(scale, beta):
        return (lsq_plus.fake_quantize(x, scale, beta, bits) - x).square().mean().item()

    least = error(*lsq_plus.fit(x, bits))
    low, high = x.min(), x.max()
    assert least <= error((high - low) / (2**bits - 1), low)
    for zero_point in {0, 1, 2 ** (bits - 1)}:
        scale = lsq_plus.fit_scale(x, bits, zero_point)
        assert least <= error(scale, -scale * zero_point) * (1 + 1e-9)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("bits", [1, 2])
def test_one_far_value_does_not_decide_the_fit(bits, sign):
    rng = np.random.default_rng(0)
    clusters = np.r_[0.1 * rng.normal(size=3000), 3 + rng.normal(size=300), 40.0]
    x = torch.from_numpy(sign * clusters)
    by_hand = 3 * sign * (np.abs(clusters) > 1.5)
    fitted = lsq_plus.fake_quantize(x, *lsq_plus.fit(x, bits), bits)
    # Levels at the two clusters, and none for the value at 40.
    assert ((fitted - x) ** 2).mean() <= ((by_hand - x.numpy()) ** 2).mean()


def test_one_bit_of_a_normal_variable_is_lloyd_and_maxs_two_levels():
    x = torch.special.ndtri((torch.arange(40_000).double() + 0.5) / 40_000)
    scale, beta = lsq_plus.fit(x, 1)
    # Levels -sqrt(2 / pi) and sqrt(2 / pi); 40 000 points put the mean within 1e-4 of it.
    level = np.sqrt(2 / np.pi)
    assert abs(beta.item() + level) <= 1e-3
    assert abs((scale + beta).item() - level) <= 1e-3


def test_signed_codes_move_the_offset_and_not_the_levels():
    x = torch.from_numpy(np.random.default_rng(0).normal(size=301))
    scale, beta = lsq_plus.fit(x, 3)
    other, moved = lsq_plus.fit(x, 3, signed=True)
    assert torch.equal(scale, other)
    assert abs((moved - 4 * scale - beta).item()) <= 1e-14


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_export_moves_the_levels_by_half_a_step_at_most_and_by_nothing_on_an_integer(bits):
    scale = torch.tensor(0.25, dtype=torch.float64)
    qmax = 2**bits - 1
    v = values(0, qmax, 0.25, -0.25)
    for beta in np.linspace(-0.25 * qmax, 0, 37):
        offset = torch.tensor(beta, dtype=torch.float64)
        exported = lsq_plus.qparams(scale, offset, bits)
        assert 0 <= exported.zero_point <= qmax
        moved = affine.dequantize(torch.arange(qmax + 1, dtype=torch.int32), exported)
        learnt = 0.25 * torch.arange(qmax + 1) + beta
        assert bool(((moved - learnt).abs() <= 0.125 + 1e-12).all())
    exact = torch.tensor(-0.25, dtype=torch.float64)
    # Off the ties, which are even codes or even numbers of steps from beta.
    v = v[(v / 0.25).frac().abs() != 0.5]
    assert torch.equal(
        affine.fake_quantize(v, lsq_plus.qparams(scale, exact, bits)),
        lsq_plus.fake_quantize(v, scale, exact, bits),
    )
    # A range without 0 has no zero-point: it is moved until 0 is its end.
    far = lsq_plus.qparams(scale, torch.tensor(9.0).double(), bits)
    assert far.zero_point == 0


def test_what_cannot_be_fitted_is_refused():
    with pytest.raises(ValueError, match="no two that differ"):
        lsq_plus.fit(torch.full((5,), 2.0), 2)
    with pytest.raises(ValueError, match="all finite"):
        lsq_plus.fit(torch.tensor([0.0, float("nan")]), 2)
    with pytest.raises(ValueError, match="two values or more"):
        lsq_plus.fit(torch.zeros(1), 2)
    with pytest.raises(ValueError, match="no code of 2 bits"):
        lsq_plus.fit_scale(torch.ones(3), 2, 4)
    with pytest.raises(ValueError, match="no value of x"):
        lsq_plus.fit_scale(-torch.arange(1.0, 4), 2, 0)
    with pytest.raises(ValueError, match="gives no scale"):
        lsq_plus.initial_weight_scale(torch.zeros(4), 2)
    with pytest.raises(ValueError, match="must be positive"):
        lsq_plus.fake_quantize(torch.ones(3), torch.tensor(-1.0), torch.tensor(0.0), 2)


def test_arguments_stay_as_they_are():
    v, scale, beta = torch.linspace(-1, 1, 9), torch.tensor(0.3), torch.tensor(-0.1)
    copies = v.clone(), scale.clone(), beta.clone()
    lsq_plus.fake_quantize(v, scale, beta, 2), lsq_plus.slopes(v, scale, beta, 2)
    lsq_plus.fit(v, 2), lsq_plus.fit_scale(v, 2, 1), lsq_plus.qparams(scale, beta, 2)
    for one, other in zip((v, scale, beta), copies, strict=True):
        assert torch.equal(one, other)
