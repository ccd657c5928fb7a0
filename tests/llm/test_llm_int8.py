import copy

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn

from qbook import affine
from qbook.llm import llm_int8, scaling
from qbook.models import char_gpt, weights

LIBRARIES = [np.asarray, torch.from_numpy]
SHAPES = [(1, 1, 1), (3, 7, 33), (5, 130, 2), (17, 64, 9)]


def draw(samples, in_, out, outliers=0, factor=40, seed=0):
    """x, w float32 and the columns of x that are ``factor`` times as large; some of x is small"""
    rng = np.random.default_rng(seed)
    x, w = rng.normal(size=(samples, in_)), rng.normal(size=(out, in_))
    columns = np.sort(rng.choice(in_, min(outliers, in_), replace=False))
    x[:, columns] *= factor
    return x.astype(np.float32), w.astype(np.float32), columns


def codes_of(w, bits=8):
    qparams = affine.choose_qparams(w, bits, axis=1)
    return affine.quantize(w, qparams), qparams


def by_loops(x, w, threshold, w_float):
    """Independent: one output at a time, Python floats, the paper's eq. 8"""
    out = np.zeros((len(x), len(w)))
    large = [k for k in range(x.shape[1]) if any(abs(v) >= threshold for v in x[:, k])]
    rest = [k for k in range(x.shape[1]) if k not in large]
    for i, row in enumerate(x.astype(float)):
        a = max([abs(row[k]) for k in rest] + [0.0]) / 127 or 1.0
        for j, outputs in enumerate(w.astype(float)):
            b = max(abs(v) for v in outputs) / 127
            whole = sum(round(row[k] / a) * round(outputs[k] / b) for k in rest)
            out[i, j] = a * b * whole + sum(row[k] * float(w_float[j, k]) for k in large)
    return out


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("outliers", [0, 1, 3])
@pytest.mark.parametrize(("samples", "in_", "out"), SHAPES)
def test_it_is_equation_8_written_as_loops(samples, in_, out, outliers, library):
    x, w, _ = draw(samples, in_, out, outliers, seed=in_)
    w_codes, w_qparams = codes_of(library(w))
    w_hat = affine.fake_quantize(w, affine.choose_qparams(w, 8, axis=1))
    before = x.copy()
    for w_float, meets in ((library(w), w), (None, w_hat)):
        found = llm_int8.linear(library(x), w_codes, w_qparams, w_float, threshold=6.0)
        # float32: in + 3 roundings of parts that are at most the sum of magnitudes; no code of
        # these draws lies within an ulp of a tie, where float32 and float64 may differ by a step.
        bound = (in_ + 3) * 2.0**-23 * (np.abs(x).astype(float) @ np.abs(meets).astype(float).T)
        assert np.all(np.abs(np.asarray(found) - by_loops(x, w, 6.0, meets)) <= bound)
    assert_array_equal(x, before)


@pytest.mark.parametrize("library", LIBRARIES)
def test_columns_are_those_that_reach_the_threshold_anywhere(library):
    x = np.zeros((4, 9), np.float32)
    x[2, 3], x[0, 8], x[3, 0] = -6.0, 6.0, np.nextafter(np.float32(6), np.float32(0))
    assert_array_equal(np.asarray(llm_int8.outlier_columns(library(x))), [3, 8])
    assert len(llm_int8.outlier_columns(library(x), 0)) == 9
    assert len(llm_int8.outlier_columns(library(x), np.inf)) == 0


def test_without_a_threshold_it_is_the_vector_wise_product():
    x, _, _ = draw(6, 40, 5, 2)
    codes, qparams, columns = llm_int8.quantize_inputs(x, None)
    assert len(columns) == 0
    assert_array_equal(codes, affine.quantize(x, affine.choose_qparams(x, 8, axis=1)))
    # A scale for every row: the largest magnitude of each row has the code 127.
    assert_array_equal(np.abs(codes).max(axis=1), 127)
    assert qparams.scale.shape == (6, 1)


def test_threshold_zero_leaves_nothing_to_the_integers():
    x, w, _ = draw(5, 24, 3)
    w_codes, w_qparams = codes_of(w)
    found = llm_int8.linear(x, w_codes, w_qparams, w, threshold=0)
    assert_array_equal(found, x @ w.T)


def test_outliers_change_no_code_of_the_others():
    x, _, columns = draw(8, 50, 1, 3)
    larger = x.copy()
    larger[:, columns] *= 1000
    for quantize in (llm_int8.quantize_inputs, llm_int8.quantize_inputs_as_released):
        x[:, columns] = 7
        codes, qparams, found = quantize(x)
        again, same, _ = quantize(larger + 6 * (larger == 0))
        assert_array_equal(found, columns)
    codes, qparams, _ = llm_int8.quantize_inputs(x)
    again, same, _ = llm_int8.quantize_inputs(larger)
    assert_array_equal(codes, again)
    assert_array_equal(qparams.scale, same.scale)


@pytest.mark.parametrize(("factor", "gain"), [(20, 5), (60, 10), (200, 10)])
def test_the_three_ways_are_ordered_as_the_paper_says(factor, gain):
    x, w, _ = draw(64, 512, 96, 5, factor)
    exact = x.astype(float) @ w.astype(float).T
    w_codes, w_qparams = codes_of(w)

    def error(y):
        return np.linalg.norm(y - exact) / np.linalg.norm(exact)

    tensor = (
        affine.fake_quantize(x, affine.choose_qparams(x, 8))
        @ affine.fake_quantize(w, affine.choose_qparams(w, 8)).T
    )
    vector_wise = error(llm_int8.linear(x, w_codes, w_qparams, threshold=None))
    decomposed = error(llm_int8.linear(x, w_codes, w_qparams, w))
    assert gain * decomposed <= vector_wise < error(tensor)


@pytest.mark.parametrize("threshold", [6.0, 2.5, 100.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_released_codes_and_columns_are_those_of_bitsandbytes(threshold, dtype):
    functional = pytest.importorskip("bitsandbytes.functional")
    # A third of the values in outlier columns are below the threshold: they count for the scale.
    x = torch.from_numpy(draw(33, 200, 1, 4, factor=10, seed=3)[0]).to(dtype)
    theirs, tops, columns = functional.int8_vectorwise_quant(x.clone(), threshold)
    codes, qparams, found = llm_int8.quantize_inputs_as_released(x, threshold)
    assert_array_equal(found, columns)
    assert_array_equal(codes, theirs)
    assert_array_equal(qparams.scale[:, 0], tops / 127)
    if 0 < len(found) < 200:
        # Where the scales are not the paper's, they are coarser.
        paper = llm_int8.quantize_inputs(x, threshold)[1].scale[:, 0]
        assert torch.all(paper <= qparams.scale[:, 0])
        assert torch.any(paper < qparams.scale[:, 0])


@pytest.mark.parametrize("has_fp16_weights", [False, True])
def test_the_released_layer_multiplies_outliers_with_codes_whatever_it_keeps(has_fp16_weights):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    x, w, _ = draw(9, 96, 24, 3)
    x, w = torch.from_numpy(x).half(), torch.from_numpy(w).half()
    layer = bitsandbytes.nn.Linear8bitLt(
        96, 24, bias=False, has_fp16_weights=has_fp16_weights, threshold=6.0
    )
    layer.load_state_dict({"weight": w})
    layer.requires_grad_(False)
    with torch.no_grad():
        theirs = layer.to("cpu").eval()(x).float()
    w_codes, w_qparams = codes_of(w.float())

    def ours(w_float):
        return llm_int8.linear(
            x.float(),
            w_codes,
            w_qparams,
            w_float,
            quantize=llm_int8.quantize_inputs_as_released,
        )

    # Theirs is rounded to float16 three times: 2^-11 each of magnitudes up to the sum of theirs.
    tolerance = 3 * 2.0**-11 * (x.float().abs() @ w.float().abs().T)
    assert torch.all((theirs - ours(None)).abs() <= tolerance)
    closer = (theirs - ours(None)).norm(), (theirs - ours(w.float())).norm()
    assert closer[0] < closer[1] / 3


def test_the_released_factor_of_the_plain_backend_has_lost_a_digit():
    ops = pytest.importorskip("bitsandbytes.functional") and torch.ops.bitsandbytes
    sums, ones = torch.tensor([[127 * 127]], dtype=torch.int32), torch.ones(1)
    product = ops.int8_mm_dequant.default(sums, ones, ones, dtype=torch.float32)
    # Codes 127 and 127 with scales of 1 / 127 stand for 1; 6.200124e-5 is typed for 6.2000124e-5.
    assert_allclose(product.item(), 127**2 * 6.200124e-05, rtol=1e-6)
    assert 1.7e-5 < product.item() - 1 < 1.9e-5


@pytest.mark.parametrize("keep_floats", [True, False])
@pytest.mark.parametrize("threshold", [None, 6.0, 2.0])
def test_a_simulated_layer_computes_what_the_integers_do(threshold, keep_floats):
    x, w, _ = draw(10, 37, 13, 2)
    layer = nn.Linear(37, 13)
    layer.weight.data = torch.from_numpy(w)
    model = llm_int8.simulate(nn.Sequential(layer), threshold=threshold, keep_floats=keep_floats)
    w_codes, w_qparams = codes_of(w)
    w_float = w if keep_floats else None
    exact = llm_int8.linear(x, w_codes, w_qparams, w_float, threshold=threshold)
    with torch.no_grad():
        found = model(torch.from_numpy(x).reshape(2, 5, 37)) - layer.bias
    assert found.shape == (2, 5, 13)
    # in + 3 roundings of float32 in each of the two.
    bound = 2 * 40 * 2.0**-24 * 1.1 * (np.abs(x) @ np.abs(w).T + 1)
    assert np.all(np.abs(found.reshape(10, 13).numpy() - exact) <= bound)


@torch.no_grad()
def test_a_model_with_planted_outliers_needs_the_decomposition():
    ids = torch.randint(65, (4, 100), generator=torch.Generator().manual_seed(0))
    model = char_gpt.load()
    for block in range(4):
        pair = f"blocks.{block}.mlp_norm", [f"blocks.{block}.up"]
        model = scaling.plant(model, *pair, [3, 70, 100], 60.0)
    before = copy.deepcopy(model.state_dict())
    exact = model(ids)

    def error(**options):
        return float((llm_int8.simulate(model, **options)(ids) - exact).norm() / exact.norm())

    vector_wise, paper = error(threshold=None), error()
    codes_only = error(keep_floats=False)
    # The planted columns of w are 60 times smaller than their neighbours: few codes are left.
    assert 2 * paper <= codes_only
    assert 3 * paper <= vector_wise
    # 16 bits in place of 8: what is left is the int8 noise, 256 times less.
    assert error(bits=16) <= paper / 100
    named = llm_int8.simulate(model, names=["blocks.1.up"])
    assert isinstance(named.blocks[1].down, nn.Linear)
    assert not isinstance(named.blocks[1].up, nn.Linear)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert list(weights.weights(model)) == list(weights.weights(char_gpt.load()))


@torch.no_grad()
def test_a_row_feels_the_outliers_of_its_batch():
    x, _, _ = draw(4, 30, 6)
    alone = torch.from_numpy(x)
    layer = nn.Linear(30, 6)
    model = llm_int8.simulate(nn.Sequential(layer))
    batch = torch.cat([alone, torch.full((1, 30), 7.0)])
    assert torch.equal(model(batch[:4]), model(alone))
    assert not torch.equal(model(batch)[:4], model(alone))
    # With the fifth row all columns are float: its neighbours become exact.
    assert float((model(batch)[:4] - layer(alone)).abs().max()) <= 1e-5


@pytest.mark.parametrize("library", LIBRARIES)
def test_no_rows_give_no_rows_and_rows_of_zeros_give_zeros(library):
    w = library(draw(1, 5, 3)[1])
    w_codes, w_qparams = codes_of(w)
    for quantize in (llm_int8.quantize_inputs, llm_int8.quantize_inputs_as_released):
        x = library(np.zeros((2, 5), np.float32))
        found = llm_int8.linear(x, w_codes, w_qparams, quantize=quantize)
        assert_array_equal(np.asarray(found), np.zeros((2, 3)))
    assert llm_int8.linear(x[:0], w_codes, w_qparams).shape == (0, 3)


def test_bad_input_raises():
    x, w, _ = draw(2, 5, 3)
    w_codes, w_qparams = codes_of(w)
    for threshold in (-1.0, np.nan):
        with pytest.raises(ValueError, match=f"threshold={threshold} is no magnitude"):
            llm_int8.linear(x, w_codes, w_qparams, threshold=threshold)
    with pytest.raises(ValueError, match="NaN or infinity"):
        llm_int8.linear(x * np.float32(np.nan), w_codes, w_qparams)
    with pytest.raises(ValueError, match=r"\(2, 4\) and w_codes of shape \(3, 5\)"):
        llm_int8.linear(x[:, :4], w_codes, w_qparams)
    model = nn.Sequential(nn.Linear(5, 3), nn.ReLU())
    with pytest.raises(ValueError, match="no Linear is called '1'; this model has 0"):
        llm_int8.simulate(model, names=["1"])
    with pytest.raises(ValueError, match="threshold=-2 is no magnitude"):
        llm_int8.simulate(model, threshold=-2)
    with pytest.raises(ValueError, match="bits=17"):
        llm_int8.simulate(model, bits=17)
