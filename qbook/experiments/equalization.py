"""Data-free quantization of two real networks: which of its steps earns what, at which width.

Nagel et al. 2019, arXiv:1906.04721, the ablations of section 5.1 in small.  Book: 3.1

    python -m qbook.experiments.equalization [resnet20 | separable]

rounds ResNet-20 and the depthwise-separable network (``qbook.models.separable``) after every
combination of steps, and records the accuracy on test images of CIFAR-10.
"""

import sys
import time

import torch

from qbook import affine, data
from qbook.models import resnet20, weights
from qbook.ptq import bias_correction, dfq, fold, neighbours

AXES = {"tensor": None, "channel": 1}
WIDTHS = (8, 6, 4)
OCTAVES = (0, 2, 4, 6)
TEST_IMAGES, CALIBRATION_IMAGES = 1000, 50


def rounded(model, bits, axis=None):
    """-> a copy with weights of these bits, symmetric; axis=None: one scale for each layer"""
    return weights.replace(
        model,
        {
            name: affine.fake_quantize(w, affine.choose_qparams(w, bits, axis=axis))
            for name, w in weights.weights(model).items()
        },
    )


def accuracy(model, images, labels):
    """% of images [n, 32, 32, 3] uint8 that the model sorts right."""
    right = resnet20.predict(model, images).numpy() == labels
    return round(100 * float(right.mean()), 2)


def planted(folded, octaves, seed=0):
    """-> a copy, the same function: every chain's channels apart by 2 ** uniform(+- octaves)."""
    generator = torch.Generator().manual_seed(seed)
    for first, second in neighbours.chains(folded):
        channels = dfq.output_ranges(folded.get_submodule(first)).numel()
        s = 2.0 ** (octaves * (2 * torch.rand(channels, generator=generator) - 1))
        folded = dfq.rescale(folded, first, second, s)
    return folded


def steps(model, images, labels, calibration, widths=WIDTHS):
    """-> dict: "bits axis" -> dict: step -> accuracy.  calibration: images to match outputs on."""

    def run(m):
        return resnet20.predict(m, calibration)

    folded, statistics = fold.fold(model), fold.statistics(model)
    equal, scales = dfq.equalize(folded)
    expected = {
        "": bias_correction.expected_inputs(folded, statistics),
        "equalized": bias_correction.expected_inputs(
            equal, dfq.moved_statistics(statistics, scales)
        ),
    }
    results = {}
    for bits in widths:
        for axis_name, axis in AXES.items():
            found = results[f"{bits} {axis_name}"] = {}
            for name, before in (("", folded), ("equalized", equal)):
                after = rounded(before, bits, axis)
                without = bias_correction.correct(before, after, expected[name])
                matched = bias_correction.match_outputs(before, after, run)
                found[name or "rounded"] = accuracy(after, images, labels)
                found[f"{name} corrected".strip()] = accuracy(without, images, labels)
                found[f"{name} matched".strip()] = accuracy(matched, images, labels)
    return results


def plants(model, images, labels, octaves=OCTAVES, bits=8):
    """-> dict: way of rounding -> accuracies, one for each spread planted in the model."""
    folded = fold.fold(model)
    found = {"tensor": [], "channel": [], "equalized tensor": [], "equalized channel": []}
    for spread in octaves:
        spoilt = planted(folded, spread)
        for name, before in (("", spoilt), ("equalized ", dfq.equalize(spoilt)[0])):
            for axis_name, axis in AXES.items():
                after = rounded(before, bits, axis)
                found[name + axis_name].append(accuracy(after, images, labels))
    return found


def main(names=("resnet20", "separable")):
    """Run all of it on one thread and record it, one file for each network."""
    from qbook.experiments import recorded
    from qbook.models import separable

    torch.set_num_threads(1)
    images, labels = (a[:TEST_IMAGES] for a in data.cifar10("test"))
    calibration = data.cifar10("train")[0][:CALIBRATION_IMAGES]
    for name in names:
        start = time.time()
        model = {"resnet20": resnet20, "separable": separable}[name].load()
        results = {
            "float": accuracy(model, images, labels),
            "steps": steps(model, images, labels, calibration),
        }
        if name == "resnet20":
            results["planted"] = plants(model, images, labels)
        recorded.save(
            f"equalization_{name}",
            results,
            command=f"python -m qbook.experiments.equalization {name}",
            seeds=[0],
            seconds=time.time() - start,
            test_images=TEST_IMAGES,
            calibration_images=CALIBRATION_IMAGES,
            octaves=OCTAVES,
        )


if __name__ == "__main__":
    main(sys.argv[1:] or ("resnet20", "separable"))
