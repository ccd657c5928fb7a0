from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from qbook import affine
from qbook.kernels import isa
from qbook.kernels.int4_matmul import blocks, matmul, panels, reference
from qbook.kernels.simd import bfloat

SETS = isa.available()
# samples, in, out, group_size: rows below, at and beyond a tile; panels, steps and groups not full.
SHAPES = [
    (1, 1, 1, None),
    (3, 33, 7, None),
    (4, 64, 16, 8),
    (5, 96, 33, 32),
    (67, 120, 17, 40),
    (7, 1000, 127, 200),
    (2, 33, 48, 33),
]
EMPTY = [(0, 32, 5, 32), (5, 0, 3, None), (5, 0, 3, 32), (5, 32, 0, 32), (0, 0, 0, None)]
UNIT = 2.0**-24
# Where a step puts its eight inputs as bfloat16.
ORDER = [0, 2, 1, 3, 4, 6, 5, 7]


def unrounded(x):
    return x


def as_bfloat16(x):
    with np.errstate(over="ignore", invalid="ignore"):
        return x.astype(ml_dtypes.bfloat16).astype(np.float32)


FLOATING = [(matmul.w4a16, as_bfloat16), (matmul.w4a32, unrounded)]
FLOATING_IDS = ["w4a16", "w4a32"]


def draw(samples, in_, out, group_size, *, zero_points, scale_dtype=np.float16):
    """-> x, packed w, bias; every code and every zero-point may occur"""
    rng = np.random.default_rng(0)
    groups = 1 if group_size is None else in_ // group_size
    x = rng.normal(size=(samples, in_)).astype(np.float32)
    codes = rng.integers(0, 16, (out, in_)).astype(np.uint8)
    scale = rng.uniform(0.01, 1, (out, groups)).astype(np.float32)
    zero_point = rng.integers(0, 16, (out, groups)) if zero_points else None
    packed = panels.pack(codes, scale, zero_point, group_size, scale_dtype=scale_dtype)
    return x, packed, rng.normal(size=out).astype(np.float32)


def x_hat_of(x, w):
    """-> what the codes of x stand for, float32"""
    group_size = w.group_size if w.groups > 1 else None
    return affine.fake_quantize(x, affine.choose_qparams(x, 8, axis=1, group_size=group_size))


@pytest.mark.parametrize("use", SETS)
@pytest.mark.parametrize("zero_points", [False, True])
@pytest.mark.parametrize("shape", [*SHAPES, *EMPTY])
def test_w4a8_is_the_reference_bit_for_bit(shape, zero_points, use):
    x, w, bias = draw(*shape, zero_points=zero_points)
    expected = reference.w4a8(x, *panels.unpack(w), bias)
    for threads in (1, 2):
        result = matmul.w4a8(x, w, bias, use=use, num_threads=threads)
        assert result.dtype == np.float32
        assert_array_equal(result, expected)
    assert_array_equal(matmul.w4a8(x, w, use=use), reference.w4a8(x, *panels.unpack(w)))


@pytest.mark.parametrize("zero_points", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_w4a8_is_the_product_of_what_the_codes_stand_for(shape, zero_points):
    x, w, _ = draw(*shape, zero_points=zero_points)
    w_hat = affine.dequantize(*panels.unpack(w)).astype(np.float64)
    x_hat = x_hat_of(x, w).astype(np.float64)
    difference = abs(matmul.w4a8(x, w) - x_hat @ w_hat.T)
    # Sums of integers below 2^24 are exact floats.  A group's term sees the rounding of the product
    # of its scales, of the product with it, and of as many additions as there are groups; x_hat and
    # w_hat, one rounding each.
    roundings = w.groups + 4
    assert (difference <= 1.01 * roundings * UNIT * abs(x_hat) @ abs(w_hat).T).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_w4a8_loses_half_a_step_of_x_at_most(shape):
    x, w, _ = draw(*shape, zero_points=True)
    w_hat = affine.dequantize(*panels.unpack(w)).astype(np.float64)
    grouped = abs(x).reshape(len(x), w.groups, -1)
    half = np.broadcast_to(grouped.max(axis=2, keepdims=True) / 254, grouped.shape)
    # Half a step for each input, and 1 % for the roundings, which are a thousand times smaller.
    limit = 1.01 * half.reshape(x.shape) @ abs(w_hat).T
    assert (abs(matmul.w4a8(x, w) - x.astype(np.float64) @ w_hat.T) <= limit).all()


@pytest.mark.parametrize("use", SETS)
@pytest.mark.parametrize("zero_points", [False, True])
@pytest.mark.parametrize("shape", [*SHAPES, *EMPTY])
@pytest.mark.parametrize(("product", "rounded"), FLOATING, ids=FLOATING_IDS)
def test_products_of_floats_are_those_of_float64_up_to_their_roundings(
    product, rounded, shape, zero_points, use
):
    x, w, bias = draw(*shape, zero_points=zero_points)
    codes, qparams = panels.unpack(w)
    given, x = x, rounded(x)
    expected = x.astype(np.float64) @ affine.dequantize(codes, qparams).astype(np.float64).T
    # A product of a group is rounded, goes through the 2 additions of every step (one by one, or a
    # pair by vdpbf16ps, which rounds once or twice), the zero-point's,
    # two that join four sums, the product with the scale, the groups' additions and the bias's; the
    # sum of x, for the zero-points, is rounded once more.  w_hat is rounded too, in expected.
    # Magnitudes: |x| |code| and, besides, |x| |zero_point|.
    roundings = 2 * w.steps + w.groups + 8
    sizes = affine.dequantize(abs(codes), replace(qparams, zero_point=-abs(qparams.zero_point)))
    limit = abs(x).astype(np.float64) @ sizes.astype(np.float64).T + abs(bias)
    results = [product(given, w, bias, use=use, num_threads=threads) for threads in (1, 2)]
    assert_array_equal(*results)
    assert results[0].dtype == np.float32
    assert (abs(results[0] - expected - bias) <= 1.01 * roundings * UNIT * limit).all()


@pytest.mark.parametrize("use", SETS)
def test_every_code_and_zero_point_counts_at_every_place(use):
    # Row (code, zero_point) of w holds one code; sample i reads input i alone.
    code, zero_point = (a.reshape(-1, 1) for a in np.mgrid[:16, :16])
    w_codes = np.repeat(code, 24, axis=1).astype(np.uint8)
    w = panels.pack(w_codes, np.ones((256, 1)), zero_point)
    expected = np.broadcast_to((code - zero_point).T, (24, 256))
    x = np.eye(24, dtype=np.float32)
    assert_array_equal(matmul.w4a16(x, w, use=use), expected)
    assert_array_equal(matmul.w4a32(x, w, use=use), expected)
    # 127 times the rounded 1/127.
    assert (abs(matmul.w4a8(x, w, use=use) - expected) <= 15 * 2 * UNIT).all()


@pytest.mark.parametrize("use", SETS)
def test_every_float16_scale_counts_as_what_it_is(use):
    scale = np.arange(2**16).astype(np.uint16).view(np.float16)
    scale = scale[np.isfinite(scale)].astype(np.float32).reshape(-1, 1)
    w, one = panels.pack(np.ones(scale.shape, np.int8), scale), np.ones((1, 1), np.float32)
    for product in (matmul.w4a16, matmul.w4a32):
        assert_array_equal(product(one, w, use=use), scale.T)


@pytest.mark.parametrize("use", SETS)
def test_float32_scales_are_kept_whole(use):
    for zero_points in (False, True):
        x, w, _ = draw(6, 64, 37, 32, zero_points=zero_points, scale_dtype=np.float32)
        assert_array_equal(matmul.w4a8(x, w, use=use), reference.w4a8(x, *panels.unpack(w)))
    scale = np.float32([[1e-30], [1 / 3], [1e30]])
    w = panels.pack(np.ones(scale.shape, np.int8), scale, scale_dtype=np.float32)
    for product in (matmul.w4a16, matmul.w4a32):
        assert_array_equal(product(np.ones((1, 1), np.float32), w, use=use), scale.T)


@pytest.mark.parametrize("use", SETS)
@pytest.mark.parametrize("product", [matmul.w4a8, matmul.w4a16, matmul.w4a32])
def test_a_row_has_the_same_result_alone_and_among_others(product, use):
    x, w, bias = draw(71, 96, 33, 32, zero_points=True)
    together = product(x, w, bias, use=use)
    for row in (0, 3, 64, 70):
        alone = product(x[[row]], w, bias, use=use)
        if use == isa.REFERENCE:
            # NumPy's sum of float64 may take another order; rounded to float32, an ulp at most.
            np.testing.assert_array_max_ulp(alone, together[[row]], 1)
        else:
            assert_array_equal(alone, together[[row]])


@pytest.mark.parametrize("use", SETS)
def test_the_longest_group_does_not_overflow(use):
    longest = (2**31 - 1) // (15 * 127)
    w = panels.pack(np.full((1, longest), 15, np.uint8), [[1.0]], 0)
    x = np.ones((1, longest), np.float32)
    assert_array_equal(matmul.w4a8(x, w, use=use), reference.w4a8(x, *panels.unpack(w)))
    w = panels.pack(np.full((1, longest + 1), 15, np.uint8), [[1.0]], 0)
    with pytest.raises(ValueError, match=f"a group_size of at most {longest}"):
        matmul.w4a8(np.ones((1, longest + 1), np.float32), w, use=use)


def test_codes_of_x_are_those_of_the_affine_quantizer():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, 96)).astype(np.float32)
    # A group of zeros, subnormal numbers, huge ones, ties.
    x[0, :32], x[1, 32:64], x[2] = 0, 1e-42 * rng.normal(size=32), x[2] * 1e37
    x[3, :32] = np.arange(32) / 2 - 8
    x[3, 0] = 127
    qparams = affine.choose_qparams(x, 8, axis=1, group_size=32)
    codes = affine.quantize(x, qparams).reshape(20, 3, 32)
    for threads in (1, 2):
        found = blocks.quantize(x, 3, 4, threads).reshape(20, 3, 40)
        assert_array_equal(found[:, :, :32].view(np.int8), codes)
        assert_array_equal(found[:, :, 32:36].view(np.float32), qparams.scale)
        assert_array_equal(found[:, :, 36:].view(np.int32)[:, :, 0], -codes.sum(axis=2))


def test_inputs_are_rounded_to_bfloat16_as_others_round():
    # Every upper half, with lower halves below, at and above a tie; NaN and infinity among them.
    upper, lower = np.mgrid[: 2**16, :6].astype(np.uint32)
    x = (upper << 16 | np.uint32([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF])[lower]).view(np.float32)
    x = x.reshape(64, -1)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = x.astype(ml_dtypes.bfloat16)
    steps, nan = x.shape[1] // 8, np.isnan(x)
    found = blocks.round_to_bfloat16(x, 1, steps)[:, :-2].reshape(64, steps, 8)[:, :, ORDER]
    found = found.reshape(x.shape)
    assert_array_equal(found[~nan], expected[~nan].view(np.uint16))
    assert np.isnan(found[nan].view(ml_dtypes.bfloat16).astype(np.float32)).all()
    assert_array_equal(reference.round_to_bfloat16(x), expected.astype(np.float32))


@pytest.mark.parametrize(("groups", "in_"), [(1, 33), (3, 96)])
def test_a_group_of_bfloat16_ends_with_zeros_and_its_sum(groups, in_):
    x = np.random.default_rng(0).normal(size=(5, in_)).astype(np.float32)
    steps = -(-in_ // groups // 8)
    found = blocks.round_to_bfloat16(x, groups, steps).reshape(5, groups, 8 * steps + 2)
    expected = np.zeros((5, groups, 8 * steps), np.float32)
    expected[:, :, : in_ // groups] = as_bfloat16(x).reshape(5, groups, -1)
    values = found[:, :, :-2].reshape(5, groups, steps, 8)[:, :, :, ORDER]
    values = values.astype(np.uint32) << 16
    assert_array_equal(values.reshape(expected.shape).view(np.float32), expected)
    # Sums of 8 digits of numbers within 2^30 of each other are exact in float64.
    sums = found[:, :, -2:].copy().view(np.float32)[:, :, 0]
    assert_array_equal(sums, expected.astype(np.float64).sum(axis=2).astype(np.float32))


@pytest.mark.parametrize("use", [use for use in SETS[:-1] if not bfloat.has_products(use)])
def test_pairs_are_added_in_the_order_of_the_manual(use):
    # vdpbf16ps: the upper half first, each sum rounded.  Products are exact in float32, and so is
    # the scale, 1.
    samples, in_, out, group_size = 7, 96, 33, 48
    rng = np.random.default_rng(0)
    # So far from each other that most sums are not exact.
    x = rng.normal(size=(samples, in_)) * 2.0 ** rng.integers(-12, 13, (samples, in_))
    x, codes = x.astype(np.float32), rng.integers(-8, 8, (out, in_)).astype(np.int8)
    w = panels.pack(codes, np.ones((out, 2)), None, group_size)
    products = as_bfloat16(x)[:, None] * codes.astype(np.float32)
    total = np.zeros((samples, out), np.float32)
    for group in np.split(products.reshape(samples, out, -1, 2, 4), 2, axis=2):
        # Four sums, in two pairs: of (0, 2) and (1, 3) of the first four, then of the others.
        sums = np.zeros((samples, out, 2, 2), np.float32)
        for step in range(group_size // 8):
            sums = (sums + group[:, :, step, :, 2:]) + group[:, :, step, :, :2]
        total += sums[:, :, 0].sum(axis=2) + sums[:, :, 1].sum(axis=2)
    assert_array_equal(matmul.w4a16(x, w, use=use), total)


@pytest.mark.parametrize("use", SETS)
@pytest.mark.parametrize("zero_points", [False, True])
def test_subnormal_numbers_count_as_themselves_or_as_0(zero_points, use):
    x, w, _ = draw(6, 96, 33, 32, zero_points=zero_points, scale_dtype=np.float32)
    codes, qparams = panels.unpack(w)
    scale = qparams.scale * np.float32(2.0**100)
    zero_point = qparams.zero_point if zero_points else None
    w = panels.pack(codes, scale, zero_point, 32, scale_dtype=np.float32)
    w_hat = affine.dequantize(*panels.unpack(w)).astype(np.float64)
    # From about 2^-133, the least bfloat16, to 2^-117.
    x *= np.float32(2.0**-126) * np.logspace(-7, 9, 6, base=2, dtype=np.float32)[:, None]
    expected = as_bfloat16(x).astype(np.float64) @ w_hat.T
    # An input that counts as 0 is below 2^-126, and its code not above 8; a sum that does is below
    # 2^-126 too, one for each input.  All that times the scale, and 1 % for the roundings, smaller:
    # 20 times 2^-24 of 96 |x| 15 scale, with |x| below 4 times 2^-117.
    limit = 1.01 * 9 * 2.0**-126 * 96 * scale.max()
    result = matmul.w4a16(x, w, use=use)
    assert (abs(result - expected) <= limit).all()
    assert abs(expected[-1]).max() > 10 * limit


@pytest.mark.parametrize("value", [np.nan, -np.inf, np.inf])
@pytest.mark.parametrize("use", SETS)
def test_what_is_not_finite_is_refused_or_goes_its_way(use, value):
    x, w, _ = draw(5, 64, 17, 32, zero_points=False)
    x[3, 40] = value
    with pytest.raises(ValueError, match="NaN or infinity"):
        matmul.w4a8(x, w, use=use)
    for product in (matmul.w4a16, matmul.w4a32):
        with np.errstate(invalid="ignore"):
            result = product(x, w, use=use)
        assert not np.isfinite(result[3]).any()
        assert np.isfinite(np.delete(result, 3, axis=0)).all()


@pytest.mark.parametrize("use", SETS)
@pytest.mark.parametrize("product", [matmul.w4a8, matmul.w4a16, matmul.w4a32])
def test_strides_do_not_matter(product, use):
    x, w, _ = draw(10, 128, 48, 32, zero_points=False)
    codes, qparams = panels.unpack(w)
    flipped = panels.pack(codes[::-1, ::-1], qparams.scale[::-1, ::-1], None, 32)
    for view in (x[::2], x[:, ::-1], np.asfortranarray(x)):
        plain = np.ascontiguousarray(view)
        assert_array_equal(product(view, w, use=use), product(plain, w, use=use))
    straight, result = product(x, w, use=use), product(x[:, ::-1], flipped, use=use)
    # The same sums in another order of groups and inputs; 70 roundings of terms below 8 |x|.
    limit = 70 * UNIT * 8 * abs(x).sum(axis=1, keepdims=True)
    assert (abs(result - straight[:, ::-1]) <= limit).all()


@pytest.mark.parametrize("zero_points", [False, True])
@pytest.mark.parametrize("shape", [*SHAPES, *EMPTY])
def test_unpack_undoes_pack(shape, zero_points):
    rng = np.random.default_rng(0)
    _, in_, out, group_size = shape
    groups = 1 if group_size is None else in_ // group_size
    codes = rng.integers(-8, 8, (out, in_)).astype(np.int8)
    scale = rng.normal(size=(out, groups)).astype(np.float16).astype(np.float32)
    zero_point = rng.integers(-8, 8, (out, groups)) if zero_points else np.zeros((out, groups), int)
    w = panels.pack(codes, scale, zero_point, group_size)
    found, qparams = panels.unpack(w)
    assert_array_equal(found, codes)
    assert_array_equal(qparams.scale.reshape(scale.shape), scale)
    assert_array_equal(qparams.zero_point.reshape(scale.shape), zero_point)
    assert w.data.size == 0 or w.data.ctypes.data % 64 == 0


def test_unsigned_codes_stand_for_the_same_weight():
    rng = np.random.default_rng(0)
    w = rng.normal(size=(20, 64)).astype(np.float32)
    for symmetric in (True, False):
        data = []
        for signed in (True, False):
            options = {"group_size": 32, "symmetric": symmetric, "signed": signed}
            qparams = affine.choose_qparams(w, 4, axis=1, **options)
            codes = affine.quantize(w, qparams).astype(np.int8 if signed else np.uint8)
            data.append(panels.pack(codes, qparams.scale, qparams.zero_point, 32))
        assert_array_equal(data[0].data, data[1].data)
        assert data[0].has_zero_points is not symmetric


def test_memory_is_four_bits_and_the_scale_s_share():
    codes, scale = np.zeros((64, 256), np.int8), np.ones((64, 8))
    weights = codes.size
    assert 8 * panels.pack(codes, scale, None, 32).nbytes == weights * (4 + 16 / 32)
    wide = panels.pack(codes, scale, None, 32, scale_dtype=np.float32)
    assert 8 * wide.nbytes == weights * (4 + 32 / 32)
    assert 8 * panels.pack(codes, scale, 1, 32).nbytes == weights * (4 + 16 / 32 + 8 / 32)


@pytest.mark.parametrize("zero_points", [False, True])
def test_torch_computes_the_same_product(zero_points):
    rng = np.random.default_rng(0)
    samples, in_, out, group_size = 5, 128, 64, 32
    codes = rng.integers(0, 16, (out, in_)).astype(np.uint8)
    # Exact in bfloat16: scales that are powers of two, x of a few bits.
    scale = 2.0 ** rng.integers(-4, 1, (out, in_ // group_size))
    x = rng.integers(-64, 65, (samples, in_)).astype(np.float32)
    zero_point = rng.integers(0, 16, scale.shape) if zero_points else np.full(scale.shape, 8)
    w = panels.pack(codes, scale, zero_point, group_size)
    # Theirs is (code - 8) scale + zero.
    zeros = (8 - zero_point) * scale
    parameters = np.ascontiguousarray(np.stack([scale.T, zeros.T], axis=2))
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(torch.from_numpy(codes).int(), 1)
    theirs = torch.ops.aten._weight_int4pack_mm_for_cpu(
        torch.from_numpy(x).bfloat16(), packed, group_size, torch.from_numpy(parameters).bfloat16()
    )
    # Sums of integers / 16 below 2^24 / 16: exact in float32.  Theirs is rounded to 8 bits.
    ours = matmul.w4a32(x, w)
    assert (abs(ours - theirs.float().numpy()) <= 2.0**-8 * abs(ours)).all()
    for use in SETS:
        assert_array_equal(matmul.w4a16(x, w, use=use), ours)


CODES, ONES = np.zeros((4, 64), np.int8), np.ones((4, 2))
WRONG = {
    "x is of type float64 and shape .5, 64.": lambda x, w: matmul.w4a8(x.astype(np.float64), w),
    "x is of type float32 and shape .5, 63.": lambda x, w: matmul.w4a8(x[:, 1:], w),
    "x is of type float32 and shape .64,.; pass float32": lambda x, w: matmul.w4a32(x[0], w),
    "bias is of shape .5,.; pass .4.": lambda x, w: matmul.w4a32(x, w, np.ones(5)),
    "'sse9' is no instruction set": lambda x, w: matmul.w4a8(x, w, use="sse9"),
    "threads=1000 is not to be had": lambda x, w: matmul.w4a32(x, w, num_threads=1000),
    "w_codes is of type int32": lambda x, w: panels.pack(CODES.astype(np.int32), ONES),
    "w_codes is of type int8 and shape .64,.": lambda x, w: panels.pack(CODES[0], ONES),
    "w_codes from 8 to 8 do not fit 4 bits; int8 takes -8 to 7": lambda x, w: panels.pack(
        CODES + 8, ONES
    ),
    "w_codes from 16 to 16 do not fit 4 bits; .* uint8 0 to 15": lambda x, w: panels.pack(
        np.uint8(CODES + 16), ONES
    ),
    "group_size=20 is no multiple of 8": lambda x, w: panels.pack(CODES, ONES, None, 20),
    "group_size=48 does not divide the 64 values": lambda x, w: panels.pack(CODES, ONES, None, 48),
    "group_size=0 does not divide": lambda x, w: panels.pack(CODES, ONES, None, 0),
    r"scale is of shape .4, 2.; pass .4, 1. or .4, 1, 1.": lambda x, w: panels.pack(CODES, ONES),
    "scale from 100000.0 to 100000.0 is not finite in float16": lambda x, w: panels.pack(
        CODES, 1e5 * ONES, None, 32
    ),
    "scale from nan": lambda x, w: panels.pack(CODES, np.nan * ONES, None, 32),
    "scale_dtype=float64 is not supported": lambda x, w: panels.pack(
        CODES, ONES, None, 32, scale_dtype=np.float64
    ),
    "zero_point is of type float64": lambda x, w: panels.pack(CODES, ONES, ONES, 32),
    "zero_point from 8 to 8 is no code; choose -8 to 7": lambda x, w: panels.pack(
        CODES, ONES, 8, 32
    ),
    "zero_point is of shape .4,.": lambda x, w: panels.pack(CODES, ONES, np.zeros(4, int), 32),
}


@pytest.mark.parametrize("message", WRONG)
def test_errors_name_the_value_and_what_would_work(message):
    w, x = panels.pack(CODES, ONES, None, 32), np.zeros((5, 64), np.float32)
    with pytest.raises(ValueError, match=message):
        WRONG[message](x, w)
