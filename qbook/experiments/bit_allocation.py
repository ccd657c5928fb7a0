"""Widths for the layers of ResNet-20: what each costs alone, all together, and on unseen images.

Sensitivities from training images, accuracy on test images.  Weights are rounded to nearest, one
min-max scale for each output; activations stay in floating point.  Book: 3.3.1
"""

import time

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from qbook import affine, data, footprint
from qbook.experiments import recorded
from qbook.mixed import allocation, hessian, sensitivity
from qbook.models import resnet20, weights

COMMAND = "python -m qbook.experiments.bit_allocation"
WIDTHS = (2, 3, 4, 5, 6, 8)
SEED = 0
BATCH = 25


def run(images=1000, probes=5, forms=100, assignments=60, held_out=5000, averages=(3, 4, 5)):
    """-> dict of tables, JSON-able; layers in the model's order, columns by WIDTHS.

    images:       training images behind every sensitivity; an even number of batches of 25
    probes:       random sign vectors for each batch
    forms:        training images on which the second-order expansion is checked, 0 for none
    assignments:  random ones, for additivity: half with widths of 3 bits and more, half with all
    held_out:     test images for the chosen assignments
    averages:     the budgets: bytes of a uniform network of so many bits
    Raises ValueError where ``images`` are no even number of batches, and
    ``qbook.data.DataUnavailable``.
    """
    if images < 2 * BATCH or images % (2 * BATCH):
        raise ValueError(f"images={images}; choose a multiple of {2 * BATCH}")
    model = resnet20.load()
    w = weights.weights(model)
    rounded = {
        b: {n: affine.fake_quantize(v, affine.choose_qparams(v, b, axis=1)) for n, v in w.items()}
        for b in WIDTHS
    }
    x, labels = _inputs("train", images)
    before = _logits(model, x)
    results = {"layers": list(w), "counts": [v.numel() for v in w.values()], "widths": WIDTHS}
    results["cross_entropy"] = cross_entropy(before, labels).item()
    results |= _alone(model, rounded, x, labels, before)
    results |= _curvature(model, w, rounded, x, labels, probes)
    results["forms"] = _expansion(model, w, rounded, x[:forms], labels[:forms]) if forms else None
    results["together"] = _together(model, rounded, x, labels, before, assignments)
    results["held_out"] = _allocated(model, w, rounded, results, held_out, averages)
    return results


def _alone(model, rounded, x, labels, before):
    """drop, loss, kl: [half of the images, layers, widths]; errors of all: [layers, widths]"""
    measures = {
        "drop": sensitivity.accuracy_drop,
        "loss": sensitivity.loss_change,
        "kl": lambda a, b, _: sensitivity.output_kl(a, b),
    }
    after = {
        b: sensitivity.one_at_a_time(model, matrices, lambda m: _logits(m, x))
        for b, matrices in rounded.items()
    }
    tables = {}
    for name, measure in measures.items():
        halves = [
            [[measure(before[s], after[b][n][s], labels[s])[0] for b in WIDTHS] for n in after[2]]
            for s in (slice(0, len(x) // 2), slice(len(x) // 2, None))
        ]
        errors = [[measure(before, after[b][n], labels)[1] for b in WIDTHS] for n in after[2]]
        tables |= {name: halves, f"{name}_error": errors}
    return tables


def _curvature(model, w, rounded, x, labels, probes):
    """trace: [half, layers], trace_error: [layers]; omega: [half, layers, widths]"""
    parameters = _parameters(model)
    samples = {name: [] for name in w}
    for i, (xs, ys) in enumerate(zip(x.split(BATCH), labels.split(BATCH), strict=True)):
        loss = cross_entropy(model(xs), ys)
        for name, values in hessian.hutchinson(loss, parameters, probes, SEED + i).items():
            samples[name].extend(values)
    half = len(next(iter(samples.values()))) // 2
    traces = [[np.mean(v[s]) for v in samples.values()] for s in (slice(half), slice(half, None))]
    omegas = [
        [
            [hessian.omega(t, w[n], rounded[b][n]) for b in WIDTHS]
            for n, t in zip(w, traces_of_half, strict=True)
        ]
        for traces_of_half in traces
    ]
    errors = [hessian.estimate(v)[1] for v in samples.values()]
    return {"trace": traces, "trace_error": errors, "omega": omegas}


def _expansion(model, w, rounded, x, labels):
    """Slope g.d and curvature d.Hd / 2 along each layer's own rounding d, and the true change.

    -> dict of tables [layers, widths 2, 3, 4], all on the same images
    """
    parameters = _parameters(model)
    grads = hessian.gradient(cross_entropy(model(x), labels), parameters)
    before, tables = _logits(model, x), {"slope": [], "curvature": [], "loss": []}
    for name, parameter in parameters.items():
        one, rows = {name: parameter}, {key: [] for key in tables}
        for b in (2, 3, 4):
            d = (rounded[b][name] - w[name]).reshape(parameter.shape)
            rows["slope"].append((grads[name] * d).sum().item())
            curved = hessian.product({name: grads[name]}, one, {name: d})[name]
            rows["curvature"].append((curved * d).sum().item() / 2)
            after = _logits(weights.replace(model, {name: rounded[b][name]}), x)
            rows["loss"].append(sensitivity.loss_change(before, after, labels)[0])
        for key, row in rows.items():
            tables[key].append(row)
    return tables


def _together(model, rounded, x, labels, before, assignments):
    """-> widths: index [assignments, layers], and the loss change of each"""
    rng = np.random.default_rng(SEED)
    layers = list(rounded[2])
    chosen = [
        rng.integers(1 if i < assignments // 2 else 0, len(WIDTHS), len(layers))
        for i in range(assignments)
    ]
    after = [_logits(_assigned(model, rounded, widths), x) for widths in chosen]
    return {
        "widths": [widths.tolist() for widths in chosen],
        "loss": [sensitivity.loss_change(before, a, labels)[0] for a in after],
    }


def _allocated(model, w, rounded, results, held_out, averages):
    """-> dict: "float", and by average bits: method -> widths, accuracy, loss, drop from uniform"""
    x, labels = _inputs("test", held_out)
    size = [[footprint.matrix_bytes(v.shape, b) for b in WIDTHS] for v in w.values()]
    found = {"float": _scores(_logits(model, x), labels)}
    for average in averages:
        uniform = np.full(len(w), WIDTHS.index(average))
        limit = allocation.total(size, uniform)
        chosen = {"uniform": uniform} | {
            name: allocation.allocate(np.mean(results[name], axis=0), {"bytes": (size, limit)})
            for name in ("drop", "loss", "kl", "omega")
        }
        outputs = {k: _logits(_assigned(model, rounded, v), x) for k, v in chosen.items()}
        found[str(average)] = {
            name: {"widths": chosen[name].tolist(), "bytes": allocation.total(size, chosen[name])}
            | _scores(out, labels)
            | {"gain_error": sensitivity.accuracy_drop(outputs["uniform"], out, labels)[1]}
            for name, out in outputs.items()
        }
    return found


def _scores(logits, labels):
    right = (logits.argmax(1) == labels).double().mean().item()
    return {"accuracy": right, "loss": cross_entropy(logits, labels).item()}


def _assigned(model, rounded, widths):
    names = zip(rounded[2], widths, strict=True)
    return weights.replace(model, {n: rounded[WIDTHS[k]][n] for n, k in names})


def _parameters(model):
    return {name: layer.weight for name, layer in weights.layers(model)}


def _inputs(split, count):
    images, labels = data.cifar10(split)
    return resnet20.normalise(images[:count]), torch.from_numpy(labels[:count])


@torch.no_grad()
def _logits(model, x):
    return torch.cat([model(batch) for batch in x.split(50)])


def main():
    torch.set_num_threads(1)
    start = time.monotonic()
    results = run()
    seconds = time.monotonic() - start
    recorded.save("bit_allocation", results, command=COMMAND, seeds=[SEED], seconds=seconds)


if __name__ == "__main__":
    main()
