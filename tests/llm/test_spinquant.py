import pytest
import torch
from torch.nn import functional as F

from qbook.llm import hadamard, quarot, spinquant
from qbook.models import char_gpt

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
