"""Every rounding method of the book on one real model, in one table: W8A8 down to W2.

``python -m qbook.experiments.all_methods MODEL`` with MODEL one of char_gpt, resnet20, separable,
minilm, digits.  A random method (its calibration data are drawn) is repeated with three seeds.
Book: 4.5
"""

import sys
import time
from typing import Any, NamedTuple

import numpy as np
import torch

from qbook.experiments import recorded, sst2_probe
from qbook.pipeline import report
from qbook.pipeline.quantize import quantize
from qbook.ranges.minmax import minmax

SEEDS = (0, 1, 2)
# Label -> keywords of ``qbook.quantize``.  Calibrated methods come last.
INPUTS = {
    "W8A8 static": {"bits": 8, "x_bits": 8, "x_estimate": minmax},
    "W8A8 dynamic": {"bits": 8, "x_bits": 8},
    "W4A8 dynamic": {"bits": 4, "x_bits": 8},
}
METHODS = {
    "nearest": {},
    "nearest, least squares": {"clip": "mse"},
    "GPTQ": {"method": "gptq"},
    "GPTQ, least squares": {"method": "gptq", "clip": "mse"},
    "AdaRound": {"method": "adaround", "steps": 500},
    "AdaRound, least squares": {"method": "adaround", "steps": 500, "clip": "mse"},
}
CHEAPER = ("nearest", "nearest, least squares", "GPTQ", "AdaRound")
WIDTHS = (8, 4, 3, 2)


class Subject(NamedTuple):
    """A model, how to draw calibration batches from a seed, and how to judge it.

    judge(model) -> a float;  unit: what it is;  max_samples: rows that a method sees
    """

    model: Any
    draw: Any
    judge: Any
    unit: str
    max_samples: int


def char_gpt(windows=400):
    from qbook.models import char_gpt

    held_out = char_gpt.windows("validation", windows)
    return Subject(
        char_gpt.load(),
        lambda seed: [char_gpt.windows("train", 128, seed=seed)[:, :-1]],
        lambda model: char_gpt.cross_entropy(model, held_out),
        "cross-entropy, nats a character",
        16384,
    )


def resnet20(images=2000):
    from qbook.models import resnet20

    return _on_cifar(resnet20.load(), images)


def separable(images=2000):
    from qbook.models import separable

    # Its classifier sees one row an image and has 192 inputs.
    return _on_cifar(separable.load(), images, calibrated=256)


def minilm(sentences=872):
    from qbook.data import sst2
    from qbook.models import minilm

    model = minilm.load()
    texts, _ = sst2("train")
    probe, (held_out, answers) = sst2_probe.fit(model), sst2_probe.held_out(sentences)

    def draw(seed):
        places = np.random.default_rng(seed).permutation(len(texts))[:160]
        ids = [torch.tensor(row) for row in minilm.tokenize([texts[i] for i in places])]
        # One length a batch: the encoder is called without padding.
        lengths = sorted({len(row) for row in ids})
        batches = [torch.stack([row for row in ids if len(row) == n]) for n in lengths]
        return [(batch, torch.ones_like(batch, dtype=torch.bool)) for batch in batches]

    def accuracy(model):
        found = probe.predict(model.encode(held_out).numpy())
        return 100 * float(np.mean(found == answers))

    return Subject(model, draw, accuracy, "accuracy on SST-2, %", 4096)


def digits():
    from qbook.data import digits
    from qbook.models import digits_mlp

    (images, _), (held_out, answers) = digits()
    held_out, answers = torch.from_numpy(held_out), torch.from_numpy(answers)

    def accuracy(model):
        with torch.no_grad():
            return 100 * float((model(held_out).argmax(dim=1) == answers).float().mean())

    def draw(seed):
        places = np.random.default_rng(seed).permutation(len(images))[:256]
        return [torch.from_numpy(images[places])]

    return Subject(digits_mlp.load(), draw, accuracy, "accuracy, %", 4096)


def _on_cifar(model, images, calibrated=128):
    from qbook.data import cifar10
    from qbook.models.resnet20 import normalise, predict

    pictures, _ = cifar10("train")
    held_out, answers = cifar10("test")
    held_out, answers = held_out[:images], answers[:images]

    def draw(seed):
        places = np.random.default_rng(seed).permutation(len(pictures))[:calibrated]
        return [normalise(pictures[places])]

    def accuracy(model):
        return 100 * float(np.mean(predict(model, held_out).numpy() == answers))

    return Subject(model, draw, accuracy, "accuracy, %", 4096)


def run(subject, settings, seeds=SEEDS, report=None):
    """settings: dict, label -> keywords of ``quantize`` -> list of rows, dicts.

    Each row: label, bytes of the stored model, judged [one a seed], seconds [one a seed].
    """
    rows = []
    for label, keywords in settings.items():
        calibrated = "method" in keywords or "x_estimate" in keywords
        row = {"label": label, "judged": [], "seconds": []}
        for seed in seeds if calibrated else seeds[:1]:
            quantized, counted = quantize(
                subject.model,
                subject.draw(seed) if calibrated else (),
                max_samples=subject.max_samples,
                seed=1000 * seed,
                **keywords,
            )
            row["bytes"] = counted.bytes
            row["judged"].append(round(subject.judge(quantized), 4))
            row["seconds"].append(round(counted.seconds, 1))
        rows.append(row)
        if report:
            report(row)
    return rows


def settings(widths=WIDTHS, methods=METHODS):
    """-> the table's rows: inputs and weights first, then weights alone, by width and method"""
    table = dict(INPUTS)
    for bits in widths:
        for method, keywords in methods.items():
            # At eight bits there is nothing left to recover.
            if bits < 8 or method == "nearest":
                table[f"W{bits} {method}"] = {"bits": bits, **keywords}
    return table


SUBJECTS = {f.__name__: f for f in (char_gpt, resnet20, separable, minilm, digits)}


def main():
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in SUBJECTS:
        sys.exit(f"MODEL={name!r} is unknown; choose from {', '.join(SUBJECTS)}")
    start, subject = time.time(), SUBJECTS[name]()
    real = round(subject.judge(subject.model), 4)
    print(f"{name}: real {real} {subject.unit}", flush=True)
    methods = METHODS
    if name == "minilm":
        # 36 wide layers take an hour: min-max scales and fewer steps for calibrated methods.
        methods = {label: METHODS[label] for label in CHEAPER}
        methods["AdaRound"] = {"method": "adaround", "steps": 200}
    rows = run(subject, settings(methods=methods), report=lambda row: print(row, flush=True))
    # Nothing in the real model is quantized: all of it is "kept".
    real_bytes = sum(report.kept(subject.model).values())
    path = recorded.save(
        f"all_methods_{name}",
        {"real": real, "unit": subject.unit, "bytes": real_bytes, "rows": rows},
        command=f"python -m qbook.experiments.all_methods {name}",
        seeds=SEEDS,
        seconds=time.time() - start,
    )
    print(path.name)


if __name__ == "__main__":
    main()
