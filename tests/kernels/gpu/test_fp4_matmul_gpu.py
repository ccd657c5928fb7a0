"""MXFP4, NVFP4 and NF4 for GPUs: packed as other libraries pack, decoded code by code."""

import bitsandbytes.functional as bitsandbytes
import ml_dtypes
import numpy as np
import pytest
import torch
from faults import must_fail
from numpy.testing import assert_array_equal

from qbook.formats import microscaling
from qbook.kernels.fp4_matmul import gpu
from qbook.kernels.gpu import casts, fields
from qbook.kernels.weight_only import configs, decode, matmul, packed, triton_kernels

PACK = {"mxfp4": gpu.pack_mxfp4, "nvfp4": gpu.pack_nvfp4, "nf4": gpu.pack_nf4}
GROUP = {"mxfp4": 32, "nvfp4": 16, "nf4": 64}
SCALES = {"mxfp4": ml_dtypes.float8_e8m0fnu, "nvfp4": ml_dtypes.float8_e4m3fn}
DTYPES = [torch.float16, torch.bfloat16]
WAYS = {
    "row": configs.Config("row", block_n=256, tiles=2),
    "tile": configs.Config("tile", 16, 256, tiles=2),
    "parts": configs.Config("tile", 16, 256, tiles=1, parts=2),
    "dequantize": configs.Config("dequantize", block_n=256, tiles=2),
}
# Infinite weights, times the zeros of rows that a tile has and x has not.
overflows = pytest.mark.filterwarnings(
    "ignore:overflow encountered:RuntimeWarning", "ignore:invalid value:RuntimeWarning"
)
E2M1 = np.arange(16, dtype=np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float32)


def draw(out, in_, seed=0):
    """Blocks of very different size, among them one of zeros and one that is all but zero"""
    rng = np.random.default_rng(seed)
    w = 0.02 * rng.normal(size=(out, in_)) * 10 ** rng.uniform(-2, 0, (out, 1))
    w[0, :64], w[-1, -64:] = 0, w[-1, -64:] * 1e-6
    return torch.from_numpy(w.astype(np.float32))


def quantized(name, w):
    """w -> codes, scale as stored, w_hat without the tensor's scale, and that: in ml_dtypes"""
    blocks = w.numpy().reshape(len(w), -1, GROUP[name])
    top = np.abs(blocks).max(axis=2, keepdims=True)
    if name == "nf4":
        theirs, state = bitsandbytes.quantize_4bit(w, blocksize=64, quant_type="nf4")
        pairs = theirs.numpy().reshape(len(w), -1)
        codes = np.stack([pairs >> 4, pairs & 15], axis=2).reshape(w.shape)
        w_hat = bitsandbytes.dequantize_4bit(theirs, state).numpy()
        return codes, state.absmax.numpy().reshape(len(w), -1), w_hat, 1
    if name == "mxfp4":
        factor = np.float32(1)
        exponent = np.frexp(top)[1] - 3
        scale = np.where(top == 0, 2.0**-127, 2.0**exponent).astype(ml_dtypes.float8_e8m0fnu)
    else:
        factor = top.max() / np.float32(6 * 448)
        scale = np.maximum(top / np.float32(6) / factor, np.float32(2.0**-9))
        scale = scale.astype(ml_dtypes.float8_e4m3fn)
    step = scale.astype(np.float32) * factor
    codes = np.clip(blocks / step, -6, 6).astype(ml_dtypes.float4_e2m1fn)
    w_hat = codes.astype(np.float32) * scale.astype(np.float32)
    stored = scale[..., 0].view(np.uint8)
    return codes.view(np.uint8).reshape(w.shape), stored, w_hat.reshape(w.shape), factor


def close(y, x, w_hat, factor=1.0, bias=0):
    """y against float64, w_hat rounded to y's type as promised

    Sums in float32, in any order, are off by 2^-24 of the magnitudes for each addition, the scale
    of the tensor and the bias; then y is rounded by eps / 2 of itself, or half the smallest step
    of float16.
    """
    w_hat = torch.as_tensor(w_hat).to(y.dtype).double()
    exact = factor * (x.double() @ w_hat.T) + bias
    magnitude = factor * (x.double().abs() @ w_hat.T.abs()) + abs(bias)
    tolerance = (x.shape[1] + 2) * 2.0**-24 * magnitude
    tolerance += torch.finfo(y.dtype).eps / 2 * (exact.abs() + tolerance) + 2.0**-25
    assert y.dtype == x.dtype
    assert y.shape == exact.shape
    assert bool(((y.double() - exact).abs() <= tolerance).all())


def every_code_and_scale(name):
    """-> ``PackedWeight`` and what each row holds beside zeros: one code, one scale, in turn

    Every scale but NaN stands in one of the four groups whose scales share a word; the three others
    differ.  The code stands at a place of its own in its group.
    """
    size = GROUP[name]
    every = np.arange(256, dtype=np.uint8)
    every = every[~np.isnan(every.view(SCALES[name]).astype(np.float32))]
    code, which = (part.reshape(-1) for part in np.meshgrid(np.arange(16), np.arange(len(every))))
    n = np.arange(len(code))
    group = which % 4
    codes = np.zeros((len(n), 4 * size), np.uint8)
    codes[n, group * size + (which + 5 * code) % size] = code
    scale = every[(which[:, None] + 7 * (np.arange(4) - group[:, None])) % len(every)]
    value = E2M1[code] * every[which].view(SCALES[name]).astype(np.float32)
    w = packed.pack(name, torch.from_numpy(codes), torch.from_numpy(scale))
    return w, torch.from_numpy(value)


def decode_every(name, dtype, way):
    w, value = every_code_and_scale(name)
    x = torch.tensor([1.0, -1, 1]).to(dtype)[:, None].expand(3, w.shape[1]).contiguous()
    found = matmul.run(x, w, None, WAYS[way])
    # Beyond float16's 65504 and bfloat16's 3.4e38 a weight is infinite.
    assert_array_equal(found.float(), value.to(dtype).float() * x[:, :1].float())


@overflows
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SCALES)
def test_every_code_with_every_scale_is_worth_what_ml_dtypes_says(name, dtype, way):
    decode_every(name, dtype, way)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nvfp4_is_exact_in_sixteen_bits(dtype):
    _, value = every_code_and_scale("nvfp4")
    assert_array_equal(value.to(dtype).float(), value)


def same(found, name, w):
    codes, scale, w_hat, factor = quantized(name, w)
    assert_array_equal(packed.unpack(found), codes)
    parts = torch.from_numpy(codes), torch.from_numpy(scale)
    assert torch.equal(found.scale, packed.pack(name, *parts, group_size=GROUP[name]).scale)
    assert_array_equal(packed.dequantize(found), w_hat)
    assert (1 if found.tensor_scale is None else found.tensor_scale.item()) == factor


@pytest.mark.parametrize("name", PACK)
def test_codes_and_scales_are_those_of_other_libraries(name):
    for w in (draw(9, 192), draw(3, 64, seed=1).bfloat16().float()):
        same(PACK[name](w), name, w)


@pytest.mark.parametrize("name", SCALES)
def test_what_the_format_holds_is_packed_as_it_is(name):
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 16, (6, 3, GROUP[name])).astype(np.uint8)
    # The largest of each block is 6, and the largest of all with the largest scale.
    codes[..., 3] = 7
    middle = {"mxfp4": 127, "nvfp4": 56}[name]
    scale = rng.integers(middle - 40, middle + 40, (6, 3)).astype(np.uint8)
    scale[2, 1] = {"mxfp4": 180, "nvfp4": 0x7E}[name]
    factor = np.float32({"mxfp4": 1, "nvfp4": 2.0**-20}[name])
    w = E2M1[codes] * scale.view(SCALES[name]).astype(np.float32)[..., None] * factor
    found = PACK[name](torch.from_numpy(w.reshape(6, -1)))
    # The two zeros are one.
    assert_array_equal(E2M1[packed.unpack(found)], E2M1[codes].reshape(6, -1))
    expected = packed.pack(name, torch.from_numpy(codes.reshape(6, -1)), torch.from_numpy(scale))
    assert torch.equal(found.scale, expected.scale)
    assert found.tensor_scale is None or found.tensor_scale.item() == factor


@pytest.mark.parametrize("name", PACK)
@pytest.mark.parametrize("size", [0.0, 1e-44, 1e-39, 1e-30, 1e30])
def test_weights_of_any_size_keep_their_largest(name, size):
    w = torch.zeros(3, 128)
    w[0, 5], w[0, 70], w[2, 127] = size, -size, size
    found = PACK[name](w)
    factor = 1.0 if found.tensor_scale is None else found.tensor_scale.double()
    w_hat = packed.dequantize(found).double() * factor
    assert_array_equal(w_hat[w == 0], np.zeros(int((w == 0).sum())))
    # To half a step of E2M1 at its end, 1/6, with a scale off by 1/16; below the smallest scale
    # only zero is promised, and that nothing grows.
    error = (w_hat - w.double()).abs()
    assert bool((error <= (1 / 3 if size >= 1e-30 else 1) * w.abs()).all())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m", [1, 5, 17, 300])
@pytest.mark.parametrize("name", PACK)
def test_the_product_is_that_with_the_packed_weight(name, m, dtype, architecture):
    # A tile is not full, and of 300 rows with weights this small sums lie beyond float16.
    in_ = {"mxfp4": 224, "nvfp4": 176, "nf4": 192}[name]
    w = draw(13, in_)
    _, _, w_hat, factor = quantized(name, w)
    x = 10 * torch.randn(m, in_, generator=torch.Generator().manual_seed(4)).to(dtype)
    close(gpu.matmul(x, PACK[name](w)), x, w_hat, float(factor))
    bias = torch.linspace(-1, 1, 13).to(dtype)
    y = gpu.matmul(x, PACK[name](w), bias)
    close(y, x, w_hat, float(factor), bias.double())


def test_sums_beyond_float16_are_scaled_before_they_are_rounded(architecture):
    w = torch.full((3, 256), 6 * 2.0**-8)
    for m in (1, 20, 300):
        x = torch.full((m, 256), 8.0, dtype=torch.float16)
        # Each sum is 256 * 8 * 2688, far beyond 65504, before the scale of the tensor.
        assert_array_equal(gpu.matmul(x, gpu.pack_nvfp4(w)), np.full((m, 3), 48.0))


@pytest.mark.parametrize("group_size", [16, 48, 64, 192])
def test_nf4_blocks_may_have_other_sizes(group_size):
    w = draw(5, 192)
    found = gpu.pack_nf4(w, group_size)
    w_hat, blocks = (part.reshape(5, -1, group_size) for part in (packed.dequantize(found), w))
    magnitude, place = blocks.abs().max(dim=2, keepdim=True)
    # The largest is kept, and nothing is further off than half the widest gap, -1 to -0.696.
    assert_array_equal(w_hat.gather(2, place), blocks.gather(2, place))
    assert bool(((w_hat - blocks).abs() <= 0.153 * magnitude).all())
    x = torch.randn(3, 192, generator=torch.Generator().manual_seed(1)).half()
    close(gpu.matmul(x, found), x, packed.dequantize(found))


@pytest.mark.parametrize("name", PACK)
def test_it_compiles_without_a_gpu(name, on_the_cpu):
    w, x = PACK[name](draw(7, 64)), torch.randn(5, 64).half()
    compiled = torch.compile(lambda x: gpu.matmul(x, w), backend="aot_eager", fullgraph=True)
    factor = 1.0 if w.tensor_scale is None else w.tensor_scale.item()
    close(compiled(x), x, packed.dequantize(w), factor)


@pytest.mark.parametrize("name", PACK)
def test_a_parameter_of_any_float_type_is_packed_and_left_alone(name):
    w = draw(3, 64)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        parameter = torch.nn.Parameter(w.to(dtype))
        before = parameter.detach().clone()
        found, wanted = PACK[name](parameter), PACK[name](w.to(dtype).float())
        assert torch.equal(found.codes, wanted.codes)
        assert torch.equal(found.scale, wanted.scale)
        assert not found.codes.requires_grad
        assert torch.equal(parameter, before)
    assert PACK[name](torch.zeros(0, 64)).shape == (0, 64)


@pytest.mark.parametrize("name", PACK)
def test_what_cannot_be_packed_is_told(name):
    for w, told in [
        (torch.zeros(2, 72), f"in=72 .*the {GROUP[name]} neighbours.*zeros to in="),
        (torch.zeros(2, 64, dtype=torch.int8), r"w is torch.int8 \[2, 64\].*float64 \[out, in\]"),
        (torch.zeros(64), r"w is torch.float32 \[64\].*\[out, in\]"),
        (torch.full((2, 64), np.nan), "holds NaN or infinity"),
        (torch.full((2, 64), np.inf), "holds NaN or infinity"),
    ]:
        with pytest.raises(ValueError, match=told):
            PACK[name](w)
    with pytest.raises(ValueError, match=r"group_size=8 does not fit in=64.*multiple of 16"):
        gpu.pack_nf4(torch.zeros(2, 64), 8)
    with pytest.raises(ValueError, match=r"group_size=7 does not fit in=40.*multiple of 16"):
        gpu.pack_nf4(torch.zeros(4, 40), 7)


# Module, those that read it at their top, and what is changed in it.
FAULTS = {
    "swapped nibbles": (
        (triton_kernels,),
        "DECODE(packed, field, ",
        "DECODE(packed, 8 // BITS - 1 - field, ",
    ),
    "which scale of a word": (
        (triton_kernels,),
        "column // GROUP_SIZE % (WORD // GROUP_SIZE)",
        "(column // GROUP_SIZE + 1) % (WORD // GROUP_SIZE)",
    ),
    "word of other columns": ((triton_kernels,), "column // WORD * N + n", "n"),
    "missing scale of the tensor": (
        (triton_kernels,),
        "total *= tl.load(tensor_scale_ptr)",
        "total *= 1.0",
    ),
    "byte of E8M0": (
        (decode, triton_kernels),
        "casts.from_e8m0(((word >> (8 * index))",
        "casts.from_e8m0(((word >> (24 - 8 * index))",
    ),
    "byte of E4M3": (
        (decode, triton_kernels),
        "casts.from_e4m3(((word >> (8 * index))",
        "casts.from_e4m3(((word >> (24 - 8 * index))",
    ),
    "no scale": ((decode, triton_kernels), "w = value * scale", "w = value"),
    "no scale in float32": (
        (decode, triton_kernels),
        "value.to(tl.float32) * scale.to(tl.float32)",
        "value.to(tl.float32)",
    ),
    "truncated to bfloat16": (
        (decode, triton_kernels),
        "casts.to_bfloat16_bits(w) if BFLOAT else w",
        "w",
    ),
    "neighbour in the table": (
        (decode, triton_kernels),
        "table_ptr + fields.cut(packed, field, BITS)",
        "table_ptr + (fields.cut(packed, field, BITS) ^ 1)",
    ),
    "sign of E2M1": ((casts, fields, decode, triton_kernels), "& 8) << 12", "& 8) << 11"),
    "bias of E2M1": ((casts, fields, decode, triton_kernels), "* 16384.0", "* 8192.0"),
    "bias of E4M3": ((casts, decode, triton_kernels), "* 256.0", "* 128.0"),
    "sign of E4M3": ((casts, decode, triton_kernels), "((code & 0x80) << 8)", "0"),
    "the smallest of E8M0": ((casts, decode, triton_kernels), "0x400000, byte", "0, byte"),
}


@overflows
@pytest.mark.parametrize("fault", FAULTS)
def test_a_seeded_fault_is_found(fault, monkeypatch, tmp_path):
    def check():
        for name in PACK:
            w = draw(13, 384)
            _, _, w_hat, factor = quantized(name, w)
            x = torch.randn(3, 384, generator=torch.Generator().manual_seed(4)).bfloat16()
            close(gpu.matmul(x, PACK[name](w)), x, w_hat, float(factor))
        for name in SCALES:
            for dtype in DTYPES:
                decode_every(name, dtype, "tile")

    (module, *users), old, new = FAULTS[fault]
    must_fail(monkeypatch, tmp_path, module, old, new, check, users)


PACKING_FAULTS = {
    "the scale of E2M1": (microscaling, "blocks / power)", "blocks / (2 * power))"),
    "no scale of the tensor": (
        microscaling,
        "largest / E2M1.max / tensor_scale",
        "largest / E2M1.max",
    ),
    "not divided by the tensor's": (
        microscaling,
        "(1.0 / tensor_scale) / E4M3.decode(scale)",
        "1.0 / E4M3.decode(scale)",
    ),
    "the largest scale": (microscaling, "top / (E2M1.max * E4M3.max)", "top / (E2M1.max * 256)"),
    "a scale of zero": (microscaling, "E4M3.smallest_subnormal)", "2.0**-8)"),
    "blocks in another order": (gpu, "blocks.flatten(1)", "blocks.flip(0).flatten(1)"),
    "largest, not largest magnitude": (gpu, "blocks.abs().amax", "blocks.amax"),
    "divided by another": (gpu, "blocks * (1 / absmax", "blocks * (0.9 / absmax"),
}


@pytest.mark.parametrize("fault", PACKING_FAULTS)
def test_a_seeded_fault_of_packing_is_found(fault, monkeypatch, tmp_path):
    def check():
        from qbook.kernels.fp4_matmul import gpu as packing

        for name in PACK:
            w = draw(9, 192)
            same(getattr(packing, f"pack_{name}")(w), name, w)

    module, old, new = PACKING_FAULTS[fault]
    users = (gpu,) if module is microscaling else ()
    must_fail(monkeypatch, tmp_path, module, old, new, check, users)
