"""A small network of depthwise-separable convolutions for CIFAR-10, trained by the project itself.

Howard et al. 2017, arXiv:1704.04861 (MobileNet): a 3 x 3 convolution within each channel, then a
1 x 1 across them, BatchNorm and ReLU after both.  0.14 million parameters.  Book: 3.1, 7.1.

The trained weights and the log of their training lie beside this file;
``python -m qbook.models.separable`` trains them anew.
"""

import json
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from qbook.data import cifar10
from qbook.models.resnet20 import normalise, predict

__all__ = ["normalise", "predict", "train"]

WEIGHTS = Path(__file__).with_suffix(".safetensors")
LOG = Path(__file__).with_suffix(".json")
# (channels, stride) of each separable convolution, behind a stem of 24 channels.
STAGES = ((48, 1), (96, 2), (96, 1), (192, 2), (192, 1))
STEM = 24
EPOCHS, BATCH, LEARNING_RATE, WEIGHT_DECAY = 10, 128, 0.2, 5e-4


class Separable(nn.Module):
    """x [n, in, h, w] -> relu(bn(1 x 1 conv(relu(bn(3 x 3 conv of each channel)))))"""

    def __init__(self, in_, out, stride):
        super().__init__()
        self.depthwise = nn.Conv2d(in_, in_, 3, stride, padding=1, groups=in_, bias=False)
        self.bn1 = nn.BatchNorm2d(in_)
        self.pointwise = nn.Conv2d(in_, out, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)

    def forward(self, x):
        x = F.relu(self.bn1(self.depthwise(x)))
        return F.relu(self.bn2(self.pointwise(x)))


class SeparableNet(nn.Module):
    """images [n, 3, 32, 32], normalised -> logits [n, 10]"""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, STEM, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(STEM)
        widths = [STEM, *(out for out, _ in STAGES)]
        self.stages = nn.Sequential(
            *(Separable(in_, *stage) for in_, stage in zip(widths[:-1], STAGES, strict=True))
        )
        self.linear = nn.Linear(widths[-1], 10)

    def forward(self, x):
        x = self.stages(F.relu(self.bn(self.conv(x))))
        return self.linear(x.mean(dim=(2, 3)))


def load():
    """-> a fresh SeparableNet with the trained weights, on the CPU, in eval mode."""
    model = SeparableNet()
    model.load_state_dict(load_file(WEIGHTS))
    return model.eval()


def train(seed=0, *, epochs=EPOCHS, report=None):
    """-> the model after SGD with one learning-rate cycle on flipped and shifted images, eval mode.

    report(epoch, loss): called after each epoch with its mean training loss.
    """
    images, labels = (torch.as_tensor(a) for a in cifar10("train"))
    images, labels = normalise(images), labels.long()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SeparableNet().to(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(
            model.parameters(),
            lr=LEARNING_RATE,
            momentum=0.9,
            nesterov=True,
            weight_decay=WEIGHT_DECAY,
        )
        batches = len(images) // BATCH
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, LEARNING_RATE, total_steps=epochs * batches, pct_start=0.2
        )
        for epoch in range(epochs):
            total = 0.0
            for chosen in torch.randperm(len(images))[: batches * BATCH].split(BATCH):
                x = _augment(images[chosen]).to(memory_format=torch.channels_last)
                loss = F.cross_entropy(model(x), labels[chosen])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                total += loss.item()
            if report:
                report(epoch + 1, total / batches)
    return model.to(memory_format=torch.contiguous_format).eval()


def _augment(x):
    """x [n, 3, 32, 32] -> every image shifted by up to 4 pixels, a random half mirrored."""
    n = len(x)
    padded = F.pad(x, (4, 4, 4, 4))
    down, right = torch.randint(9, (2, n))
    rows = (down[:, None] + torch.arange(32))[:, None, :, None]
    columns = right[:, None] + torch.arange(32)
    columns = torch.where(torch.rand(n, 1) < 0.5, columns, columns.flip(1))[:, None, None, :]
    image, channel = torch.arange(n)[:, None, None, None], torch.arange(3)[None, :, None, None]
    return padded[image, channel, rows, columns]


def main():
    """Train, store the weights, and the log with seed, versions, losses and accuracy."""
    from qbook.lab.session import cpu_name

    start, losses = time.time(), []

    def report(epoch, loss):
        losses.append([epoch, round(loss, 4)])
        print(f"epoch {epoch}  training loss {loss:.4f}  {time.time() - start:.0f} s", flush=True)

    model = train(report=report)
    partial = WEIGHTS.with_suffix(".partial")
    save_file({n: w.contiguous() for n, w in model.state_dict().items()}, partial)
    partial.replace(WEIGHTS)
    images, labels = cifar10("test")
    log = {
        "command": "python -m qbook.models.separable",
        "seed": 0,
        "epochs": EPOCHS,
        "device": cpu_name(),
        "torch": torch.__version__,
        "seconds": round(time.time() - start),
        "test_accuracy": round(float((predict(load(), images).numpy() == labels).mean()), 4),
        "training_loss": losses,
    }
    LOG.write_text(json.dumps(log) + "\n")
    print(log["test_accuracy"])


if __name__ == "__main__":
    main()
