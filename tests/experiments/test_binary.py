import pytest
import torch

from qbook.experiments import binary
from qbook.qat import xnor_net


def signs_and_scale(w):
    """-> whether w is one magnitude a filter"""
    return bool((w.abs() - w.abs().flatten(1)[:, :1].reshape(-1, *[1] * (w.ndim - 1)) == 0).all())


@pytest.mark.parametrize(
    "build", [lambda m: binary.Mlp(m, (5, 7, 6, 3)), lambda m: binary.ConvNet(m, 2)]
)
@pytest.mark.parametrize("name", binary.METHODS)
def test_a_network_computes_with_the_weights_that_its_method_says(name, build):
    method = binary.METHODS[name]
    model = build(method)
    weights = model.weights()
    binarized = [signs_and_scale(w) for w in weights]
    inner = [method.weight is not None] * (len(weights) - 2)
    ends = method.weight is not None and method.ends
    assert binarized == [ends, *inner, ends]
    assert len(model.latent()) == sum(binarized)


@pytest.mark.parametrize(
    ("name", "plus"), [("XNOR-Net", 1 / 2), ("XNOR-Net, pooled signs", 15 / 16)]
)
def test_pooled_signs_are_nearly_all_plus(name, plus):
    torch.manual_seed(0)
    # Noise without correlation between pixels, and a first kernel of one tap: independent signs.
    images = torch.randn(200, 3, 16, 16)
    model = binary.ConvNet(binary.METHODS[name], 4)
    first = torch.zeros_like(model.layers[0].weight)
    first[:, :, 1, 1] = torch.randn(4, 3)
    model.layers[0].weight.data = first
    second = []
    hook = torch.nn.functional.conv2d

    def spy(x, w, **kwargs):
        second.append(x)
        return hook(x, w, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(binary.F, "conv2d", spy)
        model(images)
    signs = second[1]
    assert bool((signs.abs() == 1).all())
    # 51 200 signs: a standard deviation of 0.002; the maximum of four normals is skew, so that the
    # norm puts its mean, not its median, at zero: off by up to 0.05.
    assert abs((signs > 0).double().mean() - plus) <= 0.06


def test_training_learns_repeats_and_clips():
    rows = torch.randn(400, 6, generator=torch.Generator().manual_seed(0)).double()
    labels = (rows[:, 0] > 0).long() + 2 * (rows[:, 1] > 0).long()
    data = rows, labels
    methods = {n: binary.METHODS[n] for n in ("float", "XNOR-Net")}

    def build(method):
        return binary.Mlp(method, (6, 16, 16, 4))

    state = torch.random.get_rng_state()
    once, twice = (
        binary.compare(build, data, data, epochs=10, seeds=[0, 1], methods=methods)
        for _ in range(2)
    )
    assert once == twice
    assert torch.equal(state, torch.random.get_rng_state())
    # Four classes: 25 per cent is chance.
    assert min(min(v) for v in once.values()) >= 45
    model = binary.trained(build, methods["XNOR-Net"], data, epochs=2, seed=0)
    with torch.no_grad():
        model.latent()[0].mul_(100)
    binary.train(model, *data, epochs=1, seed=0)
    assert model.latent()[0].abs().max() <= 1


def test_the_weights_of_xnor_net_are_the_packages():
    model = binary.Mlp(binary.METHODS["XNOR-Net"], (4, 5, 6, 3))
    assert torch.equal(model.weights()[1], xnor_net.binarize(model.layers[1].weight))
    assert torch.equal(model.weights()[0], model.layers[0].weight)
