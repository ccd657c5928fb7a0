"""LLM.int8() for GPUs: in Triton's interpreter, against integers, float64 and other libraries."""

import bitsandbytes.functional as bitsandbytes
import numpy as np
import pytest
import torch
from faults import must_fail
from numpy.testing import assert_array_equal

from qbook import affine, integer_product
from qbook.kernels.gpu import device
from qbook.kernels.outlier_matmul import configs, gpu, reference, triton_kernels

DTYPES = [torch.float16, torch.bfloat16, torch.float32]
# Bits of a significand: a result is rounded by at most 2^-bits of it.
SIGNIFICAND = {torch.float16: 11, torch.bfloat16: 8, torch.float32: 24}
# samples, n, outputs: below a tile and beyond; rows that the copy engine takes, and not.
SHAPES = [(1, 1, 1), (3, 7, 33), (5, 64, 70), (17, 160, 3), (70, 301, 65)]


def draw(samples, n, outputs, outliers=0, dtype=torch.float32, seed=0):
    """x of dtype with that many columns of outliers, w_codes, w_scale, w_float, bias, columns"""
    generator = torch.Generator().manual_seed(seed)
    x = 6 * torch.rand(samples, n, generator=generator) - 3
    columns = torch.randperm(n, generator=generator)[:outliers].sort().values
    # One row alone reaches the threshold: one is enough.
    x[-1:, columns] = 20 + 40 * torch.rand(len(columns), generator=generator)
    w_codes = torch.randint(-128, 128, (outputs, n), generator=generator, dtype=torch.int8)
    w_scale = 0.01 + 0.02 * torch.rand(outputs, generator=generator)
    w_float = torch.randn(outputs, n, generator=generator).to(dtype)
    bias = torch.randn(outputs, generator=generator).to(dtype)
    return x.to(dtype), w_codes, w_scale, w_float, bias, columns.int()


def near(found, x, w_codes, w_scale, w_float, bias, threshold=6.0):
    """Compares with the room's reference in float64."""
    assert found.dtype == x.dtype
    assert found.shape == (len(x), len(w_codes))
    terms = [t.double().numpy() for t in (w_codes, w_scale, w_float)]
    offset = 0 if bias is None else bias.double().numpy()
    x32 = x.float().numpy()
    exact = reference.matmul(x32, terms[0], terms[1], terms[2], threshold) + offset
    magnitude = [np.abs(t) for t in terms]
    largest = reference.matmul(np.abs(x32), *magnitude, threshold) + np.abs(offset)
    # In float32: the sum of codes, the product of scales, theirs, the bias; each product and each
    # sum of an outlier.  Then one rounding to x's type, whose smallest step is 2^-24 in float16.
    count = len(reference.outlier_columns(x32, threshold))
    bound = (4 + 2 * count) * 2.0**-24 * largest
    bound += 2.0 ** -SIGNIFICAND[x.dtype] * (np.abs(exact) + bound) + 2.0**-25
    assert np.all(np.abs(found.double().numpy() - exact) <= bound)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("outliers", [0, 1, 40, None])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_product_is_near_the_reference(shape, outliers, dtype, architecture):
    outliers = shape[1] if outliers is None else min(outliers, shape[1])
    *operands, bias, columns = draw(*shape, outliers, dtype)
    assert_array_equal(gpu.outlier_columns(operands[0]), columns)
    near(gpu.matmul(*operands), *operands, None)
    near(gpu.matmul(*operands, bias=bias), *operands, bias)


@pytest.mark.parametrize("dtype", DTYPES)
def test_integers_come_out_exact(dtype, architecture):
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-127, 128, (20, 200), generator=generator)
    # The largest of each row makes its scale 1; multiples of 4 from 128 on are exact in bfloat16.
    x[:, 3], outliers = 127, torch.arange(7, 200, 9)
    x[:, outliers] = 4 * torch.randint(32, 64, (20, len(outliers)), generator=generator)
    w = torch.randint(-128, 128, (70, 200), generator=generator)
    exact = x @ w.T
    assert exact.abs().max() < 2**24
    # The type's largest number is not reached by a hundredth.
    scale, bias = torch.full((70,), 2.0**-7), torch.arange(70.0)
    w_float = w.to(dtype) * 2.0**-7
    found = gpu.matmul(x.to(dtype), w.to(torch.int8), scale, w_float, 128, bias=bias)
    assert_array_equal(found.float(), (exact * 2.0**-7 + bias).to(dtype).float())


@pytest.mark.parametrize("shape", SHAPES)
def test_without_outliers_it_is_the_vector_wise_product_bit_for_bit(shape, architecture):
    x, _, _, w, bias, _ = draw(*shape)
    x_qparams, w_qparams = (affine.choose_qparams(a.numpy(), 8, axis=1) for a in (x, w))
    codes = affine.quantize(x.numpy(), x_qparams), affine.quantize(w.numpy(), w_qparams)
    exact = integer_product.linear(codes[0], x_qparams, codes[1], w_qparams)
    w_scale = torch.from_numpy(w_qparams.scale[:, 0])
    found = gpu.matmul(x, torch.from_numpy(codes[1]), w_scale, w, bias=bias)
    assert_array_equal(found, exact + bias.numpy())


def test_large_tiles_compute_the_same(architecture, monkeypatch):
    # Else they are for results of a hundred tiles.
    monkeypatch.setattr(configs, "ENOUGH", 1)
    *operands, bias, _ = draw(130, 176, 300, 20, torch.float16)
    near(gpu.matmul(*operands, bias=bias), *operands, bias)


@pytest.mark.parametrize("shape", SHAPES)
def test_torch_is_given_shapes_that_its_product_takes_on_a_gpu(shape, monkeypatch, on_the_cpu):
    product, seen = torch._int_mm, []
    monkeypatch.setattr(torch, "_int_mm", lambda a, b: seen.append((a, b)) or product(a, b))
    gpu.matmul(*draw(*shape)[:4])
    ((left, right),) = seen
    assert left.shape[0] > 16
    assert left.shape[1] % 8 == right.shape[1] % 8 == 0


def test_rows_may_be_apart(architecture):
    x, w_codes, w_scale, w_float, _, _ = draw(12, 96, 40, 5, torch.float16)
    for part in (slice(3, 80), slice(16, 80)):
        near(
            gpu.matmul(x[::2, part], w_codes[::2, part], w_scale[:20], w_float[1::2, part]),
            *(x[::2, part], w_codes[::2, part], w_scale[:20], w_float[1::2, part], None),
        )


def test_given_columns_stand_for_those_found(architecture):
    x, w_codes, w_scale, w_float, _, columns = draw(5, 64, 33, 4)
    found = gpu.matmul(x, w_codes, w_scale, w_float, columns=columns)
    assert_array_equal(found, gpu.matmul(x, w_codes, w_scale, w_float))
    # All of them: the codes are not used.
    every = torch.arange(64, dtype=torch.int32)
    found = gpu.matmul(x, w_codes, w_scale, w_float, columns=every)
    near(found, x, w_codes, w_scale, w_float, None, threshold=0)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_infinity_spoils_its_own_row_alone(value):
    *operands, _, columns = draw(5, 64, 33, 4)
    whole = gpu.matmul(*operands, columns=columns)
    operands[0][2, columns[1]] = value
    rows = [0, 1, 3, 4]
    assert_array_equal(gpu.matmul(*operands, columns=columns)[rows], whole[rows])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (7, 130), (301, 33)])
def test_columns_are_those_that_reach_the_threshold(shape, dtype):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    # Missed by the smallest step of bfloat16; reached exactly, in the last row.
    x[0, 0], x[-1, -1] = 3 - 2.0**-6, -3
    for threshold in (0, 0.5, 2, 3, 3.001, np.inf):
        found = gpu.outlier_columns(x, threshold)
        assert found.dtype == torch.int32
        assert_array_equal(found, reference.outlier_columns(x.float().numpy(), threshold))
    assert shape[1] - 1 in gpu.outlier_columns(x, 3)
    assert len(gpu.outlier_columns(x, 1e300)) == 0


def test_columns_are_those_of_bitsandbytes():
    x = 2 * torch.randn(150, 200, generator=torch.Generator().manual_seed(0)).half()
    wanted = bitsandbytes.int8_vectorwise_quant(x, threshold=6.0)[2]
    assert 0 < len(wanted) < 200
    assert_array_equal(gpu.outlier_columns(x), wanted)


def test_the_operators_are_sound_and_compile_without_a_gpu(on_the_cpu):
    x, *weight, bias, columns = draw(5, 64, 33, 4)
    torch.library.opcheck(gpu.column_tops, (x,))
    torch.library.opcheck(gpu.multiply, (x, columns, *weight, bias))
    torch.library.opcheck(gpu.multiply, (x, columns[:0], *weight, None))
    compiled = torch.compile(gpu.matmul, backend="aot_eager", fullgraph=True)
    near(compiled(x, *weight, columns=columns, bias=bias), x, *weight, bias)
    # A number of columns that depends on data must be allowed for.
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        near(compiled(x, *weight, bias=bias), x, *weight, bias)


@pytest.mark.parametrize("interpreted", [True, False])
@pytest.mark.parametrize("shape", [(0, 5, 3), (3, 0, 2), (3, 5, 0)])
def test_an_empty_product_is_the_bias(shape, interpreted, monkeypatch):
    monkeypatch.setattr(device, "interpreted", lambda: interpreted)
    *operands, bias, _ = draw(*shape, dtype=torch.float16)
    assert len(gpu.outlier_columns(operands[0], 0)) == (shape[1] if shape[0] else 0)
    for threshold in (0, 6):
        found = gpu.matmul(*operands, threshold, bias=bias)
        assert_array_equal(found, bias.expand(shape[0], shape[2]))
        assert_array_equal(gpu.matmul(*operands, threshold), torch.zeros(shape[0], shape[2]))


@pytest.mark.parametrize("threshold", [-1, -np.inf, np.nan])
def test_a_threshold_must_be_a_magnitude(threshold):
    with pytest.raises(ValueError, match=f"threshold={threshold}.*choose 0 or more"):
        gpu.outlier_columns(torch.zeros(2, 3), threshold)
    with pytest.raises(ValueError, match=f"threshold={threshold}.*choose 0 or more"):
        gpu.matmul(*draw(2, 3, 4)[:4], threshold)


@pytest.mark.parametrize("interpreted", [True, False])
@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"x": torch.zeros(3)}, r"x is .*\[3\].*\[samples, n\]"),
        ({"x": torch.zeros(3, 4, dtype=torch.float64)}, r"float64 \[3, 4\].*float16"),
        ({"x": torch.zeros(4, 3).T}, r"x has strides \(1, 3\).*contiguous"),
        ({"x": torch.zeros(3, 5)}, r"columns of x 5 and columns of w codes 4 differ"),
        ({"w_codes": torch.zeros(2, 4)}, r"w_codes is torch.float32 .*int8 \[outputs, n\]"),
        ({"w_codes": torch.zeros(3, 4, dtype=torch.int8)}, r"rows of w codes 3 and .* 2 differ"),
        ({"w_float": torch.zeros(2, 3)}, r"columns of x 4 and columns of w float 3 differ"),
        ({"w_float": torch.zeros(2, 4).half()}, r"w_float is torch.float16 .*float32"),
        ({"w_scale": torch.zeros(3)}, r"w_scale is .*\[3\].*float32 \[2\]"),
        ({"w_scale": torch.zeros(2).half()}, r"w_scale is torch.float16 .*float32 \[2\]"),
        ({"bias": torch.zeros(3)}, r"bias is .*\[3\].*\[2\]"),
        ({"bias": torch.zeros(2, device="meta")}, r"x on cpu, .*bias on meta"),
        ({"columns": [1, 2]}, r"columns is a list; pass torch.int32"),
        ({"columns": torch.tensor([1, 2])}, r"columns is torch.int64 .*torch.int32"),
        ({"columns": torch.tensor([2, 1]).int()}, r"columns=\[2, 1\].*ascending, from 0 to 3"),
        ({"columns": torch.tensor([1, 1]).int()}, r"columns=\[1, 1\].*each once"),
        ({"columns": torch.tensor([-1, 1]).int()}, r"columns=\[-1, 1\].*from 0 to 3"),
        ({"columns": torch.tensor([1, 4]).int()}, r"columns=\[1, 4\].*from 0 to 3"),
    ],
)
def test_what_does_not_fit_is_told(changed, told, interpreted, monkeypatch):
    monkeypatch.setattr(device, "interpreted", lambda: interpreted)
    names = ("x", "w_codes", "w_scale", "w_float", "bias")
    operands = dict(zip(names, draw(3, 4, 2), strict=False))
    with pytest.raises(ValueError, match=told):
        gpu.matmul(**{**operands, **changed})


def test_a_sum_that_could_overflow_is_refused():
    n = gpu.LONGEST + 1
    assert n * 127 * 128 > 2**31 - 1 >= gpu.LONGEST * 127 * 128
    with pytest.raises(ValueError, match=f"n={n} .*at most every {gpu.LONGEST}"):
        gpu.matmul(*draw(1, n, 1)[:4])


@pytest.mark.parametrize("architecture", configs.LARGE)
@pytest.mark.parametrize("aligned", [True, False])
def test_no_tile_is_more_than_half_empty(architecture, aligned):
    for samples in (1, 16, 17, 64, 65, 200, 4096):
        for outputs in (128, 4096, 28672):
            config = configs.choose(samples, outputs, architecture, aligned=aligned)
            # The smallest for a batch is that of a tensor core.
            assert config.rows <= max(16, 4 * samples)
            assert config.rows <= 64 or config.rows < 2 * samples
            assert config in configs.candidates(architecture) or not aligned


FAULTS = [
    ("sign", "bitcast=True) & 0x7FFFFFFF", "bitcast=True)"),
    ("smallest", "tl.max(tops, axis=0)", "tl.min(tops, axis=0)"),
    ("first rows", "first + step * BLOCK_ROWS", "step * BLOCK_ROWS"),
    ("steps of columns", "tl.maximum(tops, bits)", "bits"),
    ("bulk step", "[first_row, step * BLOCK]", "[first_row, 0]"),
    ("bulk output", "[first_output, step * BLOCK]", "[0, step * BLOCK]"),
    ("depth", "column = step * BLOCK +", "column = step * (BLOCK - 8) +"),
    ("sum", "sums = tl.dot(w, x, sums,", "sums = tl.dot(w, x,"),
    ("row's scale", "(x_scale[None, :] * w_scale[:, None])", "w_scale[:, None]"),
    ("output's scale", "(x_scale[None, :] * w_scale[:, None])", "x_scale[None, :]"),
    ("bias", "total += bias", "total += 0 * bias"),
    ("wrong column of x", "x_at + column[:, None]", "x_at + which[:, None]"),
    ("wrong column of w", "w_at + column[None, :], mask=in", "w_at + which[None, :], mask=in"),
    ("block of outliers", "which = step * BLOCK_OUTLIERS", "which = 0 * BLOCK_OUTLIERS"),
    ("last outlier", "there = which < outliers", "there = which < outliers - 1"),
    ("lost integers", "total = tl.dot(w, x, total,", "total = tl.dot(w, x,"),
    ("stride of x", "* x_stride", "* n"),
    ("stride of w_float", "* w_float_stride", "* n"),
    ("stride of w_codes", "[:, None] * w_stride", "[:, None] * n"),
    # Beyond the outputs, into the row below; not behind the last row.
    (
        "edge",
        "mask = in_outputs[:, None] &",
        "mask = (output[:, None] < outputs + (row < samples - 1)[None, :]) &",
    ),
    ("tile", "tile[1] * BLOCK_ROWS", "tile[0] * BLOCK_ROWS"),
]


@pytest.mark.parametrize(
    ("old", "new"), [fault[1:] for fault in FAULTS], ids=[f[0] for f in FAULTS]
)
def test_a_seeded_fault_is_found(old, new, monkeypatch, tmp_path):
    def check():
        # More than 128 rows: two programs find the columns.
        x = torch.randn(200, 70, generator=torch.Generator().manual_seed(0))
        x[[3, 40, 170], [5, 20, 33]] = torch.tensor([9.0, -9, 7])
        assert_array_equal(gpu.outlier_columns(x, 6), [5, 20, 33])
        for n in (144, 150):
            x, w_codes, w_scale, w_float, bias, _ = draw(70, n + 16, 135, 20, seed=1)
            operands = x[:, :n], w_codes[:, :n], w_scale, w_float[:, :n], bias
            near(gpu.matmul(*operands[:4], bias=bias), *operands)

    must_fail(monkeypatch, tmp_path, triton_kernels, old, new, check)
