"""ResNet-20: three stages of three residual blocks for 32 x 32 images.

He et al. 2016, arXiv:1512.03385, section 4.2; shortcuts of option A, which have no parameters.
Weights: akamaster/pytorch_resnet_cifar10.  Book: used throughout.
"""

import torch
from torch import nn
from torch.nn import functional as F

from qbook.data import fetch

# The weights were trained on pixels / 255 normalised with ImageNet's statistics.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class Block(nn.Module):
    """x [n, in, h, w] -> relu(conv(relu(conv(x))) + shortcut(x)), [n, out, h / stride, ...]"""

    def __init__(self, in_, out, stride):
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv2d(in_, out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)

    def forward(self, x):
        residual = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(residual + self.shortcut(x))

    def shortcut(self, x):
        """Option A: every stride-th pixel; the new channels are zeros, half on either side."""
        new = self.conv1.out_channels - self.conv1.in_channels
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, new // 2, new // 2))


class ResNet20(nn.Module):
    """images [n, 3, 32, 32], normalised -> logits [n, 10]; 0.27 million parameters"""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(Block(16, 16, 1), Block(16, 16, 1), Block(16, 16, 1))
        self.layer2 = nn.Sequential(Block(16, 32, 2), Block(32, 32, 1), Block(32, 32, 1))
        self.layer3 = nn.Sequential(Block(32, 64, 2), Block(64, 64, 1), Block(64, 64, 1))
        self.linear = nn.Linear(64, 10)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean(dim=(2, 3)))


def load():
    """-> a fresh ResNet20 with the trained weights, on the CPU, in eval mode.

    Raises ``qbook.data.DataUnavailable``.
    """
    checkpoint = torch.load(fetch("resnet20-12fca82f.th"), map_location="cpu", weights_only=True)
    # The names are those of a DataParallel wrapper.
    state = {name.removeprefix("module."): w for name, w in checkpoint["state_dict"].items()}
    model = ResNet20()
    model.load_state_dict(state)
    return model.eval()


def normalise(images):
    """images [n, 32, 32, 3] uint8 array or tensor -> model input [n, 3, 32, 32] float32.

    Raises ValueError for another shape or type.
    """
    x = torch.as_tensor(images)
    if x.dtype != torch.uint8 or x.ndim != 4 or x.shape[-1] != 3:
        raise ValueError(
            f"images are {x.dtype} of shape {tuple(x.shape)}; pass uint8 [n, 32, 32, 3], "
            "as qbook.data.cifar10 returns them"
        )
    mean, std = torch.tensor(MEAN, device=x.device), torch.tensor(STD, device=x.device)
    return ((x / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()


@torch.no_grad()
def predict(model, images, batch_size=250):
    """images [n, 32, 32, 3] uint8 -> classes [n] int64, on the model's device"""
    device = next(model.parameters()).device
    batches = torch.as_tensor(images).split(batch_size)
    return torch.cat([model(normalise(batch.to(device))).argmax(dim=1) for batch in batches])
