import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from qbook import affine
from qbook.ptq import dynamic
from qbook.ptq.static import Linear


def layer_and_input(samples, n, out, seed=0):
    rng = np.random.default_rng(seed)
    layer = Linear(rng.normal(size=(out, n)), rng.normal(size=out), relu=True)
    return layer, rng.normal(size=(samples, n)) + 0.5


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("per_token", [True, False])
@pytest.mark.parametrize(("samples", "n", "out"), [(1, 1, 1), (3, 7, 5), (9, 64, 33)])
def test_a_layer_is_the_real_layer_of_the_reconstructions(samples, n, out, per_token, bits):
    layer, x = layer_and_input(samples, n, out)
    (quantized,) = dynamic.quantize([layer], w_bits=bits)
    qmax = 2 ** (bits - 1) - 1
    w_scale = np.abs(layer.w).max(axis=1, keepdims=True) / qmax
    w_hat = np.rint(layer.w / w_scale) * w_scale
    # The formula of the survey, row by row; the range contains 0.
    rows = x if per_token else x.reshape(1, -1)
    low, high = np.minimum(rows.min(axis=1), 0), np.maximum(rows.max(axis=1), 0)
    scale = ((high - low) / (2**bits - 1))[:, None]
    zero_point = np.clip(np.rint(-low[:, None] / scale), 0, 2**bits - 1)
    x_hat = (np.clip(np.rint(rows / scale) + zero_point, 0, 2**bits - 1) - zero_point) * scale
    expected = np.maximum(x_hat.reshape(x.shape) @ w_hat.T + layer.bias, 0)
    found = dynamic.linear(x, quantized, x_bits=bits, per_token=per_token)
    # n products of size |x||w|, each rounded a few times; a code that differed would be 1e-2 off.
    size = 2 * n * np.abs(x).max() * np.abs(layer.w).max() + np.abs(layer.bias).max()
    assert np.abs(found - expected).max() <= 8 * (n + 4) * 2.0**-53 * size


def test_a_token_of_its_own_scale_does_not_depend_on_its_neighbours():
    layer, x = layer_and_input(6, 7, 5)
    network = dynamic.quantize([layer, Linear(np.eye(5), np.zeros(5), relu=False)])
    loud = x.copy()
    loud[3] *= 1000
    calm = np.arange(6) != 3
    alone = dynamic.forward(network, x)
    assert_array_equal(dynamic.forward(network, loud)[calm], alone[calm])
    assert_array_equal(dynamic.forward(network, x[:1]), alone[:1])
    per_tensor = dynamic.forward(network, x, per_token=False)
    disturbed = dynamic.forward(network, loud, per_token=False)
    assert (disturbed[calm] != per_tensor[calm]).any()


def test_torch_computes_what_numpy_computes():
    layer, x = layer_and_input(6, 7, 5)
    theirs = Linear(torch.from_numpy(layer.w), torch.from_numpy(layer.bias), relu=True)
    found = dynamic.forward(dynamic.quantize([theirs]), torch.from_numpy(x))
    assert_array_equal(found.numpy(), dynamic.forward(dynamic.quantize([layer]), x))


def test_the_range_of_each_row_is_covered_and_holds_zero():
    x = np.array([[1.0, 2.0, 4.0], [-3.0, -1.0, -2.0], [0.0, 0.0, 0.0]])
    qparams = dynamic.choose_qparams(x)
    assert qparams.scale.shape == (3, 1)
    assert np.abs(qparams.scale[:, 0] - [4 / 255, 3 / 255, 1]).max() <= 1e-15
    assert qparams.zero_point[:2, 0].tolist() == [-128, 127]
    assert_array_equal(affine.fake_quantize(x, qparams)[2], [0, 0, 0])
    assert dynamic.choose_qparams(x, per_token=False).scale.shape == (1, 1)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_token_is_off_by_half_a_step_of_its_own_range_at_most(bits):
    rng = np.random.default_rng(0)
    # Ranges that hold 0 anywhere in them, so that the zero-point rounds in every way.
    x = rng.uniform(-1, 1, (500, 1)) * rng.random((500, 9)) + rng.normal(size=(500, 1))
    own = dynamic.choose_qparams(x, bits)
    shared = dynamic.choose_qparams(x, bits, per_token=False)
    error = np.abs(affine.fake_quantize(x, own) - x)
    # A few roundings of float64 on numbers of at most 2^bits steps.
    assert (error <= own.scale * (0.5 + 2.0**bits * 4 * 2.0**-53)).all()
    assert (own.scale <= shared.scale).all()
