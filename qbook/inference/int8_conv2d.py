"""INT8 convolutions with static ranges: weights a scale for each filter, inputs one scale.

Jacob et al. 2018, arXiv:1712.05877, section 2; the sums are exact, their scaling is float32, so
that a BatchNorm behind may stay.  Book: 3.1, 6.2
"""

import torch
from torch import nn

from qbook import affine
from qbook.inference.packed_layer import PackedLayer, array
from qbook.kernels.int8_conv2d import conv2d, panels
from qbook.kernels.rowwise import quantizer


class Int8Conv2d(PackedLayer):
    """A Conv2d whose weight is int8 codes in panels.

    x_qparams:  ``affine.QParams`` of 8 bits with one scale, from inputs that were seen
    Raises ValueError as ``PackedLayer``, for a border that is not of zeros, and other x_qparams.
    """

    replaces = nn.Conv2d

    def __init__(self, conv, x_qparams):
        super().__init__(conv)
        if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            raise ValueError(
                f"padding={conv.padding!r}, padding_mode={conv.padding_mode!r}; "
                "pass numbers and 'zeros'"
            )
        codes = x_qparams.qmax - x_qparams.qmin
        if x_qparams.scale.numel() != 1 or codes > 255:
            raise ValueError(
                f"x_qparams have {x_qparams.scale.numel()} scales and {codes + 1} codes; "
                "pass one scale and 8 bits"
            )
        self.in_channels, self.out_channels = conv.in_channels, conv.out_channels
        w = conv.weight.detach()
        qparams = affine.choose_qparams(w, 8, axis=(1, 2, 3))
        packed = panels.pack(affine.quantize(w, qparams).numpy(), groups=conv.groups)
        self.register_buffer("panels", torch.from_numpy(packed.data))
        self.register_buffer("code_sums", torch.from_numpy(packed.code_sums))
        self.register_buffer("scale", qparams.scale.reshape(-1))
        self.register_buffer("x_scale", x_qparams.scale.detach().reshape(()).float().clone())
        x_zero_point = x_qparams.zero_point.reshape(()).to(torch.int32)
        self.register_buffer("x_zero_point", x_zero_point.clone())
        geometry = (*conv.stride, *conv.padding, *conv.dilation, conv.groups)
        self.layout = (*conv.weight.shape, *geometry, x_qparams.qmin, x_qparams.qmax)

    @property
    def tensors(self):
        own = self.panels, self.code_sums, self.scale, self.bias, self.x_scale, self.x_zero_point
        return (*own, list(self.layout))

    @classmethod
    def compute(cls, x, data, code_sums, scale, bias, x_scale, x_zero_point, layout):
        shape = tuple(layout[:4])
        stride, padding, dilation = (tuple(layout[i : i + 2]) for i in (4, 6, 8))
        groups, qmin, qmax = layout[10:]
        w = panels.stored(array(data), array(code_sums), shape, groups)
        images = array(x)
        zero_point = int(x_zero_point)
        rows = images.reshape(len(images), -1) if images.size else images.reshape(len(images), 0)
        codes = quantizer.quantize_with(rows, array(x_scale), zero_point, qmin, qmax)
        result = conv2d.conv2d_linear(
            codes.reshape(images.shape),
            array(x_scale),
            w,
            array(scale),
            array(bias),
            zero_point,
            stride=stride,
            padding=padding,
            dilation=dilation,
        )
        return torch.from_numpy(result)

    def forward(self, x):
        fits = x.ndim == 4 and x.shape[1] == self.in_channels
        self.check_input(x, f"[n, {self.in_channels}, h, w]", fits)
        return self.run(x.detach().contiguous(), *self.tensors)

    def extra_repr(self):
        return f"{self.in_channels}, {self.out_channels}, kernel={self.layout[2:4]}"


@torch.library.custom_op("qbook::int8_conv2d", mutates_args=())
def int8_conv2d(
    x: torch.Tensor,
    panels: torch.Tensor,
    code_sums: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None,
    x_scale: torch.Tensor,
    x_zero_point: torch.Tensor,
    layout: list[int],
) -> torch.Tensor:
    """x [n, in, h, w] float32 and what an ``Int8Conv2d`` holds -> [n, out, ho, wo] float32"""
    return Int8Conv2d.compute(x, panels, code_sums, scale, bias, x_scale, x_zero_point, layout)


@int8_conv2d.register_fake
def _(x, panels, code_sums, scale, bias, x_scale, x_zero_point, layout):
    out, _, *kernel = layout[:4]
    sizes = [
        (x.shape[2 + i] + 2 * layout[6 + i] - layout[8 + i] * (kernel[i] - 1) - 1) // layout[4 + i]
        + 1
        for i in range(2)
    ]
    return x.new_empty(x.shape[0], out, *sizes)


Int8Conv2d.operator = int8_conv2d
