"""FP8 products for GPUs: in Triton's interpreter, against the format's table in 64 bits."""

import numpy as np
import pytest
import torch
from faults import must_fail

from qbook.formats import E4M3
from qbook.kernels.fp8_matmul import gpu
from qbook.kernels.gpu import contract, device
from qbook.kernels.scaled_matmul import configs, launches, triton_kernels

# One of all; all odd: pointers; aligned rows, and a result that is not; what the copy engine takes.
SHAPES = [(1, 1, 1), (5, 7, 9), (3, 40, 272), (20, 24, 40), (33, 67, 144), (70, 136, 144)]
OUT = [torch.float16, torch.bfloat16, torch.float32]
NAN = 0x7F


def coded(codes):
    return torch.from_numpy(np.ascontiguousarray(codes, dtype=np.uint8)).view(gpu.E4M3)


def draw(m, n, k, seed=0):
    """All codes but NaN, each as often: tiny ones count as much as 448 -> x, w, scales, bias"""
    rng = np.random.default_rng(seed)
    numbers = np.flatnonzero(np.arange(256) & NAN != NAN)
    x, w = (coded(rng.choice(numbers, size=(rows, k))) for rows in (m, n))
    scales = [torch.from_numpy(rng.uniform(1e-4, 1e-2, rows).astype(np.float32)) for rows in (m, n)]
    return x, w, *scales, torch.from_numpy(rng.normal(size=n).astype(np.float32))


def values(codes):
    """By the table of the format, in float64."""
    return E4M3.decode(codes.view(torch.uint8).numpy()).astype(np.float64)


def near(found, x, w, x_scale, w_scale, bias=None, out_dtype=torch.float32):
    """Fails unless found is the product, up to the roundings that it may have.

    Products of two codes fit float32, so only sums round.  A sum of k numbers in any order, their
    product with a rounded product of scales, and a bias: each term is rounded at most k + 3 times
    by at most u = 2^-24, relative (Higham 2002, section 4.2; 1.01 for the higher orders of u).
    Then the result is rounded once: half a unit of out_dtype, or of its smallest normal number.
    """
    assert (found.dtype, found.shape) == (out_dtype, (len(x), len(w)))
    factor = np.float64(x_scale).reshape(-1, 1) * np.float64(w_scale).reshape(1, -1)
    wanted, terms = values(x) @ values(w).T * factor, abs(values(x)) @ abs(values(w)).T * factor
    if bias is not None:
        wanted, terms = wanted + bias.double().numpy(), terms + abs(bias.double().numpy())
    sums = 1.01 * (x.shape[1] + 3) * 2.0**-24 * terms
    info = torch.finfo(out_dtype)
    result = info.eps / 2 * np.maximum(abs(wanted) + sums, info.tiny)
    assert (abs(found.double().numpy() - wanted) <= sums + result).all()


@pytest.fixture(params=[75, 80, 89, 90])
def architecture(request, monkeypatch):
    """Without tensor cores, without FP8, FP8 by pointers, FP8 by descriptors"""
    monkeypatch.setenv("QBOOK_GPU", str(request.param))
    return request.param


@pytest.mark.parametrize("k", [1, 16])
def test_every_product_of_two_codes_is_exact(k, architecture):
    # The rest of a row is zeros.
    x = np.zeros((256, k), np.uint8)
    x[:, 0] = np.arange(256)
    found = gpu.matmul(coded(x), coded(x), 1.0, 1.0, out_dtype=torch.float32)
    table = E4M3.decode(np.arange(256, dtype=np.uint8)).astype(np.float64)
    np.testing.assert_array_equal(found.numpy(), np.outer(table, table).astype(np.float32))


@pytest.mark.parametrize("out_dtype", OUT)
@pytest.mark.parametrize("shape", SHAPES)
def test_results_are_within_the_roundings_of_their_sums(shape, out_dtype, architecture):
    x, w, x_scale, w_scale, bias = draw(*shape)
    for given in (None, bias.to(out_dtype)):
        found = gpu.matmul(x, w, x_scale, w_scale, given, out_dtype)
        near(found, x, w, x_scale, w_scale, given, out_dtype)


@pytest.mark.parametrize("exact_every", gpu.EVERY)
@pytest.mark.parametrize("shape", [(5, 7, 300), (20, 40, 304), (70, 136, 272)])
def test_sums_apart_are_sums(shape, exact_every, architecture):
    x, w, x_scale, w_scale, bias = draw(*shape)
    found = gpu.matmul(x, w, x_scale, w_scale, bias, torch.float32, exact_every)
    near(found, x, w, x_scale, w_scale, bias)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("exact_every", gpu.EVERY)
def test_no_step_sums_more_columns_than_asked(shape, exact_every):
    x, w, *factors = draw(*shape)
    y = torch.empty(len(x), len(w))
    found = launches.launch(x, w, y, *factors, 90, exact_every).arguments
    assert found["APART"]
    assert found["BLOCK_K"] <= exact_every


def test_a_sum_apart_is_added_outside_the_tensor_core():
    reports = {row.name: row for row in contract.read(["fp8_matmul"], [90])}
    # 16 x 64 sums among 128 threads: 8 additions of the bias, and 8 more in the loop.
    name = "1x4096x8192 bfloat16"
    fused = [reports[n].instructions["FADD"] for n in (name, f"{name} exact every 128")]
    assert fused == [8, 16]


def test_a_nan_spoils_its_row_and_its_column(architecture):
    for shape in ((20, 24, 48), (5, 7, 9), (70, 136, 144)):
        x, w, x_scale, w_scale, _ = draw(*shape)
        x.view(torch.uint8)[-1, -1] = NAN
        w.view(torch.uint8)[2, 1] = NAN | 0x80
        found = gpu.matmul(x, w, x_scale, w_scale)
        spoilt = torch.zeros(shape[:2], dtype=torch.bool)
        spoilt[-1] = spoilt[:, 2] = True
        assert torch.equal(found.isnan(), spoilt)


def test_the_largest_sums_do_not_overflow(architecture):
    # 448 * 448 alone is beyond float16.
    x, w = (torch.full((rows, 1024), 448.0).to(gpu.E4M3) for rows in (20, 24))
    found = gpu.matmul(x, w, 1.0, 2.0**-13, out_dtype=torch.float32)
    assert torch.equal(found, torch.full((20, 24), 448.0**2 * 1024 / 2**13))


@pytest.mark.parametrize("exact_every", [None, 128])
@pytest.mark.parametrize("shape", [(300, 520, 48), (40, 400, 272), (130, 136, 128)])
def test_programs_that_compute_several_tiles_compute_each(shape, exact_every, monkeypatch):
    # Two SMs, and tiles that do not divide among their programs.
    monkeypatch.setitem(configs.MULTIPROCESSORS, 90, 2)
    x, w, x_scale, w_scale, bias = draw(*shape)
    found = gpu.matmul(x, w, x_scale, w_scale, bias, torch.float32, exact_every)
    near(found, x, w, x_scale, w_scale, bias)


def test_one_number_scales_all_rows(architecture):
    x, w, x_scale, w_scale, _ = draw(20, 24, 40)
    for numbers in ((0.25, w_scale), (x_scale, 0.125), (0.25, torch.tensor(0.5))):
        near(gpu.matmul(x, w, *numbers, out_dtype=torch.float32), x, w, *numbers)


@pytest.mark.parametrize("columns", [slice(16, 64), slice(3, 50)])
def test_rows_may_be_apart(columns, architecture):
    x, w, x_scale, w_scale, _ = draw(40, 48, 80)
    x, w = x[::2, columns], w[::2, columns]
    found = gpu.matmul(x, w, x_scale[:20], w_scale[:24], out_dtype=torch.float32)
    near(found, x, w, x_scale[:20], w_scale[:24])


def test_the_operator_is_sound_and_compiles_without_a_gpu(on_the_cpu):
    x, w, x_scale, w_scale, bias = draw(5, 7, 9)
    # Not test_schema, whose own arithmetic does not know E4M3; see the test below instead.
    checks = ("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    for args in ((bias, torch.float16, None), (None, torch.bfloat16, 128)):
        torch.library.opcheck(gpu.multiply, (x, w, x_scale, w_scale, *args), test_utils=checks)
    compiled = torch.compile(gpu.matmul, backend="aot_eager", fullgraph=True)
    found = compiled(x, w, x_scale, w_scale, bias, torch.float32)
    near(found, x, w, x_scale, w_scale, bias)
    near(compiled(x, w, 0.5, w_scale, out_dtype=torch.float32), x, w, 0.5, w_scale)


@pytest.mark.parametrize("interpreted", [True, False])
def test_arguments_stay_as_they_are(interpreted, monkeypatch):
    monkeypatch.setattr(device, "interpreted", lambda: interpreted)
    given = draw(20, 24, 48)
    before = [tensor.view(torch.uint8).clone() for tensor in given]
    found = gpu.matmul(*given)
    after = [tensor.view(torch.uint8) for tensor in given]
    assert all(map(torch.equal, after, before))
    assert found.data_ptr() not in [tensor.data_ptr() for tensor in given]


@pytest.mark.parametrize("interpreted", [True, False])
@pytest.mark.parametrize("shape", [(0, 4, 5), (3, 0, 5), (3, 4, 0)])
def test_nothing_to_multiply_leaves_the_bias(shape, interpreted, monkeypatch):
    monkeypatch.setattr(device, "interpreted", lambda: interpreted)
    m, n, k = shape
    x, w = (torch.empty(rows, k, dtype=gpu.E4M3) for rows in (m, n))
    bias = torch.arange(n).float()
    found = gpu.matmul(x, w, torch.ones(m), torch.ones(n), bias, torch.float32)
    assert torch.equal(found, bias.expand(m, n))


X, W = torch.zeros(3, 8).to(gpu.E4M3), torch.zeros(4, 8).to(gpu.E4M3)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"x_codes": X.view(torch.int8)}, r"int8 \[3, 8\].*float8_e4m3fn \[m, k\]"),
        ({"w_codes": W.to(torch.float32).to(torch.float8_e5m2)}, "float8_e5m2.*float8_e4m3fn"),
        ({"w_codes": W[:, ::2]}, r"strides \(8, 2\).*contiguous"),
        ({"w_codes": W[:, :7]}, "columns of x codes 8 and columns of w codes 7"),
        ({"x_scale": torch.ones(3, 1)}, r"x_scale is torch.float32 \[3, 1\].*\[3\]"),
        ({"bias": torch.ones(3)}, r"bias is torch.float32 \[3\].*\[4\]"),
        ({"out_dtype": torch.float64}, "out_dtype is torch.float64; choose torch.float16"),
        ({"exact_every": 100}, r"exact_every=100; choose one of \(32, 64, 128\), or None"),
        ({"exact_every": 0}, "exact_every=0; choose"),
    ],
)
def test_what_does_not_fit_is_told(changed, told):
    fitting = {"x_codes": X, "w_codes": W, "x_scale": 1.0, "w_scale": torch.ones(4)}
    with pytest.raises(ValueError, match=told):
        gpu.matmul(**{**fitting, **changed})


def check_all():
    for shape in ((70, 136, 144), (20, 40, 272), (5, 7, 141)):
        x, w, x_scale, w_scale, bias = draw(*shape)
        for exact_every in (None, 64):
            found = gpu.matmul(x, w, x_scale, w_scale, bias, torch.float32, exact_every)
            near(found, x, w, x_scale, w_scale, bias)
        w.view(torch.uint8)[0, 0] = NAN
        assert gpu.matmul(x, w, x_scale, w_scale)[:, 0].isnan().all()


FAULTS = [
    ("NaN is 480", 80, "(byte & 0x7F) == 0x7F", "(byte & 0x7F) == 0xFF"),
    ("negative NaN alone", 80, "(byte & 0x7F) == 0x7F", "byte == 0xFF"),
    ("448 is NaN", 80, "(byte & 0x7F) == 0x7F", "(byte & 0x7F) >= 0x7E"),
    ("sign lost", 80, "casts.from_e4m3(byte)", "casts.from_e4m3(byte & 0x7F)"),
    ("steps not added", 90, "sums += tl.dot(left, right, max", "sums = tl.dot(left, right, max"),
    (
        "steps added twice",
        89,
        "sums += tl.dot(left, right, max",
        "sums += sums + tl.dot(left, right, max",
    ),
    ("without tensor cores: last step alone", 75, "sums += tl.sum(", "sums = tl.sum("),
    ("w decoded as x", 90, "DECODE(w_desc.load([first_column", "DECODE(w_desc.load([first_row"),
    (
        "bias missing",
        89,
        "sums += bias.to(tl.float32)[None, :]",
        "sums += 0 * bias.to(tl.float32)[None, :]",
    ),
]


@pytest.mark.parametrize(
    ("on", "old", "new"), [fault[1:] for fault in FAULTS], ids=[f[0] for f in FAULTS]
)
def test_a_seeded_fault_is_found(on, old, new, monkeypatch, tmp_path):
    monkeypatch.setenv("QBOOK_GPU", str(on))
    must_fail(monkeypatch, tmp_path, triton_kernels, old, new, check_all)
