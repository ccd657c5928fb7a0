"""Training the digits classifier with 16-bit stores: with and without master copy, loss scaling.

Micikevicius et al. 2018, arXiv:1710.03740, sections 3.1-3.3.  Book: 3.3
Run: ``python -m qbook.experiments.mixed_precision``
"""

import time
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from qbook.data import digits
from qbook.experiments import recorded
from qbook.training import half_precision, loss_scaling

SEEDS = (0, 1, 2)
FACTORS = tuple(2.0**-k for k in range(0, 25, 3))
RATES = tuple(2.0**-k for k in range(0, 15, 2))


class Arm(NamedTuple):
    """dtype of the stores, None: none;  master: float weights beside the 16-bit ones;  scaling"""

    dtype: torch.dtype | None
    master: bool
    scaling: bool


ARMS = {
    "FP32": Arm(None, True, False),
    "FP16": Arm(torch.float16, False, False),
    "FP16, master": Arm(torch.float16, True, False),
    "FP16, master, scaling": Arm(torch.float16, True, True),
    "BF16": Arm(torch.bfloat16, False, False),
    "BF16, master": Arm(torch.bfloat16, True, False),
}


def first_parameters(seed):
    """-> [w1, w2, b1, b2] float64 of an untrained 64-64-10 network, PyTorch's range for weights."""
    rng = np.random.default_rng(seed)
    w = [torch.from_numpy(rng.uniform(-1, 1, size=(out, 64)) / 8) for out in (64, 10)]
    return [*w, torch.zeros(64).double(), torch.zeros(10).double()]


def loss_of(parameters, images, labels, dtype=None):
    """Cross-entropy; with a dtype every tensor on the way is stored in it, sums are not."""
    store = (lambda x: x) if dtype is None else (lambda x: half_precision.store(x, dtype))
    w1, w2, b1, b2 = (store(p) for p in parameters)
    hidden = torch.relu(store(store(images) @ w1.T + b1))
    # The loss itself is computed wide, as in the paper (softmax reads and writes 16 bits).
    return cross_entropy(store(hidden @ w2.T + b2), labels)


def train(parameters, arm, data, *, rate, steps, seed=0, factor=1.0, batch=128, momentum=0.9):
    """SGD -> parameters, the loss scale of each step, share of updates of w1 that were lost.

    factor: multiplies the loss, and 1 / factor the learning rate: exact arithmetic would notice
    nothing.  A mean over n outputs in place of a sum is such a factor, 1 / n.
    batch:  None: all images in every step
    """
    images, labels = data
    rng = np.random.default_rng(100 + seed)
    narrow = arm.dtype if not arm.master else None
    if narrow:
        parameters = [half_precision.round_to(p, narrow) for p in parameters]
    velocity = [torch.zeros_like(p) for p in parameters]
    state = loss_scaling.LossScale() if arm.scaling else loss_scaling.LossScale(1.0)
    scales, lost = [], []
    for _ in range(steps):
        chosen = slice(None) if batch is None else rng.integers(0, len(images), batch)
        leaves = [p.detach().requires_grad_() for p in parameters]
        loss = loss_of(leaves, images[chosen], labels[chosen], arm.dtype)
        scaled = torch.autograd.grad(loss * (factor * state.scale), leaves)
        gradients, finite = loss_scaling.unscale(scaled, state.scale)
        scales.append(state.scale)
        if arm.scaling:
            state = loss_scaling.update(state, finite, growth_interval=20)
        if not finite:
            continue
        velocity = [momentum * v + g for v, g in zip(velocity, gradients, strict=True)]
        updates = [-rate / factor * v for v in velocity]
        if narrow:
            lost.append(half_precision.lost_share(parameters[0], updates[0], narrow))
            pairs = zip(parameters, updates, strict=True)
            parameters = [half_precision.add(p, u, narrow) for p, u in pairs]
        else:
            parameters = [p + u for p, u in zip(parameters, updates, strict=True)]
    return parameters, scales, float(np.mean(lost)) if lost else 0.0


def load_digits():
    """-> ((images, labels) to train on, (images, labels) to test), images float64."""
    return [(torch.from_numpy(x).double(), torch.from_numpy(y)) for x, y in digits()]


@torch.no_grad()
def evaluate(parameters, data):
    return loss_of(parameters, *data).item()


def sweep_factor(factors=FACTORS, seeds=SEEDS, steps=200):
    """-> {arm: [factor][seed] test cross-entropy after training from scratch}"""
    fit, test = load_digits()
    return {
        name: [
            [
                evaluate(
                    train(first_parameters(s), arm, fit, rate=0.1, steps=steps, seed=s, factor=f)[
                        0
                    ],
                    test,
                )
                for s in seeds
            ]
            for f in factors
        ]
        for name, arm in ARMS.items()
    }


def sweep_rate(rates=RATES, seeds=SEEDS, steps=30):
    """Gradient descent on all images from scratch -> {arm: [rate][seed] (progress, lost)}.

    progress: decrease of the training loss, relative to FP32's at the same rate
    lost:     share of the updates of w1 that left the weight as it was
    """
    fit, _ = load_digits()

    def decrease(arm, rate, seed):
        start = first_parameters(seed)
        if arm.dtype and not arm.master:
            start = [half_precision.round_to(p, arm.dtype) for p in start]
        after, _, lost = train(start, arm, fit, rate=rate, steps=steps, batch=None, momentum=0.0)
        return evaluate(start, fit) - evaluate(after, fit), lost

    reference = {(r, s): decrease(ARMS["FP32"], r, s)[0] for r in rates for s in seeds}
    results = {}
    for name in ("FP16", "FP16, master", "BF16", "BF16, master"):
        found = {key: decrease(ARMS[name], *key) for key in reference}
        results[name] = [
            [(found[r, s][0] / reference[r, s], found[r, s][1]) for s in seeds] for r in rates
        ]
    return results


def main():
    torch.set_num_threads(1)
    start = time.perf_counter()
    results = {
        "factors": FACTORS,
        "loss": sweep_factor(),
        "rates": RATES,
        "progress": sweep_rate(),
    }
    recorded.save(
        "mixed_precision",
        results,
        command="python -m qbook.experiments.mixed_precision",
        seeds=SEEDS,
        seconds=time.perf_counter() - start,
    )


if __name__ == "__main__":
    main()
