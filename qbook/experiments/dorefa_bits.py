"""DoReFa on the digits: how many bits forwards and backwards a small network needs to learn.

Zhou et al. 2016, arXiv:1606.06160.  A 64-64-64-64-10 network with batch normalization, clipped
activations and the first and last layer untouched, as the paper has it.  Book: 3.2
"""

import itertools
import time

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from qbook.data import digits
from qbook.experiments import recorded
from qbook.qat import dorefa

WIDTH, HIDDEN = 64, 3
# Bits of weights, activations and gradients; 32: not quantized.
GRID = [(32, 32, 32), (8, 8, 8), (4, 4, 8), (2, 2, 32), (2, 2, 4), (1, 2, 32), (1, 2, 6), (1, 2, 4)]


class Network(nn.Module):
    """images [n, 64] -> logits [n, 10], float64; bits = (weights, activations, gradients)"""

    def __init__(self, bits, generator, seed):
        super().__init__()
        rng = np.random.default_rng(seed)
        sizes = [64] + [WIDTH] * HIDDEN + [10]
        self.weights = nn.ParameterList(
            torch.from_numpy(rng.normal(size=(out, in_)) / np.sqrt(in_))
            for in_, out in itertools.pairwise(sizes)
        )
        self.bias = nn.Parameter(torch.zeros(10, dtype=torch.float64))
        self.norms = nn.ModuleList(
            nn.BatchNorm1d(WIDTH, dtype=torch.float64) for _ in range(HIDDEN)
        )
        self.bits, self.generator = bits, generator

    def forward(self, x):
        for layer, norm in enumerate(self.norms):
            x = self.activate(norm(self.multiply(x, layer)))
        return x @ self.weights[-1].T + self.bias

    def multiply(self, x, layer):
        """The product of one layer, before its normalization, quantized unless it is the first."""
        weight_bits, _, gradient_bits = self.bits
        w = self.weights[layer]
        if layer > 0 and weight_bits < 32:
            w = dorefa.quantize_weights(w, weight_bits)
        x = x @ w.T
        if layer > 0 and gradient_bits < 32:
            x = dorefa.quantize_gradients(x, gradient_bits, self.generator)
        return x

    def activate(self, x):
        """clip(x, 0, 1), quantized"""
        bits = self.bits[1]
        return x.clamp(0, 1) if bits == 32 else dorefa.quantize_activations(x, bits)


def train(bits, *, seed, noise=True, steps=150, learning_rate=0.01):
    """bits (weights, activations, gradients) -> Network in eval mode; Adam, batches of 128"""
    (images, labels), _ = _digits()
    generator = torch.Generator().manual_seed(seed) if noise else None
    network = Network(bits, generator, seed)
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    rng = np.random.default_rng([seed, 1])
    for _ in range(steps):
        batch = torch.from_numpy(rng.integers(0, len(images), 128))
        optimizer.zero_grad()
        cross_entropy(network(images[batch]), labels[batch]).backward()
        optimizer.step(), schedule.step()
    return network.eval()


@torch.no_grad()
def evaluate(network):
    """-> (accuracy in percent, cross-entropy) on the 360 test digits"""
    _, (images, labels) = _digits()
    logits = network(images)
    right = (logits.argmax(1) == labels).double().mean().item()
    return 100 * right, cross_entropy(logits, labels).item()


def _digits():
    return [
        (torch.from_numpy(images).double(), torch.from_numpy(labels)) for images, labels in digits()
    ]


def main():
    """The grid, and the gradient's bits with and without noise, five seeds each: minutes."""
    torch.set_num_threads(1)
    begin, seeds, steps = time.perf_counter(), [0, 1, 2, 3, 4], 150

    def runs(bits, noise=True):
        return [evaluate(train(bits, seed=s, noise=noise, steps=steps)) for s in seeds]

    results = {
        "grid": {"-".join(map(str, bits)): runs(bits) for bits in GRID},
        "noise": {
            name: {str(bits): runs((1, 2, bits), noise) for bits in (1, 2, 3, 4, 6)}
            for name, noise in (("on", True), ("off", False))
        },
    }
    seconds = time.perf_counter() - begin
    command = "python -m qbook.experiments.dorefa_bits"
    recorded.save(
        "dorefa_bits", results, command=command, seeds=seeds, seconds=seconds, steps=steps
    )


if __name__ == "__main__":
    main()
