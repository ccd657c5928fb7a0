import pytest
import torch
from torch import nn

from qbook.llm import hadamard, quarot
from qbook.models import char_gpt

IDS = torch.randint(65, (2, 50), generator=torch.Generator().manual_seed(0))
STREAM = quarot.char_gpt_stream()
# float64, logits of about 10, four blocks.
TOLERANCE = 1e-10


@pytest.fixture
def model():
    return char_gpt.load().double()


def logits(model):
    with torch.no_grad():
        return model(IDS)


def same(a, b):
    return float((logits(a) - logits(b)).abs().max()) <= TOLERANCE


def stream_of(model):
    """What the first norm of the second block reads, [tokens, width]."""
    seen = []
    hook = model.blocks[1].attention_norm.register_forward_pre_hook(
        lambda _, x: seen.append(x[0].flatten(0, 1))
    )
    logits(model)
    hook.remove()
    return seen[0]


def test_every_step_leaves_the_function_as_it_is(model):
    centred = quarot.center(model, STREAM)
    fused = quarot.fuse(centred, STREAM)
    rotated = quarot.rotate(fused, STREAM, hadamard.matrix(128, seed=1))
    headed = rotated
    for i in range(4):
        attention = f"blocks.{i}.attention"
        headed = quarot.rotate_heads(
            headed, f"{attention}.value", f"{attention}.output", hadamard.matrix(32)
        )
        headed.set_submodule(
            f"blocks.{i}.down", quarot.RotatedLinear(headed.get_submodule(f"blocks.{i}.down"))
        )
    for step in (centred, fused, rotated, headed):
        assert same(step, model)


def test_the_model_that_is_given_stays(model):
    before = {name: w.clone() for name, w in model.state_dict().items()}
    fused = quarot.fuse(quarot.center(model, STREAM), STREAM)
    quarot.rotate(fused, STREAM, hadamard.matrix(128))
    assert all(torch.equal(w, before[name]) for name, w in model.state_dict().items())


def test_a_centred_stream_has_mean_zero(model):
    assert float(stream_of(model).mean(dim=1).abs().max()) > 1e-3
    assert float(stream_of(quarot.center(model, STREAM)).mean(dim=1).abs().max()) <= 1e-13


def test_the_stream_itself_is_rotated(model):
    fused = quarot.fuse(quarot.center(model, STREAM), STREAM)
    q = hadamard.matrix(128, seed=5)
    expected = stream_of(fused) @ q
    found = stream_of(quarot.rotate(fused, STREAM, q))
    assert float((found - expected).abs().max()) <= TOLERANCE


def test_fusing_without_centring_is_another_function(model):
    assert not same(quarot.fuse(model, STREAM), model)


def test_a_gain_that_was_not_fused_is_refused(model):
    with pytest.raises(ValueError, match="attention_norm has a gain"):
        quarot.rotate(model, STREAM, hadamard.matrix(128))


def test_a_matrix_that_is_no_rotation_is_refused(model):
    fused = quarot.fuse(quarot.center(model, STREAM), STREAM)
    with pytest.raises(ValueError, match=r"differs from the identity by 3\.0e"):
        quarot.rotate(fused, STREAM, 2 * torch.eye(128).double())


def test_rms_norms_cannot_be_centred():
    model = nn.Sequential(nn.RMSNorm(4), nn.Linear(4, 4))
    with pytest.raises(ValueError, match="0 is a RMSNorm"):
        quarot.center(model, quarot.Stream((), (), {"0": ("1",)}))


def test_heads_that_do_not_divide_are_refused(model):
    with pytest.raises(ValueError, match="order 12 does not divide the 128 channels"):
        quarot.rotate_heads(
            model, "blocks.0.attention.value", "blocks.0.attention.output", hadamard.matrix(12)
        )


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("shape", [(12,), (2, 5, 12)])
def test_a_linear_that_rotates_its_input_rotates_its_weight(shape, seed):
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(12, 7).double()
    x = torch.randn(shape, generator=generator).double()
    q = hadamard.matrix(12, seed=seed)
    rotated = quarot.RotatedLinear(linear, seed=seed)
    seen = []
    rotated.linear.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        assert float((rotated(x) - linear(x)).abs().max()) <= 1e-13
        assert float((rotated.linear.weight - linear.weight @ q).abs().max()) <= 1e-13
    assert float((seen[0] - x @ q).abs().max()) <= 1e-13


def test_signs_keep_a_mean_from_becoming_an_outlier():
    x = 1 + 0.1 * torch.randn(50, 64, generator=torch.Generator().manual_seed(0)).double()
    largest = {}
    for seed in (None, 0):
        rotated = quarot.RotatedLinear(nn.Linear(64, 3).double(), seed=seed)
        rotated.linear.register_forward_pre_hook(
            lambda _, inputs, seed=seed: largest.update({seed: float(inputs[0].abs().max())})
        )
        with torch.no_grad():
            rotated(x)
    # sqrt(64) times the mean of 1; signs leave normal numbers of size 1, 64 of them.
    assert largest[None] >= 7.8
    assert largest[0] <= 4.5
