"""Networks of one bit on small pictures: what each of three papers' steps costs in accuracy.

Courbariaux et al. 2015, arXiv:1511.00363; Courbariaux et al. 2016, arXiv:1602.02830; Rastegari et
al. 2016, arXiv:1603.05279.  Book: 3.2

    python -m qbook.experiments.binary

trains a small ConvNet on CIFAR-10 by every method from three seeds, and records the accuracies.
"""

import itertools
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from qbook import data
from qbook.experiments import recorded
from qbook.qat import binary_connect, binary_net, xnor_net


class Method(NamedTuple):
    """weight: binarizes the weights, None: they stay real;  activation: of the hidden layers;
    ends: first and last layer are binary too;  pool_last: pools what the activation made, where
    both BinaryNet and XNOR-Net pool the sums before the norm"""

    weight: Callable | None
    activation: Callable
    ends: bool = True
    pool_last: bool = False


METHODS = {
    "float": Method(None, F.relu),
    "BinaryConnect": Method(binary_connect.binarize, F.relu),
    "BinaryNet": Method(binary_connect.binarize, binary_net.binarize),
    "BinaryNet, real ends": Method(binary_connect.binarize, binary_net.binarize, ends=False),
    "XNOR-Net": Method(xnor_net.binarize, binary_net.binarize, ends=False),
    "XNOR-Net, pooled signs": Method(
        xnor_net.binarize, binary_net.binarize, ends=False, pool_last=True
    ),
}


class Network(nn.Module):
    """Layers without bias, each with a norm behind it; no activation after the last."""

    def __init__(self, method, layers, norms):
        super().__init__()
        self.method, self.layers, self.norms = method, nn.ModuleList(layers), nn.ModuleList(norms)

    def latent(self):
        """-> the real weights of which the network uses the signs."""
        if self.method.weight is None:
            return []
        return [layer.weight for layer in (self.layers if self.method.ends else self.layers[1:-1])]

    def weights(self):
        """-> list: the weights that each layer computes with."""
        latent = {id(w) for w in self.latent()}
        weights = [layer.weight for layer in self.layers]
        return [self.method.weight(w) if id(w) in latent else w for w in weights]


class Mlp(Network):
    """x [n, widths[0]] -> logits [n, widths[-1]]"""

    def __init__(self, method, widths):
        layers = [nn.Linear(a, b, bias=False) for a, b in itertools.pairwise(widths)]
        super().__init__(method, layers, [nn.BatchNorm1d(b) for b in widths[1:]])

    def forward(self, x):
        *hidden, last = zip(self.weights(), self.norms, strict=True)
        for w, norm in hidden:
            x = self.method.activation(norm(F.linear(x, w)))
        w, norm = last
        return norm(F.linear(x, w))


class ConvNet(Network):
    """Three 3 x 3 convolutions, each pooled by 2, and a linear layer.

    images [n, 3, 16, 16] -> logits [n, 10]
    """

    def __init__(self, method, channels):
        widths = (3, channels, 2 * channels, 2 * channels)
        layers = [nn.Conv2d(a, b, 3, padding=1, bias=False) for a, b in itertools.pairwise(widths)]
        head = nn.Linear(4 * widths[-1], 10, bias=False)
        norms = [*(nn.BatchNorm2d(c) for c in widths[1:]), nn.BatchNorm1d(10)]
        super().__init__(method, [*layers, head], norms)

    def forward(self, x):
        *hidden, last = zip(self.weights(), self.norms, strict=True)
        for w, norm in hidden:
            x = F.conv2d(x, w, padding=1)
            if self.method.pool_last:
                x = F.max_pool2d(self.method.activation(norm(x)), 2)
            else:
                x = self.method.activation(norm(F.max_pool2d(x, 2)))
        w, norm = last
        return norm(F.linear(x.flatten(1), w))


def train(model, images, labels, *, epochs, seed, batch=100, rate=0.003):
    """Train in place -> model: Adam, rate falling linearly to 0, latent weights clipped."""
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    steps = epochs * (len(images) // batch)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, total_iters=steps)
    model.train()
    for _ in range(epochs):
        order = torch.from_numpy(rng.permutation(len(images)))
        for rows in order[: len(order) // batch * batch].split(batch):
            optimizer.zero_grad()
            F.cross_entropy(model(images[rows]), labels[rows]).backward()
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                for w in model.latent():
                    w.copy_(binary_connect.clip(w))
    return model.eval()


@torch.no_grad()
def accuracy(model, images, labels):
    """-> per cent"""
    right = torch.cat([model(batch).argmax(1) for batch in images.split(500)]) == labels
    return 100 * right.double().mean().item()


def trained(build, method, fit, *, epochs, seed):
    """build(method) -> network; fit: (inputs, labels) -> the network, trained from this seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(method).to(fit[0].dtype)
        return train(model, *fit, epochs=epochs, seed=seed)


def compare(build, fit, test, *, epochs, seeds, methods):
    """methods: name -> Method; fit, test: (inputs, labels)
    -> dict: name -> accuracies on the test in per cent, one for each seed"""
    accuracies = {name: [] for name in methods}
    for name, seed in itertools.product(methods, seeds):
        model = trained(build, methods[name], fit, epochs=epochs, seed=seed)
        accuracies[name].append(round(accuracy(model, *test), 2))
    return accuracies


def cifar10(split, count):
    """Averaged over 2 x 2 pixels -> images [count, 3, 16, 16] float32 about 0, labels [count]."""
    images, labels = data.cifar10(split)
    images = torch.from_numpy(images[:count]).permute(0, 3, 1, 2).float() / 255
    return (F.avg_pool2d(images, 2) - 0.5) / 0.25, torch.from_numpy(labels[:count])


def main():
    settings = {"train_count": 10_000, "test_count": 10_000, "epochs": 8, "channels": 32}
    seeds, start = [0, 1, 2], time.perf_counter()
    results = compare(
        lambda method: ConvNet(method, settings["channels"]),
        cifar10("train", settings["train_count"]),
        cifar10("test", settings["test_count"]),
        epochs=settings["epochs"],
        seeds=seeds,
        methods=METHODS,
    )
    recorded.save(
        "binary",
        results,
        command="python -m qbook.experiments.binary",
        seeds=seeds,
        seconds=time.perf_counter() - start,
        **settings,
    )


if __name__ == "__main__":
    main()
