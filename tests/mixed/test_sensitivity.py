import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from qbook import affine
from qbook.mixed import sensitivity
from qbook.models import digits_mlp, weights


def outputs(n=40, classes=5, seed=0):
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(size=(n, classes)) * 2)
    quantized = logits + torch.from_numpy(rng.normal(size=(n, classes)))
    return logits, quantized, torch.from_numpy(rng.integers(0, classes, n))


def test_each_run_has_one_layer_replaced_and_the_model_stays():
    model = digits_mlp.load()
    before = weights.weights(model)
    rounded = {
        name: affine.fake_quantize(w, affine.choose_qparams(w, 2, axis=1))
        for name, w in before.items()
    }
    seen = sensitivity.one_at_a_time(model, rounded, weights.weights)
    assert list(seen) == ["0", "2"]
    for changed, found in seen.items():
        for name, w in found.items():
            assert torch.equal(w, rounded[name] if name == changed else before[name])
    assert all(torch.equal(w, before[name]) for name, w in weights.weights(model).items())


def test_accuracy_drop_and_its_error_equal_counting():
    logits, quantized, labels = outputs()
    before, after = logits.argmax(1) == labels, quantized.argmax(1) == labels
    lost, won = int((before & ~after).sum()), int((~before & after).sum())
    assert lost > 0
    assert won > 0
    drop, error = sensitivity.accuracy_drop(logits, quantized, labels)
    # n = 40: sums of zeros and ones, one division each.
    assert abs(drop - (lost - won) / 40) <= 1e-15
    expected = math.sqrt((lost + won) / 40 - ((lost - won) / 40) ** 2) / math.sqrt(40)
    assert abs(error - expected) <= 1e-15


def test_the_standard_error_of_the_drop_is_its_spread_over_samples_of_images():
    # Answers of 3000 samples of 100 images: right before with 0.8, changed with 0.1 / 0.2.
    rng = np.random.default_rng(0)
    before = rng.random((3000, 100)) < 0.8
    changed = rng.random((3000, 100)) < np.where(before, 0.1, 0.2)
    after = before ^ changed
    labels = torch.ones(100, dtype=torch.int64)
    found = np.array(
        [
            sensitivity.accuracy_drop(
                *(nn.functional.one_hot(torch.from_numpy(a[i]).long(), 2) for a in (before, after)),
                labels,
            )
            for i in range(3000)
        ]
    )
    # Lost with 0.08, won with 0.04: mean 0.04, variance 0.12 - 0.0016.
    spread = math.sqrt((0.12 - 0.04**2) / 100)
    # Four standard errors of 3000 drops: 4 * 0.0344 / 55 = 0.0025; of their spread 5 %.
    assert abs(found[:, 0].mean() - 0.04) <= 0.0025
    assert abs(found[:, 0].std() / spread - 1) <= 0.06
    assert abs(found[:, 1].mean() / spread - 1) <= 0.06


def test_loss_change_and_divergence_equal_scipy_s():
    logits, quantized, labels = outputs()
    p, q = (nn.functional.softmax(o, 1).numpy() for o in (logits, quantized))
    rows = np.arange(len(p))
    changes = np.log(p[rows, labels]) - np.log(q[rows, labels])
    divergences = stats.entropy(p, q, axis=1)
    for found, values in (
        (sensitivity.loss_change(logits, quantized, labels), changes),
        (sensitivity.output_kl(logits, quantized), divergences),
    ):
        # Values below 10 in float64, 40 of them.
        assert abs(found[0] - values.mean()) <= 1e-13
        assert abs(found[1] - stats.sem(values)) <= 1e-13


def test_equal_outputs_lose_nothing():
    logits, _, labels = outputs()
    assert sensitivity.accuracy_drop(logits, logits, labels) == (0, 0)
    assert sensitivity.loss_change(logits, logits, labels) == (0, 0)
    assert sensitivity.output_kl(logits, logits) == (0, 0)


def test_a_mean_loss_change_under_labels_drawn_from_the_model_is_the_divergence():
    # Each output once with every label, weighted by its probability: E[-ln q + ln p] = KL.
    logits, quantized, _ = outputs(n=3)
    total = 0
    for label in range(5):
        labels = torch.full((3,), label)
        p = nn.functional.softmax(logits, 1)[:, label]
        for i in range(3):
            pair = [o[[i, i]] for o in (logits, quantized)]
            total += p[i].item() * sensitivity.loss_change(*pair, labels[:2])[0] / 3
    assert abs(total - sensitivity.output_kl(logits, quantized)[0]) <= 1e-14


def test_shapes_that_do_not_fit_are_refused():
    logits, quantized, labels = outputs()
    with pytest.raises(ValueError, match=r"shapes \(40, 5\) and \(39, 5\)"):
        sensitivity.output_kl(logits, quantized[1:])
    with pytest.raises(ValueError, match=r"labels have shape \(39,\) for 40 inputs"):
        sensitivity.accuracy_drop(logits, quantized, labels[1:])
    with pytest.raises(ValueError, match="no standard error"):
        sensitivity.loss_change(logits[:1], quantized[:1], labels[:1])
    with pytest.raises(ValueError, match="no layer is called 'nine'"):
        sensitivity.one_at_a_time(digits_mlp.load(), {"nine": torch.ones(1)}, len)
