"""The convolution without its patches: an image at a time is padded and laid out in the cache, and
the tile reads each patch where it lies.

An image costs one copy; as rows of patches (``loops.im2col``) it would cost one for each place of
the kernel.  Sums of BLOCK pixels go to a scratch in the first-level cache, where blocks of 16 x 16
are turned, so that the result is written channel by channel, each number once.  Book: 6.2
"""

import numpy as np
from numba import prange, types
from numba.extending import overload

from qbook.kernels.compiled import kernel
from qbook.kernels.simd.arithmetic import add, mul, splat_f32, splat_i32, sub, to_f32, xor
from qbook.kernels.simd.memory import load_i32, store_first
from qbook.kernels.simd.offset_tile import offset_tile, rows_of
from qbook.kernels.simd.requantize import requantize
from qbook.kernels.simd.transpose import columns_of_four, transpose

# Pixels that a scratch holds: a multiple of every tile's rows and of the 16 of a block.
BLOCK = 48
WIDEST = 4
# Where a row of the scratch holds the sums of x, for filters with zero-points.
X_SUMS = 64 * WIDEST
tile_of_4, tile_of_2, tile_of_1 = offset_tile(4), offset_tile(2), offset_tile(1)


@kernel(parallel=True)
def convolve(isa, x, layout, offsets, w, terms, extras, out, threads):
    """x uint8 [n, c, h, w], contiguous -> fills out [n, filters, pixels]

    layout:   (flip, which each code is xored with to make it unsigned; the border's code, unsigned;
              padding down, across; padded rows, columns)
    offsets:  of ``geometry.offsets``, for blocks of BLOCK
    w:        ``panels.Panels.data``
    terms:    (what a sum lacks for the zero-point of x, zero-points of w), int32 [filters]
    extras:   see ``finish``
    """
    if threads == 1:
        _images(isa, x, layout, offsets, w, terms, extras, out, (0, x.shape[0], 0, out.shape[2]))
    else:
        for t in prange(threads):
            part = _part(t, threads, x.shape[0], out.shape[2])
            _images(isa, x, layout, offsets, w, terms, extras, out, part)


@kernel
def _part(t, threads, n, pixels):
    """-> first and last image, first and last pixel of a thread: images where there are enough"""
    if n >= threads:
        return n * t // threads, n * (t + 1) // threads, 0, pixels
    blocks = (pixels + BLOCK - 1) // BLOCK
    first, last = BLOCK * (blocks * t // threads), BLOCK * (blocks * (t + 1) // threads)
    return 0, n, first, min(last, pixels)


@kernel
def _images(isa, x, layout, offsets, w, terms, extras, out, part):
    groups = w.shape[0]
    channels = x.shape[1] // groups
    size = (channels + 3) // 4 * 4 * layout[4] * layout[5]
    # The border is written here, once; every image overwrites the rest.
    image = np.full(groups * size, layout[1], np.uint8)
    sums = np.empty((BLOCK, 16 * (WIDEST + 1)), np.int32)
    for n in range(part[0], part[1]):
        for group in range(groups):
            lay_out(x, n, group * channels, channels, layout, image, group * size)
            _group(isa, image, group * size, offsets, w, group, n, sums, terms, extras, out, part)


@kernel
def lay_out(x, n, channel, channels, layout, image, start):
    """Image n's channels from ``channel`` on -> the inner part of image [fours, rows, columns, 4]

    Behind the last channel that one is repeated: the filters hold 0 there.
    """
    flip, _, down, across, rows, columns = layout
    height, width = x.shape[2], x.shape[3]
    plane = height * width
    flips = splat_i32(np.int32(flip * 0x01010101))
    for four in range(0, channels, 4):
        last = channels - four - 1
        a = (n * x.shape[1] + channel + four) * plane
        b, c, d = a + min(1, last) * plane, a + min(2, last) * plane, a + min(3, last) * plane
        to = start + 4 * ((four // 4 * rows + down) * columns + across)
        for row in range(height):
            for k in range(0, width, 16):
                i, at = row * width + k, to + 4 * (row * columns + k)
                if d + i + 16 <= x.size:
                    # What is read behind the end of the row is not written.
                    words = xor(columns_of_four(x, a + i, b + i, c + i, d + i), flips)
                    store_first(image, at, words, width - k)
                else:
                    _lay_out_end(x, (a + i, b + i, c + i, d + i), flip, image, at, width - k)


@kernel
def _lay_out_end(x, starts, flip, image, at, count):
    """The same for count < 16 pixels byte by byte, where 16 bytes would end behind the array"""
    flat = x.reshape(-1)
    for k in range(count):
        for channel in range(4):
            image[at + 4 * k + channel] = flat[starts[channel] + k] ^ flip


@kernel
def _group(isa, image, start, offsets, w, group, n, sums, terms, extras, out, part):
    """All filters of a group over the part's pixels of a laid out image"""
    filters = out.shape[1] // w.shape[0]
    panels = (filters + 15) // 16
    stride = 64 * w.shape[2]
    first_panel = group * w.shape[1] * stride
    asymmetric = w.shape[1] > panels
    panel = 0
    while panel < panels:
        width = _width(isa, panels - panel)
        channels = group * filters + 16 * panel, min(16 * width, filters - 16 * panel)
        for pixel in range(part[2], part[3], BLOCK):
            count = min(BLOCK, part[3] - pixel)
            at = first_panel + panel * stride
            _sums(isa, width, image, start, offsets, pixel, count, w, at, sums, 0)
            if asymmetric:
                at = first_panel + panels * stride
                _sums(isa, 1, image, start, offsets, pixel, count, w, at, sums, X_SUMS)
            _write(sums, asymmetric, n, channels, pixel, count, terms, extras, out)
        panel += width


@kernel
def _width(isa, left):
    """Panels of the widest tile that there is for as many as are left"""
    if left >= 4 and rows_of(isa, 4) > 0:
        return 4
    return 2 if left >= 2 and rows_of(isa, 2) > 0 else 1


@kernel
def _sums(isa, width, image, start, offsets, pixel, count, w, at, sums, column):
    """Fills ``count`` rows of sums, from byte ``column`` on; rows behind may be written too"""
    row_at, step_at = offsets
    steps, c_stride = w.shape[2], 4 * sums.shape[1]
    for i in range(0, count, rows_of(isa, width)):
        row, c = pixel + i, i * c_stride + column
        if width == 4:
            tile_of_4(isa, image, start, row_at, row, step_at, steps, w, at, sums, c, c_stride)
        elif width == 2:
            tile_of_2(isa, image, start, row_at, row, step_at, steps, w, at, sums, c, c_stride)
        else:
            tile_of_1(isa, image, start, row_at, row, step_at, steps, w, at, sums, c, c_stride)


@kernel
def _write(sums, asymmetric, n, channels, pixel, count, terms, extras, out):
    """sums [count pixels, filters] -> out [n, filters, pixel: pixel + count], corrected"""
    stride = 4 * sums.shape[1]
    lacking, zero_point = terms
    first_channel, filters = channels
    for i in range(0, count, 16):
        block = i * stride
        if asymmetric:
            transpose(sums, block + X_SUMS, stride)
        for first in range(0, filters, 16):
            transpose(sums, block + 4 * first, stride)
            for j in range(min(16, filters - first)):
                channel = first_channel + first + j
                total = load_i32(sums, block + j * stride + 4 * first)
                total = add(total, splat_i32(lacking[channel]))
                if asymmetric:
                    x_sums = load_i32(sums, block + X_SUMS)
                    total = sub(total, mul(x_sums, splat_i32(zero_point[channel])))
                place = (n * out.shape[1] + channel) * out.shape[2] + pixel + i
                finish(total, channel, extras, out, out.itemsize * place, count - i)


def finish(total, channel, extras, out, at, count):
    """total i32x16: sums of 16 pixels -> out at a byte, the first ``count``, by the type of out

    int32:    as they are.  extras: ()
    float32:  total * scale + bias.  extras: (scale, bias [filters])
    uint8:    the bits of requantized codes, signed or not.  extras: (m0, shift, bias [filters],
              limits: zero_point, qmin, qmax), int32
    """


@overload(finish)
def _finish(total, channel, extras, out, at, count):
    if out.dtype == types.int32:

        def integers(total, channel, extras, out, at, count):
            store_first(out, at, total, count)

        return integers
    if out.dtype == types.float32:

        def floats(total, channel, extras, out, at, count):
            scale, bias = extras
            result = add(mul(to_f32(total), splat_f32(scale[channel])), splat_f32(bias[channel]))
            store_first(out, at, result, count)

        return floats
    if out.dtype == types.uint8:

        def codes(total, channel, extras, out, at, count):
            m0, shift, bias, limits = extras
            total = add(total, splat_i32(bias[channel]))
            m0, shift = splat_i32(m0[channel]), splat_i32(shift[channel])
            result = requantize(total, m0, shift, limits[0], limits[1], limits[2])
            store_first(out, at, result, count)

        return codes
