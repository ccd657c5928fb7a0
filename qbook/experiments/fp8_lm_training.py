"""FP8-LM on one device: the character GPT trained on optimizer states of 8 and 16 bits.

Every arm starts from the weights of ``from_scratch`` and sees its batches; nothing is tuned.  The
ablation takes out one decision at a time, in shorter trainings.  Book: 5.2
Run: ``python -m qbook.experiments.fp8_lm_training``.
"""

import time

import torch

from qbook.experiments import from_scratch, recorded
from qbook.models import char_gpt
from qbook.training.fp8_adam import FP8AdamW, stored_bytes
from qbook.training.scaled_tensor import load

E4M3, FP32 = torch.float8_e4m3fn, torch.float32
EXACT = {"master": FP32, "gradient": FP32, "first": FP32, "second": FP32}
# name: (FP8 in the Linears, what differs from FP8AdamW's defaults)
ARMS = {
    "float32": (False, EXACT),
    "FP8-LM": (True, {}),
    "second E4M3": (False, {"second": E4M3}),
    "master E4M3": (False, {"master": E4M3}),
    "no scales": (False, {"scaled": False}),
    "moments as printed": (False, EXACT | {"first": E4M3, "second": E4M3, "scaled": False}),
}
# This arm is trained as long as ``from_scratch`` trains; all are trained this short, and judged on
# the first windows only.
LONG, SHORT, WINDOWS = "FP8-LM", {"steps": 120, "batch_size": 8}, 200


def make_optimizer(**stored):
    """-> function model -> FP8AdamW with the groups and constants of ``char_gpt.adamw``."""

    def make(model):
        return FP8AdamW(char_gpt.adamw(model).param_groups, **stored)

    return make


def run(name, *, seeds=(0,), **recipe):
    """Arm -> rows of ``from_scratch.run``, with bytes and shares of zeros of what was stored last.

    steps: how many were made.  A training whose gradient becomes NaN ends there: its validation is
    None, its list of losses empty.  Raises ValueError for an unknown arm.
    """
    if name not in ARMS:
        raise ValueError(f"arm {name!r} is not known; choose one of {', '.join(ARMS)}")
    in_fp8, stored = ARMS[name]

    def watch(optimizer):
        return {"zeros": zeros(optimizer), "bytes": stored_bytes(optimizer)}

    return from_scratch.run_watched(
        convert if in_fp8 else None, make_optimizer(**stored), watch, seeds=seeds, **recipe
    )


def convert(model):
    """model -> a copy whose Linears multiply in FP8, except the last, which makes the logits."""
    from qbook.training import fp8_linear

    return fp8_linear.convert(model, recipe="current", skip=("head",))


def zeros(optimizer):
    """-> {"master": share of stored zeros, ...} over all elements of all parameters."""
    states = list(optimizer.state.values())
    shares = {}
    for name in ("master", "gradient", "first", "second"):
        found = torch.cat([(load(state[name]) == 0).flatten() for state in states])
        shares[name] = round(found.float().mean().item(), 5)
    return shares


def main():
    start, held_out = time.time(), char_gpt.windows("validation", WINDOWS)
    results = {"long": {LONG: run(LONG, seeds=from_scratch.SEEDS)}, "short": {}}
    print(LONG, [row["validation"] for row in results["long"][LONG]], flush=True)

    def judge(model):
        return char_gpt.cross_entropy(model, held_out)

    for name in ARMS:
        results["short"][name] = run(name, judge=judge, **SHORT)
        print(name, results["short"][name][0]["validation"], flush=True)
    path = recorded.save(
        "fp8_lm_training",
        results,
        command="python -m qbook.experiments.fp8_lm_training",
        seeds=from_scratch.SEEDS,
        seconds=time.time() - start,
        short=SHORT | {"windows": WINDOWS},
        **from_scratch.RECIPE,
    )
    print(path.name)


if __name__ == "__main__":
    main()
