import numpy as np
import pytest
import torch

from qbook import affine
from qbook.qat import lsq

WIDTHS = [(1, False), (2, True), (2, False), (3, True), (4, False), (8, True)]


def around(scale, qmin, qmax, dtype=torch.float64):
    """Every quarter step from two steps below the range to two above, and beside each of them."""
    grid = scale * torch.arange(4 * (qmin - 2), 4 * (qmax + 2) + 1, dtype=dtype) / 4
    beside = [torch.nextafter(grid, torch.tensor(end, dtype=dtype)) for end in (-1e9, 1e9)]
    return torch.cat([grid, *beside])


def by_equation_3_and_5(v, scale, qn, qp):
    """One value at a time, as the paper prints the cases."""
    ratio = v / scale
    if ratio <= -qn:
        return 0.0, -qn
    if ratio >= qp:
        return 0.0, qp
    return 1.0, -ratio + round(ratio)


def gradients(function, v, scale):
    """Value and the gradients of the sum of weights * function: the weights show that it sums."""
    v, scale = v.clone().requires_grad_(), scale.clone().requires_grad_()
    weights = torch.linspace(-2, 3, v.numel(), dtype=v.dtype).reshape(v.shape)
    value = function(v, scale)
    (value * weights).sum().backward()
    return value.detach(), v.grad, scale.grad, weights


@pytest.mark.parametrize(("bits", "signed"), WIDTHS)
@pytest.mark.parametrize("scale", [0.25, 1.0, 8.0])
def test_slopes_are_the_papers_cases_on_every_quarter_step(bits, signed, scale):
    # Scales that are powers of two: v / scale is exact, so the edges of the range are hit.
    qp = 2 ** (bits - signed) - 1
    qn = 2 ** (bits - 1) if signed else 0
    v = around(scale, -qn, qp)
    to_v, to_scale = lsq.slopes(v, torch.tensor(scale, dtype=torch.float64), bits, signed=signed)
    expected = [by_equation_3_and_5(x, scale, qn, qp) for x in v.tolist()]
    assert to_v.tolist() == [a for a, _ in expected]
    assert to_scale.tolist() == [b for _, b in expected]


def test_slopes_by_hand_in_every_region_and_on_its_edges():
    # Two bits, codes -2 ... 1, scale 1/2.
    v = torch.tensor(
        [-1.5, -1.0, -0.9, -0.5, -0.25, 0.0, 0.2, 0.3, 0.5, 0.6, 0.75, 2.0], dtype=torch.float64
    )
    to_v, to_scale = lsq.slopes(v, torch.tensor(0.5, dtype=torch.float64), 2)
    assert to_v.tolist() == [0, 0, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0]
    expected = torch.tensor([-2, -2, -0.2, 0, 0.5, 0, -0.4, 0.4, 1, 1, 1, 1], dtype=torch.float64)
    # 1.8 - 2 and the like round once, at a size below 2.
    assert bool(((to_scale - expected).abs() <= 2.0**-51).all())


@pytest.mark.parametrize(("bits", "signed"), WIDTHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_forward_is_the_affine_fake_quantizer_and_backward_sums_the_slopes(bits, signed, dtype):
    scale = torch.tensor(0.3, dtype=dtype)
    qparams = lsq.qparams(scale, bits, signed=signed)
    v = around(scale, qparams.qmin, qparams.qmax, dtype)

    def function(v, scale):
        return lsq.fake_quantize(v, scale, bits, signed=signed, factor=0.125)

    value, grad_v, grad_scale, weights = gradients(function, v, scale)
    assert torch.equal(value, affine.fake_quantize(v, qparams))
    to_v, to_scale = lsq.slopes(v, scale, bits, signed=signed)
    assert torch.equal(grad_v, weights * to_v)
    assert torch.equal(grad_scale, (weights * to_scale).sum() / 8)
    assert value.dtype == grad_v.dtype == grad_scale.dtype == dtype


@pytest.mark.parametrize(("bits", "signed"), [(2, True), (4, False), (8, True)])
def test_forward_equals_torch_and_the_gradients_differ_half_a_step_beyond_the_range(bits, signed):
    scale = torch.tensor([0.25])
    qparams = lsq.qparams(scale, bits, signed=signed)
    qmin, qmax = qparams.qmin, qparams.qmax
    v = around(0.25, qmin, qmax, torch.float32)

    def theirs(v, scale):
        return torch._fake_quantize_learnable_per_tensor_affine(
            v, scale, torch.zeros(1), qmin, qmax, 1.0
        )

    def slope_by_element(function):
        """One scale per element: the gradient of the sum is then every element's slope."""
        results = [gradients(function, x.reshape(1), scale) for x in v]
        # The one weight of a one-element linspace is -2.
        return [torch.cat([r[i] for r in results]) for i in (0, 1, 2)]

    value, to_v, to_scale = slope_by_element(lambda v, s: _plain(v, s, bits, signed))
    their_value, their_v, their_scale = slope_by_element(theirs)
    assert torch.equal(value, their_value)
    ratio = v / 0.25
    rounded = torch.round(ratio)
    # Torch tests the rounded code: on this band it rounds, LSQ already clips.
    band = ((ratio <= qmin) & (qmin <= rounded)) | ((qmax <= ratio) & (rounded <= qmax))
    assert 0 < int(band.sum()) < v.numel()
    assert torch.equal(to_v[~band], their_v[~band])
    # (x_hat - x) / scale against round(x / scale) - x / scale: exact for a scale of 1/4.
    assert torch.equal(to_scale[~band], their_scale[~band])
    assert bool((to_v[band] == 0).all())
    assert bool((their_v[band] == -2).all())
    end = torch.where(ratio[band] >= qmax, qmax, qmin).float()
    assert torch.equal(to_scale[band], -2 * end)
    assert torch.equal(their_scale[band], -2 * (end - ratio[band]))


def _plain(v, scale, bits, signed):
    return lsq.fake_quantize(v, scale, bits, signed=signed, factor=1.0)


@pytest.mark.parametrize(("bits", "signed"), [(2, True), (3, True), (3, False)])
def test_the_mean_slope_under_dither_is_the_derivative_of_the_mean_output(bits, signed):
    # v + scale * t is quantized, t uniform over a step: scale moves the dither too, by t.
    qparams = lsq.qparams(torch.tensor(0.4, dtype=torch.float64), bits, signed=signed)
    n = 2048
    t = (torch.arange(n).double() + 0.5) / n - 0.5
    # A step inside the ends, and a step outside: between them the dither straddles the corner.
    steps = torch.linspace(qparams.qmin - 2, qparams.qmax + 2, 61).double()
    far = ((steps - qparams.qmin).abs() > 0.5) & ((steps - qparams.qmax).abs() > 0.5)
    v = 0.4 * steps[far][:, None]

    def mean(scale):
        scale = torch.tensor(scale, dtype=torch.float64)
        return affine.fake_quantize(v + scale * t, lsq.qparams(scale, bits, signed=signed)).mean(
            axis=1
        )

    to_v, to_scale = lsq.slopes(
        v + 0.4 * t, torch.tensor(0.4, dtype=torch.float64), bits, signed=signed
    )
    estimate = (to_scale + t * to_v).mean(axis=1)
    numeric = (mean(0.41) - mean(0.39)) / 0.02
    # n midpoints miss the mean of a staircase by at most half a step / n: 0.4 / 2048 / 0.02 = 0.01;
    # the mean output is linear in scale there, so the difference itself is exact.
    assert bool(((estimate - numeric).abs() <= 0.02).all())
    outside = torch.where(steps[far] > qparams.qmax, qparams.qmax, qparams.qmin)
    inside = (qparams.qmin < steps[far]) & (steps[far] < qparams.qmax)
    exact = torch.where(inside, 0, outside)
    assert bool(((estimate - exact).abs() <= 0.01).all())


def test_for_fine_steps_the_gradient_of_the_squared_error_is_its_derivative():
    # A normal variable, 8 bits, no overload: the error is scale^2 / 12, its derivative scale / 6.
    v = torch.special.ndtri((torch.arange(200_000).double() + 0.5) / 200_000)

    def error(scale):
        return ((affine.fake_quantize(v, lsq.qparams(scale, 8)) - v) ** 2).mean()

    for value in (0.1, 0.3, 0.6):
        scale = torch.tensor(value, dtype=torch.float64).requires_grad_()
        ((lsq.fake_quantize(v, scale, 8, factor=1.0) - v) ** 2).mean().backward()
        difference = (error(torch.tensor(1.02 * value)) - error(torch.tensor(0.98 * value))) / (
            0.04 * value
        )
        # Bennett's deviations are below 1e-10 for scale < sigma; what remains is the sampling:
        # 80 000 points a sigma put a point's width of 1e-5 at each cell's edge.
        assert abs(scale.grad.item() / (value / 6) - 1) <= 1e-3
        assert abs(difference.item() / (value / 6) - 1) <= 1e-2


@pytest.mark.parametrize(
    ("shape", "scale_shape"), [((3, 7), (3, 1)), ((5, 4), (1, 4)), ((6,), (1,))]
)
def test_a_scale_for_each_channel_gets_the_sum_over_its_channel(shape, scale_shape):
    rng = np.random.default_rng(0)
    v = torch.from_numpy(rng.normal(size=shape))
    scale = torch.from_numpy(rng.uniform(0.2, 0.9, scale_shape))
    value, _, grad, weights = gradients(lambda v, s: lsq.fake_quantize(v, s, 3), v, scale)
    assert torch.equal(value, affine.fake_quantize(v, lsq.qparams(scale, 3)))
    _, to_scale = lsq.slopes(v, scale, 3)
    axes = [a for a, n in enumerate(scale_shape) if n == 1]
    expected = (weights * to_scale).sum(axes, keepdim=True) / np.sqrt(v.numel() / scale.numel() * 3)
    # Two orders of at most 7 additions.
    assert torch.allclose(grad, expected, rtol=1e-14, atol=1e-14)


def test_gradient_factor_and_first_scale_are_the_papers():
    assert lsq.gradient_factor(100, 3) == 1 / np.sqrt(300)
    assert lsq.gradient_factor(100, 3, signed=False) == 1 / np.sqrt(700)
    v = torch.tensor([-1.0, 2.0, -3.0])
    assert abs(lsq.initial_scale(v, 3).item() - 4 / np.sqrt(3)) <= 2.0**-22
    assert abs(lsq.initial_scale(v, 2, signed=False).item() - 4 / np.sqrt(3)) <= 2.0**-22


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_that_is_not_positive_is_refused(scale):
    with pytest.raises(ValueError, match="must be positive"):
        lsq.fake_quantize(torch.ones(3), torch.tensor(scale), 4)


def test_widths_and_values_without_a_scale_are_refused():
    with pytest.raises(ValueError, match="no positive code"):
        lsq.fake_quantize(torch.ones(3), torch.tensor(1.0), 1)
    with pytest.raises(ValueError, match="bits=17"):
        lsq.qparams(torch.tensor(1.0), 17)
    with pytest.raises(ValueError, match="must be positive"):
        lsq.initial_scale(torch.zeros(3), 4)


def test_arguments_stay_as_they_are():
    v, scale = torch.linspace(-1, 1, 9), torch.tensor(0.3)
    copies = v.clone(), scale.clone()
    lsq.fake_quantize(v, scale, 3), lsq.slopes(v, scale, 3), lsq.initial_scale(v, 3)
    assert torch.equal(v, copies[0])
    assert torch.equal(scale, copies[1])
