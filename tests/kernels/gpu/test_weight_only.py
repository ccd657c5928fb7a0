"""Products with packed weights: packing, the three ways, their agreement and their errors."""

import pytest
import torch
from faults import must_fail

from qbook.kernels.gpu import device
from qbook.kernels.weight_only import configs, matmul, packed, triton_kernels
from qbook.kernels.weight_only.formats import FORMATS

# Format and group size: shared words, several words a tile, a word for several tiles, one group.
KINDS = [
    ("int4", 128),
    ("int4", 32),
    ("int4", 48),
    ("int4", None),
    ("ternary", None),
    ("ternary", 64),
    ("mxfp4", 32),
    ("nvfp4", 16),
    ("nf4", 64),
]
WAYS = {
    "row": configs.Config("row", block_n=4, tiles=2),
    "tile": configs.Config("tile", 16, 32, tiles=1),
    "steps of several tiles": configs.Config("tile", 16, 32, tiles=4),
    "parts": configs.Config("tile", 16, 32, tiles=2, parts=3),
    "dequantize": configs.Config("dequantize", block_n=4, tiles=2),
}


def draw(name, out, in_, group_size, seed=0, **options):
    """A random weight -> ``PackedWeight``, w_hat in float64"""
    generator = torch.Generator().manual_seed(seed)
    fmt = FORMATS[name]
    codes = torch.randint(0, fmt.top + 1, (out, in_), generator=generator).to(torch.uint8)
    groups = 1 if group_size is None else in_ // group_size
    scale = 0.1 + torch.rand(out, groups, generator=generator)
    zero_point = torch.full((out, groups), fmt.zero_point)
    values = codes.double()
    if name == "int4":
        zero_point = torch.randint(0, 16, (out, groups), generator=generator)
    if fmt.codes is None:
        numbers = scale.half().double()
    elif fmt.scales is None:
        numbers = scale.double()
    else:
        middle = {"mxfp4": 127, "nvfp4": 56}[name]
        scale = torch.randint(middle - 5, middle + 5, (out, groups), generator=generator)
        scale = scale.to(torch.uint8)
        numbers = torch.from_numpy(fmt.scales.values.copy()).double()[scale.long()]
    if fmt.codes is not None:
        values = torch.from_numpy(fmt.codes.values.copy()).double()[codes.long()]
    size = group_size or in_
    spread = [part.repeat_interleave(size, dim=1) for part in (zero_point, numbers)]
    w_hat = (values - spread[0]) * spread[1]
    given = zero_point if name == "int4" else None
    return packed.pack(name, codes, scale, given, group_size=group_size, **options), w_hat


def close(y, x, w_hat, dtype, bias=0, factor=1.0):
    """y against float64 with w_hat rounded as promised

    A sum of n products in float32, in any order, is off by less than n 2^-24 of the sum of their
    magnitudes, and the result is rounded to dtype: by eps / 2 of itself, after another product.
    """
    w_hat = w_hat.to(dtype).double()
    expected = factor * (x.double() @ w_hat.T) + bias
    magnitudes = factor * (x.double().abs() @ w_hat.T.abs())
    eps = torch.finfo(dtype).eps
    tolerance = x.shape[1] * 2**-24 * magnitudes + eps * (expected.abs() + 2**-14) + 1e-30
    assert y.dtype == dtype
    assert y.shape == expected.shape
    assert bool(((y.double() - expected).abs() <= tolerance).all())


@pytest.mark.parametrize(("name", "group_size"), KINDS)
@pytest.mark.parametrize("in_", [16, 336, 1000])
def test_packing_loses_nothing(name, group_size, in_):
    in_ = in_ if group_size is None else -(-in_ // group_size) * group_size
    w, w_hat = draw(name, 5, in_, group_size)
    assert torch.equal(packed.dequantize(w).double(), w_hat.float().double())
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, FORMATS[name].top + 1, (5, in_), generator=generator)
    assert torch.equal(packed.unpack(w).long(), codes)
    assert w.to("cpu").nbytes == w.nbytes > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("name", "group_size"), KINDS)
def test_every_way_is_the_product_with_the_rounded_weight(name, group_size, way, dtype):
    in_ = 1000 if group_size is None else 8 * group_size
    w, w_hat = draw(name, 37, in_, group_size)
    x = torch.randn(3, in_, generator=torch.Generator().manual_seed(1)).to(dtype)
    close(matmul.run(x, w, None, WAYS[way]), x, w_hat, dtype)


@pytest.mark.parametrize("way", WAYS)
def test_bias_and_the_scale_of_the_tensor_are_in(way):
    w, w_hat = draw("nvfp4", 37, 320, 16, tensor_scale=0.25)
    x, bias = torch.randn(3, 320).half(), torch.randn(37).half()
    close(matmul.run(x, w, bias, WAYS[way]), x, w_hat, torch.float16, bias.double(), 0.25)


@pytest.mark.parametrize("m", [1, 3, 9, 40, 300])
@pytest.mark.parametrize("out", [1, 70])
def test_each_architecture_takes_its_way(out, m, architecture):
    w, w_hat = draw("int4", out, 256, 64)
    # Every other row, so that rows are apart.
    x = torch.randn(2 * m, 256, generator=torch.Generator().manual_seed(2)).half()[::2]
    assert matmul.choose(x, w).way == (
        "row"
        if m == 1 or (architecture == 75 and m <= 8)
        else "dequantize"
        if architecture == 75 or m >= 256
        else "tile"
    )
    close(matmul.matmul(x, w), x, w_hat, torch.float16)


def test_the_weight_itself_is_rounded_once():
    w, w_hat = draw("int4", 64, 256, 64)
    found = torch.empty(64, 256, dtype=torch.float16)
    matmul.dequantize_launch(w, found, WAYS["dequantize"]).run()
    assert torch.equal(found, w_hat.half())


@pytest.mark.parametrize("interpreted", [True, False])
@pytest.mark.parametrize(("m", "out"), [(0, 5), (3, 0)])
def test_nothing_to_multiply_gives_nothing(m, out, interpreted, monkeypatch):
    monkeypatch.setattr(device, "interpreted", lambda: interpreted)
    w, _ = draw("int4", out, 64, 32)
    assert matmul.matmul(torch.zeros(m, 64, dtype=torch.float16), w).shape == (m, out)


@pytest.mark.parametrize(("name", "group_size"), KINDS)
def test_the_operator_is_sound_and_compiles_without_a_gpu(name, group_size, on_the_cpu):
    in_ = 96 if group_size is None else 2 * group_size
    w, w_hat = draw(name, 7, in_, group_size, tensor_scale=2.0)
    x, bias = torch.randn(5, in_).half(), torch.randn(7).half()
    parts = x, w.codes, w.scale, w.tensor_scale, bias, w.format, w.group_size
    torch.library.opcheck(matmul.weight_only_matmul, parts)
    compiled = torch.compile(lambda x: matmul.matmul(x, w, bias), backend="aot_eager")
    close(compiled(x), x, w_hat, torch.float16, bias.double(), 2.0)


def test_what_does_not_fit_is_told():
    w, _ = draw("int4", 7, 64, 32)
    half = torch.zeros(3, 64, dtype=torch.float16)
    for x, bias, told in [
        (half.float(), None, r"float32 \[3, 64\].*float16"),
        (half[0], None, r"\[64\].*\[samples, in\]"),
        (half[:, :32].contiguous(), None, "columns of x 32 and columns of w 64"),
        (half.to("meta"), None, "x on meta, w on cpu"),
        (half, torch.zeros(6, dtype=torch.float16), r"\[6\].*float16 \[7\]"),
        (half, torch.zeros(7), r"float32 \[7\].*float16"),
    ]:
        with pytest.raises(ValueError, match=told):
            matmul.matmul(x, w, bias)


def test_what_cannot_be_packed_is_told():
    codes, scale = torch.zeros(2, 64, dtype=torch.uint8), torch.ones(2, 2)
    bytes_ = torch.full((2, 2), 127, dtype=torch.uint8)
    for arguments, options, told in [
        (("int5", codes, scale), {}, "'int5'.*int4, ternary"),
        (("int4", codes.float(), scale), {}, r"float32 \[2, 64\].*uint8"),
        (("int4", codes + 16, scale), {"group_size": 32}, "reach 16.*0 to 15"),
        (("ternary", codes + 3, scale), {"group_size": 32}, "reach 3.*0 to 2"),
        (("int4", codes, scale), {"group_size": 24}, "group_size=24.*in=64.*multiple of 16"),
        (("int4", codes, scale), {"group_size": 48}, "group_size=48.*in=64"),
        (("mxfp4", codes, bytes_), {"group_size": 16}, "group_size=16.*mxfp4.*32"),
        (("int4", codes, scale), {"group_size": 16}, r"\[2, 2\].*\[2, 4\]"),
        (("mxfp4", codes, scale), {}, "float32.*mxfp4 takes torch.uint8"),
        (("mxfp4", codes, bytes_ * 0 + 255), {}, "255, a NaN of E8M0"),
        (("nvfp4", codes[:, :32], bytes_ * 0 + 255), {}, "255, a NaN of E4M3"),
        (("int4", codes, scale * 1e9), {"group_size": 32}, "1e.09 is not finite in float16"),
        (("nf4", codes, scale, scale), {"group_size": 32}, "nf4 has no zero_point"),
        (("int4", codes, scale, scale * 16), {"group_size": 32}, "from 16 to 16.*0 to 15"),
        (("int4", codes, scale, scale[:1]), {"group_size": 32}, r"\[1, 2\].*\[2, 2\]"),
    ]:
        with pytest.raises(ValueError, match=told):
            packed.pack(*arguments, **options)


FAULTS = {
    "mask of the last columns": (
        "(column + byte < K)[:, None]",
        "(column + byte < K + 1)[:, None]",
    ),
    "swapped nibbles": ("DECODE(packed, field, ", "DECODE(packed, 8 // BITS - 1 - field, "),
    "the scale of another group": ("column // WORD * N + n", "column // WORD * N + n * 0"),
    "which scale of a word": (
        "column // GROUP_SIZE % (WORD // GROUP_SIZE)",
        "column // GROUP_SIZE % (WORD // GROUP_SIZE) * 0",
    ),
    "missing scale of the tensor": ("total *= tl.load(tensor_scale_ptr)", "total *= 1.0"),
    "missing bias": ("total += tl.load(bias_ptr + n, mask=n < N, other=0.0)", "total += (n * 0)"),
    "a part left out": (
        "for part in tl.static_range(PARTS)",
        "for part in tl.static_range(PARTS - 1)",
    ),
    "a part read twice": (
        "tile = (part * STEPS + step) * TILES_A_STEP + inner",
        "tile = step * TILES_A_STEP + inner",
    ),
    "rows of x": (
        "(n < N)[:, None] & (m < M)[None, :])",
        "(n < N)[:, None] & (m < M - 1)[None, :])",
    ),
    "one row for all": ("x_place = x_ptr + m * x_stride + column", "x_place = x_ptr + column"),
    "columns of the row": ("mask=column < K, other=0.0)", "mask=column < K - 1, other=0.0)"),
    "the reconstructed weight": (
        "tl.store(w_ptr + rows * K + column",
        "tl.store(w_ptr + rows * 0 + column",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_seeded_fault_is_found(fault, monkeypatch, tmp_path):
    def check():
        x, bias = torch.linspace(-1, 2, 3 * 320).reshape(3, 320).half(), torch.randn(37).half()
        w, w_hat = draw("nvfp4", 37, 320, 16, tensor_scale=0.25)
        for config in WAYS.values():
            # NaN that is never written over must not look like a result.
            y = matmul.run(x, w, bias, config)
            close(y, x, w_hat, torch.float16, bias.double(), 0.25)
        w, w_hat = draw("int4", 37, 300, None)
        wide = torch.cat([x[:, :300], torch.full((3, 20), 99.0).half()], dim=1)
        for config in WAYS.values():
            close(matmul.run(wide[:, :300], w, None, config), x[:, :300], w_hat, torch.float16)

    must_fail(monkeypatch, tmp_path, triton_kernels, *FAULTS[fault], check)
