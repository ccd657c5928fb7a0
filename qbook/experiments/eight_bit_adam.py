"""8-bit Adam: the character GPT trained with moments in several codes, one scale or many.

Every arm starts from the same weights and sees the same batches; nothing is tuned.  Trainings are
short and judged on the first windows of the held-out text.  Book: 5.2
Run: ``python -m qbook.experiments.eight_bit_adam``.
"""

import time

import numpy as np
import torch

from qbook.experiments import from_scratch, recorded
from qbook.formats import INT8, Format
from qbook.formats.dynamic import DYNAMIC, DYNAMIC_UNSIGNED
from qbook.models import char_gpt
from qbook.training import adam8bit

# Equal steps from 0 to the largest: the linear code of numbers without a sign.
UINT8 = Format("UINT8", 8, np.arange(256))
DYNAMIC_CODES = {"first": DYNAMIC, "second": DYNAMIC_UNSIGNED}
LINEAR_CODES = {"first": INT8, "second": UINT8}
EXACT = {"first": None, "second": None}
# name: (are the moments of embeddings in float32, what differs from AdamW8bit's defaults)
ARMS = {
    "float32": (True, EXACT),
    "8-bit": (True, DYNAMIC_CODES),
    "linear": (True, LINEAR_CODES),
    "embeddings too": (False, DYNAMIC_CODES),
    "one scale": (True, DYNAMIC_CODES | {"group_size": None}),
    "linear first": (True, DYNAMIC_CODES | {"first": INT8}),
}
RECIPE = {"steps": 160, "batch_size": 4}
SEEDS, WINDOWS = (0,), 100


def make_optimizer(name):
    """Arm -> function model -> AdamW8bit with the groups and constants of ``char_gpt.adamw``.

    Raises ValueError for an unknown arm.
    """
    if name not in ARMS:
        raise ValueError(f"arm {name!r} is not known; choose one of {', '.join(ARMS)}")
    spared, stored = ARMS[name]

    def make(model):
        tables = {
            p for m in model.modules() if isinstance(m, torch.nn.Embedding) for p in m.parameters()
        }
        groups = []
        for group in char_gpt.adamw(model).param_groups:
            inside = [p for p in group["params"] if p in tables]
            outside = [p for p in group["params"] if p not in tables]
            groups.append(group | {"params": outside} | stored)
            groups.append(group | {"params": inside} | (EXACT if spared else stored))
        return adam8bit.AdamW8bit([group for group in groups if group["params"]])

    return make


def run(name, *, seeds=SEEDS, **recipe):
    """Arm -> rows of ``from_scratch.run`` with the bytes of the moments and their shares of zeros.

    A training that ends in a gradient of NaN or infinity has validation None and the step reached.
    """

    def watch(optimizer):
        states = list(optimizer.state.values())
        return {
            "bytes": adam8bit.stored_bytes(optimizer),
            "zeros": {moment: zeros(states, moment) for moment in ("first", "second")},
        }

    return from_scratch.run_watched(
        None, make_optimizer(name), watch, seeds=seeds, **(RECIPE | recipe)
    )


def zeros(states, moment):
    """States of an optimizer -> the share of zeros among all elements of "first" or "second"."""
    values = torch.cat([adam8bit.load(state[moment]).flatten() for state in states])
    return round((values == 0).double().mean().item(), 5)


def main():
    start, held_out, results = time.time(), char_gpt.windows("validation", WINDOWS), {}
    torch.set_num_threads(1)
    for name in ARMS:
        results[name] = run(name, judge=lambda model: char_gpt.cross_entropy(model, held_out))
        print(name, results[name][0]["validation"], results[name][0]["seconds"], flush=True)
        # After every arm: an interrupted run leaves those that are complete.
        recorded.save(
            "eight_bit_adam",
            results,
            command="python -m qbook.experiments.eight_bit_adam",
            seeds=SEEDS,
            seconds=time.time() - start,
            windows=WINDOWS,
            **RECIPE,
        )


if __name__ == "__main__":
    main()
