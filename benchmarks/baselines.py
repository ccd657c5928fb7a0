"""Full-precision baselines of the real models: measured here, beside what was recorded.

    python -m benchmarks.baselines

Needs the files of ResNet-20, CIFAR-10, MiniLM and SST-2 (QBOOK_DATA, or a network).  Exit status 1
when a baseline is off by more than its tolerance.
"""

import sys
import time

import torch
from sklearn.linear_model import LogisticRegression

from qbook import data
from qbook.models import digits_mlp, minilm, resnet20

# Recorded on two CPU cores with torch 2.13.  A recorded value is rounded to its last digit; one
# more unit is left for a handful of answers that another summation order may turn.
BASELINES = {
    "digits MLP, 360 test digits": (0.983, 0.006),
    "ResNet-20, 10 000 CIFAR-10 test images (JPEG)": (0.810, 0.001),
    "MiniLM + logistic regression, 872 SST-2 dev sentences": (0.796, 0.002),
}


def measure_digits_mlp():
    _, (images, labels) = data.digits()
    with torch.no_grad():
        predicted = digits_mlp.load()(torch.from_numpy(images)).argmax(dim=1)
    return (predicted.numpy() == labels).mean()


def measure_resnet20():
    images, labels = data.cifar10("test")
    return (resnet20.predict(resnet20.load(), images).numpy() == labels).mean()


def measure_minilm():
    """The first 3000 training sentences, C = 10."""
    model = minilm.load()
    (train, train_labels), (dev, dev_labels) = data.sst2("train"), data.sst2("dev")
    classifier = LogisticRegression(C=10, max_iter=1000)
    classifier.fit(model.encode(train[:3000]).numpy(), train_labels[:3000])
    return classifier.score(model.encode(dev).numpy(), dev_labels)


def main():
    off = 0
    measures = (measure_digits_mlp, measure_resnet20, measure_minilm)
    for (name, (recorded, tolerance)), measure in zip(BASELINES.items(), measures, strict=True):
        start = time.perf_counter()
        measured = measure()
        good = abs(measured - recorded) <= tolerance
        off += not good
        print(
            f"{name}: measured {measured:.4f}, recorded {recorded:.3f}"
            f"{'' if good else '  OFF'}  ({time.perf_counter() - start:.0f} s)"
        )
    return off > 0


if __name__ == "__main__":
    sys.exit(main())
