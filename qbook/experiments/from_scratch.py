"""The character GPT trained anew, the same short way each time: what other arithmetic costs.

Same first weights, same batches, same schedule; only layers or optimizer differ.  Half as long a
training as the shipped model's, without dropout.  Book: 5.2, 5.3
Run: ``python -m qbook.experiments.from_scratch``, the training in float32 that others are held to;
``python -m qbook.experiments.from_scratch faster`` (``fastest``, ``beyond``), the same at two
(four, eight) times the learning rate.
"""

import math
import sys
import time

import torch

from qbook.experiments import recorded
from qbook.models import char_gpt

RECIPE = {"steps": 1500, "batch_size": 16, "dropout": 0.0}
SEEDS = (0, 1)
ARMS = {
    "": {},
    "faster": {"learning_rate": 2 * char_gpt.LEARNING_RATE, "seeds": (0,)},
    "fastest": {"learning_rate": 4 * char_gpt.LEARNING_RATE, "seeds": (0,)},
    "beyond": {"learning_rate": 8 * char_gpt.LEARNING_RATE, "seeds": (0,)},
}


def run(prepare=None, make_optimizer=None, *, seeds=SEEDS, judge=None, report=None, **recipe):
    """-> list of rows, dicts: seed, training [[step, loss]], validation cross-entropy, seconds

    prepare, make_optimizer, recipe: as in ``char_gpt.train``; the recipe replaces ``RECIPE``'s
    judge: function model -> float; None: cross-entropy on all validation windows
    """
    held_out = char_gpt.windows("validation")
    judge = judge or (lambda model: char_gpt.cross_entropy(model, held_out))
    rows = []
    for seed in seeds:
        start, losses = time.time(), []
        model = char_gpt.train(
            seed,
            prepare=prepare,
            make_optimizer=make_optimizer,
            report=lambda step, loss: losses.append([step, round(loss, 4)]),  # noqa: B023
            **(RECIPE | recipe),
        )
        row = {
            "seed": seed,
            "training": losses,
            "validation": round(judge(model), 4),
            "seconds": round(time.time() - start),
        }
        rows.append(row)
        if report:
            report(row, model)
    return rows


def run_watched(prepare, make_optimizer, watch, *, seeds, **recipe):
    """Trainings that may diverge, one a seed -> rows of ``run`` with "steps" and what was watched

    watch: function optimizer -> dict of what its states look like at the end
    A training whose optimizer refuses a gradient of NaN or infinity ends there: its validation is
    None, its list of losses empty, and "steps" says how many were made.
    """
    rows = []
    for seed in seeds:
        optimizers, start = [], time.time()

        def make(model, optimizers=optimizers):
            optimizers.append(make_optimizer(model))
            return optimizers[-1]

        try:
            rows += run(prepare, make, seeds=(seed,), **recipe)
        except ValueError:
            if not optimizers or gradients_are_finite(optimizers[-1]):
                raise
            seconds = round(time.time() - start)
            rows.append({"seed": seed, "training": [], "validation": None, "seconds": seconds})
        if rows[-1]["validation"] is not None and not math.isfinite(rows[-1]["validation"]):
            rows[-1]["validation"] = None
        states = optimizers[-1].state.values()
        rows[-1]["steps"] = min(state["step"] for state in states)
        rows[-1] |= watch(optimizers[-1])
    return rows


def gradients_are_finite(optimizer):
    """-> does no parameter of the optimizer have a gradient with NaN or infinity?"""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    return all(bool(torch.isfinite(p.grad).all()) for p in params if p.grad is not None)


def main():
    arm = sys.argv[1] if len(sys.argv) > 1 else ""
    if arm not in ARMS:
        sys.exit(f"ARM={arm!r} is unknown; leave it out, or choose {', '.join(filter(None, ARMS))}")
    start, settings = time.time(), {"seeds": SEEDS} | ARMS[arm]
    rows = run(report=lambda row, _: print(row["seed"], row["validation"], flush=True), **settings)
    path = recorded.save(
        "_".join(filter(None, ("from_scratch", arm))),
        rows,
        command=f"python -m qbook.experiments.from_scratch {arm}".strip(),
        seconds=time.time() - start,
        **RECIPE | settings,
    )
    print(path.name)


if __name__ == "__main__":
    main()
