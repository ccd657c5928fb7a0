"""Searches for the width of each layer, beside the trial of every assignment.

A 64-32-32-10 network on scikit-learn's digits has three layers of weights and three widths to
choose from: 27 assignments, few enough to try them all and see what a search misses.
DNAS: Wu et al. 2018, arXiv:1812.00090; EdMIPS: Cai & Vasconcelos 2020, arXiv:2004.05795.  Book: 3.3

    python -m qbook.experiments.width_search

searches in three networks, trains every assignment in each, and records what it found.
"""

import itertools
import time
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from qbook.data import digits
from qbook.experiments import recorded
from qbook.mixed import dnas, edmips, supernet

WIDTHS = (2, 4, 8)
SHAPE = (64, 32, 32, 10)
COUNTS = [i * o for i, o in itertools.pairwise(SHAPE)]
ASSIGNMENTS = list(itertools.product(WIDTHS, repeat=len(COUNTS)))
# DNAS: the exponent gamma.  EdMIPS: eta for a thousand bits.
PRICES = {"DNAS": (0, 1, 2, 4, 8, 16, 32), "EdMIPS": (0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)}
# Of the 1437 training images the first train weights; in training DNAS keeps the rest for theta.
FIT, HELD_OUT = (0, 1149), (1149, 1437)


class Found(NamedTuple):
    """widths: of the layers;  shares: [layer, width], softmax of the logits at the end;
    mixture, chosen: cross-entropy on the training images of the super-net with these shares, and
    of its weights rounded to the widths, not trained again"""

    widths: tuple
    shares: torch.Tensor
    mixture: float
    chosen: float


def images():
    """-> (train images, labels), (test images, labels): float64 and int64 torch tensors"""
    return tuple((torch.from_numpy(x).double(), torch.from_numpy(y)) for x, y in digits())


def logits(x, w, b):
    """x [n, 64], weights and biases of the three layers -> [n, 10]"""
    for k, (matrix, bias) in enumerate(zip(w, b, strict=True)):
        x = torch.relu(x) if k else x
        x = x @ matrix.T + bias
    return x


def rounded(w, widths):
    """-> weights at these widths, straight-through"""
    return [supernet.copies(v, [bits])[0] for v, bits in zip(w, widths, strict=True)]


def mixed(w, shares):
    """-> weights of the super-net: mixtures of their copies, shares [layer, width]"""
    return [
        supernet.mix(supernet.copies(v, WIDTHS), share) for v, share in zip(w, shares, strict=True)
    ]


def size(widths):
    """Bits of all weights."""
    return sum(n * bits for n, bits in zip(COUNTS, widths, strict=True))


def objective(method, task, bits, price):
    """What a method minimizes: task loss and size of the weights, tensors, at a price."""
    if method == "DNAS":
        return dnas.loss(task, bits, np.log(size([8, 8, 8])) ** -price, price)
    return edmips.loss(task, bits, price / 1000)


def best(method, price, task):
    """task: dict, assignment -> loss.  -> the assignment of least objective: the truth."""
    return min(
        task,
        key=lambda a: objective(method, task[a], torch.tensor(size(a)).double(), price).item(),
    )


def network(seed):
    """-> w, b of a network trained for 400 steps without quantization"""
    rng = np.random.default_rng(seed)
    w = [rng.normal(size=(o, i)) * np.sqrt(2 / i) for i, o in itertools.pairwise(SHAPE)]
    b = [torch.zeros(o, dtype=torch.float64) for o in SHAPE[1:]]
    return train([torch.from_numpy(v) for v in w], b, None, seed, steps=400)


def train(w, b, widths, seed, steps=60):
    """-> w, b after SGD; the weights are rounded to these widths in the loop, None: not."""
    w, b = _leaves(w), _leaves(b)
    (x, y), _ = images()
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.SGD([*w, *b], lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        batch = _draw(rng, FIT)
        optimizer.zero_grad()
        out = logits(x[batch], w if widths is None else rounded(w, widths), b)
        cross_entropy(out, y[batch]).backward()
        optimizer.step(), schedule.step()
    return [v.detach() for v in w], [v.detach() for v in b]


@torch.no_grad()
def scores(w, b, data):
    """w as it is -> cross-entropy and accuracy in %"""
    x, y = data
    out = logits(x, w, b)
    return cross_entropy(out, y).item(), 100 * (out.argmax(1) == y).double().mean().item()


def search(method, price, w, b, seed, *, steps=200):
    """The weights stay; every step learns the logits from all training images -> Found."""
    (x, y), _ = images()
    theta, masks = _logits_and_masks(method, seed, steps)
    optimizer = torch.optim.Adam([theta], lr=0.05)
    branches = [supernet.copies(v, WIDTHS) for v in w]
    for step in range(steps):
        shares = masks(step)
        weights = [supernet.mix(c, share) for c, share in zip(branches, shares, strict=True)]
        loss = cross_entropy(logits(x, weights, b), y)
        optimizer.zero_grad()
        objective(method, loss, dnas.size(shares, COUNTS, WIDTHS), price).backward()
        optimizer.step()
    return _found(theta, w, b)


def search_and_train(method, price, w, b, seed, *, steps=200, theta_from=HELD_OUT):
    """The weights learn, too -> Found.

    EdMIPS: weights and logits from one loss.  DNAS: in turns, theta from images of its own; with
    ``theta_from=FIT`` from those that train the weights.
    """
    w, b = _leaves(w), _leaves(b)
    (x, y), _ = images()
    rng = np.random.default_rng(seed)
    theta, masks = _logits_and_masks(method, seed, steps)
    of_theta = torch.optim.Adam([theta], lr=0.05)
    of_weights = torch.optim.SGD([*w, *b], lr=0.1, momentum=0.9)
    turns = {"EdMIPS": [(FIT, (of_theta, of_weights))]}
    turns["DNAS"] = [(FIT, [of_weights]), (theta_from, [of_theta])]
    for step in range(steps):
        for part, optimizers in turns[method]:
            batch, shares = _draw(rng, part), masks(step)
            loss = cross_entropy(logits(x[batch], mixed(w, shares), b), y[batch])
            of_theta.zero_grad(), of_weights.zero_grad()
            objective(method, loss, dnas.size(shares, COUNTS, WIDTHS), price).backward()
            for optimizer in optimizers:
                optimizer.step()
    return _found(theta, [v.detach() for v in w], [v.detach() for v in b])


def study(seed, *, prices=PRICES, orders=3):
    """One network: all assignments and all searches, with its weights fixed and in training.

    -> dict that JSON can hold.  orders: of minibatches, for the training of every assignment.
    """
    data, test = images()
    w, b = network(seed)
    fixed = {a: scores(rounded(w, a), b, data)[0] for a in ASSIGNMENTS}
    trained = {a: [] for a in ASSIGNMENTS}
    for a, order in itertools.product(ASSIGNMENTS, range(orders)):
        its_w, its_b = train(w, b, a, 100 + order)
        trained[a].append(scores(rounded(its_w, a), its_b, test))
    runs = [
        {"method": method, "price": price, "weights": kind} | _plain(run(method, price, w, b, seed))
        for kind, run in (("fixed", search), ("trained", search_and_train))
        for method, of_method in prices.items()
        for price in of_method
    ]
    control = search_and_train("DNAS", 0, w, b, seed, theta_from=FIT)
    return {
        "seed": seed,
        "fixed": [fixed[a] for a in ASSIGNMENTS],
        "trained": [np.mean(trained[a], axis=0).tolist() for a in ASSIGNMENTS],
        "trained_spread": [np.std(trained[a], axis=0, ddof=1).tolist() for a in ASSIGNMENTS],
        "unquantized": scores(w, b, test),
        "runs": runs,
        # DNAS without a price, its theta from the images that train the weights.
        "control": _plain(control),
    }


def main(seeds=(0, 1, 2)):
    torch.set_num_threads(1)
    start = time.perf_counter()
    studies = [study(seed) for seed in seeds]
    command = "python -m qbook.experiments.width_search"
    seconds = time.perf_counter() - start
    recorded.save("width_search", studies, command=command, seeds=seeds, seconds=seconds)


def _leaves(values):
    return [v.detach().clone().requires_grad_() for v in values]


def _draw(rng, part):
    return torch.from_numpy(rng.integers(*part, size=128))


def _logits_and_masks(method, seed, steps):
    """-> the logits [layer, width], and a function of the step that gives the shares."""
    theta = torch.full((len(COUNTS), len(WIDTHS)), edmips.FIRST_LOGIT, dtype=torch.float64)
    theta.requires_grad_()
    generator = torch.Generator().manual_seed(seed)

    def masks(step):
        if method == "EdMIPS":
            return edmips.shares(theta)
        noise = dnas.gumbel(theta.shape, generator)
        return dnas.relax(theta, noise, dnas.anneal(step, 5.0, 4.0 / steps))

    return theta, masks


def _found(theta, w, b):
    data, _ = images()
    widths, shares = tuple(supernet.choose(theta, WIDTHS)), torch.softmax(theta.detach(), -1)
    mixture, chosen = (scores(v, b, data)[0] for v in (mixed(w, shares), rounded(w, widths)))
    return Found(widths, shares, mixture, chosen)


def _plain(found):
    return found._asdict() | {"shares": found.shares.tolist()}


if __name__ == "__main__":
    main()
