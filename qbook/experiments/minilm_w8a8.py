"""MiniLM with 8-bit weights and inputs: plain, vector-wise, LLM.int8() and SmoothQuant on SST-2.

Xiao et al. 2023, arXiv:2211.10438, table 2 (levels O1 to O3); Dettmers et al. 2022,
arXiv:2208.07339.  Book: 5.4
Run: ``python -m qbook.experiments.minilm_w8a8``

Sentences of the train split: the first 3000 train the probe, 512 others calibrate, 128 others
choose alpha by how far their embeddings move; the dev split is judged once an arm.
"""

import time
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from qbook.experiments import recorded, sst2_probe
from qbook.llm import llm_int8, smoothquant

CALIBRATED, CHOSEN = slice(3000, 3512), slice(4000, 4128)
ALPHAS = (0, 0.35, 0.5, 0.65, 0.8)
# Linears that share an input.  The paper smooths the inputs of attention and MLP, "norms".
QKV = ("attention.self.query", "attention.self.key", "attention.self.value")
PARTS = {
    "norms": (QKV, ("intermediate.dense",)),
    "all": (QKV, ("attention.output.dense",), ("intermediate.dense",), ("output.dense",)),
}
WEIGHTS = {"tensor": False, "row": True}
# What is smoothed, and the scales of the weights.
SMOOTHED = (("norms", "tensor"), ("norms", "row"), ("all", "row"))


class Task(NamedTuple):
    """calibrate(model) runs it on sentences; moved(model) -> mean squared movement of embeddings
    in thousandths;  right(model) -> bool [sentences], what a probe sorts right of the dev split
    """

    model: Any
    calibrate: Any
    moved: Any
    right: Any


def task(sentences=None, calibrated=None, chosen=None, probed=3000):
    """MiniLM and its sentences; the arguments cut the splits down.  Raises ``DataUnavailable``."""
    from qbook.data import sst2
    from qbook.models import minilm

    model = minilm.load()
    texts, _ = sst2("train")
    probe, (held_out, answers) = sst2_probe.fit(model, probed), sst2_probe.held_out(sentences)
    for_alpha = texts[CHOSEN][:chosen]
    before = model.encode(for_alpha)
    return Task(
        model,
        # One sentence a batch: no padding is calibrated on.
        lambda m: m.encode(texts[CALIBRATED][:calibrated], batch_size=1),
        lambda m: 1000 * float((m.encode(for_alpha) - before).pow(2).sum(dim=1).mean()),
        lambda m: probe.predict(m.encode(held_out).numpy()) == answers,
    )


def groups(part):
    """A name of ``PARTS`` -> groups for ``smoothquant.smooth``: post-LN BERT divides its inputs"""
    return [
        (None, [f"encoder.layer.{i}.{name}" for name in names])
        for i in range(6)
        for names in PARTS[part]
    ]


def compare(before, after):
    """bool [sentences], right or not, without and with rounding -> dict: accuracy and difference in
    points, its standard error (each sentence a draw of -1, 0 or 1), sentences lost and won
    """
    change = after.astype(int) - before
    return {
        "accuracy": round(100 * float(after.mean()), 2),
        "difference": round(100 * float(change.mean()), 2),
        "error": round(100 * float(change.std() / np.sqrt(len(change))), 2),
        "lost": int((change < 0).sum()),
        "won": int((change > 0).sum()),
    }


def smoothed(data, part, alphas, maxima):
    """-> generator of (alpha, smoothed model, its own maxima); maxima: those of the real model"""
    for alpha in alphas:
        pairs = groups(part)
        model = smoothquant.smooth(data.model, pairs, maxima, alpha)
        own = dict(maxima)
        for name in (name for _, readers in pairs for name in readers):
            # The function stays: what was seen once need not be seen again.
            own[f"{name}.linear"] = own.pop(name) * model.get_submodule(name).reciprocal
        yield alpha, model, own


def rounded(model, level, rows, x_maxima):
    """-> the model in W8A8;  rows: a name of ``WEIGHTS``"""
    return smoothquant.simulate(model, level, x_maxima=x_maxima, per_row=WEIGHTS[rows])


def plain(data, real, maxima):
    """What there is without smoothing -> generator of (name, ``compare`` and "moved")

    real: bool [sentences], what the real model has right;  maxima: of its inputs
    """
    models = {
        f"plain {level} {rows}": partial(rounded, data.model, level, rows, maxima)
        for rows in WEIGHTS
        for level in smoothquant.LEVELS
    }
    models["vector-wise"] = partial(llm_int8.simulate, data.model, threshold=None)
    models["LLM.int8()"] = partial(llm_int8.simulate, data.model)
    for name, make in models.items():
        model = make()
        yield name, compare(real, data.right(model)) | {"moved": round(data.moved(model), 3)}


def sweep(data, part, rows, maxima, alphas=ALPHAS):
    """-> dict: "part level rows" -> how far embeddings of train sentences move, for each alpha"""
    moved = {f"{part} {level} {rows}": [] for level in smoothquant.LEVELS}
    for _, model, own in smoothed(data, part, alphas, maxima):
        for level in smoothquant.LEVELS:
            distance = data.moved(rounded(model, level, rows, own))
            moved[f"{part} {level} {rows}"].append(round(distance, 3))
    return moved


def judged(data, real, moved, maxima, alphas=ALPHAS):
    """A dict as ``sweep`` returns it -> generator of (name, ``compare``, "moved" and "alpha"):
    "smooth ..." at 1/2, "tuned ..." where embeddings of train sentences moved least
    """
    for key, values in moved.items():
        part, level, rows = key.split()
        best = alphas[int(np.argmin(values))]
        found = {}
        for alpha, model, own in smoothed(data, part, sorted({0.5, best}), maxima):
            arm = compare(real, data.right(rounded(model, level, rows, own)))
            found[alpha] = arm | {"moved": values[alphas.index(alpha)], "alpha": alpha}
        yield f"smooth {key}", found[0.5]
        yield f"tuned {key}", found[best]


def main():
    torch.set_num_threads(1)
    start, data = time.time(), task()
    real, maxima = data.right(data.model), smoothquant.maxima(data.model, data.calibrate)
    results = {"float": round(100 * float(real.mean()), 2), "moved": {}}
    results["arms"] = dict(plain(data, real, maxima))
    for part, rows in SMOOTHED:
        moved = sweep(data, part, rows, maxima)
        results["moved"] |= moved
        results["arms"] |= dict(judged(data, real, moved, maxima))
    path = recorded.save(
        "minilm_w8a8",
        results,
        command="python -m qbook.experiments.minilm_w8a8",
        seeds=[],
        seconds=time.time() - start,
        sentences=872,
        calibrated=512,
        chosen=128,
        alphas=ALPHAS,
    )
    print(path.name)


if __name__ == "__main__":
    main()
