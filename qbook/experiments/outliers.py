"""Outliers: clipping against splitting, one scale a tensor, on ResNet-20 and MiniLM.

Zhao et al. 2019, arXiv:1901.09504; Banner et al. 2019, arXiv:1810.05723; Choukroun et al. 2019,
arXiv:1902.06822.  Book: 3.1
Run: ``python -m qbook.experiments.outliers``
"""

import time

import numpy as np
import torch
from torch.nn import functional as F

from qbook import affine, data, metrics
from qbook.experiments import recorded
from qbook.models import minilm, resnet20, weights
from qbook.ptq import moments, ocs, ocs_layers, simulate
from qbook.ranges import aciq, mse
from qbook.ranges.percentile import percentile

RATIOS = (0.01, 0.02, 0.05)
# Sentences of SST-2's dev part: inputs are profiled on the first, embeddings judged on others.
CALIBRATION, FIRST_TEST = 16, 100
RANGES = {
    "minmax": lambda v, bits: (-v.abs().max(), v.abs().max()),
    "omse": mse.search,
    "laplace": aciq.laplace,
    "gauss": aciq.gaussian,
    "p999": lambda v, bits: percentile(v, 99.9, symmetric=True),
    "p9999": lambda v, bits: percentile(v, 99.99, symmetric=True),
}


def chooser(name, bits):
    """A name of RANGES -> the function v -> QParams that covers its range with these bits."""
    return lambda v: affine.qparams_from_range(*RANGES[name](v, bits), bits)


def methods(bits):
    """-> dict of name -> function (w [out, in, ...], axis of its channels) -> w_hat"""

    def clip(name):
        return lambda v, axis: affine.fake_quantize(v, chooser(name, bits)(v))

    def split(ratio, name="minmax", aware=True):
        def fake_quantize(v, axis):
            pieces = ocs.choose(ocs.largest(v, axis), ocs.count(ratio, v.shape[axis]))
            return ocs.fake_quantize(v, pieces, chooser(name, bits), axis=axis, aware=aware)

        return fake_quantize

    found = {name: clip(name) for name in RANGES}
    found |= {f"ocs_{r}": split(r) for r in RATIOS}
    found |= {f"halves_{r}": split(r, aware=False) for r in RATIOS}
    return found | {"ocs_0.05_omse": split(0.05, "omse")}


def by_row(w, bits):
    """w [out, in, ...], one min-max scale for each output"""
    return affine.fake_quantize(w, affine.choose_qparams(w, bits, axis=tuple(range(1, w.ndim))))


def resnet(bits, names=None, images=1000, profiled=50, corrected=("minmax", "omse", "ocs_0.05")):
    """Weights of ResNet-20 -> dict of method -> dB of weights, of layers' outputs, of logits, %.

    corrected: methods that are run once more with ``moments.correct``.  gain is the mean over
    layers of <y, y_hat> / <y, y>, where every layer gets the inputs of the original network.
    """
    model = resnet20.load()
    test, labels = (part[:images] for part in data.cifar10("test"))
    layers = dict(weights.layers(model))
    seen = simulate.record(model, lambda m: resnet20.predict(m, test[:profiled]))
    real = {name: layer.weight.detach() for name, layer in layers.items()}
    outputs = {name: _output(layers[name], seen[name][0], w) for name, w in real.items()}
    logits = _logits(model, test)

    def judge(rounded):
        shown = {name: _output(layers[name], seen[name][0], w) for name, w in rounded.items()}
        found = _logits(weights.replace(model, {n: w.flatten(1) for n, w in rounded.items()}), test)
        return {
            "weights": _mean_db(real, rounded),
            "outputs": _mean_db(outputs, shown),
            "gain": float(np.mean([_gain(outputs[n], shown[n]) for n in real])),
            "logits": metrics.sqnr_db(logits, found),
            "accuracy": 100 * float(np.mean(found.argmax(1).numpy() == labels)),
        }

    results = {"float": 100 * float(np.mean(logits.argmax(1).numpy() == labels))}
    for name, quantize in methods(bits).items():
        if names is None or name in names:
            rounded = {n: quantize(w, 1) for n, w in real.items()}
            results[name] = judge(rounded)
            if name in corrected:
                again = {n: moments.correct(real[n], w) for n, w in rounded.items()}
                results[f"{name}_corrected"] = judge(again)
    if names is None or "by_row" in names:
        results["by_row"] = judge({n: by_row(w, bits) for n, w in real.items()})
    return results


def minilm_weights(bits, names=None, sentences=32):
    """Weights of MiniLM's layers -> dict of method -> dB, movement of embeddings in thousandths."""
    model = minilm.load()
    real = weights.weights(model)
    judged = _embeddings(model, sentences)
    found = methods(bits)
    found["by_row"] = lambda w, axis: by_row(w, bits)
    results = {}
    for name, quantize in found.items():
        if names is None or name in names:
            rounded = {n: quantize(w, 1) for n, w in real.items()}
            moved = judged(weights.replace(model, rounded))
            results[name] = {"weights": _mean_db(real, rounded), "moved": moved}
    return results


def minilm_inputs(bits, names=None, sentences=32):
    """Inputs of the six intermediate layers, weights as they are -> as ``minilm_weights``.

    Ranges and splits come from the first 16 sentences; "token" has a min-max scale a token.
    """
    model = minilm.load()
    layers = dict(weights.layers(model))
    texts, _ = data.sst2("dev")
    seen = simulate.record(model, lambda m: [m.encode([s]) for s in texts[:CALIBRATION]])
    chosen = [name for name in layers if name.endswith("intermediate.dense")]
    inputs = {name: torch.cat([x.flatten(0, -2) for x in seen[name]]) for name in chosen}
    judged = _embeddings(model, sentences)

    def run(ratio, choose, aware):
        modules, scales = {}, {}
        for name, x in inputs.items():
            pieces = ocs.choose(ocs.largest(x, -1), ocs.count(ratio, x.shape[-1]))
            qparams = choose(ocs.split(x, pieces, axis=-1))
            scale = qparams.scale if aware else None
            modules[name] = ocs_layers.SplitInputs(layers[name], pieces, scale)
            scales[f"{name}.layer"] = qparams
        return simulate.quantize_inputs(
            ocs_layers.apply(model, modules),
            lambda name, x: affine.fake_quantize(x, scales[name]) if name in scales else x,
        )

    arms = {name: (0, chooser(name, bits), False) for name in RANGES}
    arms |= {f"ocs_{r}": (r, chooser("minmax", bits), True) for r in RATIOS}
    arms |= {f"halves_{r}": (r, chooser("minmax", bits), False) for r in RATIOS}
    arms["ocs_0.05_omse"] = (0.05, chooser("omse", bits), True)
    results = {
        n: {"moved": judged(run(*a))} for n, a in arms.items() if names is None or n in names
    }
    if names is None or "token" in names:
        token = simulate.quantize_inputs(
            model,
            lambda name, x: (
                affine.fake_quantize(x, affine.choose_qparams(x, bits, axis=-1))
                if name in inputs
                else x
            ),
        )
        results["token"] = {"moved": judged(token)}
    return results


def _output(layer, x, w):
    if w.ndim == 4:
        return F.conv2d(x, w, None, layer.stride, layer.padding)
    return x @ w.T


@torch.no_grad()
def _logits(model, images):
    batches = torch.as_tensor(images).split(250)
    return torch.cat([model(resnet20.normalise(batch)) for batch in batches])


def _mean_db(real, found):
    return float(np.mean([metrics.sqnr_db(real[name], found[name]) for name in real]))


def _gain(y, y_hat):
    y, y_hat = y.double(), y_hat.double()
    return float((y * y_hat).sum() / (y * y).sum())


def _embeddings(model, sentences):
    """-> function of a changed model: mean squared movement of its embeddings, times 1000"""
    texts, _ = data.sst2("dev")
    texts = texts[FIRST_TEST : FIRST_TEST + sentences]
    before = model.encode(texts)
    return lambda changed: 1000 * float((changed.encode(texts) - before).pow(2).sum(1).mean())


def main():
    torch.set_num_threads(1)
    start = time.perf_counter()
    few = ("minmax", "omse", "p999", "ocs_0.05", "by_row")
    most = (*RANGES, *(f"{kind}_{r}" for r in RATIOS for kind in ("ocs", "halves")), "by_row")
    results = {
        "resnet": {str(bits): resnet(bits, few, corrected=()) for bits in (8, 6, 5)},
        "minilm_inputs": {str(bits): minilm_inputs(bits) for bits in (8, 6)},
        "minilm_weights": {str(bits): minilm_weights(bits, most) for bits in (8, 6)},
    }
    results["resnet"]["4"] = resnet(4)
    recorded.save(
        "outliers",
        results,
        command="python -m qbook.experiments.outliers",
        seeds=[],
        seconds=time.perf_counter() - start,
        images=1000,
        sentences=32,
    )


if __name__ == "__main__":
    main()
