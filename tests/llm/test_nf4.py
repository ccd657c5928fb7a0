import bitsandbytes.functional as bnb
import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from qbook import footprint
from qbook.formats import NF4
from qbook.formats.dynamic import DYNAMIC
from qbook.llm import nf4

SHAPES = [(1, 1), (3, 7), (5, 64), (64, 96), (1, 65)]


def weights(*shape, seed=0):
    w = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    # Blocks of different sizes, as rows of real layers are.
    return w * torch.logspace(-3, 1, shape[0])[:, None]


@pytest.mark.parametrize("group_size", [32, 64, 256])
@pytest.mark.parametrize("shape", [(64, 96), (128, 128), (3, 50)])
def test_codes_and_absmax_equal_bitsandbytes(shape, group_size):
    w = weights(*shape)
    packed, state = bnb.quantize_4bit(w, blocksize=group_size, quant_type="nf4")
    theirs = torch.stack([packed >> 4, packed & 15], dim=-1).reshape(-1)[: w.numel()]
    codes, absmax = nf4.quantize(w, group_size=group_size)
    assert_array_equal(codes.reshape(-1), theirs)
    assert_array_equal(absmax, state.absmax)
    # As one row: its CPU kernel (0.50.2) starts a block with every row, quantize_4bit does not.
    packed, state = bnb.quantize_4bit(w.reshape(1, -1), blocksize=group_size, quant_type="nf4")
    values = bnb.dequantize_4bit(packed, state).reshape(w.shape)
    assert_array_equal(nf4.dequantize(codes, absmax, group_size=group_size), values)


def test_quantized_absmax_differs_from_bitsandbytes_on_boundaries_only():
    absmax = torch.rand(4096, generator=torch.Generator().manual_seed(3)) * 0.2 + 0.01
    ours = nf4.quantize_absmax(absmax)
    offset = absmax.mean()
    codes, state = bnb.quantize_blockwise(absmax - offset, blocksize=256)
    assert_array_equal(ours.scale, state.absmax)
    assert float(ours.mean) == float(offset)
    # bitsandbytes's CPU kernel finds the code by an approximate look-up: a number that lies very
    # near a boundary may get the neighbour's code (here 6 of 4096), and no other may.
    step = ours.codes.int() - codes.int()
    assert int(step.abs().max()) <= 1
    assert int((step != 0).sum()) <= 20
    x = (absmax - offset).reshape(-1, 256) / ours.scale[:, None]
    boundaries = torch.tensor((DYNAMIC.levels[1:] + DYNAMIC.levels[:-1]) / 2)
    distance = (x.reshape(-1, 1) - boundaries).abs().amin(dim=1)
    assert bool((distance[step != 0] <= 2**-10).all())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("double", [True, False])
def test_packing_loses_nothing_that_quantizing_kept(shape, double):
    w = weights(*shape, seed=4)
    codes, absmax = nf4.quantize(w)
    if double:
        absmax = nf4.dequantize_absmax(nf4.quantize_absmax(absmax))
    expected = nf4.dequantize(codes, absmax)
    packed = nf4.pack(w, double=double)
    assert_array_equal(nf4.unpack(packed), expected)
    assert_array_equal(nf4.fake_quantize(w, double=double), expected)
    assert_array_equal(nf4.unpack(nf4.pack(w.numpy(), double=double)), expected)


def naive(w, group_size):
    """Independent: block by block, the nearest of sixteen numbers."""
    flat = w.reshape(-1).astype(np.float64)
    out = np.full(flat.shape, np.nan)
    for start in range(0, len(flat), group_size):
        block = flat[start : start + group_size]
        largest = np.abs(block).max()
        levels = NF4.values.astype(np.float64) * largest
        nearest = np.abs(block[:, None] - levels).argmin(axis=1)
        out[start : start + group_size] = levels[nearest]
    return out.reshape(w.shape)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("group_size", [1, 5, 64])
def test_each_weight_becomes_the_nearest_level_of_its_block(shape, group_size):
    w = weights(*shape, seed=5).numpy()
    codes, absmax = nf4.quantize(w, group_size=group_size)
    w_hat = nf4.dequantize(codes, absmax, group_size=group_size)
    # Two roundings to float32 of numbers up to the largest: 2^-23 of it.
    assert np.abs(w_hat - naive(w, group_size)).max() <= 2**-23 * np.abs(w).max()


def test_four_bits_and_an_eighth_are_what_is_stored():
    packed = nf4.pack(weights(256, 512))
    assert nf4.stored_bytes(packed) == 256 * 512 // 2 + 2048 + 4 * 8 + 4
    bits = 8 * nf4.stored_bytes(packed) / (256 * 512)
    # The one mean for the whole matrix: 32 bits of 131072 weights.
    assert abs(bits - (4 + 8 / 64 + 32 / (64 * 256)) - 32 / (256 * 512)) < 1e-12
    plain = nf4.stored_bytes(nf4.pack(weights(256, 512), double=False))
    assert 8 * plain / (256 * 512) == footprint.bits_per_weight(4, 64, scale_bits=32) == 4.5


def test_what_is_kept_has_bounds():
    w = weights(64, 128, seed=6)
    codes, absmax = nf4.quantize(w)
    double = nf4.dequantize_absmax(nf4.quantize_absmax(absmax))
    # Half the widest gap between levels, of the largest magnitude left once the mean is gone;
    # a negative extreme may be cut by 1 - 0.993 instead.
    centred = (absmax - absmax.mean()).abs().max()
    widest = max(float(np.diff(DYNAMIC.levels).max()) / 2, 1 + DYNAMIC.min)
    assert float((double - absmax).abs().max()) <= widest * float(centred) * (1 + 1e-5)
    w_hat = nf4.dequantize(codes, absmax)
    widest = float(np.diff(NF4.levels).max()) / 2
    limit = widest * absmax.repeat_interleave(64).reshape(w.shape)
    assert bool(((w_hat - w).abs() <= limit * (1 + 1e-6)).all())


def test_zeros_stay_zero_even_when_absmax_does_not():
    w = weights(8, 64)
    w[2], w[5, ::2] = 0, 0
    assert float(nf4.quantize(w)[1][2]) == 0
    assert bool((nf4.fake_quantize(w)[w == 0] == 0).all())
    assert bool((nf4.fake_quantize(torch.zeros(4, 3)) == 0).all())


def test_float_types_stay_and_arguments_too():
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert nf4.fake_quantize(weights(3, 9).to(dtype)).dtype == dtype
    w = weights(3, 70)
    before = w.clone()
    nf4.pack(w)
    assert torch.equal(w, before)


def test_bad_input_raises():
    with pytest.raises(ValueError, match="group_size=0 holds no weight"):
        nf4.quantize(weights(2, 3), group_size=0)
    with pytest.raises(ValueError, match="NaN or infinity"):
        nf4.quantize(torch.tensor([[1.0, float("nan")]]))
    codes, absmax = nf4.quantize(weights(2, 65))
    with pytest.raises(ValueError, match=r"absmax has shape \(2,\); 130 codes .* need \(3,\)"):
        nf4.dequantize(codes, absmax[:2])
