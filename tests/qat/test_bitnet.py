import math
import warnings
from fractions import Fraction

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn

from qbook import packing
from qbook.kernels.rowwise import quantizer
from qbook.kernels.ternary_matmul import reference
from qbook.models import char_gpt, weights
from qbook.qat import bitnet


@pytest.fixture(scope="module")
def transformers_bitnet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("transformers.integrations.bitnet")


@pytest.fixture(autouse=True)
def eager():
    # transformers decorates its functions with torch.compile; a compiler is not what is tested.
    with torch.compiler.set_stance("force_eager"):
        yield


def layer(in_=33, out=7, *, dtype=torch.float64, seed=0, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return bitnet.BitLinear(in_, out, dtype=dtype, **options)


def inputs(*shape, seed=1, dtype=torch.float64):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape)).to(dtype)


@pytest.mark.parametrize("library", [np.asarray, torch.tensor])
def test_by_hand(library):
    # Mean magnitude 1: 2.4 and 0.8 round to 1, 0.5 is a tie and goes to the even 0, 0.3 to 0.
    w = library([[2.4, -0.8], [0.5, 0.3]])
    codes, scale = bitnet.quantize(w)
    assert codes.tolist() == [[1, -1], [0, 0]]
    assert_allclose(np.asarray(scale), [[1.0]], rtol=1e-15)
    # Mean 0.6: 2.4 alone is above it.
    codes, scale = bitnet.quantize(w, 1)
    assert codes.tolist() == [[1, -1], [-1, -1]]
    assert_allclose(np.asarray(scale), [[1.0]], rtol=1e-15)
    codes, scale = bitnet.quantize_activations(library([[0.5, -2.0, 1.2], [0.0, 0.0, 0.0]]))
    # 0.5 * 63.5 = 31.75 and 1.2 * 63.5 = 76.2.
    assert codes.tolist() == [[32, -127, 76], [0, 0, 0]]
    # torch.tensor makes float32.
    assert_allclose(np.asarray(scale), [[2 / 127], [1.0]], rtol=2**-24)


def test_exact_fractions_agree_on_the_threshold_of_half_the_mean():
    # Eighths: their mean over 64 values is exact, and so is the comparison with half of it.
    rng = np.random.default_rng(0)
    w = rng.integers(-40, 41, size=(8, 8)) / 8
    gamma = sum(abs(Fraction(x)) for x in w.ravel()) / 64
    # Only a magnitude of exactly gamma / 2 or 3 gamma / 2 may tie, and 0 and 2 are the even codes.
    expected = [int(np.sign(x)) if abs(Fraction(x)) > gamma / 2 else 0 for x in w.ravel()]
    codes, scale = bitnet.quantize(w)
    assert codes.ravel().tolist() == expected
    assert scale.item() == float(gamma)


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (64, 33)])
@pytest.mark.parametrize("spread", [1e-3, 1.0, 50.0])
def test_ternary_weights_are_those_of_transformers(transformers_bitnet, shape, spread):
    w = spread * inputs(*shape, dtype=torch.float32)
    codes, scale = bitnet.quantize(w)
    # One rounding of the product here, one of the quotient by the reciprocal there.
    theirs = transformers_bitnet.WeightQuant.apply(w)
    assert_allclose(scale * codes, theirs, rtol=3 * 2**-23)
    assert torch.equal(codes.float(), theirs.sign())


def test_activations_are_those_of_transformers(transformers_bitnet):
    x = inputs(50, 33, dtype=torch.float32)
    codes, scale = bitnet.quantize_activations(x)
    theirs = transformers_bitnet.ActQuant.apply(x)
    # Their scale is 127 / max, ours its inverse: x times it differs by an ulp or two of up to 127,
    # 2^-16, so a code may differ within that of a tie; the probability of one here is 5 %.
    assert_allclose(scale * codes, theirs, rtol=1e-6)


def test_a_layer_is_the_packed_layer_of_transformers(transformers_bitnet):
    ours = layer(32, 8, dtype=torch.float32)
    theirs = transformers_bitnet.BitLinear(
        32, 8, bias=True, dtype=torch.float32, use_rms_norm=True, rms_norm_eps=bitnet.NORM_EPS
    )
    codes, scale = ours.codes()
    theirs.weight = transformers_bitnet.pack_weights(codes.clone())
    # It divides by what its files call weight_scale.
    theirs.weight_scale, theirs.bias = 1 / scale[:1], ours.bias.detach()
    assert torch.equal(transformers_bitnet.unpack_weights(theirs.weight, torch.int8), codes)
    x = inputs(5, 32, dtype=torch.float32)
    # Exact sums, then some roundings of float32 of results below 4.
    assert bool(((ours(x) - theirs(x)).abs() <= 4 * 4 * 2**-23).all())


def test_codes_of_activations_are_those_of_the_kernel():
    x = inputs(50, 33, dtype=torch.float32)
    codes, scale = bitnet.quantize_activations(x)
    kernel_codes, kernel_scale = quantizer.quantize(x.numpy())
    assert_array_equal(codes, kernel_codes)
    assert_array_equal(scale, kernel_scale)


@pytest.mark.parametrize("bits", [1.58, 1])
@pytest.mark.parametrize("shape", [(5, 33), (2, 3, 33), (33,)])
@pytest.mark.parametrize("bias", [True, False])
def test_forward_is_an_integer_product_and_two_scales(bits, shape, bias):
    found = layer(bits=bits, bias=bias)
    x = inputs(*shape)
    x_codes, x_scale = bitnet.quantize_activations(found.norm(x))
    w_codes, w_scale = found.codes()
    sums = reference.matmul(x_codes.reshape(-1, 33).numpy(), w_codes.numpy())
    expected = torch.from_numpy(sums).reshape(*shape[:-1], 7) * (x_scale * w_scale)
    expected = expected + found.bias if bias else expected
    assert torch.equal(found(x), expected)


@pytest.mark.parametrize("bits", [1.58, 1])
def test_gradients_are_those_of_detached_roundings(bits):
    """The papers' trick: x + (round(x) - x).detach(), differentiated by torch itself."""
    found = layer(bits=bits)
    weights = inputs(2, 3, 7, seed=2)
    ours, theirs = inputs(2, 3, 33), inputs(2, 3, 33)
    for x in (ours, theirs):
        x.requires_grad_()
    (found(ours) * weights).sum().backward()
    w = found.weight.detach().clone().requires_grad_()
    normal = found.norm(theirs)
    x_codes, x_scale = bitnet.quantize_activations(normal)
    w_codes, w_scale = bitnet.quantize(w.detach(), bits)
    x_hat = normal + (x_scale * x_codes - normal).detach()
    w_hat = w + (w_scale * w_codes - w).detach()
    ((x_hat @ w_hat.T + found.bias.detach()) * weights).sum().backward()
    # Sums of at most 33 products of float64.
    assert_allclose(found.weight.grad, w.grad, rtol=1e-12, atol=1e-13)
    assert_allclose(ours.grad, theirs.grad, rtol=1e-12, atol=1e-13)
    assert_allclose(found.bias.grad, weights.sum((0, 1)), rtol=1e-13)


@pytest.mark.parametrize("power", [-20, 3, 30])
def test_a_token_times_a_constant_gives_the_same_codes(power):
    # Powers of two multiply exactly: scale and reciprocal move along, to the bit.
    x = inputs(5, 33)
    codes, scale = bitnet.quantize_activations(x)
    others, other_scale = bitnet.quantize_activations(2.0**power * x)
    assert torch.equal(codes, others)
    assert torch.equal(2.0**power * scale, other_scale)


def test_the_norms_have_no_gain_and_give_every_token_one_size():
    x = inputs(5, 33) * torch.logspace(0, 4, 5, dtype=torch.float64)[:, None] + 3
    ternary, binary = layer(), layer(bits=1)
    assert [name for name, _ in ternary.named_parameters()] == ["weight", "bias"]
    # eps = 1e-5 beside a mean square of at least 1 / 2.
    assert_allclose(ternary.norm(x).square().mean(-1), 1, rtol=2e-5)
    assert_allclose(binary.norm(x).square().mean(-1), 1, rtol=2e-5)
    assert_allclose(binary.norm(x).mean(-1), 0, atol=1e-12)
    assert float(ternary.norm(x).mean(-1).abs().max()) >= 0.1
    assert torch.equal(layer(norm=False).norm(x), x)


def test_gaussian_weights_have_the_shares_and_the_error_of_the_derivation():
    # Quantiles of N(0, 1) in place of a sample.
    normal = torch.distributions.Normal(0, 1)
    w = normal.icdf((torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000)
    codes, scale = bitnet.quantize(w)
    gamma = math.sqrt(2 / math.pi)
    zeros = math.erf(gamma / 2 / math.sqrt(2))
    # 1e5 quantiles a side miss a moment's tail of about 1e-5 log 1e5.
    assert abs(float((codes == 0).double().mean()) - zeros) <= 1e-4
    assert abs(scale.item() - gamma) <= 1e-4
    density = math.exp(-((gamma / 2) ** 2) / 2) / math.sqrt(2 * math.pi)
    error = 1 - 4 * gamma * density + gamma**2 * (1 - zeros)
    assert abs(float((w - scale * codes).square().mean()) - error) <= 1e-4


def test_the_scale_does_not_depend_on_the_number_of_threads():
    # A kernel of Numba changes torch's number; a scale in a file may have been found with another.
    matrices = weights.weights(char_gpt.load()).values()
    found, before = [], torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append([bitnet.absmean(w).item() for w in matrices])
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1]


def test_codes_take_one_and_three_fifths_bits():
    codes, scale = layer(35, 7).codes()
    packed = packing.pack_ternary(codes)
    assert packed.shape == (7, 7)
    assert_array_equal(packing.unpack_ternary(packed, 35), codes)
    assert scale.shape == (7,)
    assert len(scale.unique()) == 1


def test_convert_keeps_weights_names_and_what_is_skipped():
    model = nn.Sequential(nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 4, bias=False), nn.Linear(4, 3))
    found = bitnet.convert(model, bits=1, skip=("3",))
    assert [type(m) for m in model] == [nn.Linear, nn.GELU, nn.Linear, nn.Linear]
    assert [type(m) for m in found] == [bitnet.BitLinear, nn.GELU, bitnet.BitLinear, nn.Linear]
    assert found[0].bits == found[2].bits == 1
    state, other = model.state_dict(), found.state_dict()
    assert list(state) == list(other)
    assert all(torch.equal(state[name], other[name]) for name in state)
    with torch.no_grad():
        found[0].weight.zero_()
    assert bool((model[0].weight != 0).all())


def test_a_few_steps_lower_the_loss_and_move_codes():
    # A ternary teacher: what is to be learnt exists.
    found, teacher = layer(16, 8, bias=False), layer(16, 8, bias=False, seed=5)
    x = inputs(200, 16)
    target = teacher(x).detach()
    before = found.codes()[0]
    optimizer = torch.optim.Adam(found.parameters(), lr=0.02)
    losses = []
    for _ in range(60):
        loss = (found(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] <= 0.3 * losses[0]
    assert bool((found.codes()[0] != before).any())


def test_a_weight_of_zeros_has_codes_of_zero_and_the_least_scale():
    codes, scale = bitnet.quantize(np.zeros((3, 4)))
    assert not codes.any()
    assert scale.item() == bitnet.EPS


@pytest.mark.parametrize("bits", [1.58, 1])
def test_arguments_stay(bits):
    w = inputs(3, 5)
    copy = w.clone()
    bitnet.quantize(w, bits), bitnet.quantize_activations(w)
    assert torch.equal(w, copy)


def test_misuse_is_refused_with_what_would_work():
    with pytest.raises(ValueError, match=r"bits=2 is no BitNet; choose 1\.58"):
        bitnet.quantize(np.ones((2, 2)), 2)
    with pytest.raises(ValueError, match=r"bits=1\.5 is no BitNet"):
        bitnet.BitLinear(3, 3, bits=1.5)
    for bits in (1, 1.58):
        with pytest.raises(ValueError, match="NaN or infinity"):
            bitnet.quantize(np.array([[1.0, np.nan]]), bits)
    with pytest.raises(ValueError, match="NaN or infinity"):
        layer()(torch.full((2, 33), torch.nan, dtype=torch.float64))
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    with pytest.raises(ValueError, match="skip='head' names no Linear; the model has 0, 1"):
        bitnet.convert(model)
    with pytest.raises(ValueError, match=r"leaves no Linear inside the model; skip fewer"):
        bitnet.convert(model, skip=("0", "1"))
