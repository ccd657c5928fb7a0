"""Ternary products for GPUs: in Triton's interpreter, against integers and the CPU's room."""

import itertools

import numpy as np
import ptx
import pytest
import torch
from faults import must_fail
from numpy.testing import assert_array_equal

from qbook.kernels.gpu import device
from qbook.kernels.ternary_matmul import configs, gpu, panels, triton_kernels
from qbook.kernels.ternary_matmul import matmul as cpu
from qbook.kernels.weight_only import packed

# samples, in, out: below a tile of 256 columns and beyond, an edge on every side.
SHAPES = [(1, 1, 1), (5, 7, 3), (17, 300, 70), (3, 256, 64), (40, 1030, 65), (130, 515, 9)]
BYTES = torch.zeros(5, 64, dtype=torch.uint8)
DTYPES = [torch.float16, torch.bfloat16, torch.float32]


def draw(samples, in_, out, seed=0):
    """x_codes, x_scale, w_codes, bias; the last input of a row has a neighbour of another row"""
    generator = torch.Generator().manual_seed(seed)
    x_codes = torch.randint(-128, 128, (samples, in_), generator=generator, dtype=torch.int8)
    w_codes = torch.randint(-1, 2, (out, in_), generator=generator, dtype=torch.int8)
    x_scale = 0.01 + torch.rand(samples, generator=generator)
    return x_codes, x_scale, w_codes, torch.randn(out, generator=generator)


def expected(x_codes, x_scale, w_codes, w_scale, bias, dtype):
    """Sums in 64 bits; scales as promised, an operation of float32 at a time, in NumPy"""
    sums = (x_codes.long() @ w_codes.long().T).numpy().astype(np.float32)
    scale = np.asarray(w_scale, np.float32)
    y = sums * (x_scale.numpy()[:, None] * scale) + (0 if bias is None else bias.float().numpy())
    return torch.from_numpy(y).to(dtype)


def equal(found, wanted):
    assert found.dtype == wanted.dtype
    assert_array_equal(found.float(), wanted.float())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_w2a8_is_exact_bit_for_bit(shape, dtype, architecture):
    x_codes, x_scale, w_codes, bias = draw(*shape)
    bias = bias.to(dtype)
    w = gpu.pack(w_codes, 0.037)
    one = np.float32(0.037)
    found = gpu.matmul_int8(x_codes, x_scale, w, bias, dtype)
    equal(found, expected(x_codes, x_scale, w_codes, one, bias, dtype))
    row_scale = torch.linspace(0.01, 2, len(w_codes))
    w = gpu.pack(w_codes, row_scale)
    found = gpu.matmul_int8(x_codes, x_scale, w, None, dtype)
    equal(found, expected(x_codes, x_scale, w_codes, row_scale.half(), None, dtype))


@pytest.mark.parametrize("samples", [1, 9])
def test_split_inputs_give_the_same_sums(samples, architecture, monkeypatch):
    monkeypatch.setitem(configs.PROGRAMS, architecture, 100)
    x_codes, x_scale, w_codes, bias = draw(samples, 6000, 3)
    assert configs.choose(samples, 3, 24, architecture).parts == 4
    found = gpu.matmul_int8(x_codes, x_scale, gpu.pack(w_codes, 0.5), bias, torch.float32)
    equal(found, expected(x_codes, x_scale, w_codes, 0.5, bias, torch.float32))


def test_it_is_the_product_of_the_cpu_room_bit_for_bit(architecture):
    x_codes, x_scale, w_codes, bias = draw(5, 300, 33)
    found = gpu.matmul_int8(x_codes, x_scale, gpu.pack(w_codes, 0.037), bias, torch.float32)
    operands = x_codes.numpy(), x_scale.numpy(), panels.pack(w_codes.numpy()), 0.037
    assert_array_equal(found, cpu.linear(*operands, bias.numpy(), use="reference"))


def test_the_largest_sums_are_exact(architecture):
    # Every product is 128: the sum is the largest for its length, beyond float16 and int16.
    x_codes = torch.full((2, 2048), -128, dtype=torch.int8)
    w = gpu.pack(torch.full((9, 2048), -1, dtype=torch.int8), 1.0)
    found = gpu.matmul_int8(x_codes, torch.ones(2), w, out_dtype=torch.float32)
    assert_array_equal(found, np.full((2, 9), 2.0**18))


def test_rows_may_be_apart(architecture):
    x_codes, x_scale, w_codes, _ = draw(8, 320, 5)
    x_codes = x_codes[::2, 3:300]
    w = gpu.pack(w_codes[:, 3:300], 1.0)
    found = gpu.matmul_int8(x_codes, x_scale[::2].contiguous(), w)
    equal(found, expected(x_codes, x_scale[::2], w_codes[:, 3:300], 1, None, torch.float16))


@pytest.mark.parametrize("dtype", DTYPES[:2])
@pytest.mark.parametrize(
    ("samples", "in_", "out"), [(1, 300, 35), (6, 513, 9), (20, 256, 70), (300, 130, 7)]
)
def test_w2a16_is_the_product_with_codes(samples, in_, out, dtype, architecture):
    _, _, w_codes, bias = draw(samples, in_, out)
    x = 100 * torch.randn(samples, in_, generator=torch.Generator().manual_seed(3)).to(dtype)
    bias = bias.to(dtype)
    row_scale = torch.linspace(0.01, 2, out)
    # A number does not touch the codes; scales of rows are float16, then rounded to x's type.
    for scale, w_hat, factor in (
        (0.037, w_codes.double(), np.float32(0.037).item()),
        (row_scale, w_codes * row_scale.half().to(dtype)[:, None].double(), 1.0),
    ):
        found = gpu.matmul(x, gpu.pack(w_codes, scale), bias)
        exact = factor * (x.double() @ w_hat.T) + bias.double()
        magnitude = factor * (x.double().abs() @ w_hat.abs().T) + bias.double().abs()
        # Each addition in float32 is off by 2^-24 of the sum of magnitudes at most, as are the
        # factor and the bias; then the result is rounded by eps / 2 of itself, or by half the
        # smallest step of float16.
        tolerance = (in_ + 2) * 2.0**-24 * magnitude
        tolerance += torch.finfo(dtype).eps / 2 * (exact.abs() + tolerance) + 2.0**-25
        assert found.dtype == dtype
        assert bool(((found.double() - exact).abs() <= tolerance).all())


def test_sums_beyond_float16_are_scaled_before_they_are_rounded(architecture):
    # 300 rows: the way of the dequantized weight, whose sums of 2^17 are no float16.
    x = torch.full((300, 256), 512.0, dtype=torch.float16)
    w = gpu.pack(torch.ones(3, 256, dtype=torch.int8), 2.0**-7)
    equal(gpu.matmul(x, w), torch.full((300, 3), 1024.0, dtype=torch.float16))


@pytest.mark.parametrize("field", range(4))
def test_the_assembly_for_four_bytes_gives_the_codes(field):
    words = ptx.words()
    registers = ptx.run(triton_kernels._assembly(field), _1=words)
    found = registers["$0"].view(np.int8)
    wanted = (words.view(np.uint8) >> 2 * field & 3).astype(np.int8) - 1
    assert_array_equal(found, wanted)


@pytest.mark.parametrize("out_dtype", DTYPES)
def test_the_operator_is_sound_and_compiles_without_a_gpu(out_dtype, on_the_cpu):
    x_codes, x_scale, w_codes, bias = draw(5, 300, 33)
    w = gpu.pack(w_codes, 0.037)
    operands = x_codes, x_scale, w.codes, w.scale
    torch.library.opcheck(
        gpu.ternary_matmul_int8, (*operands, w.tensor_scale, bias, out_dtype, w.group_size)
    )
    torch.library.opcheck(gpu.ternary_matmul_int8, (*operands, None, None, out_dtype, w.group_size))

    def call(x_codes, x_scale):
        return gpu.matmul_int8(x_codes, x_scale, w, bias, out_dtype)

    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    equal(compiled(x_codes, x_scale), call(x_codes, x_scale))
    wanted = expected(x_codes, x_scale, w_codes, np.float32(0.037), bias, out_dtype)
    equal(call(x_codes, x_scale), wanted)


@pytest.mark.parametrize("interpreted", [True, False])
@pytest.mark.parametrize("shape", [(0, 5, 3), (3, 5, 0)])
def test_nothing_to_multiply_gives_nothing(shape, interpreted, monkeypatch):
    monkeypatch.setattr(device, "interpreted", lambda: interpreted)
    x_codes, x_scale, w_codes, bias = draw(*shape)
    w = gpu.pack(w_codes, 1.0)
    assert gpu.matmul_int8(x_codes, x_scale, w, bias).shape == (shape[0], shape[2])


def test_without_inputs_the_bias_is_left(architecture):
    x_codes, x_scale, w_codes, bias = draw(3, 0, 9)
    found = gpu.matmul_int8(x_codes, x_scale, gpu.pack(w_codes, 1.0), bias, torch.float32)
    assert_array_equal(found, bias.expand(3, 9))


def test_a_weight_takes_a_quarter_of_a_byte():
    w = gpu.pack(torch.zeros(64, 1024, dtype=torch.int8), 1.0)
    assert w.codes.nbytes == 64 * 1024 // 4
    assert w.nbytes == w.codes.nbytes + 64 * 4 + 4


@pytest.mark.parametrize(
    ("w_codes", "scale", "told"),
    [
        (torch.zeros(2, 3), 1.0, r"float32 \[2, 3\].*int8 \[out, in\] of -1, 0, 1"),
        (torch.full((2, 3), 2, dtype=torch.int8), 1.0, "from 2 to 2.*choose -1, 0, 1"),
        (torch.full((2, 3), -2, dtype=torch.int8), 1.0, "from -2 to -2.*choose -1, 0, 1"),
        (torch.zeros(2, 3, dtype=torch.int8), float("inf"), "scale=inf is not finite"),
        (torch.zeros(2, 3, dtype=torch.int8), torch.tensor(np.nan), "scale=nan is not finite"),
        (torch.zeros(2, 3, dtype=torch.int8), torch.ones(3), r"\[3\].*floats \[2, 1\]"),
        (torch.zeros(2, 3, dtype=torch.int8), torch.full((2,), 1e6), "1e.06 is not finite"),
    ],
)
def test_what_cannot_be_packed_is_told(w_codes, scale, told):
    with pytest.raises(ValueError, match=told):
        gpu.pack(w_codes, scale)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"x_codes": torch.zeros(3, 64)}, r"x_codes is torch.float32 .*int8 \[samples, in\]"),
        ({"x_codes": torch.zeros(64, 3).char().T}, "strides.*contiguous"),
        ({"x_codes": torch.zeros(3, 65).char()}, "columns of x codes 65 and columns of w 64"),
        ({"x_scale": torch.zeros(2)}, r"x_scale is .*\[2\].*float32 \[3\]"),
        ({"x_scale": torch.zeros(3).half()}, r"x_scale is torch.float16.*float32 \[3\]"),
        ({"bias": torch.zeros(6)}, r"bias is .*\[6\].*\[5\]"),
        ({"bias": torch.zeros(5).double()}, r"bias is torch.float64 .*float16"),
        ({"bias": torch.zeros(5, device="meta")}, "x_codes on cpu.*bias on meta"),
        ({"out_dtype": torch.int8}, "out_dtype is torch.int8; choose torch.float16 or"),
        (
            {"w": packed.pack("ternary", BYTES, torch.ones(5, 4), group_size=16)},
            r"w is ternary with \d words.*ternary_matmul.gpu.pack",
        ),
        (
            {"w": packed.pack("int4", BYTES, torch.ones(5, 1))},
            r"w is int4 .*pass a ternary weight",
        ),
    ],
)
def test_what_does_not_fit_is_told(changed, told):
    operands = {
        "x_codes": torch.zeros(3, 64, dtype=torch.int8),
        "x_scale": torch.ones(3),
        "w": gpu.pack(torch.zeros(5, 64, dtype=torch.int8), 1.0),
    }
    with pytest.raises(ValueError, match=told):
        gpu.matmul_int8(**{**operands, **changed})


def test_a_sum_that_could_overflow_is_refused(on_the_cpu):
    in_ = gpu.LONGEST + 1
    assert 128 * in_ > 2**31 - 1 >= 128 * gpu.LONGEST
    x_codes = torch.zeros(1, in_, dtype=torch.int8)
    w = gpu.pack(torch.zeros(1, in_, dtype=torch.int8), 1.0)
    with pytest.raises(ValueError, match=f"in={in_} .*at most {gpu.LONGEST}"):
        gpu.matmul_int8(x_codes, torch.ones(1), w)


@pytest.mark.parametrize("architecture", [80, 86, 89, 90, 100, 120])
def test_programs_are_not_more_than_asked_for(architecture):
    for m, n, tiles in itertools.product((1, 16, 33, 4096), (64, 4096, 28672), (1, 32, 112)):
        config = configs.choose(m, n, tiles, architecture)
        assert config.way == "tile"
        assert config.parts == 1 or tiles // config.parts >= 4
        programs = -(-n // config.block_n) * -(-m // config.block_m)
        assert config.parts == 1 or programs * config.parts <= 2 * configs.PROGRAMS[architecture]
        same = [c for c in configs.candidates(m) if c[:4] == config[:4]]
        assert config._replace(parts=1) in same


FAULTS = {
    "swapped fields": ("(packed >> (2 * field)) & 3", "(packed >> (6 - 2 * field)) & 3"),
    "lost bit": ("(packed >> (2 * field)) & 3", "(packed >> (2 * field)) & 1"),
    "digits for codes": (".to(tl.int8) - 1", ".to(tl.int8)"),
    "high half of the word": ("(word & 0xFFFF)", "((word >> 16) & 0xFFFF)"),
    "the scale of the first row": ("w_scale_ptr + n, mask", "w_scale_ptr + n * 0, mask"),
    "missing scale of the tensor": ("w_scale *= tl.load(tensor_scale_ptr)", "w_scale *= 1.0"),
    "the scale of the first sample": ("x_scale_ptr + m, mask", "x_scale_ptr + m * 0, mask"),
    "order of the scales": (
        "sums.to(tl.float32) * (x_scale * w_scale)",
        "sums.to(tl.float32) * x_scale * w_scale",
    ),
    "missing bias": ("y += tl.load(bias_ptr + n", "y += 0 * tl.load(bias_ptr + n"),
    "columns behind the last": ("(column + byte < K)", "(column + byte < K + 1)"),
    "the last column": ("(column + byte < K)", "(column + byte < K - 1)"),
    "column of a field": ("(tile * 4 + field) * PLANE", "(tile * 4 + 3 - field) * PLANE"),
    "rows of x": ("seen = (m < M)[None, :]", "seen = (m < M - 1)[None, :]"),
    "rows of w": ("mask = n < N\n", "mask = n < N - 1\n"),
    "stride of x": ("* x_stride", "* K"),
    "rows of the result": ("* M + m[None, :]) * N", "* M + m[None, :]) * (N - 1)"),
    "a part read twice": ("tile = part * STEPS + step", "tile = step"),
    "a part left out": ("tl.static_range(PARTS)", "tl.static_range(PARTS - 1)"),
    "a lost sum": ("x, sums, out_dtype", "x, sums * 0, out_dtype"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_seeded_fault_is_found(fault, monkeypatch, tmp_path):
    monkeypatch.setitem(configs.PROGRAMS, 90, 4)
    calls = []
    for (samples, in_, out), scale in (((19, 300, 70), 0.037), ((3, 2300, 9), None)):
        wide, x_scale, w_codes, bias = draw(samples, in_ + 9, out)
        x_codes, w_codes = wide[:, :in_], w_codes[:, :in_].contiguous()
        scale = torch.linspace(0.1, 1, out).half().float() if scale is None else scale
        numbers = scale if isinstance(scale, torch.Tensor) else np.float32(scale)
        wanted = expected(x_codes, x_scale, w_codes, numbers, bias, torch.float32)
        calls.append(((x_codes, x_scale, gpu.pack(w_codes, scale), bias, torch.float32), wanted))

    def check():
        for operands, wanted in calls:
            equal(gpu.matmul_int8(*operands), wanted)

    must_fail(monkeypatch, tmp_path, triton_kernels, *FAULTS[fault], check)
