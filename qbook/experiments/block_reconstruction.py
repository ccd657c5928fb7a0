"""ResNet-20 with two- and four-bit weights, four-bit activations: by layers, blocks, with drops.

Li et al. 2021, arXiv:2102.05426, and Wei et al. 2022, arXiv:2203.05740, measured where a page can
repeat it.  Book: 4.2 and 4.3

``python -m qbook.experiments.block_reconstruction`` writes the record; it saves after every run.
"""

import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from qbook.data import cifar10, digits
from qbook.experiments import recorded
from qbook.models import resnet20, weights
from qbook.ptq import brecq, qdrop, reconstruction

BLOCKS = [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in range(3)]
SCHEDULE = {"steps": 150, "learning_rate": 0.02, "batch_size": 16}
CALIBRATION, TEST = 256, 2000
# (method, weight bits, activation bits, seed): what is compared, the comparison itself first.
RUNS = [("nearest", 2, 4, 0)]
RUNS += [(m, 2, 4, seed) for seed in (0, 1, 2) for m in ("layers", "blocks", "qdrop 0.5")]
RUNS += [(m, 2, 4, 0) for m in ("qdrop 0", "qdrop 0.25", "qdrop 0.75", "blocks, Fisher")]
RUNS += [(m, 4, 4, 0) for m in ("nearest", "layers", "blocks", "qdrop 0.5")]


class Block(nn.Module):
    """x [n, width] -> relu(x + linear(relu(linear(x)))), a residual block without convolutions"""

    def __init__(self, width):
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x):
        return F.relu(x + self.linear2(F.relu(self.linear1(x))))


def digits_network(steps=100):
    """-> three residual blocks between a first and a last layer, trained on the digits, float64.

    images [n, 64] -> logits [n, 10]; its blocks are called "2", "3" and "4".
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        blocks = [Block(32) for _ in range(3)]
        model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), *blocks, nn.Linear(32, 10)).double()
    (images, labels), _ = digits()
    images, labels = torch.from_numpy(images).double(), torch.from_numpy(labels)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return model.eval()


def quantize(method, model, inputs, weight_bits, act_bits, *, blocks=None, **schedule):
    """-> the quantized model by one of the methods that ``RUNS`` names.

    layers: a block is one layer;  blocks: BRECQ, squared error;  "blocks, Fisher": weighted by
    ``scaled_fisher``;  "qdrop P": QDrop, quantization kept with probability P.
    Raises ValueError for another method.
    """
    blocks = BLOCKS if blocks is None else blocks
    bits = weight_bits, act_bits
    if method.startswith("qdrop "):
        return qdrop.quantize(model, inputs, blocks, *bits, p=float(method[6:]), **schedule)
    if method == "nearest":
        return brecq.quantize(model, inputs, blocks, *bits, **(schedule | {"steps": 0}))
    if method == "layers":
        names = [name for name, _ in weights.layers(model)]
        blocks = [n for n in names if any(n.startswith(f"{block}.") for block in blocks)]
        return brecq.quantize(model, inputs, blocks, *bits, **schedule)
    if method == "blocks":
        return brecq.quantize(model, inputs, blocks, *bits, **schedule)
    if method == "blocks, Fisher":
        return brecq.quantize(model, inputs, blocks, *bits, importance=scaled_fisher, **schedule)
    raise ValueError(f"method={method!r} is unknown; RUNS names those there are")


def scaled_fisher(model, _, name, inputs):
    """The exact diagonal, divided by its mean: the scale does not move the minimum."""
    fisher = brecq.fisher_diagonal(model, name, inputs)
    return fisher / fisher.mean()


def calibration(images, count, seed):
    """-> ``count`` of the images [n, 32, 32, 3] as model input, drawn from a seed"""
    chosen = np.random.default_rng(seed).permutation(len(images))[:count]
    return resnet20.normalise(images[chosen])


def measure(model, quantized, seen, test, labels, *, block=BLOCKS[-1]):
    """-> accuracy in percent, KL from the real model in nats, relative output errors of ``block``.

    seen, test: model inputs; the errors are those on the calibration images and on the others.
    """
    with torch.no_grad():
        real = F.log_softmax(reconstruction.run(model, test), dim=1)
        found = F.log_softmax(reconstruction.run(quantized, test), dim=1)

    def error(inputs):
        wanted, got = (brecq.cache(m, block, inputs)[1] for m in (model, quantized))
        return float(((wanted - got) ** 2).sum() / (wanted**2).sum())

    return {
        "accuracy": 100 * float((found.argmax(1) == torch.as_tensor(labels)).double().mean()),
        "divergence": float(F.kl_div(found, real, log_target=True, reduction="batchmean")),
        "error_seen": error(seen),
        "error_fresh": error(test[: len(seen)]),
    }


def main():
    start = time.time()
    (images, _), (fresh, labels) = cifar10("train"), cifar10("test")
    test, labels = resnet20.normalise(fresh[:TEST]), labels[:TEST]
    model = resnet20.load()
    real = reconstruction.run(model, test).argmax(1) == torch.as_tensor(labels)
    rows = []
    for method, weight_bits, act_bits, seed in RUNS:
        began = time.process_time()
        seen = calibration(images, CALIBRATION, seed)
        quantized = quantize(method, model, seen, weight_bits, act_bits, seed=seed, **SCHEDULE)
        row = {"method": method, "weight_bits": weight_bits, "act_bits": act_bits, "seed": seed}
        row |= measure(model, quantized, seen, test, labels)
        row["seconds"] = round(time.process_time() - began, 1)
        rows.append(row)
        recorded.save(
            "block_reconstruction",
            {"real_accuracy": 100 * float(real.double().mean()), "runs": rows},
            command="python -m qbook.experiments.block_reconstruction",
            seeds=sorted({row["seed"] for row in rows}),
            seconds=time.time() - start,
            calibration_images=CALIBRATION,
            test_images=TEST,
            schedule=SCHEDULE,
        )


if __name__ == "__main__":
    main()
