import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from torch.nn import functional as F

from qbook import affine, data, integer_product, requantize
from qbook.kernels import isa
from qbook.kernels.int8_conv2d import conv2d, geometry, loops, panels, reference
from qbook.models import resnet20

SETS = isa.available()
WEIGHTS = "resnet20-12fca82f.th"
needs_weights = pytest.mark.skipif(not data.available(WEIGHTS), reason=data.how_to_get(WEIGHTS))

# n, channels, rows, columns, filters, kernel, groups, and where: every tile, ends of rows and
# panels, channels that fill no word, a kernel larger than the image, strides that skip the edge.
CASES = [
    (1, 1, 1, 1, 1, (1, 1), 1, {}),
    (2, 3, 8, 8, 16, (3, 3), 1, dict(padding=1)),
    (1, 17, 9, 7, 33, (3, 3), 1, dict(stride=2, padding=1)),
    (3, 8, 12, 13, 70, (1, 1), 1, dict(stride=(1, 3))),
    (2, 10, 11, 20, 14, (5, 3), 2, dict(stride=(2, 1), padding=(2, 0), dilation=(1, 2))),
    (1, 6, 17, 5, 12, (3, 3), 6, dict(padding=1)),
    (2, 5, 33, 40, 128, (2, 4), 1, dict(stride=3, padding=2)),
    (1, 4, 2, 3, 5, (4, 5), 1, dict(padding=(1, 2))),
]


def draw(rng, dtype, shape):
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, shape, dtype, endpoint=True)


def sums_of_torch(x, w, x_zero, w_zero, groups, where):
    """The oracle: real numbers, exact because every sum stays far below 2^53."""
    x = torch.from_numpy(x.astype(np.float64) - x_zero)
    w = torch.from_numpy(w.astype(np.float64) - np.reshape(w_zero, (-1, 1, 1, 1)))
    return F.conv2d(x, w, groups=groups, **where).numpy()


@pytest.mark.parametrize("use", SETS)
@pytest.mark.parametrize("x_type", [np.int8, np.uint8])
@pytest.mark.parametrize(("n", "c", "h", "w", "filters", "kernel", "groups", "where"), CASES)
def test_sums_are_those_of_torch(n, c, h, w, filters, kernel, groups, where, x_type, use):
    rng = np.random.default_rng(0)
    x = draw(rng, x_type, (n, c, h, w))
    w = draw(rng, np.int8, (filters, c // groups, *kernel))
    some = draw(rng, np.int8, filters)
    info = np.iinfo(x_type)
    for x_zero, w_zero in ((info.min, 0), (info.max, some), (17, -128)):
        expected = sums_of_torch(x, w, x_zero, w_zero, groups, where)
        packed = panels.pack(w, w_zero, groups)
        # Both are kept: memory that is handed out again would hold the right sums already.
        both = [
            conv2d.conv2d(x, packed, x_zero, **where, use=use, num_threads=threads)
            for threads in (1, 2)
        ]
        for sums in both:
            assert sums.dtype == np.int32
            assert_array_equal(sums, expected)


@pytest.mark.parametrize("use", SETS)
@pytest.mark.parametrize("zero_point", [-128, 5, 127])
def test_an_image_of_real_zeros_gives_zeros_up_to_its_border(zero_point, use):
    x = np.full((1, 5, 6, 6), zero_point, np.int8)
    w = panels.pack(np.full((9, 5, 3, 3), 127, np.int8))
    assert not conv2d.conv2d(x, w, zero_point, padding=2, use=use).any()


@pytest.mark.parametrize("use", SETS)
def test_a_kernel_of_one_pixel_is_the_integer_product_of_chapter_2(use):
    rng = np.random.default_rng(0)
    x, w = draw(rng, np.int8, (40, 23)), draw(rng, np.int8, (19, 23))
    w_zero = draw(rng, np.int8, 19)
    expected = integer_product.accumulate(x, w, 7, w_zero[:, None].astype(np.int32))
    packed = panels.pack(w[:, :, None, None], w_zero)
    image = x.T.reshape(1, 23, 8, 5)
    sums = conv2d.conv2d(image, packed, 7, use=use)
    assert_array_equal(sums.reshape(19, 40).T, expected)


@pytest.mark.parametrize("use", SETS)
@pytest.mark.parametrize("codes", [(-128, -128), (-128, 127), (127, -128), (127, 127)])
def test_the_longest_sum_of_extreme_codes_does_not_overflow(codes, use):
    channels = (2**31 - 1) // 128**2
    x = np.full((1, channels, 1, 1), codes[0], np.int8)
    w = np.full((1, channels, 1, 1), codes[1], np.int8)
    sums = conv2d.conv2d(x, panels.pack(w), use=use)
    assert_array_equal(sums, np.full((1, 1, 1, 1), channels * codes[0] * codes[1]))


def test_a_sum_that_might_not_fit_is_refused():
    channels = (2**31 - 1) // 128**2 + 1
    x, w = np.zeros((1, channels, 1, 1), np.int8), np.zeros((1, channels, 1, 1), np.int8)
    with pytest.raises(ValueError, match=f"pieces of at most {channels - 1}"):
        conv2d.conv2d(x, panels.pack(w))
    with pytest.raises(ValueError, match=f"pieces of at most {(2**31 - 1) // 255**2}"):
        conv2d.conv2d(x[:, :40000], panels.pack(w[:, :40000], -128), 127)


@pytest.mark.parametrize("use", SETS)
@pytest.mark.parametrize(("n", "filters"), [(0, 5), (2, 0)])
def test_no_images_and_no_filters_give_empty_results(n, filters, use):
    x, w = np.zeros((n, 3, 4, 4), np.int8), np.zeros((filters, 3, 3, 3), np.int8)
    assert conv2d.conv2d(x, panels.pack(w), use=use).shape == (n, filters, 2, 2)


@pytest.mark.parametrize("use", SETS)
def test_strides_of_memory_do_not_matter(use):
    rng = np.random.default_rng(0)
    x, w = draw(rng, np.int8, (4, 12, 14, 10)), draw(rng, np.int8, (10, 6, 3, 6))
    views = [x[::2, ::2], x.transpose(1, 0, 2, 3)[:4, :].repeat(2, 1)[:, :6], x[:, 11:5:-1]]
    for view in views:
        packed = panels.pack(w[::-1, :, :, ::2])
        expected = sums_of_torch(view, w[::-1, :, :, ::2], 3, 0, 1, {})
        assert_array_equal(conv2d.conv2d(view, packed, 3, use=use), expected)


@pytest.mark.parametrize(("filters", "channels", "groups"), [(1, 1, 1), (34, 5, 2), (6, 9, 3)])
@pytest.mark.parametrize("zero_point", [0, 3])
def test_unpack_undoes_pack(filters, channels, groups, zero_point):
    w = draw(np.random.default_rng(0), np.int8, (filters, channels, 3, 2))
    packed = panels.pack(w, zero_point, groups)
    assert_array_equal(panels.unpack(packed), w)
    assert packed.data.ctypes.data % 64 == 0


@pytest.mark.parametrize("use", SETS)
def test_linear_scales_the_sums_bit_for_bit(use):
    rng = np.random.default_rng(0)
    x, w = draw(rng, np.int8, (2, 5, 9, 9)), draw(rng, np.int8, (21, 5, 3, 3))
    x_scale, w_scale = np.float32(0.013), rng.uniform(0.001, 0.1, 21).astype(np.float32)
    bias = rng.normal(size=21).astype(np.float32)
    sums = reference.accumulate(x, w, 4, padding=1).astype(np.float32)
    expected = sums * (x_scale * w_scale)[:, None, None] + bias[:, None, None]
    packed = panels.pack(w)
    options = dict(padding=1, use=use)
    both = [
        conv2d.conv2d_linear(x, x_scale, packed, w_scale, bias, 4, **options, num_threads=threads)
        for threads in (1, 2)
    ]
    for result in both:
        assert result.dtype == np.float32
        assert_array_equal(result, expected)
    half = conv2d.conv2d_linear(x, 0.5, packed, 1, x_zero_point=4, padding=1, use=use)
    assert_array_equal(half, sums * np.float32(0.5))


@pytest.mark.parametrize("use", SETS)
@pytest.mark.parametrize(("qmin", "qmax", "zero_point"), [(-128, 127, -5), (0, 255, 3), (-7, 7, 0)])
def test_requantized_codes_are_those_of_gemmlowp_bit_for_bit(qmin, qmax, zero_point, use):
    rng = np.random.default_rng(0)
    x, w = draw(rng, np.int8, (2, 5, 9, 9)), draw(rng, np.int8, (21, 5, 3, 3))
    bias = rng.integers(-(2**20), 2**20, 21, np.int32)
    y_qparams = affine.QParams(np.float32(1), np.int32(zero_point), qmin, qmax)
    packed, sums = panels.pack(w), reference.accumulate(x, w, 4, padding=1)
    last = (sums.transpose(0, 2, 3, 1) + bias).astype(np.int32)
    # From multipliers that make every code the zero-point to those that saturate, above 1 too.
    for size in (1e-11, 1e-4, 3e-3, 5.0):
        multiplier = requantize.quantize_multiplier(size * rng.uniform(0.5, 2, 21))
        expected = requantize.requantize(last, *multiplier, y_qparams).transpose(0, 3, 1, 2)
        codes = conv2d.conv2d_requantized(
            x, packed, *multiplier, y_qparams, bias, 4, padding=1, use=use
        )
        assert codes.dtype == expected.dtype
        assert_array_equal(codes, expected)


def test_patches_are_those_of_torch():
    x = np.random.default_rng(0).normal(size=(2, 3, 9, 11))
    where = dict(stride=(2, 1), padding=(1, 3), dilation=(2, 3))
    theirs = F.unfold(torch.from_numpy(x), (3, 2), **where).transpose(1, 2)
    assert_array_equal(reference.patches(x, (3, 2), **where), theirs)


@pytest.mark.parametrize(("n", "channels", "filters"), [(1, 1, 1), (9, 6, 20)])
def test_the_product_of_explicit_patches_is_the_same(n, channels, filters, monkeypatch):
    # Three images at a time, so that the last piece is a shorter one.
    monkeypatch.setattr(loops, "CACHE", 3 * 35 * 4 * 12)
    rng = np.random.default_rng(0)
    x, w = draw(rng, np.int8, (n, channels, 7, 5)), draw(rng, np.int8, (filters, channels, 3, 2))
    where = dict(stride=(1, 2), padding=(1, 2), dilation=1)
    g = geometry.of((7, 5), (3, 2), **where)
    sums = loops.by_patches(x, loops.pack(w), -3, g)
    assert_array_equal(sums, sums_of_torch(x, w, -3, 0, 1, where))


def inputs_of_convolutions(model, x):
    """-> list of (convolution, its input float32) of a model's forward pass"""
    seen = []
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(
                lambda module, inputs, _: seen.append((module, inputs[0].numpy()))
            )
    with torch.no_grad():
        model(x)
    return seen


@needs_weights
def test_every_convolution_of_resnet20_has_the_integer_sums_of_the_reference():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    found = inputs_of_convolutions(resnet20.load(), resnet20.normalise(images))
    assert len(found) == 19
    for layer, x in found:
        x_qparams = affine.choose_qparams(x, 8, symmetric=False)
        w_qparams = affine.choose_qparams(layer.weight.detach().numpy(), 8, axis=(1, 2, 3))
        x_codes = affine.quantize(x, x_qparams)
        w_codes = affine.quantize(layer.weight.detach().numpy(), w_qparams)
        x_zero = int(x_qparams.zero_point.item())
        where = dict(stride=layer.stride, padding=layer.padding)
        sums = conv2d.conv2d(x_codes, panels.pack(w_codes), x_zero, **where)
        assert_array_equal(sums, reference.accumulate(x_codes, w_codes, x_zero, **where))
        # The product is exact; what the codes lose is at most half a step of each factor:
        # |x| s_w / 2 + |w| s_x / 2 + s_x s_w / 4 for each term, and float32's rounding of the rest.
        result = conv2d.conv2d_linear(
            x_codes,
            x_qparams.scale.item(),
            panels.pack(w_codes),
            w_qparams.scale.reshape(-1),
            x_zero_point=x_zero,
            **where,
        )
        s_x, s_w = x_qparams.scale.item(), torch.from_numpy(w_qparams.scale)
        x, w = torch.from_numpy(x), layer.weight.detach()
        bound = F.conv2d(x.abs() + s_x / 4, s_w.expand_as(w), **where) / 2
        bound += F.conv2d(torch.ones_like(x), w.abs(), **where) * s_x / 2
        error = (torch.from_numpy(result) - F.conv2d(x, w, **where)).abs()
        assert bool((error <= 1.001 * bound + 1e-5).all())


WRONG = {
    "x_codes is of type float32": lambda x, w: conv2d.conv2d(x.astype(np.float32), w),
    "x_codes is of type int8 and shape .2, 3, 6, 6.; pass .* 4, rows": lambda x, w: conv2d.conv2d(
        x[:, :3], w
    ),
    "x_zero_point=200 is no code of int8": lambda x, w: conv2d.conv2d(x, w, 200),
    "x_zero_point=0.5 is no code": lambda x, w: conv2d.conv2d(x, w, 0.5),
    "stride=0; pass an integer of at least 1": lambda x, w: conv2d.conv2d(x, w, stride=0),
    "padding=-1; pass": lambda x, w: conv2d.conv2d(x, w, padding=-1),
    "dilation=.1, 2, 3.; pass": lambda x, w: conv2d.conv2d(x, w, dilation=(1, 2, 3)),
    "reaches over .7, 7. pixels does not fit an image of .6, 6.": lambda x, w: conv2d.conv2d(
        x, w, dilation=3
    ),
    "x_scale is of type float64 and shape .2,.": lambda x, w: conv2d.conv2d_linear(
        x, np.ones(2), w, 1.0
    ),
    "w_scale is of type float64 and shape .3,.": lambda x, w: conv2d.conv2d_linear(
        x, 1.0, w, np.ones(3)
    ),
    "bias is of type float64 and shape .2,.": lambda x, w: conv2d.conv2d_linear(
        x, 1.0, w, 1.0, np.ones(2)
    ),
    "codes -300..300 need more than 8 bits": lambda x, w: conv2d.conv2d_requantized(
        x, w, 2**30, 3, affine.QParams(np.float32(1), np.int32(0), -300, 300)
    ),
    "bias is of type float64": lambda x, w: conv2d.conv2d_requantized(
        x, w, 2**30, 3, affine.QParams(np.float32(1), np.int32(0), -7, 7), np.ones(5)
    ),
    "'sse9' is no instruction set": lambda x, w: conv2d.conv2d(x, w, use="sse9"),
    "threads=1000 is not to be had": lambda x, w: conv2d.conv2d(x, w, num_threads=1000),
    "w_codes is of type uint8": lambda x, w: panels.pack(np.zeros((3, 4, 1, 1), np.uint8)),
    "w_codes is of type int8 and shape .3, 0, 1, 1.": lambda x, w: panels.pack(
        np.zeros((3, 0, 1, 1), np.int8)
    ),
    "groups=2 do not divide out=5": lambda x, w: panels.pack(np.zeros((5, 1, 1, 1), np.int8), 0, 2),
}


@pytest.mark.parametrize("message", WRONG)
def test_errors_name_the_value_and_what_would_work(message):
    x, w = np.zeros((2, 4, 6, 6), np.int8), panels.pack(np.zeros((5, 4, 3, 3), np.int8))
    with pytest.raises(ValueError, match=message):
        WRONG[message](x, w)
