import importlib.util

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_array_equal

from qbook import affine, blocks

BITS = [1, 2, 3, 4, 8, 12, 16]
SCHEMES = [
    {"symmetric": symmetric, "signed": signed}
    for symmetric in (True, False)
    for signed in (True, False)
]
GRANULARITIES = [{}, {"axis": 1}, {"axis": 0}, {"axis": (0, 1)}, {"group_size": 7}]
FLOATS = st.floats(-(2.0**100), 2.0**100, width=32)
ARRAYS = hnp.arrays(np.float32, hnp.array_shapes(max_dims=3, max_side=9), elements=FLOATS)


def sample(shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def with_ties(scale, n):
    """Values on, beside and far outside every rounding tie of a quantizer with this scale."""
    half_steps = (np.arange(-1200, 1200) * np.float32(scale) / 2).astype(np.float32)
    near = np.concatenate([np.nextafter(half_steps, np.float32(s)) for s in (-np.inf, np.inf)])
    return np.concatenate([half_steps, near, sample(n, 1) * 40 * np.float32(scale)])


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_fake_quantize_equals_torch_per_tensor_bit_for_bit(bits, scheme):
    x = sample(1_000_000)
    qparams = affine.choose_qparams(x, bits, **scheme)
    x[: 3 * 2400] = with_ties(qparams.scale.item(), 0)
    theirs = torch.fake_quantize_per_tensor_affine(
        torch.from_numpy(x),
        qparams.scale.item(),
        qparams.zero_point.item(),
        qparams.qmin,
        qparams.qmax,
    )
    assert_array_equal(affine.fake_quantize(x, qparams), theirs.numpy())


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("channel_axis", [0, 1])
def test_fake_quantize_equals_torch_per_channel_bit_for_bit(bits, scheme, channel_axis):
    x = torch.from_numpy(sample((1000, 1000)))
    qparams = affine.choose_qparams(x, bits, axis=1 - channel_axis, **scheme)
    theirs = torch.fake_quantize_per_channel_affine(
        x,
        qparams.scale.ravel(),
        qparams.zero_point.ravel(),
        channel_axis,
        qparams.qmin,
        qparams.qmax,
    )
    assert torch.equal(affine.fake_quantize(x, qparams), theirs)


def test_true_division_is_the_other_convention_and_differs_only_at_ties():
    scale = np.float32(0.1)
    x = with_ties(scale, 100_000)
    qparams = affine.QParams(np.asarray([scale]), np.zeros(1, np.int32), -2000, 2000)
    divided = np.clip(np.rint(x / scale), -2000, 2000)
    differs = affine.quantize(x, qparams) != divided
    distance = np.abs(np.abs(x.astype(np.float64) / float(scale)) % 1 - 0.5)
    assert 0 < differs.sum() <= 7200  # only the planted ties and their neighbours
    # x/scale and x*(1/scale) each carry a relative error of at most 2^-23; |x/scale| <= 2000.
    assert (distance[differs] <= 2000 * 2.0**-22).all()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("shape", [(1, 7), (3, 7), (5, 14), (2, 3, 21)])
def test_numpy_and_torch_agree_bit_for_bit(bits, scheme, granularity, shape):
    x = sample(shape)
    ours = affine.choose_qparams(x, bits, **granularity, **scheme)
    theirs = affine.choose_qparams(torch.from_numpy(x), bits, **granularity, **scheme)
    assert_array_equal(ours.scale, theirs.scale.numpy())
    assert_array_equal(ours.zero_point, theirs.zero_point.numpy())
    assert (ours.qmin, ours.qmax, ours.group_axis) == (theirs.qmin, theirs.qmax, theirs.group_axis)
    codes, their_codes = affine.quantize(x, ours), affine.quantize(torch.from_numpy(x), theirs)
    assert str(codes.dtype) == str(their_codes.dtype).removeprefix("torch.")
    assert_array_equal(codes, their_codes.numpy())
    assert_array_equal(
        affine.dequantize(codes, ours), affine.dequantize(their_codes, theirs).numpy()
    )


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("scheme", SCHEMES)
@given(x=ARRAYS)
def test_error_is_at_most_half_a_step_inside_the_range(bits, scheme, x):
    qparams = affine.choose_qparams(x, bits, **scheme)
    scale = qparams.scale.astype(np.float64)
    low = scale * (qparams.qmin - qparams.zero_point - 0.5)
    high = scale * (qparams.qmax - qparams.zero_point + 0.5)
    error = np.abs(affine.dequantize(affine.quantize(x, qparams), qparams) - x.astype(np.float64))
    inside = (x >= low) & (x <= high)
    # Half a step, and the float32 rounding of 1/scale, of x * (1/scale) and of the product back.
    bound = scale / 2 + 4 * 2.0**-24 * np.abs(x) + 1e-45
    assert (error <= bound)[inside].all()
    if bits > 1:
        # choose_qparams covers the data: only the rounded zero-point can push an end outside, by
        # half a step at most, which the bound above already contains.
        assert (error <= scale + 4 * 2.0**-24 * np.abs(x) + 1e-45).all()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("scheme", SCHEMES)
@given(x=ARRAYS)
def test_zero_maps_to_the_zero_point_and_back_exactly(bits, scheme, x):
    qparams = affine.choose_qparams(x, bits, **scheme)
    assert (qparams.qmin <= qparams.zero_point).all()
    assert (qparams.zero_point <= qparams.qmax).all()
    codes = affine.quantize(np.zeros_like(x), qparams)
    assert (codes == qparams.zero_point).all()
    assert (affine.dequantize(codes, qparams) == 0).all()


@pytest.mark.parametrize("scheme", SCHEMES)
@given(x=ARRAYS, bits=st.integers(1, 16))
def test_every_code_survives_the_round_trip(scheme, x, bits):
    qparams = affine.choose_qparams(x, bits, **scheme)
    codes = np.arange(qparams.qmin, qparams.qmax + 1).reshape((-1,) + (1,) * (x.ndim - 1))
    assert_array_equal(affine.quantize(affine.dequantize(codes, qparams), qparams), codes)


@given(x=ARRAYS, bits=st.integers(1, 16), scheme=st.sampled_from(SCHEMES))
def test_quantization_is_idempotent(x, bits, scheme):
    qparams = affine.choose_qparams(x, bits, **scheme)
    once = affine.fake_quantize(x, qparams)
    assert_array_equal(affine.fake_quantize(once, qparams), once)


@given(
    x=hnp.arrays(np.float32, st.integers(1, 60), elements=FLOATS),
    bits=st.integers(1, 16),
    scheme=st.sampled_from(SCHEMES),
)
def test_quantization_is_monotone(x, bits, scheme):
    codes = affine.quantize(np.sort(x), affine.choose_qparams(x, bits, **scheme))
    assert (np.diff(codes.astype(int)) >= 0).all()


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_every_float_type_gives_the_codes_of_its_exact_values(dtype):
    x = sample((33, 65), dtype=dtype)
    wide = x.astype(np.float64 if dtype == np.float64 else np.float32)
    ours, exact = affine.choose_qparams(x, 8, axis=1), affine.choose_qparams(wide, 8, axis=1)
    assert_array_equal(ours.scale, exact.scale)
    assert_array_equal(affine.quantize(x, ours), affine.quantize(wide, exact))
    assert affine.fake_quantize(x, ours).dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_torch_float_type_gives_the_codes_of_its_exact_values(dtype):
    x = torch.from_numpy(sample((33, 65))).to(dtype)
    wide = x.to(torch.float64 if dtype == torch.float64 else torch.float32)
    ours, exact = (
        affine.choose_qparams(x, 4, group_size=13),
        affine.choose_qparams(wide, 4, group_size=13),
    )
    assert torch.equal(ours.scale, exact.scale)
    assert torch.equal(affine.quantize(x, ours), affine.quantize(wide, exact))
    assert affine.fake_quantize(x, ours).dtype == dtype


@pytest.mark.parametrize("size", [1, 2, 5, 6, 30, 10_000])
@pytest.mark.parametrize("granularity", [{}, {"axis": 2}, {"axis": (0, 2)}, {"group_size": 3}])
def test_the_size_of_the_blocks_changes_nothing(monkeypatch, size, granularity):
    x = sample((4, 5, 6))
    qparams = affine.choose_qparams(x, 4, symmetric=False, **granularity)
    whole = affine.quantize(x, qparams)
    monkeypatch.setattr(blocks, "SIZE", size)
    assert_array_equal(affine.quantize(x, qparams), whole)


def test_groups_are_quantized_as_if_each_were_alone():
    x = sample((6, 20))
    qparams = affine.choose_qparams(x, 4, group_size=5, symmetric=False)
    assert qparams.scale.shape == (6, 4, 1)
    together = affine.fake_quantize(x, qparams)
    for start in range(0, 20, 5):
        part = x[:, start : start + 5]
        alone = affine.fake_quantize(part, affine.choose_qparams(part, 4, axis=1, symmetric=False))
        assert_array_equal(together[:, start : start + 5], alone)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(
    "x",
    [
        np.zeros((3, 5), np.float32),
        np.zeros((0, 5), np.float32),
        np.full((2, 3), 7.25, np.float32),
        np.full((2, 3), -7.25, np.float32),
        np.array([-0.3], np.float32),
        np.array(2.5, np.float32),
        np.array([1e-45, -1e-45], np.float32),
        np.array([3e38, -3e38], np.float32),
    ],
    ids=["zero", "empty", "constant", "negative", "one", "scalar", "subnormal", "huge"],
)
def test_degenerate_arrays_come_back_within_a_step(x, scheme):
    qparams = affine.choose_qparams(x, 8, **scheme)
    assert (qparams.scale > 0).all()
    assert np.isfinite(qparams.scale).all()
    codes = affine.quantize(x, qparams)
    assert codes.shape == x.shape
    error = np.abs(affine.dequantize(codes, qparams).astype(np.float64) - x)
    # Half a step, and half a step more where the zero-point was rounded.
    assert (error <= qparams.scale).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("make", [np.asarray, torch.tensor], ids=["numpy", "torch"])
def test_nan_and_infinity_are_refused(bad, make):
    good = make([1.0, 2.0, 3.0])
    poisoned = make([1.0, bad, 3.0])
    with pytest.raises(ValueError, match="NaN or infinity"):
        affine.choose_qparams(poisoned, 8)
    with pytest.raises(ValueError, match="NaN or infinity"):
        affine.quantize(poisoned, affine.choose_qparams(good, 8))


def test_finite_values_whose_sum_overflows_are_accepted():
    x = np.full(8, 3e38, np.float32)
    assert (affine.quantize(x, affine.choose_qparams(x, 8)) == 127).all()


@pytest.mark.parametrize("bits", [0, 17, -1, 4.0, True, "8"])
def test_bits_outside_1_to_16_are_refused(bits):
    with pytest.raises(ValueError, match="from 1 to 16"):
        affine.choose_qparams(sample((2, 3)), bits)


def test_a_group_size_that_does_not_divide_says_what_would():
    with pytest.raises(ValueError, match=r"group_size=5 .* 12 values .*1, 2, 3, 4, 6, 12"):
        affine.choose_qparams(sample((2, 12)), 4, group_size=5)


def test_a_scale_that_does_not_fit_names_both_shapes():
    with pytest.raises(ValueError, match=r"\(2, 1\).*\(3, 4\)"):
        affine.quantize(sample((3, 4)), affine.choose_qparams(sample((2, 4)), 8, axis=1))


def test_arrays_of_two_libraries_are_refused_by_name():
    qparams = affine.qparams_from_range(-1.0, 1.0, 8)
    with pytest.raises(ValueError, match="x is a Tensor and the scale a ndarray"):
        affine.quantize(torch.ones(3), qparams)


def test_integers_and_empty_ranges_are_refused():
    with pytest.raises(ValueError, match="int64"):
        affine.choose_qparams(np.arange(5), 8)
    with pytest.raises(ValueError, match="low=2"):
        affine.qparams_from_range(2.0, 1.0, 8)


def test_arguments_are_not_modified():
    x = sample((4, 6))
    copy = x.copy()
    qparams = affine.choose_qparams(x, 3, axis=1, symmetric=False)
    scale, zero_point = qparams.scale.copy(), qparams.zero_point.copy()
    affine.fake_quantize(x, qparams)
    assert_array_equal(x, copy)
    assert_array_equal(qparams.scale, scale)
    assert_array_equal(qparams.zero_point, zero_point)


def test_the_rounded_zero_point_keeps_every_error_within_half_a_step():
    """The survey's zero-point -x_min/s is no integer; rounding and clamping it costs nothing."""
    rng = np.random.default_rng(0)
    worst = 0.0
    for _ in range(2000):
        low, high = -rng.exponential(), rng.exponential()
        x = np.linspace(low, high, 501, dtype=np.float32)
        qparams = affine.qparams_from_range(low, high, 8, symmetric=False)
        inside = np.clip(
            x,
            qparams.scale * (qparams.qmin - qparams.zero_point - 0.5),
            qparams.scale * (qparams.qmax - qparams.zero_point + 0.5),
        )
        error = np.abs(affine.fake_quantize(x, qparams) - inside) / qparams.scale
        worst = max(worst, float(error.max()))
    # float32: x/scale reaches 255, whose ulp is 2^-16.
    assert worst <= 0.5 + 2.0**-15


def test_importing_qbook_does_not_import_the_heavy_libraries():
    import subprocess
    import sys

    code = (
        "import sys, qbook, qbook.affine; "
        "print([m for m in 'torch numba triton scipy matplotlib'.split() if m in sys.modules])"
    )
    root = importlib.util.find_spec("qbook").submodule_search_locations[0]
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=f"{root}/..", capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "[]"
