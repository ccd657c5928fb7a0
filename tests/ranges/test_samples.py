"""What every range estimator promises, whichever it is."""

import functools
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_array_equal

from qbook import affine
from qbook.ranges import entropy, entropy_two_sided, minmax, mse, percentile, samples

ESTIMATORS = {
    "minmax": minmax.minmax,
    "percentile": percentile.percentile,
    "percentile_symmetric": functools.partial(percentile.percentile, symmetric=True),
    "mse": functools.partial(mse.search, bits=4, steps=10),
    "mse_asymmetric": functools.partial(mse.search, bits=4, steps=10, symmetric=False),
    "entropy": entropy.search,
    "entropy_two_sided": entropy_two_sided.search,
}
WITH_AXIS = ["minmax", "percentile", "percentile_symmetric", "mse", "mse_asymmetric"]
CONTAIN_ZERO = ["percentile_symmetric", "mse", "mse_asymmetric", "entropy"]
every_estimator = pytest.mark.parametrize("name", ESTIMATORS)
# Subnormal float32 have no 2048 bins between them and no finite reciprocal step.
VALUES = st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False)
ARRAYS = hnp.arrays(np.float32, hnp.array_shapes(max_dims=3, max_side=6), elements=VALUES)


def sample(shape=(33, 65), dtype=np.float32):
    return np.random.default_rng(0).standard_t(4, size=shape).astype(dtype)


@every_estimator
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_torch_gives_the_range_of_numpy_on_its_own_device(name, dtype):
    x = torch.from_numpy(sample()).to(dtype)
    for ours, theirs in zip(ESTIMATORS[name](x), ESTIMATORS[name](x.numpy()), strict=True):
        assert isinstance(ours, torch.Tensor)
        assert ours.device == x.device
        assert ours.dtype == x.dtype
        assert ours.shape == theirs.shape == ()
        # Order statistics, equal histograms and equal grids: nothing is left to summation order.
        assert ours.item() == theirs.item()


@every_estimator
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, torch.float16, torch.bfloat16])
def test_short_floats_give_the_range_of_their_exact_values_in_float32(name, dtype):
    x = sample()
    x = torch.from_numpy(x).to(dtype) if isinstance(dtype, torch.dtype) else x.astype(dtype)
    wide = x.float() if isinstance(dtype, torch.dtype) else x.astype(np.float32)
    for ours, exact in zip(ESTIMATORS[name](x), ESTIMATORS[name](wide), strict=True):
        assert ours.dtype == exact.dtype
        assert ours.item() == exact.item()


@every_estimator
@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
def test_the_quantizer_takes_the_range_as_it_comes(name, make):
    x = make(sample())
    for symmetric in (True, False):
        qparams = affine.qparams_from_range(*ESTIMATORS[name](x), 8, symmetric=symmetric)
        assert affine.fake_quantize(x, qparams).shape == x.shape


@pytest.mark.parametrize("name", WITH_AXIS)
@pytest.mark.parametrize("axis", [0, 1, -1, (0, 2), (2, 1, 0)])
@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
def test_an_axis_gives_each_slice_the_range_it_has_alone(name, axis, make):
    x = sample((3, 5, 7))
    axes = (axis,) if isinstance(axis, int) else axis
    low, high = ESTIMATORS[name](make(x), axis=axis)
    kept = tuple(1 if a in {b % 3 for b in axes} else n for a, n in enumerate(x.shape))
    assert tuple(low.shape) == tuple(high.shape) == kept
    for index in np.ndindex(kept):
        whole = tuple(slice(None) if n == 1 else i for i, n in zip(index, kept, strict=True))
        alone = ESTIMATORS[name](np.ascontiguousarray(x[whole]))
        assert (low[index].item(), high[index].item()) == tuple(a.item() for a in alone)


@pytest.mark.parametrize("name", WITH_AXIS)
def test_an_axis_that_does_not_exist_is_refused(name):
    with pytest.raises(ValueError, match="axis=2 does not exist"):
        ESTIMATORS[name](sample(), axis=2)


@every_estimator
@given(x=ARRAYS)
def test_low_is_below_high_and_neither_leaves_the_data(name, x):
    low, high = ESTIMATORS[name](x)
    if name == "entropy_two_sided" and (x.min() > 0 or x.max() < 0):
        return  # see test_entropy_two_sided: ONNX Runtime's window can miss one-sided data
    assert low <= high
    top = np.abs(x).max()
    # Interpolation and scaling round once each.
    assert high <= top * (1 + 2.0**-23)
    assert -low <= top * (1 + 2.0**-23)


@pytest.mark.parametrize("name", CONTAIN_ZERO)
@given(x=ARRAYS)
def test_zero_lies_inside_where_that_is_promised(name, x):
    low, high = ESTIMATORS[name](x)
    assert low <= 0 <= high
    if name != "mse_asymmetric":
        assert low == -high


@every_estimator
@pytest.mark.parametrize("value", [0.0, 0.75, -3.0])
@pytest.mark.parametrize("shape", [(), (1,), (4, 5)])
def test_constant_data_are_covered(name, value, shape):
    x = np.full(shape, value, np.float32)
    low, high = ESTIMATORS[name](x)
    assert low <= value <= high


@every_estimator
def test_arguments_are_not_modified(name):
    x = sample()
    copy = x.copy()
    ESTIMATORS[name](x)
    assert_array_equal(x, copy)


@every_estimator
def test_a_parameter_is_read_without_its_gradient(name):
    low, high = ESTIMATORS[name](torch.nn.Parameter(torch.from_numpy(sample())))
    assert not low.requires_grad
    assert not high.requires_grad


@every_estimator
@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
def test_bad_samples_are_refused_with_a_reason(name, make):
    with pytest.raises(ValueError, match=r"empty, of shape \(0, 3\)"):
        ESTIMATORS[name](make(np.zeros((0, 3), np.float32)))
    for bad in (np.nan, np.inf, -np.inf):
        with pytest.raises(ValueError, match="NaN or infinity"):
            ESTIMATORS[name](make(np.array([1.0, bad, 3.0], np.float32)))
    with pytest.raises(ValueError, match="int64"):
        ESTIMATORS[name](make(np.arange(5)))


def test_importing_the_estimators_does_not_import_the_heavy_libraries():
    modules = "entropy, entropy_two_sided, minmax, mse, percentile"
    heavy = "torch", "numba", "triton", "scipy", "matplotlib", "onnxruntime"
    code = (
        f"import sys, qbook.metrics; from qbook.ranges import {modules}; "
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    package = Path(samples.__file__).parents[2]
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=package, capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "[]"


def test_checked_hands_on_float32_and_float64_without_a_copy():
    for dtype in (np.float32, np.float64):
        x = sample(dtype=dtype)
        assert samples.checked(x)[1] is x
        assert samples.on_host(x) is x
        tensor = torch.from_numpy(x)
        assert samples.checked(tensor)[1].data_ptr() == tensor.data_ptr()
        assert samples.on_host(tensor).ctypes.data == tensor.data_ptr()
