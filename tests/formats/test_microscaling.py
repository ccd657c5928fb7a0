import warnings

import numpy as np
import pytest
import torch

from qbook.formats import E2M1, E2M3, E3M2, E4M3, E5M2, E8M0, microscaling

FORMATS = {f.name: f for f in (E4M3, E5M2, E2M3, E3M2, E2M1)}


def awkward(rows=48, n=96, seed=0):
    """Gaussians over forty binades, a row of zeros, and the edges of every format."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, n)) * 2.0 ** rng.integers(-20, 20, size=(rows, 1))
    x[3] = 0
    x[5, :32] = 6.0
    for row, top in enumerate([1.0, 4.0, 6.0, 7.0, 7.5, 7.75, 28.0, 448.0, 480.0, 57344.0], 6):
        x[row] = np.clip(x[row], -top, top)
        x[row, 40] = top
    return x.astype(np.float32)


@pytest.fixture(scope="module")
def torchao():
    pytest.importorskip("torchao")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchao.prototype.mx_formats import mx_tensor, nvfp4_tensor
    return mx_tensor, nvfp4_tensor


@pytest.mark.parametrize("mode", microscaling.MODES)
@pytest.mark.parametrize("name", FORMATS)
def test_mx_equals_torchao_code_for_code(torchao, name, mode):
    mx, fmt = torchao[0], FORMATS[name]
    kind = {
        "E4M3": torch.float8_e4m3fn,
        "E5M2": torch.float8_e5m2,
        "E2M3": mx.DTYPE_FP6_E2M3,
        "E3M2": mx.DTYPE_FP6_E3M2,
        "E2M1": torch.float4_e2m1fn_x2,
    }[name]
    x = awkward()
    scale, codes = mx.to_mx(
        torch.from_numpy(x), kind, 32, getattr(mx.ScaleCalculationMode, mode.upper())
    )
    codes = mx.unpack_uint4(codes) if name == "E2M1" else codes
    found = microscaling.quantize_mx(x, fmt, mode=mode)
    np.testing.assert_array_equal(found.scale[..., 0], scale.view(torch.uint8).numpy())
    # Values, because -0 and 0 may differ in their codes.
    np.testing.assert_array_equal(
        fmt.decode(found.codes), fmt.decode(codes.view(torch.uint8).numpy().reshape(x.shape))
    )


def test_nvfp4_equals_torchao_code_for_code(torchao):
    nv = torchao[1]
    # Of one size: torchao knows no scale below E4M3's smallest normal number, which is not in use.
    x = torch.from_numpy(np.random.default_rng(1).normal(size=(64, 256)).astype(np.float32))
    tensor_scale = nv.per_tensor_amax_to_scale(x.abs().amax())
    scale, codes = nv.nvfp4_quantize(x, 16, tensor_scale)
    found = microscaling.quantize_nvfp4(x)
    assert float(found.tensor_scale) == float(tensor_scale)
    assert torch.equal(found.scale[..., 0], scale.view(torch.uint8))
    assert torch.equal(found.codes, torchao[0].unpack_uint4(codes).reshape(x.shape))


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("mode", microscaling.MODES)
def test_a_block_is_rounded_to_the_nearest_of_its_own_levels(fmt, mode):
    """Brute force over all codes of fmt times the stored power."""
    x = awkward(20, 64)
    blocks = microscaling.quantize_mx(x, fmt, mode=mode)
    x_hat = microscaling.dequantize(blocks)
    values = fmt.values[np.isfinite(fmt.values)].astype(np.float64)
    powers = np.repeat(E8M0.decode(blocks.scale)[..., 0].astype(np.float64), 32, axis=1)
    nearest = np.abs(x[..., None] - powers[..., None] * values).min(axis=-1)
    # Products of a power of two are exact in float64.
    np.testing.assert_array_equal(np.abs(x.astype(np.float64) - x_hat), nearest)


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
def test_rceil_is_the_smallest_power_without_saturation(fmt):
    x = awkward()
    power = E8M0.decode(microscaling.quantize_mx(x, fmt, mode="rceil").scale)
    largest = np.abs(x.reshape(48, 3, 32)).max(axis=-1, keepdims=True)
    alive = largest > 0
    assert np.all((largest <= fmt.max * power)[alive])
    assert np.all((largest > fmt.max * power / 2)[alive])


def test_the_largest_of_a_tensor_is_exact_in_nvfp4():
    x = np.random.default_rng(2).normal(size=(8, 64)).astype(np.float32)
    place = np.unravel_index(np.abs(x).argmax(), x.shape)
    x_hat = microscaling.fake_quantize(x)
    # tensor_scale = top / 2688 and 2688 * tensor_scale: two roundings of float32.
    assert abs(x_hat[place] / x[place] - 1) <= 2 * 2.0**-24


@pytest.mark.parametrize("size", [1e-44, 1e-39, 1e-30, 1e30])
def test_tensors_of_any_size_keep_their_largest_and_their_zeros(size):
    x = np.zeros((2, 64), np.float32)
    x[0, 5] = size
    x_hat = microscaling.fake_quantize(x)
    assert np.all(x_hat[x == 0] == 0)
    # Below float32's normal numbers only this is promised: nothing grows.
    assert abs(x_hat[0, 5] / x[0, 5] - 1) <= (1e-6 if size >= 1e-30 else 1)


def test_bits_are_those_of_the_stored_bytes():
    x = awkward()
    assert microscaling.quantize_mx(x, E2M1).bits_per_number == 4.25
    assert microscaling.quantize_mx(x, E4M3).bits_per_number == 8.25
    assert microscaling.quantize_nvfp4(x).bits_per_number == 4.5


@pytest.mark.parametrize("shape", [(32,), (2, 3, 64)])
def test_numpy_and_torch_agree_at_every_rank(shape):
    x = np.random.default_rng(3).normal(size=shape).astype(np.float32)
    for fmt in (E2M1, None):
        found = microscaling.fake_quantize(torch.from_numpy(x), fmt).numpy()
        np.testing.assert_array_equal(found, microscaling.fake_quantize(x, fmt))


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (np.ones(32), {"mode": "nearest"}, "mode='nearest' does not exist"),
        (np.ones(31), {}, "group_size=32 does not divide the 31"),
        (np.full(32, np.inf), {}, "NaN or infinity"),
    ],
)
def test_wrong_calls_are_refused(x, options, message):
    with pytest.raises(ValueError, match=message):
        microscaling.quantize_mx(x, E2M1, **options)
