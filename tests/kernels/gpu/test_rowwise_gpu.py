"""Row quantizers for GPUs: in Triton's interpreter, against the affine quantizer and the format."""

import numpy as np
import pytest
import torch
from faults import must_fail
from numpy.testing import assert_array_equal

from qbook import affine
from qbook.formats import E4M3
from qbook.kernels.gpu import device
from qbook.kernels.rowwise import gpu, triton_kernels

# Around a power of two, and a row too long for one block.
SHAPES = [(1, 1), (3, 7), (5, 64), (7, 1000), (2, 16385)]
CALLS = {torch.int8: gpu.quantize_int8, torch.float8_e4m3fn: gpu.quantize_fp8}
DTYPES = [torch.float16, torch.bfloat16, torch.float32]


def draw(shape, dtype=torch.float32, seed=0):
    """Normal numbers, rows of very different size, one of zeros."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    x *= 10 ** (4 * torch.rand(shape[0], 1, generator=generator) - 2)
    if shape[0] > 2:
        x[1] = 0
    return x.to(dtype)


def expected(x, dtype):
    """x float32 -> codes, scale: by the affine quantizer, and by the format's table in NumPy"""
    if dtype == torch.int8:
        qparams = affine.choose_qparams(x.numpy(), 8, axis=1)
        return affine.quantize(x.numpy(), qparams), qparams.scale[:, 0]
    largest = np.abs(x.numpy()).max(axis=1, keepdims=True)
    scale = np.where(largest == 0, np.float32(1), largest / np.float32(448))
    return E4M3.encode(x.numpy() * (np.float32(1) / scale)).view(np.int8), scale[:, 0]


def equal(found, x, dtype):
    codes, scale = found
    assert (codes.dtype, codes.shape, scale.dtype) == (dtype, x.shape, torch.float32)
    wanted = expected(x, dtype)
    assert_array_equal(codes.view(torch.int8).numpy(), wanted[0])
    assert_array_equal(scale.numpy(), wanted[1])


@pytest.mark.parametrize("dtype", CALLS)
@pytest.mark.parametrize("x_dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_codes_and_scales_are_those_of_the_reference(shape, x_dtype, dtype):
    x = draw(shape, x_dtype)
    equal(CALLS[dtype](x), x.float(), dtype)


@pytest.mark.parametrize("dtype", CALLS)
@pytest.mark.parametrize("shape", [(5, 64), (2, 16385)])
def test_columns_are_multiplied_first(shape, dtype):
    x, multiplier = draw(shape), torch.rand(shape[1]) + 0.1
    multiplier[::7] = 0
    equal(CALLS[dtype](x, multiplier), x * multiplier, dtype)


def test_rows_may_be_apart():
    x = draw((6, 40))
    equal(gpu.quantize_int8(x[::2, 3:30]), x[::2, 3:30], torch.int8)


def test_every_tie_of_e4m3_goes_to_the_even_code_and_its_neighbours_to_the_nearest():
    values = E4M3.levels[:0x7F].astype(np.float32)
    middles = (values[1:] + values[:-1]) / 2
    around = [np.nextafter(middles, np.float32(end)) for end in (-np.inf, np.inf)]
    beyond = np.float32([463.9, 464, 464.1, 1e5, np.inf, 1e-30, 2**-10, 2**-11])
    x = np.concatenate([values, middles, *around, beyond])
    x = np.concatenate([x, -x, np.float32([np.nan])])
    found = torch.empty(len(x), dtype=torch.uint8)
    triton_kernels.encode_e4m3[(2,)](torch.from_numpy(x), found, len(x), BLOCK=1024)
    # NaN has two codes, one a sign.
    assert_array_equal(found.numpy()[:-1], E4M3.encode(x)[:-1])
    assert found[-1] & 0x7F == 0x7F


@pytest.mark.parametrize("dtype", CALLS)
def test_the_operator_is_sound_and_compiles_without_a_gpu(dtype, on_the_cpu):
    x, multiplier = draw((5, 64)), torch.rand(64)
    operator = gpu.quantize_rows_int8 if dtype == torch.int8 else gpu.quantize_rows_fp8
    torch.library.opcheck(operator, (x, multiplier))
    torch.library.opcheck(operator, (x, None))
    compiled = torch.compile(CALLS[dtype], backend="aot_eager", fullgraph=True)
    equal(compiled(x, multiplier), x * multiplier, dtype)


@pytest.mark.parametrize("interpreted", [True, False])
@pytest.mark.parametrize("dtype", CALLS)
@pytest.mark.parametrize("shape", [(0, 5), (3, 0)])
def test_nothing_to_quantize_gives_scales_of_one(shape, dtype, interpreted, monkeypatch):
    monkeypatch.setattr(device, "interpreted", lambda: interpreted)
    codes, scale = CALLS[dtype](torch.empty(shape))
    assert (codes.shape, scale.tolist()) == (shape, [1.0] * shape[0])


@pytest.mark.parametrize(
    ("x", "multiplier", "told"),
    [
        (torch.zeros(3), None, r"\[3\].*pass"),
        (torch.zeros(3, 4, dtype=torch.float64), None, r"float64 \[3, 4\].*float16"),
        (torch.zeros(4, 3).T, None, r"strides \(1, 3\).*contiguous"),
        (np.zeros((3, 4)), None, r"ndarray.*float16"),
        (torch.zeros(3, 4), torch.zeros(5), r"\[5\].*float32 \[4\]"),
        (torch.zeros(3, 4), torch.zeros(4, dtype=torch.float16), r"float16 \[4\].*float32 \[4\]"),
        (torch.zeros(3, 4), torch.zeros(4, device="meta"), r"x on cpu, multiplier on meta"),
    ],
)
@pytest.mark.parametrize("call", CALLS.values())
def test_what_does_not_fit_is_told(call, x, multiplier, told):
    with pytest.raises(ValueError, match=told):
        call(x, multiplier)


FAULTS = [
    ("mask", "(columns < n)[None, :]", "(columns < n + 1)[None, :]"),
    ("rounding", "casts.nearest(steps).to", "steps.to"),
    ("scale of zeros", "tl.where(largest == 0, 1.0, scale)", "scale"),
    ("missing scale", "x * tl.div_rn", "x + 0 * tl.div_rn"),
    ("magnitude", "tl.max(tl.abs(x), axis=1)", "tl.max(x, axis=1)"),
    (
        "multiplier",
        "x *= tl.load(multiplier_ptr + columns",
        "x += 0 * tl.load(multiplier_ptr + columns",
    ),
    (
        "approximate cast",
        "casts.to_e4m3(steps)",
        "steps.to(tl.float8e4nv).to(tl.uint8, bitcast=True)",
    ),
]


@pytest.mark.parametrize(
    ("old", "new"), [fault[1:] for fault in FAULTS], ids=[f[0] for f in FAULTS]
)
def test_a_seeded_fault_is_found(old, new, monkeypatch, tmp_path):
    def check():
        for dtype, call in CALLS.items():
            # Sixteenths, so that ties occur; a first column that a row before must not see.
            x = torch.cat([draw((7, 999)), torch.arange(7 * 999).reshape(7, 999) / 16], dim=1)
            x[1:, 0], x[1] = -1e6, 0
            equal(call(x), x, dtype)
            multiplier = torch.linspace(0.5, 2, x.shape[1])
            equal(call(x, multiplier), x * multiplier, dtype)

    must_fail(monkeypatch, tmp_path, triton_kernels, old, new, check)
