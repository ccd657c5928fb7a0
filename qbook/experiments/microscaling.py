"""Microscaling in whole models: weights alone, and weights with inputs, down to four bits.

Every Linear of the character GPT and of MiniLM; embeddings and attention itself stay as they are.
INT8 and INT4 of chapter 3 stand beside MX and NVFP4; then the same with planted outliers, and with
a rotation before rounding.  Each arm sees the same samples, so that differences have small standard
errors.  Book: 5.8.  Run: ``python -m qbook.experiments.microscaling``
"""

import time
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from qbook import affine, granularity
from qbook.experiments import planted_outliers, recorded, sst2_probe
from qbook.formats import E2M1, E2M3, E4M3, microscaling
from qbook.llm import hadamard, nf4
from qbook.models import weights
from qbook.ptq import simulate

OUTLIERS, FACTOR = (5, 70), 64.0


class Subject(NamedTuple):
    """model, and judge(model) -> dict: measure -> [samples] float64 whose mean is reported"""

    model: Any
    judge: Any


def integers(bits, group_size=None):
    """-> function x [..., n] -> x_hat: symmetric codes with a scale, of float16, a row or group"""

    def rounded(x):
        rows = x.reshape(-1, x.shape[-1])
        qparams = affine.choose_qparams(rows, bits, axis=1, group_size=group_size)
        if group_size is not None:
            # Scales of groups are many; they are stored short.
            qparams = replace(qparams, scale=qparams.scale.half().float())
        return affine.fake_quantize(rows, qparams).reshape(x.shape)

    return rounded


def rotated(rounded, width, seed=0):
    """-> function x -> x_hat, rounded after a random Hadamard rotation of every ``width`` numbers

    Rotated back for the simulation: in hardware both operands stay rotated, as x q (w q)^T = x w^T.
    """
    q = hadamard.matrix(width, seed=seed).float()

    def function(x):
        turned = granularity.merge_groups(granularity.split_groups(x, width) @ q)
        return granularity.merge_groups(granularity.split_groups(rounded(turned), width) @ q.T)

    return function


mx = partial(partial, microscaling.fake_quantize)
# A scale for 64 neighbours, in float32.
normal_float = partial(nf4.fake_quantize, double=False)
# Label -> what rounds the weights.
WEIGHTS = {
    "INT8": integers(8),
    "INT4": integers(4),
    "INT4 g32": integers(4, 32),
    "INT4 g16": integers(4, 16),
    "NF4 g64": normal_float,
    "MXFP8": mx(fmt=E4M3),
    "MXFP6": mx(fmt=E2M3),
    "MXFP4": mx(fmt=E2M1),
    "MXFP4 even": mx(fmt=E2M1, mode="even"),
    "NVFP4": mx(),
}
# Label -> what rounds the weights, and the inputs.
BOTH = {
    label: (WEIGHTS[label], WEIGHTS[label])
    for label in (*("INT8", "INT4", "INT4 g32", "MXFP8", "MXFP6", "MXFP4", "MXFP4 even", "NVFP4"),)
} | {
    "MXFP8 rceil": (mx(fmt=E4M3, mode="rceil"),) * 2,
    "MXFP4 with MXFP8": (WEIGHTS["MXFP4"], WEIGHTS["MXFP8"]),
    "MXFP4 rotated 32": (rotated(WEIGHTS["MXFP4"], 32),) * 2,
    "MXFP4 rotated 128": (rotated(WEIGHTS["MXFP4"], 128),) * 2,
    "NVFP4 rotated 16": (rotated(WEIGHTS["NVFP4"], 16),) * 2,
    "NVFP4 rotated 128": (rotated(WEIGHTS["NVFP4"], 128),) * 2,
}

PLANTED = ("INT8", "INT4", "MXFP8", "MXFP6", "MXFP4", "NVFP4")
PLANTED += ("MXFP4 rotated 128", "NVFP4 rotated 16", "NVFP4 rotated 128")
ON_MINILM = ("INT8", "INT4", "INT4 g32", "MXFP8", "MXFP6", "MXFP4", "NVFP4")
ON_MINILM += ("NVFP4 rotated 16", "MXFP4 rotated 128", "MXFP4 with MXFP8")
QUARTER = 218


def apply(model, round_weight, round_input=None):
    """-> a copy whose Linears have rounded weights and, unless None, see rounded inputs"""
    matrices = {name: round_weight(w) for name, w in weights.weights(model).items()}
    made = weights.replace(model, matrices)
    if round_input is None:
        return made
    last = [None, None]

    def remembering(_, x):
        # Query, key and value are given one tensor.
        if x is not last[0]:
            last[:] = x, round_input(x)
        return last[1]

    return simulate.quantize_inputs(made, remembering)


def run(subject, weights_arms=WEIGHTS, both_arms=BOTH, report=None):
    """-> list of rows, dicts: label, inputs (whether rounded too), and measure -> its mean, the
    mean difference from the model as it was, and that difference's standard error
    """
    real = subject.judge(subject.model)
    arms = [("real", False, subject.model)]
    arms += [(label, False, (f,)) for label, f in weights_arms.items()]
    arms += [(label, True, pair) for label, pair in both_arms.items()]
    rows = []
    for label, inputs, how in arms:
        found = real if label == "real" else subject.judge(apply(subject.model, *how))
        row = {"label": label, "inputs": inputs}
        for measure, values in found.items():
            change = values - real[measure]
            error = change.std(ddof=1) / np.sqrt(len(change))
            numbers = (values.mean(), change.mean(), error)
            row[measure] = [float(f"{number:.5g}") for number in numbers]
        rows.append(row)
        if report:
            report(row)
    return rows


def char_gpt(windows=200, planted=False):
    """-> Subject judged by the loss of held-out windows, in nats a character

    planted: two channels of every LayerNorm's output, 5 and 70, are 64 times larger
    """
    from qbook.models import char_gpt

    ids = char_gpt.windows("validation", windows)
    model = char_gpt.load()
    if planted:
        model = planted_outliers.in_norms(model, OUTLIERS, FACTOR)

    def judge(model):
        return {"loss": char_gpt.losses(model, ids, batch_size=50).numpy()}

    return Subject(model, judge)


def minilm(sentences=872, training=3000):
    """-> Subject judged by SST-2 with a logistic probe on its embeddings, which stays as it is

    accuracy in %, and how far the embeddings, of length 1, moved: squared distance times 1000
    """
    from qbook.models import minilm

    model = minilm.load()
    probe, (held_out, answers) = sst2_probe.fit(model, training), sst2_probe.held_out(sentences)
    before = model.encode(held_out)

    def judge(model):
        vectors = model.encode(held_out)
        right = probe.predict(vectors.numpy()) == answers
        moved = (vectors - before).double().pow(2).sum(dim=1)
        return {"accuracy": 100.0 * right, "moved": 1000 * moved.numpy()}

    return Subject(model, judge)


def main():
    torch.set_num_threads(1)
    start, report = time.time(), partial(print, flush=True)
    results = {
        "char_gpt": run(char_gpt(), report=report),
        "planted": run(
            char_gpt(planted=True),
            {name: WEIGHTS[name] for name in ("INT8", "INT4", "MXFP4", "NVFP4")},
            {name: BOTH[name] for name in PLANTED},
            report=report,
        ),
        "minilm": run(minilm(), both_arms={}, report=report),
        # Rounding every input takes a minute for 872 sentences.
        "minilm_inputs": run(
            minilm(QUARTER), {}, {name: BOTH[name] for name in ON_MINILM}, report=report
        ),
    }
    path = recorded.save(
        "microscaling",
        results,
        command="python -m qbook.experiments.microscaling",
        seeds=[0],
        seconds=time.time() - start,
        windows=200,
        sentences=[872, QUARTER],
        outliers=list(OUTLIERS),
        factor=FACTOR,
    )
    print(path.name)


if __name__ == "__main__":
    main()
