"""BitNet on the character GPT: trained from scratch, rounded after training, and in between.

    float32   full precision, judged as it is and rounded to ternary weights by four rules; then
              trained on as b1.58, which is the survey's recipe
    ternary   b1.58 from scratch
    faster    the same at twice the learning rate;  fastest: at four times;  beyond: at eight times
    binary    BitNet, 1 bit, from scratch

First weights, batches and schedule as in ``from_scratch``, which has the same rates in float32; of
several rates that is to be preferred whose *training* loss ends lowest.  Book: 5.3
Run: ``python -m qbook.experiments.bitnet_training ARM``, five minutes a training on one core.
"""

import sys
import time

import torch

from qbook import metrics
from qbook.experiments import from_scratch, recorded
from qbook.inference import bit_linear
from qbook.inference.convert import convert, nbytes
from qbook.models import char_gpt, weights
from qbook.ptq import simulate
from qbook.qat import bitnet, twn

ARMS = {
    "float32": {"seeds": (0,)},
    "ternary": {"seeds": (0,), "bits": 1.58},
    "faster": {"seeds": (0,), "bits": 1.58, "learning_rate": 2 * char_gpt.LEARNING_RATE},
    "fastest": {"seeds": (0,), "bits": 1.58, "learning_rate": 4 * char_gpt.LEARNING_RATE},
    "beyond": {"seeds": (0,), "bits": 1.58, "learning_rate": 8 * char_gpt.LEARNING_RATE},
    "binary": {"seeds": (0,), "bits": 1},
}
SKIP = "head"
# Histogram of w / mean |w|: 60 bins from -3 to 3, the last of either side open.
BINS, END = 60, 3.0
# Steps from the weights of the float32 model; the other arms have three times as many.
CONTINUED = 500
# Windows that judge one layer at a time, and that layers are fed to measure their error.
FEW, FED = 100, 16


def absmean(w):
    codes, scale = bitnet.quantize(w)
    return scale * codes


def fixed_threshold(w):
    at = twn.threshold(w)
    return twn.scale(w, at) * twn.quantize(w, at)


def optimal(w):
    scale = twn.optimal_scale(w)
    return scale * twn.quantize(w, scale / 2)


def optimal_rows(w):
    scale = twn.optimal_scale(w, axis=1)
    return scale * twn.quantize(w, scale / 2)


# Weight [out, in] -> its ternary reconstruction; a scale for the matrix, but for the last.
RULES = {
    "absmean": absmean,
    "0.7 mean": fixed_threshold,
    "best": optimal,
    "best, rows": optimal_rows,
}


def run(arm, *, seeds=None, judge=None, report=None, **recipe):
    """arm of ``ARMS`` -> rows of ``from_scratch.run`` with what was measured on each model"""
    seeds = seeds or ARMS[arm]["seeds"]
    judge = judge or judged_by(char_gpt.windows("validation"))
    made = {name: value for name, value in ARMS[arm].items() if name == "bits"}
    rate = {name: value for name, value in ARMS[arm].items() if name == "learning_rate"}

    def measure(row, model):
        if made:
            row |= trained_codes(model, judge)
        else:
            row |= rounded_afterwards(model, judge)
            row["continued"] = continued(model, row["seed"], judge, **{"steps": CONTINUED} | recipe)
        row["histogram"] = histogram(model)
        if report:
            report(row, model)

    prepare = (lambda model: bitnet.convert(model, **made)) if made else None
    return from_scratch.run(prepare, seeds=seeds, judge=judge, report=measure, **rate | recipe)


def judged_by(held_out):
    return lambda model: char_gpt.cross_entropy(model, held_out)


def trained_codes(model, judge):
    """-> cross-entropy of the packed model, its bytes, and the share of zeros of each layer"""
    packed = {
        kind: convert(model, bit_linear.pack, skip=(SKIP,), packing=kind)
        for kind in ("2-bit", "base-3")
    }
    layers = [m for m in model.modules() if isinstance(m, bitnet.BitLinear)]
    return {
        "packed": {kind: round(judge(m), 4) for kind, m in packed.items()},
        "bytes": {kind: nbytes(m) for kind, m in packed.items()} | {"float32": nbytes(model)},
        "zeros": [round(float((m.codes()[0] == 0).float().mean()), 4) for m in layers],
    }


def rounded_afterwards(model, judge):
    """-> cross-entropy with ternary weights by each rule; error and harm of each layer alone"""
    matrices = {n: w for n, w in weights.weights(model).items() if n != SKIP}
    few = judged_by(char_gpt.windows("validation", FEW))
    fed = char_gpt.windows("validation", FED)[:, :-1]
    inputs = simulate.record(model, lambda m: m(fed))
    before, layers = few(model), {}
    for name, w in matrices.items():
        x = torch.cat(inputs[name]).flatten(0, -2)
        w_hat = optimal(w)
        layers[name] = {
            "weight": round(float(metrics.mse(w, w_hat) / w.square().mean()), 4),
            "output": round(
                float(metrics.mse(x @ w.T, x @ w_hat.T) / (x @ w.T).square().mean()), 4
            ),
            "harm": round(few(weights.replace(model, {name: w_hat})) - before, 4),
        }
    rounded = {
        rule: judge(weights.replace(model, {n: f(w) for n, w in matrices.items()}))
        for rule, f in RULES.items()
    }
    rounded["absmean, x in 8 bits"] = judge(bitnet.convert(model, norm=False))
    return {"rounded": {rule: round(value, 4) for rule, value in rounded.items()}, "layers": layers}


def continued(model, seed, judge, **recipe):
    """Train b1.58 from the weights of a trained model, on other batches -> a row"""
    (row,) = from_scratch.run(
        lambda untrained: bitnet.convert(model).train(),
        seeds=(100 + seed,),
        judge=judge,
        **recipe,
    )
    return row


def histogram(model):
    """-> counts [60] of w / mean |w| over all layers but the head"""
    matrices = [w / w.abs().mean() for n, w in weights.weights(model).items() if n != SKIP]
    values = torch.cat([w.flatten() for w in matrices])
    return torch.histc(values.clamp(-END, END), BINS, -END, END).int().tolist()


def main():
    arm = sys.argv[1] if len(sys.argv) > 1 else ""
    if arm not in ARMS:
        sys.exit(f"ARM={arm!r} is unknown; choose from {', '.join(ARMS)}")
    torch.set_num_threads(1)
    start = time.time()
    rows = run(arm, report=lambda row, _: print(row, flush=True))
    path = recorded.save(
        f"bitnet_{arm}",
        rows,
        command=f"python -m qbook.experiments.bitnet_training {arm}",
        seconds=time.time() - start,
        **from_scratch.RECIPE | ARMS[arm],
    )
    print(path.name)


if __name__ == "__main__":
    main()
