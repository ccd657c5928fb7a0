"""INT8 convolutions against torch's float32 (oneDNN) and its quantized ones (oneDNN too).

The layers of ResNet-20 with 64 images; random codes, because speed does not depend on them.  The
quantized convolution of torch reads and writes 8-bit codes channels-last, which are a quarter of
the bytes of int32 sums: ``qbook, requantized`` does as much, from and to channels first.
"""

import warnings

import numpy as np
import torch
from torch.nn import functional as F

from qbook import affine, requantize
from qbook.kernels import threads
from qbook.kernels.int8_conv2d import conv2d, geometry, loops, panels
from qbook.kernels.int8_matmul import matmul
from qbook.lab.timing import Group, Target

BATCH = 64
# channels, filters, side of the image, stride, how many: ResNet-20, kernels of 3 x 3
RESNET20 = [
    (3, 16, 32, 1, 1),
    (16, 16, 32, 1, 6),
    (16, 32, 32, 2, 1),
    (32, 32, 16, 1, 5),
    (32, 64, 16, 2, 1),
    (64, 64, 8, 1, 5),
]


def groups():
    layers = [Layer(*shape) for shape in RESNET20]
    yield network(layers)
    for layer in layers:
        yield layer.group()
    yield Layer(256, 256, 14, 1, 1, batch=4).group()
    if threads.count() == 1:
        yield layers[1].stages()


class Layer:
    """One convolution of 3 x 3 with padding 1, and its competitors on prepared data."""

    def __init__(self, channels, filters, side, stride, count, batch=BATCH):
        rng = np.random.default_rng(0)
        self.name = f"{batch}x{channels}x{side}x{side} to {filters}, stride {stride}"
        self.count = count
        self.where = dict(stride=stride, padding=1)
        self.x = rng.integers(-128, 128, (batch, channels, side, side), np.int8)
        self.w = rng.integers(-127, 128, (filters, channels, 3, 3), np.int8)
        self.g = geometry.of((side, side), (3, 3), stride, 1)
        self.operations = 2 * batch * self.g.pixels * self.w.size
        self.cases = self._cases()
        self._check()

    def _cases(self):
        x, where, packed, rows = self.x, self.where, panels.pack(self.w), loops.pack(self.w)
        x_real, w_real = (torch.from_numpy(codes).float() for codes in (x, self.w))
        multiplier = requantize.quantize_multiplier(1e-4)
        y_qparams = affine.QParams(np.float32(1), np.int32(3), -128, 127)
        cases = {
            "torch fp32": lambda: F.conv2d(x_real, w_real, **where),
            "qbook": lambda: conv2d.conv2d(x, packed, 5, **where),
            "qbook, float32": lambda: conv2d.conv2d_linear(x, 1.0, packed, 1.0, None, 5, **where),
            "qbook, requantized": lambda: conv2d.conv2d_requantized(
                x, packed, *multiplier, y_qparams, None, 5, **where
            ),
            "im2col, then int8_matmul": lambda: loops.by_patches(x, rows, 5, self.g),
        }
        theirs = quantized_by_torch(x_real, w_real, self.where)
        return cases if theirs is None else cases | {"torch quantized": theirs}

    def _check(self):
        """Raises ValueError where the cases do not agree."""
        x = torch.from_numpy(self.x).double() - 5
        sums = F.conv2d(x, torch.from_numpy(self.w).double(), **self.where).numpy()
        for name in ("qbook", "qbook, float32", "im2col, then int8_matmul"):
            if not np.array_equal(self.cases[name](), sums.astype(np.float32)):
                raise ValueError(f"{name} does not compute the convolution {self.name}")
        codes = self.cases["qbook, requantized"]().astype(np.float64)
        # Half a step of rounding, and the multiplier's last bits.
        if not np.all(np.abs(codes - np.clip(1e-4 * sums + 3, -128, 127)) <= 0.51):
            raise ValueError(f"the requantized codes of {self.name} are wrong")

    def group(self):
        return Group(f"INT8 conv {self.name}", self.cases, self.operations)

    def stages(self):
        """Where the time goes: patches against product, and what is left of both without them."""
        n, channels = self.x.shape[:2]
        rows, packed = loops.pack(self.w), panels.pack(self.w)
        x, fours = self.x.view(np.uint8), -(-channels // geometry.FOUR)
        row_at, step_at = geometry.offsets(self.g, fours)
        layout = (np.uint8(0), np.uint8(5), *self.g.padding, *self.g.padded)
        images = np.full((n, 4 * fours * self.g.padded[0] * self.g.padded[1]), 5, np.uint8)
        patches = np.zeros((n * self.g.pixels, len(step_at)), np.int32)
        few = max(1, loops.CACHE // (self.g.pixels * 4 * len(step_at)))
        pieces = [slice(i, min(i + few, n)) for i in range(0, n, few)]

        def im2col():
            for piece in pieces:
                count = (piece.stop - piece.start) * self.g.pixels
                loops.im2col(images[piece].view(np.int32), row_at, step_at, patches[:count])

        def product():
            for piece in pieces:
                count = (piece.stop - piece.start) * self.g.pixels
                matmul.matmul(patches[:count].view(np.int8), rows)

        sums = np.zeros((few, self.g.pixels, len(self.w)), np.int32)
        out = np.zeros((n, len(self.w), self.g.pixels), np.int32)

        def turn():
            for piece in pieces:
                out[piece] = sums[: piece.stop - piece.start].transpose(0, 2, 1)

        cases = {
            "all of im2col, then int8_matmul": self.cases["im2col, then int8_matmul"],
            "layout, padded": lambda: loops.lay_out(x, 0, layout, images),
            "im2col": im2col,
            "product of patches": product,
            "result to channels first": turn,
            "all of qbook": lambda: conv2d.conv2d(self.x, packed, 5, **self.where),
            "one image of qbook": lambda: conv2d.conv2d(self.x[:1], packed, 5, **self.where),
        }
        return Group(f"Stages of INT8 conv {self.name}", cases)


def network(layers):
    """All convolutions of the network, each as often as it stands there, one after the other."""
    names = set.intersection(*(set(layer.cases) for layer in layers))

    def all_of(name):
        calls = [layer.cases[name] for layer in layers for _ in range(layer.count)]

        def call():
            for one in calls:
                one()

        return call

    cases = {name: all_of(name) for name in layers[0].cases if name in names}
    operations = sum(layer.count * layer.operations for layer in layers)
    targets = (Target("qbook", "torch fp32", 2.0), Target("qbook, requantized", "torch fp32", 2.0))
    return Group(
        f"INT8 convolutions of ResNet-20, {BATCH} images", cases, operations, None, targets
    )


def quantized_by_torch(x_real, w_real, where):
    """-> call of torch's quantized convolution, or None where this build has none"""
    if "onednn" not in torch.backends.quantized.supported_engines:
        return None
    torch.backends.quantized.engine = "onednn"
    with warnings.catch_warnings():
        # Deprecated, and still what a quantized model of torch.ao runs.
        warnings.simplefilter("ignore")
        x = torch.quantize_per_tensor(x_real, 1.0, 133, torch.quint8)
        w = torch.quantize_per_tensor(w_real, 1.0, 0, torch.qint8)
        x = x.contiguous(memory_format=torch.channels_last)
        pair = [where["padding"]] * 2
        stride = [where["stride"]] * 2
        packed = torch.ops.quantized.conv2d_prepack(w, None, stride, pair, [1, 1], 1)
    return lambda: torch.ops.quantized.conv2d(x, packed, 1e4, 131)
