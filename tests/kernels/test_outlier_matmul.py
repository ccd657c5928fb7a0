import bitsandbytes.functional as bitsandbytes
import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from qbook import affine, integer_product
from qbook.kernels import isa
from qbook.kernels.outlier_matmul import matmul, panels, reference

SETS = isa.available()
# Rows below and beyond what shares a load of w; outputs and inputs that fill no panel.
SHAPES = [(1, 1, 1), (3, 7, 33), (4, 33, 16), (7, 127, 3), (13, 1000, 65)]
EPSILON = 2.0**-24


def draw(samples, in_, out, outliers=0, seed=0):
    """x with that many columns whose every value is an outlier, w -> x, w, these columns"""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-3, 3, (samples, in_)).astype(np.float32)
    columns = np.sort(rng.choice(in_, min(outliers, in_), replace=False))
    signs = rng.choice([-1, 1], (samples, len(columns)))
    x[:, columns] = signs * rng.uniform(20, 60, (samples, len(columns)))
    return x, rng.normal(size=(out, in_)).astype(np.float32), columns


def vector_wise(x, w, bias=0):
    """The product of codes with a scale for each row, by the package's own quantizer"""
    x_qparams, w_qparams = (affine.choose_qparams(a, 8, axis=1) for a in (x, w))
    codes = affine.quantize(x, x_qparams), affine.quantize(w, w_qparams)
    return integer_product.linear(codes[0], x_qparams, codes[1], w_qparams) + np.float32(bias)


@pytest.mark.parametrize("use", SETS[:-1])
@pytest.mark.parametrize(("samples", "in_", "out"), SHAPES)
def test_without_outliers_it_is_the_vector_wise_product_bit_for_bit(samples, in_, out, use):
    x, w, _ = draw(samples, in_, out)
    bias = np.random.default_rng(1).normal(size=out).astype(np.float32)
    for keep_floats in (False, True):
        packed = panels.pack(w, keep_floats=keep_floats, use=use)
        for threads in (1, 2):
            result = matmul.matmul(x, packed, bias=bias, use=use, num_threads=threads)
            assert_array_equal(result, vector_wise(x, w, bias))
            unlimited = matmul.matmul(100 * x, packed, np.inf, use=use, num_threads=threads)
            assert_array_equal(unlimited, vector_wise(100 * x, w))


@pytest.mark.parametrize("use", SETS)
@pytest.mark.parametrize("keep_floats", [False, True])
@pytest.mark.parametrize(("samples", "in_", "out"), SHAPES)
def test_threshold_zero_is_the_float_product(samples, in_, out, keep_floats, use):
    x, w, _ = draw(samples, in_, out)
    packed = panels.pack(w, keep_floats=keep_floats)
    by_scale = affine.fake_quantize(w, affine.choose_qparams(w, 8, axis=1))
    w_float = w if keep_floats else by_scale
    assert_array_equal(panels.unpack(packed), w_float)
    x64, w64 = x.astype(np.float64), w_float.astype(np.float64)
    for threads in (1, 2):
        result = matmul.matmul(x, packed, 0, use=use, num_threads=threads)
        # in products and in sums, each off by half an ulp of at most the sum of magnitudes.
        bound = (2 * in_ + 2) * EPSILON * (np.abs(x64) @ np.abs(w64).T)
        assert np.all(np.abs(result - x64 @ w64.T) <= bound)


@pytest.mark.parametrize("use", SETS)
@pytest.mark.parametrize("keep_floats", [False, True])
@pytest.mark.parametrize("outliers", [1, 3, 17])
@pytest.mark.parametrize(("samples", "in_", "out"), SHAPES[1:])
def test_sums_are_those_of_the_reference(samples, in_, out, outliers, keep_floats, use):
    x, w, columns = draw(samples, in_, out, outliers)
    packed = panels.pack(w, keep_floats=keep_floats)
    bias = np.random.default_rng(1).normal(size=out).astype(np.float32)
    w_qparams = affine.choose_qparams(w, 8, axis=1)
    w_codes, w_hat = affine.quantize(w, w_qparams), affine.fake_quantize(w, w_qparams)
    w_float = w if keep_floats else w_hat
    exact = reference.matmul(x, w_codes, w_qparams.scale.reshape(-1), w_float, 6.0) + bias
    # The int8 part is rounded three times, each float product and each sum once; two more for the
    # rounding of the result and of what the bias adds.
    largest = np.abs(x).astype(np.float64) @ np.abs(w_float).astype(np.float64).T + np.abs(bias)
    first = matmul.matmul(x, packed, bias=bias, use=use, num_threads=1)
    assert np.all(np.abs(first - exact) <= (2 * len(columns) + 6) * EPSILON * 1.1 * largest)
    assert_array_equal(first, matmul.matmul(x, packed, bias=bias, use=use, num_threads=2))
    assert_array_equal(first, matmul.matmul(x[::-1], packed, bias=bias, use=use)[::-1])


@pytest.mark.parametrize("use", SETS)
@pytest.mark.parametrize("keep_floats", [False, True])
def test_planted_outliers_cost_a_tenth_of_what_they_cost_a_vector_wise_product(keep_floats, use):
    x, w, columns = draw(17, 515, 40, outliers=5)
    # Weights that codes hold exactly: the error of theirs would be left in both.
    w = affine.fake_quantize(w, affine.choose_qparams(w, 8, axis=1))
    exact = x.astype(np.float64) @ w.astype(np.float64).T
    packed = panels.pack(w, keep_floats=keep_floats)
    vector_wise_error = matmul.matmul(x, packed, np.inf, use=use) - exact
    error = matmul.matmul(x, packed, use=use) - exact
    assert_array_equal(matmul.outlier_columns(x, use=use), columns)
    assert np.linalg.norm(error) <= np.linalg.norm(vector_wise_error) / 10


@pytest.mark.parametrize("use", SETS)
@pytest.mark.parametrize("samples", [1, 2, 5])
@pytest.mark.parametrize("in_", [1, 15, 16, 17, 33, 1000])
def test_outlier_columns_are_those_that_reach_the_threshold(in_, samples, use):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(samples, in_)).astype(np.float32)
    threshold = np.float32(1.7)
    x[rng.integers(samples), rng.integers(in_)] = -threshold
    x[rng.integers(samples), -1] = np.nextafter(threshold, np.float32(0))
    expected = [k for k in range(in_) if max(abs(v) for v in x[:, k]) >= threshold]
    for threads in (1, 2):
        found = matmul.outlier_columns(x, 1.7, use=use, num_threads=threads)
        assert found.dtype == np.int64
        assert_array_equal(found, expected)


@pytest.mark.parametrize("use", SETS)
def test_strided_input_is_read_as_it_is(use):
    x, w, _ = draw(12, 70, 18, outliers=3)
    packed = panels.pack(w[:, ::-2])
    assert_array_equal(
        matmul.matmul(x[::3, ::-2], packed, use=use),
        matmul.matmul(x[::3, ::-2].copy(), panels.pack(w[:, ::-2].copy()), use=use),
    )


@pytest.mark.parametrize("use", SETS)
@pytest.mark.parametrize("keep_floats", [False, True])
@pytest.mark.parametrize(("samples", "in_", "out"), [(0, 5, 5), (5, 0, 5), (5, 5, 0), (0, 0, 0)])
def test_empty_dimensions_give_empty_or_zero_results(samples, in_, out, keep_floats, use):
    x, w = np.full((samples, in_), 9, np.float32), np.zeros((out, in_), np.float32)
    packed = panels.pack(w, keep_floats=keep_floats)
    assert_array_equal(matmul.matmul(x, packed, use=use), np.zeros((samples, out), np.float32))
    assert_array_equal(matmul.outlier_columns(x, use=use), range(in_ if samples else 0))


def test_a_weight_takes_a_byte_an_element_and_five_with_floats():
    w = np.ones((64, 128), np.float32)
    # Two terms of int32 and a scale for each output.
    assert panels.pack(w).nbytes == w.size + 12 * 64
    assert panels.pack(w, keep_floats=True).nbytes == 5 * w.size + 12 * 64


def test_columns_and_codes_are_those_of_bitsandbytes():
    """Where every value of an outlier column is one; elsewhere bitsandbytes scales differently."""
    x, w, columns = draw(9, 200, 24, outliers=4)
    codes, scales, found = bitsandbytes.int8_vectorwise_quant(torch.from_numpy(x.copy()), 6.0)
    assert_array_equal(found.numpy(), columns)
    assert_array_equal(matmul.outlier_columns(x), columns)
    rest = x.copy()
    rest[:, columns] = 0
    # Its scales are the largest magnitudes.
    assert_array_equal(scales.numpy(), np.abs(rest).max(axis=1))
    # x (127 / top) here, x (1 / (top / 127)) in ``affine``: not the same next to a tie.
    ours = affine.quantize(rest, affine.choose_qparams(rest, 8, axis=1))
    assert np.mean(ours != codes.numpy()) <= 1e-3
    assert np.abs(ours - codes.numpy().astype(int)).max() <= 1
    w_codes, w_scales, _ = bitsandbytes.int8_vectorwise_quant(torch.from_numpy(w.copy()))
    theirs = torch.ops.bitsandbytes.int8_mixed_scaled_mm(
        torch.from_numpy(x), codes, w_codes, scales, w_scales, found
    )[0].numpy()
    result = matmul.matmul(x, panels.pack(w))
    # Codes may differ by one in a thousand; the rest is rounding, and 1 / 127^2 typed in 7 digits.
    step = scales.numpy()[:, None] * w_scales.numpy() / 127
    assert np.all(np.abs(result - theirs) <= 2 * step + 1e-5 * np.abs(exact_sum(x, w)))


def exact_sum(x, w):
    return np.abs(x).astype(np.float64) @ np.abs(w).astype(np.float64).T


X, W = np.zeros((2, 5), np.float32), np.zeros((3, 5), np.float32)


@pytest.mark.parametrize("use", SETS)
@pytest.mark.parametrize(
    ("x", "threshold", "match"),
    [
        (X.astype(np.float64), 6.0, "float64"),
        (X[0], 6.0, "shape \\(5,\\)"),
        (X[:, :4], 6.0, "pass x \\[samples, 5\\]"),
        (X, -1.0, "threshold=-1.0 is no magnitude"),
        (X, np.nan, "threshold=nan"),
        (X + np.float32(np.nan), 6.0, "NaN or infinity"),
        (X - np.float32(np.inf), 6.0, "NaN or infinity"),
    ],
)
def test_input_without_a_product_is_refused(x, threshold, match, use):
    with pytest.raises(ValueError, match=match):
        matmul.matmul(x, panels.pack(W), threshold, use=use)


def test_a_bias_of_another_length_is_refused():
    with pytest.raises(ValueError, match="bias is of shape"):
        matmul.matmul(X, panels.pack(W), bias=np.zeros(4, np.float32))
