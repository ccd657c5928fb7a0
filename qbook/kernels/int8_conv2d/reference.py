"""The convolution as a matrix product of patches, in 64-bit integers.  Book: 6.2"""

import numpy as np

from qbook.kernels.int8_conv2d import geometry
from qbook.kernels.int8_matmul import reference


def patches(x, kernel, stride=1, padding=0, dilation=1, fill=0):
    """x [n, c, h, w] -> every patch as a row, "im2col": [n, pixels, c * rows * columns]

    kernel: rows, columns;  fill: what the border holds.  Raises ValueError as ``geometry.of``.
    """
    g = geometry.of(x.shape[2:], kernel, stride, padding, dilation)
    border = [(0, 0), (0, 0), *((p, p) for p in g.padding)]
    padded = np.pad(x, border, constant_values=fill)
    reach = [d * (k - 1) + 1 for d, k in zip(g.dilation, kernel, strict=True)]
    # [n, c, places down, places across, reach down, reach across]: views, nothing is copied yet
    windows = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=(2, 3))
    windows = windows[:, :, :: g.stride[0], :: g.stride[1], :: g.dilation[0], :: g.dilation[1]]
    n, c = x.shape[:2]
    rows = windows.transpose(0, 2, 3, 1, 4, 5)
    return rows.reshape(n, g.pixels, c * kernel[0] * kernel[1])


def accumulate(x_codes, w_codes, x_zero_point=0, w_zero_point=0, groups=1, **where):
    """x_codes [n, c, h, w], w_codes [out, c / groups, kh, kw] -> sums int64 [n, out, ho, wo]

    where: stride, padding, dilation.  The border holds x_zero_point, the code of real 0.
    """
    out, channels, *kernel = w_codes.shape
    size = geometry.of(x_codes.shape[2:], kernel, **where).output
    zero_points = np.broadcast_to(np.reshape(w_zero_point, -1), (out,))
    sums = []
    for g in range(groups):
        mine = slice(g * out // groups, (g + 1) * out // groups)
        x = np.asarray(x_codes, np.int64)[:, g * channels : (g + 1) * channels]
        rows = patches(x, kernel, **where, fill=x_zero_point)
        w = w_codes[mine].reshape(out // groups, rows.shape[-1])
        product = reference.accumulate(
            rows.reshape(-1, rows.shape[-1]), w, x_zero_point, zero_points[mine]
        )
        sums.append(product.reshape(*rows.shape[:2], len(w)).transpose(0, 2, 1))
    return np.concatenate(sums, axis=1).reshape(len(x_codes), out, *size)
