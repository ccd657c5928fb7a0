"""How often to quantize activations while roundings are learnt: many seeds on a small network.

The digits network of three residual blocks, at two widths of activations and two calibration sizes.
Wei et al. 2022, arXiv:2203.05740, ask the same of ImageNet models.  Book: 4.3

``python -m qbook.experiments.dropped_quantization`` writes the record.
"""

import time

import numpy as np
import torch

from qbook.data import digits
from qbook.experiments import block_reconstruction as experiment
from qbook.experiments import recorded

METHODS = ("layers", "blocks", "blocks, Fisher", *(f"qdrop {p}" for p in (0, 0.25, 0.5, 0.75)))
LONGER = ("layers", "blocks", "qdrop 0.5", "qdrop 0.75")
ACT_BITS, CALIBRATION, SEEDS = (4, 2), (256, 32), (0, 1, 2, 3, 4)
SCHEDULE = {"steps": 100, "learning_rate": 0.03, "batch_size": 32}


def run(model, method, act_bits, count, seed, **schedule):
    """-> what ``block_reconstruction.measure`` says of one run with two-bit weights, a dict"""
    (images, _), (test, labels) = digits()
    images, test = torch.from_numpy(images).double(), torch.from_numpy(test).double()
    seen = images[np.random.default_rng(seed).permutation(len(images))[:count]]
    quantized = experiment.quantize(
        method, model, seen, 2, act_bits, blocks=["2", "3", "4"], seed=seed, **schedule
    )
    return experiment.measure(model, quantized, seen, test, labels, block="4")


def sweep(name, methods, act_bits, counts, **schedule):
    """Run everything named for every seed, and record it under ``name``."""
    start = time.time()
    model = experiment.digits_network()
    rows = []
    for bits in act_bits:
        for count in counts:
            for seed in SEEDS:
                for method in methods:
                    row = {"method": method, "act_bits": bits, "images": count, "seed": seed}
                    rows.append(row | run(model, method, bits, count, seed, **schedule))
    recorded.save(
        name,
        rows,
        command="python -m qbook.experiments.dropped_quantization",
        seeds=SEEDS,
        seconds=time.time() - start,
        schedule=schedule,
    )


def main():
    sweep("dropped_quantization", METHODS, ACT_BITS, CALIBRATION, **SCHEDULE)
    # Is it the number of steps?
    long = SCHEDULE | {"steps": 400}
    sweep("dropped_quantization_long", LONGER, (4,), (256,), **long)


if __name__ == "__main__":
    main()
