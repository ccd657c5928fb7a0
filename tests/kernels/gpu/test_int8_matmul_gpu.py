"""INT8 products for GPUs: in Triton's interpreter, bit for bit against integers of 64 bits."""

import numpy as np
import pytest
import torch
from faults import must_fail

from qbook import affine, integer_product
from qbook.kernels.gpu import contract, device
from qbook.kernels.int8_matmul import gpu
from qbook.kernels.scaled_matmul import configs, products, triton_kernels

# One of all; all odd: pointers; aligned rows, and a result that is not; what the copy engine takes.
SHAPES = [(1, 1, 1), (5, 7, 9), (3, 40, 272), (20, 24, 40), (33, 67, 144), (70, 136, 144)]
OUT = [torch.float16, torch.bfloat16, torch.float32]


def draw(m, n, k, seed=0):
    """Codes over the whole range, -128 too -> x, w, x_scale, w_scale, bias"""
    generator = torch.Generator().manual_seed(seed)
    x, w = (
        torch.randint(-128, 128, (rows, k), dtype=torch.int8, generator=generator)
        for rows in (m, n)
    )
    scales = [torch.rand(rows, generator=generator) / 500 + 1e-4 for rows in (m, n)]
    return x, w, *scales, torch.randn(n, generator=generator)


def sums(x, w):
    """In int64, by NumPy."""
    return x.numpy().astype(np.int64) @ w.numpy().astype(np.int64).T


def expected(x, w, x_scale, w_scale, bias=None, out_dtype=torch.float32):
    """The promise, a rounding at a time: sum, product of scales, product, bias, result"""
    factor = np.float32(x_scale).reshape(-1, 1) * np.float32(w_scale).reshape(1, -1)
    y = sums(x, w).astype(np.float32) * factor
    if bias is not None:
        y = y + bias.float().numpy()
    return torch.from_numpy(y).to(out_dtype)


def equal(found, wanted):
    assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("shape", SHAPES)
def test_sums_are_those_of_integers(shape, architecture):
    x, w, *_ = draw(*shape)
    equal(gpu.accumulate(x, w), torch.from_numpy(sums(x, w)).int())


@pytest.mark.parametrize("out_dtype", OUT)
@pytest.mark.parametrize("shape", SHAPES)
def test_results_are_bit_for_bit_those_of_one_rounding_after_the_other(
    shape, out_dtype, architecture
):
    x, w, x_scale, w_scale, bias = draw(*shape)
    for given in (None, bias.to(out_dtype)):
        found = gpu.matmul(x, w, x_scale, w_scale, given, out_dtype)
        equal(found, expected(x, w, x_scale, w_scale, given, out_dtype))


def test_the_result_is_the_integer_product_of_the_book(architecture):
    x, w, *_ = draw(20, 24, 40)
    real = [codes.numpy() / np.float32(100) for codes in (x, w)]
    qparams = [affine.choose_qparams(r, 8, axis=1) for r in real]
    codes = [affine.quantize(r, q) for r, q in zip(real, qparams, strict=True)]
    wanted = integer_product.linear(codes[0], qparams[0], codes[1], qparams[1])
    scales = [torch.from_numpy(q.scale[:, 0]) for q in qparams]
    found = gpu.matmul(*map(torch.from_numpy, codes), *scales, out_dtype=torch.float32)
    equal(found, torch.from_numpy(wanted))


@pytest.mark.parametrize("shape", [(3, 8, 8208), (17, 8, 8208), (2, 3, 1001)])
def test_the_largest_codes_over_the_whole_row_are_exact(shape, architecture):
    m, n, k = shape
    x, w = torch.full((m, k), -128, dtype=torch.int8), torch.full((n, k), -128, dtype=torch.int8)
    equal(gpu.accumulate(x, w), torch.full((m, n), 128 * 128 * k, dtype=torch.int32))
    w[1::2] = 127
    equal(gpu.accumulate(x, w)[:, 1], torch.full((m,), -128 * 127 * k, dtype=torch.int32))


@pytest.mark.parametrize("shape", [(300, 520, 48), (40, 400, 272), (130, 136, 128)])
def test_programs_that_compute_several_tiles_compute_each(shape, monkeypatch):
    # Two SMs, and tiles that do not divide among their programs.
    monkeypatch.setitem(configs.MULTIPROCESSORS, 90, 2)
    x, w, x_scale, w_scale, bias = draw(*shape)
    found = gpu.matmul(x, w, x_scale, w_scale, bias, torch.float32)
    equal(found, expected(x, w, x_scale, w_scale, bias))


@pytest.mark.parametrize("architecture", [80, 90])
def test_every_candidate_computes_the_same(architecture, monkeypatch):
    monkeypatch.setenv("QBOOK_GPU", str(architecture))
    rows = (16, 32, 64, 130)
    tried = [(m, c) for m in rows for c in configs.candidates(architecture, configs.INT8, m)]
    assert len(tried) > 2 * len(rows)
    for m, config in tried:
        monkeypatch.setattr(configs, "choose", lambda *shape, config=config: config)
        x, w, *_ = draw(m, 272, 80)
        equal(gpu.accumulate(x, w), torch.from_numpy(sums(x, w)).int())


def test_every_kind_of_shape_gets_the_tile_that_fills_the_gpu():
    few = [configs.choose(m, 8192, 90, configs.FP8, True).block_m for m in (1, 16, 17, 33, 64)]
    assert few == [16, 16, 32, 64, 64]
    many = {
        (m, n): configs.choose(m, n, 90, configs.FP8, True)[:2]
        for m, n in ((65, 8192), (256, 8192), (512, 8192), (1024, 4096), (65, 64))
    }
    assert list(many.values()) == [(128, 64), (128, 128), (128, 256), (128, 256), (128, 64)]
    assert configs.choose(8192, 8191, 80, configs.INT8, False, False).block_n == 128


def test_no_product_is_fused_with_the_bias_behind_it():
    # sm_120, whose assembler does so unless a choice stands between.
    reports = contract.read(["int8_matmul"], [120])
    assert reports
    assert [row.name for row in reports if {"FFMA", "FFMA2"} & set(row.instructions)] == []


def test_one_number_scales_all_rows(architecture):
    x, w, x_scale, w_scale, _ = draw(20, 24, 40)
    for numbers in ((0.25, w_scale), (x_scale, 0.125), (0.25, torch.tensor(0.5))):
        found = gpu.matmul(x, w, *numbers, out_dtype=torch.float32)
        equal(found, expected(x, w, *numbers))


@pytest.mark.parametrize("columns", [slice(16, 64), slice(3, 50)])
def test_rows_may_be_apart(columns, architecture):
    x, w, x_scale, w_scale, _ = draw(40, 48, 80)
    x, w = x[::2, columns], w[::2, columns]
    found = gpu.matmul(x, w, x_scale[:20], w_scale[:24], out_dtype=torch.float32)
    equal(found, expected(x, w, x_scale[:20], w_scale[:24]))


def test_a_row_given_for_all_is_read_for_all(architecture):
    x, w, *_ = draw(20, 24, 48)
    x = x[:1].expand(20, 48)
    equal(gpu.accumulate(x, w), torch.from_numpy(sums(x, w)).int())


def test_arguments_stay_as_they_are(architecture):
    given = draw(20, 24, 40)
    before = [tensor.clone() for tensor in given]
    gpu.matmul(*given)
    assert all(map(torch.equal, given, before))


def test_the_operators_are_sound_and_compile_without_a_gpu(on_the_cpu):
    x, w, x_scale, w_scale, bias = draw(5, 7, 9)
    torch.library.opcheck(gpu.multiply, (x, w, x_scale, w_scale, bias, torch.float16))
    torch.library.opcheck(gpu.multiply, (x, w, x_scale[:1], w_scale, None, torch.bfloat16))
    torch.library.opcheck(gpu.sum_products, (x, w))
    compiled = torch.compile(gpu.matmul, backend="aot_eager", fullgraph=True)
    found = compiled(x, w, x_scale, w_scale, bias, torch.float32)
    equal(found, expected(x, w, x_scale, w_scale, bias))
    found = compiled(x, w, 0.5, w_scale, out_dtype=torch.float32)
    equal(found, expected(x, w, 0.5, w_scale))


@pytest.mark.parametrize("interpreted", [True, False])
@pytest.mark.parametrize("shape", [(0, 4, 5), (3, 0, 5), (3, 4, 0)])
def test_nothing_to_multiply_leaves_the_bias(shape, interpreted, monkeypatch):
    monkeypatch.setattr(device, "interpreted", lambda: interpreted)
    x, w, x_scale, w_scale, bias = draw(*shape)
    found = gpu.matmul(x, w, x_scale, w_scale, bias, torch.float32)
    equal(found, bias.expand(shape[:2]).contiguous())
    equal(gpu.accumulate(x, w), torch.zeros(shape[:2], dtype=torch.int32))


X, W = torch.zeros(3, 8, dtype=torch.int8), torch.zeros(4, 8, dtype=torch.int8)
LONG = torch.zeros(1, products.LONGEST + 1, dtype=torch.int8)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"x_codes": X[0]}, r"x_codes is torch.int8 \[8\].*\[m, k\]"),
        ({"x_codes": X.float()}, r"float32 \[3, 8\].*torch.int8"),
        ({"w_codes": W.view(torch.uint8)}, r"w_codes is torch.uint8.*torch.int8 \[n, k\]"),
        ({"w_codes": W[:, ::2]}, r"strides \(8, 2\).*contiguous"),
        ({"w_codes": W[:, :7]}, "columns of x codes 8 and columns of w codes 7"),
        ({"w_codes": W.to("meta")}, "x_codes on cpu, w_codes on meta"),
        ({"x_codes": LONG, "w_codes": LONG}, "k=131072.*at most every 131071"),
        ({"x_scale": torch.ones(4)}, r"x_scale is torch.float32 \[4\].*\[3\]"),
        ({"w_scale": torch.ones(4).double()}, r"w_scale is torch.float64.*torch.float32 \[4\]"),
        ({"w_scale": torch.ones(4, device="meta")}, "w_scale on meta"),
        ({"x_scale": "1"}, r"x_scale is a str.*torch.float32 \[3\]"),
        ({"bias": torch.ones(3)}, r"bias is torch.float32 \[3\].*\[4\]"),
        ({"bias": torch.ones(4).int()}, "bias is torch.int32.*float16 or torch.bfloat16"),
        ({"out_dtype": torch.int32}, "out_dtype is torch.int32; choose torch.float16"),
    ],
)
def test_what_does_not_fit_is_told(changed, told):
    fitting = {"x_codes": X, "w_codes": W, "x_scale": 1.0, "w_scale": torch.ones(4)}
    with pytest.raises(ValueError, match=told):
        gpu.matmul(**{**fitting, **changed})
    codes = {name: changed.get(name, fitting[name]) for name in ("x_codes", "w_codes")}
    if codes.keys() & changed.keys():
        with pytest.raises(ValueError, match=told):
            gpu.accumulate(**codes)


def check_all():
    """Every kernel: bias and scales that differ by row, shapes beyond and below the tiles."""
    for shape in ((70, 136, 144), (20, 40, 272), (5, 7, 41), (130, 131, 80)):
        x, w, x_scale, w_scale, bias = draw(*shape)
        found = gpu.matmul(x, w, x_scale, w_scale, bias, torch.float32)
        equal(found, expected(x, w, x_scale, w_scale, bias))


FAULTS = [
    ("sm_90 row of w", 90, "w_desc.load([first_column,", "w_desc.load([first_row,"),
    ("sm_90 step", 90, "x_desc.load([first_row, step * BLOCK_K])", "x_desc.load([first_row, 0])"),
    ("sm_90 few rows", 90, "_dot(w, x.T, sums, APART)", "_dot(w, x.T, 0 * sums, APART)"),
    ("sm_90 scales of the first tile", 90, "columns = first_column + tl.", "columns = tl."),
    ("sm_90 strip", 90, "middle = first_column + COLUMNS // 2", "middle = first_column"),
    ("x_scale of w", 80, "rows * x_scale_stride, mask=rows < m", "rows * 0, mask=rows < m"),
    (
        "w_scale missing",
        90,
        "(x_scale[:, None] * w_scale[None, :])",
        "(x_scale[:, None] + 0 * w_scale[None, :])",
    ),
    (
        "order of rounding",
        80,
        "sums.to(tl.float32) * (x_scale[:, None] * w_scale[None, :])",
        "sums.to(tl.float32) * x_scale[:, None] * w_scale[None, :]",
    ),
    (
        "bias missing",
        80,
        "sums += bias.to(tl.float32)[None, :]",
        "sums += 0 * bias.to(tl.float32)[None, :]",
    ),
    (
        "sm_80 mask of k",
        80,
        "inside = depth < k - step * BLOCK_K",
        "inside = depth < k + 1 - step * BLOCK_K",
    ),
    ("sm_80 steps stand still", 80, "x_place += BLOCK_K", "x_place += 0"),
    ("sm_80 rows of w", 80, "tl.minimum(columns, n - 1)", "tl.minimum(columns, n - 2)"),
    ("mask of stored rows", 80, "mask = (rows < m)[:, None]", "mask = (rows < m - 1)[:, None]"),
    (
        "sm_75 mask of k",
        75,
        "inside = (depth < k - step * BLOCK_K)[None, :]",
        "inside = (depth < k + 1)[None, :]",
    ),
    ("sm_75 wrong sum", 75, "[None, :, :], axis=2)", "[None, :, :], axis=2) // 2 * 2"),
    ("sm_75 sums replaced", 75, "sums += tl.sum(", "sums = tl.sum("),
]


@pytest.mark.parametrize(
    ("on", "old", "new"), [fault[1:] for fault in FAULTS], ids=[f[0] for f in FAULTS]
)
def test_a_seeded_fault_is_found(on, old, new, monkeypatch, tmp_path):
    monkeypatch.setenv("QBOOK_GPU", str(on))
    must_fail(monkeypatch, tmp_path, triton_kernels, old, new, check_all)
