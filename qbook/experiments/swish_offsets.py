"""LSQ and LSQ+ behind a swish: does an offset for the activations pay when all is trained?

Bhalgat et al. 2020, arXiv:2004.09576, on the digits: a 64-32-32-10 network with batch normalization
and x * sigmoid(x), pre-trained, then trained on with quantized hidden activations; the weights are
not quantized, so that nothing else differs.  Book: 3.2
"""

import itertools
import time

import numpy as np
import torch
from torch.nn.functional import cross_entropy, silu

from qbook import affine
from qbook.data import digits
from qbook.experiments import recorded
from qbook.qat import lsq, lsq_plus

SIZES = (64, 32, 32, 10)
METHODS = ("unsigned", "signed", "offset from min and max", "offset")


def fine_tune(network, method, bits, *, seed, steps=100, learning_rate=0.05):
    """A pre-trained network -> dict of (accuracy in percent, cross-entropy) on the test digits.

    unsigned, signed: LSQ, codes from 0 or from -2^(bits-1); offset: LSQ+.  All but "offset from min
    and max" start at the least squared error.  -> before and after training; exported: after it,
    every offset rounded to a zero-point
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r} is unknown; choose one of {', '.join(METHODS)}")
    fits = [_first(x, method, bits) for x in hidden(network)]
    scales = [scale.clone().requires_grad_() for scale, _ in fits]
    betas = [beta.clone().requires_grad_() for _, beta in fits]
    zero_point = {"unsigned": 0, "signed": 2 ** (bits - 1)}.get(method)
    factor = lsq.gradient_factor(SIZES[1], bits, signed=False)

    def offset(layer):
        return betas[layer] if zero_point is None else -scales[layer] * zero_point

    def quantize(x, layer):
        return lsq_plus.fake_quantize(x, scales[layer], offset(layer), bits, factor=factor)

    def export(x, layer):
        return affine.fake_quantize(x, lsq_plus.qparams(scales[layer], offset(layer), bits))

    learned = scales + (betas if zero_point is None else [])
    result = {"before": evaluate(network, quantize)}
    network = _descend(network, quantize, learned, seed, steps, learning_rate)
    return result | {"after": evaluate(network, quantize), "exported": evaluate(network, export)}


def pretrain(steps=200):
    """-> the network without quantization: weights, biases and gains, a list of tensors"""
    rng = np.random.default_rng(0)
    weights = [
        torch.from_numpy(rng.normal(size=(out, in_)) / np.sqrt(in_))
        for in_, out in itertools.pairwise(SIZES)
    ]
    biases = [torch.zeros(out, dtype=torch.float64) for out in SIZES[1:]]
    gains = [torch.ones(out, dtype=torch.float64) for out in SIZES[1:-1]]
    return _descend([*weights, *biases, *gains], _untouched, [], 0, steps, 0.1)


@torch.no_grad()
def evaluate(network, quantize=None):
    """-> (accuracy in percent, cross-entropy), normalized by the training images' statistics"""
    (images, _), (test_images, labels) = _digits()
    quantize = quantize or _untouched
    _, statistics = _forward(network, images, quantize)
    logits, _ = _forward(network, test_images, quantize, statistics)
    right = (logits.argmax(1) == labels).double().mean().item()
    return 100 * right, cross_entropy(logits, labels).item()


@torch.no_grad()
def hidden(network):
    """-> the two layers' activations for the training images, each [n, 32]"""
    seen = []
    _forward(network, _digits()[0][0], lambda x, _: seen.append(x) or x)
    return seen


def _forward(network, x, quantize, statistics=None):
    """-> logits and the statistics used; None: the batch's own"""
    weights, biases, gains = network[:3], network[3:6], network[6:]
    used = []
    for layer, gain in enumerate(gains):
        x = x @ weights[layer].T
        used.append(statistics[layer] if statistics else (x.mean(0), x.var(0, correction=0)))
        mean, variance = used[-1]
        x = (x - mean) / torch.sqrt(variance + 1e-5) * gain + biases[layer]
        x = quantize(silu(x), layer)
    return x @ weights[-1].T + biases[-1], used


def _descend(network, quantize, learned, seed, steps, learning_rate):
    (images, labels), _ = _digits()
    network = [p.clone().requires_grad_() for p in network]
    optimizer = torch.optim.SGD([*network, *learned], lr=learning_rate, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        batch = torch.from_numpy(rng.integers(0, len(images), 128))
        logits, _ = _forward(network, images[batch], quantize)
        optimizer.zero_grad()
        cross_entropy(logits, labels[batch]).backward()
        optimizer.step(), schedule.step()
    return [p.detach() for p in network]


def _first(x, method, bits):
    if method == "offset":
        return lsq_plus.fit(x, bits)
    if method == "offset from min and max":
        return (x.max() - x.min()) / (2**bits - 1), x.min()
    zero_point = 0 if method == "unsigned" else 2 ** (bits - 1)
    return lsq_plus.fit_scale(x, bits, zero_point), torch.zeros((), dtype=x.dtype)


def _untouched(x, layer):
    return x


def _digits():
    return [
        (torch.from_numpy(images).double(), torch.from_numpy(labels)) for images, labels in digits()
    ]


def main():
    """Four methods at two and three bits, ten orders of minibatches each: minutes."""
    torch.set_num_threads(1)
    begin, seeds, network = time.perf_counter(), list(range(10)), pretrain()
    results = {
        str(bits): {
            method: [fine_tune(network, method, bits, seed=seed) for seed in seeds]
            for method in METHODS
        }
        for bits in (2, 3)
    }
    results["float"] = evaluate(network)
    seconds = time.perf_counter() - begin
    command = "python -m qbook.experiments.swish_offsets"
    recorded.save("swish_offsets", results, command=command, seeds=seeds, seconds=seconds)


if __name__ == "__main__":
    main()
