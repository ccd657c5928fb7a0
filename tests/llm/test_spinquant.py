import pytest
import torch
from torch.nn import functional as F

from qbook import affine
from qbook.llm import hadamard, quarot, spinquant
from qbook.models import char_gpt
from qbook.ste import round_ste

STREAM = quarot.char_gpt_stream()


def rotation(n, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(n, n, generator=g, dtype=torch.float64))[0]


@pytest.mark.parametrize("lr", [1e-3, 1.0, 1e3])
def test_no_step_leaves_the_manifold(lr):
    q = rotation(9)
    g = torch.randn(9, 9, generator=torch.Generator().manual_seed(1)).double()
    new = spinquant.cayley_step(q, g, lr)
    assert float((new @ new.T - torch.eye(9)).abs().max()) <= 1e-12
    assert float((new - q).abs().max()) > 1e-4


def test_a_small_step_goes_along_the_projected_gradient():
    """d/dlr at 0 is -(g - q g^T q), the gradient's part tangent to the orthogonal matrices."""
    q, lr = rotation(6), 1e-6
    g = torch.randn(6, 6, generator=torch.Generator().manual_seed(2)).double()
    found = (spinquant.cayley_step(q, g, lr) - q) / lr
    # The next term of the series: lr |a|^2 / 2 times q, with |a| of about 10.
    assert float((found + (g - q @ g.T @ q)).abs().max()) <= 1e-3


def test_a_gradient_along_q_itself_moves_nothing():
    q = rotation(5)
    assert float((spinquant.cayley_step(q, 3.0 * q, 0.7) - q).abs().max()) <= 1e-14


def test_descent_finds_the_rotation_that_is_wanted():
    """|q - target|^2 over rotations of determinant 1 has its minimum at the target."""
    target = rotation(5, seed=3)
    target = target if torch.det(target) > 0 else target[[1, 0, 2, 3, 4]]
    q = torch.eye(5, dtype=torch.float64)
    for _ in range(300):
        q = spinquant.cayley_step(q, q - target, 0.5)
    assert float((q - target).abs().max()) <= 1e-6


def test_a_gradient_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="lower lr"):
        spinquant.cayley_step(rotation(3), torch.full((3, 3), torch.nan), 1.0)


def test_learning_lowers_the_loss_of_the_quantized_model_and_keeps_that_of_the_real_one():
    model = char_gpt.load().double()
    fused = quarot.fuse(quarot.center(model, STREAM), STREAM)
    names = [name for names in STREAM.readers.values() for name in names]
    ids = torch.randint(65, (2, 33), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = model(ids[:, :-1])
    handles = spinquant.round_inputs(fused, names, 3)

    def loss(call, step):
        return F.mse_loss(call(ids[:, :-1]), wanted)

    start, losses = hadamard.matrix(128, seed=0), []
    q = spinquant.learn(
        fused,
        STREAM,
        loss,
        start,
        steps=12,
        lr=2.0,
        bits=4,
        report=lambda step, value: losses.append(value),
    )
    for handle in handles:
        handle.remove()
    assert min(losses[-3:]) < losses[0]
    with torch.no_grad():
        found = quarot.rotate(fused, STREAM, q)(ids[:, :-1])
    assert float((found - wanted).abs().max()) <= 1e-9


def test_layers_that_are_skipped_stay_real_and_then_nothing_is_to_be_learned():
    model = char_gpt.load().double()
    fused = quarot.fuse(quarot.center(model, STREAM), STREAM)
    names = [*STREAM.writers, *(name for names in STREAM.readers.values() for name in names)]
    ids = torch.randint(65, (1, 20), generator=torch.Generator().manual_seed(0))

    def loss(call, step):
        return F.cross_entropy(call(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())

    start = hadamard.matrix(128, seed=0)
    moved = {}
    for label, skip in {"all": names, "head": ["head"], "none": []}.items():
        q = spinquant.learn(fused, STREAM, loss, start, steps=1, lr=1.0, bits=3, skip=skip)
        moved[label] = float((q - start).abs().max())
    # The real model is the same for every rotation: its gradient is rounding, in float64.
    assert moved["all"] <= 1e-10
    assert moved["head"] > 1e-4
    assert abs(moved["none"] / moved["head"] - 1) > 1e-3


@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 3, 9)])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 4])
def test_gradients_through_the_scale_are_those_of_the_formula_written_out(bits, symmetric, shape):
    g = torch.Generator().manual_seed(bits)
    x = torch.randn(shape, generator=g).double().requires_grad_()
    weight = torch.randn(shape, generator=g).double()
    high, low = x.amax(-1, keepdim=True).clamp(min=0), x.amin(-1, keepdim=True).clamp(max=0)
    if symmetric:
        step = torch.maximum(high, -low) / (2 ** (bits - 1) - 1)
    else:
        step = (high - low) / (2**bits - 1)
    expected = step * round_ste(x / step)
    (wanted,) = torch.autograd.grad((expected * weight).sum(), x)
    found = spinquant.fake_quantize(x, bits, axis=-1, symmetric=symmetric, through_scale=True)
    (gradient,) = torch.autograd.grad((found * weight).sum(), x)
    plain = affine.choose_qparams(x.detach(), bits, axis=-1, symmetric=symmetric)
    found, expected = found.detach(), expected.detach()
    assert float((found - affine.fake_quantize(x.detach(), plain)).abs().max()) <= 1e-14
    # Within the range both round to the same multiple of the step; at its ends codes may clip.
    inside = (found - expected).abs() <= 1e-12
    if bool(inside.all()):
        assert float((gradient - wanted).abs().max()) <= 1e-12
    straight = spinquant.fake_quantize(x, bits, axis=-1, symmetric=symmetric)
    (ones,) = torch.autograd.grad(straight.sum(), x)
    assert set(ones.unique().tolist()) <= {0.0, 1.0}


def test_through_the_scale_descent_on_the_error_is_descent_on_the_range():
    """The mean squared error of rounding is that of the steps over 12: their gradients agree."""
    x = torch.randn(2000, 16, generator=torch.Generator().manual_seed(0)).double()
    x[:, 3] *= 5
    q = rotation(16, seed=1).requires_grad_()

    def skew(loss):
        (g,) = torch.autograd.grad(loss, q)
        return (g @ q.T - q @ g.T).detach().flatten()

    wanted = skew((x @ q).abs().amax(dim=1).pow(2).mean())
    cosine = {}
    for through in (False, True):
        y = x @ q
        rounded = spinquant.fake_quantize(y, 4, axis=-1, symmetric=True, through_scale=through)
        found = skew((rounded - y.detach()).pow(2).mean())
        cosine[through] = float(F.cosine_similarity(found, wanted, dim=0))
    assert cosine[True] >= 0.7
    assert abs(cosine[False]) <= 0.4
