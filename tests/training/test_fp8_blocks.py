import math

import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from qbook.theory import accumulator
from qbook.training import fp8_blocks
from qbook.training.fp8_blocks import COLUMN, SQUARE, TILE

SHAPES = [(1, 1), (3, 128), (5, 300), (129, 257)]


def gaussian(shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def quantize_by_loops(x, block):
    """Block by block as the released act_quant and weight_quant, cast by ml_dtypes"""
    (rows, columns), (height, width) = x.shape, block
    values = np.full(x.shape, np.nan, np.float32)
    scale = np.full((-(-rows // height), -(-columns // width)), np.nan, np.float32)
    for i in range(scale.shape[0]):
        for j in range(scale.shape[1]):
            at = np.s_[i * height : (i + 1) * height, j * width : (j + 1) * width]
            scale[i, j] = np.abs(x[at]).max() / np.float32(448)
            steps = np.clip(x[at] / scale[i, j], -448, 448)
            values[at] = steps.astype(ml_dtypes.float8_e4m3fn)
    return values, scale


@pytest.mark.parametrize("block", [TILE, COLUMN, SQUARE])
@pytest.mark.parametrize("shape", SHAPES)
def test_blocks_are_those_of_the_released_kernels(shape, block):
    x = gaussian(shape)
    blocks = fp8_blocks.quantize(x, block)
    values, scale = quantize_by_loops(x.numpy(), block)
    assert_array_equal(blocks.scale.numpy(), scale)
    assert_array_equal(blocks.values.numpy(), values)
    spread = np.repeat(np.repeat(scale, block[0], 0), block[1], 1)[: shape[0], : shape[1]]
    assert_array_equal(fp8_blocks.dequantize(blocks).numpy(), values * spread)
    assert torch.equal(fp8_blocks.fake_quantize(x, block), fp8_blocks.dequantize(blocks))


@pytest.mark.parametrize("block", [TILE, SQUARE])
def test_a_power_of_two_is_the_smallest_that_does_not_overflow(block):
    x = gaussian((130, 200)) * torch.logspace(-6, 6, 200)
    x[0, :128] = 448 * 2.0**-3
    plain = fp8_blocks.quantize(x, block).scale.numpy()
    found = fp8_blocks.quantize(x, block, power_of_two=True).scale.numpy()
    expected = [[2.0 ** math.ceil(math.log2(s)) for s in row] for row in plain.tolist()]
    assert_array_equal(found, np.array(expected, np.float32))


def test_a_square_serves_the_transposed_product_and_a_tile_does_not():
    w = gaussian((200, 300))
    squares = fp8_blocks.fake_quantize(w, SQUARE)
    assert torch.equal(fp8_blocks.fake_quantize(w.T, SQUARE), squares.T)
    assert torch.equal(fp8_blocks.fake_quantize(w.T, TILE), fp8_blocks.fake_quantize(w, COLUMN).T)
    assert not torch.equal(fp8_blocks.fake_quantize(w.T, TILE), fp8_blocks.fake_quantize(w, TILE).T)


def test_an_outlier_changes_its_own_tile_only():
    x = gaussian((4, 384))
    before = fp8_blocks.fake_quantize(x)
    x[1, 130] = 1e6
    after = fp8_blocks.fake_quantize(x)
    changed = (before != after).nonzero()
    assert set(changed[:, 0].tolist()) == {1}
    assert changed[:, 1].min() >= 128
    assert changed[:, 1].max() < 256


def test_a_block_of_zeros_stays_zero_with_scale_one():
    x = torch.zeros(2, 200)
    x[0, 0] = 3
    blocks = fp8_blocks.quantize(x)
    assert blocks.scale[1].tolist() == [1, 1]
    assert torch.equal(fp8_blocks.dequantize(blocks)[1], torch.zeros(200))


@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (3, 130, 128), (5, 7, 300)])
@pytest.mark.parametrize("w_block", [TILE, SQUARE])
def test_the_product_is_that_of_the_dequantized_matrices(m, n, k, w_block):
    x = fp8_blocks.quantize(gaussian((m, k)))
    w = fp8_blocks.quantize(gaussian((n, k), seed=1), w_block)
    x_hat, w_hat = (fp8_blocks.dequantize(blocks).double() for blocks in (x, w))
    # k products, each rounded by at most one part in 2^23 with the sum so far, and three scalings.
    bound = (k + 4) * 2.0**-23 * (x_hat.abs() @ w_hat.abs().T)
    assert ((fp8_blocks.matmul(x, w) - x_hat @ w_hat.T).abs() <= bound).all()


def test_the_product_of_codes_is_torchs_scaled_mm():
    # Small integers: every sum is exact in float32, and so is every scale.
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.integers(-7, 8, (16, 128)).astype(np.float32))
    w = torch.from_numpy(rng.integers(-7, 8, (32, 128)).astype(np.float32))
    x[:, 0], w[0, 0] = 7, 7
    x_blocks, w_blocks = fp8_blocks.quantize(x), fp8_blocks.quantize(w, SQUARE)
    expected = torch._scaled_mm(
        x_blocks.values.to(torch.float8_e4m3fn),
        w_blocks.values.to(torch.float8_e4m3fn).T,
        scale_a=torch.tensor(7 / 448),
        scale_b=torch.tensor(7 / 448),
        out_dtype=torch.float32,
    )
    assert torch.equal(fp8_blocks.matmul(x_blocks, w_blocks), expected)
    assert torch.equal(expected, x @ w.T)


@pytest.mark.parametrize("k", [128, 300])
def test_short_sums_are_promoted_at_the_end_of_every_block(k):
    x, w = gaussian((3, k)).clamp(-1, 1), gaussian((4, k), seed=1).clamp(-1, 1)
    # Every tile holds a 1, so that all scales are 1/448 and one model serves the whole sum.
    x[:, ::100], w[:, ::100] = 1, 1
    x_blocks, w_blocks = fp8_blocks.quantize(x), fp8_blocks.quantize(w)
    products = x_blocks.values.double().numpy()[:, None] * w_blocks.values.double().numpy()
    scale = np.float32(1) / np.float32(448)
    expected = accumulator.fixed_point(products, promote=128) * np.float64(scale) ** 2
    found = fp8_blocks.matmul(x_blocks, w_blocks, bits=14).numpy()
    exact = fp8_blocks.matmul(x_blocks, w_blocks).numpy()
    # Scaling before or after the last additions: a rounding of float32 for each of at most three.
    assert (np.abs(found - expected) <= 8 * 2.0**-24 * np.abs(products).sum(-1) * scale**2).all()
    assert np.abs(found - exact).max() > 1e-4


def test_what_cannot_work_is_refused():
    with pytest.raises(ValueError, match="shape \\(2, 3, 4\\)"):
        fp8_blocks.quantize(torch.zeros(2, 3, 4))
    with pytest.raises(ValueError, match="NaN or infinity"):
        fp8_blocks.quantize(torch.tensor([[1.0, math.nan]]))
    x = fp8_blocks.quantize(gaussian((2, 128)))
    with pytest.raises(ValueError, match="128 columns in blocks of 128, w has 130"):
        fp8_blocks.matmul(x, fp8_blocks.quantize(gaussian((2, 130))))
    with pytest.raises(ValueError, match="in blocks of 1;"):
        fp8_blocks.matmul(x, fp8_blocks.quantize(gaussian((2, 128)), COLUMN))
