"""Sensitivity: quantize one layer, leave the others alone, and see what the outputs lose.

Three readings of the same pair of outputs.  Lost accuracy: the usual ablation.  Change of the
loss: what second-order theory predicts, Dong et al. 2020, arXiv:1911.03852.  KL divergence, which
needs no labels: Cai et al. 2020 (ZeroQ), arXiv:2001.00281.  Book: 3.3.1
"""

import math

import torch
from torch.nn import functional as F

from qbook.models import weights


@torch.no_grad()
def one_at_a_time(model, rounded, evaluate):
    """-> dict: name of the layer -> evaluate(the model with this layer's weight replaced).

    rounded:   dict, name -> w_hat as ``weights.weights`` shapes it; one run for each name
    evaluate:  model -> anything, such as its logits on fixed images
    The model stays as it is.  Raises ValueError, through ``weights.replace``, for a name or a shape
    that the model does not have.
    """
    return {
        name: evaluate(weights.replace(model, {name: w_hat})) for name, w_hat in rounded.items()
    }


def accuracy_drop(logits, quantized, labels):
    """-> (share of right answers lost, its standard error); negative where quantizing helps.

    logits, quantized [n, classes] of the same inputs, labels [n].  The error is that of the mean of
    n paired differences -1, 0, 1: answers that stay right, or wrong, add no noise.  It is 0 where
    no answer changes sides, which says little: 0 of n changes allows a rate up to about 3 / n.
    Raises ValueError for shapes that do not fit.
    """
    _check(logits, quantized, labels)
    right = (logits.argmax(1) == labels).double()
    lost = right - (quantized.argmax(1) == labels).double()
    variance = lost.square().mean() - lost.mean().square()
    return lost.mean().item(), math.sqrt(max(variance.item(), 0) / len(labels))


def loss_change(logits, quantized, labels):
    """-> (mean change of the cross-entropy in nats, its standard error).

    logits, quantized [n, classes] of the same inputs, labels [n].  Raises ValueError for shapes
    that do not fit, and for fewer than two inputs.
    """
    _check(logits, quantized, labels)
    before, after = (
        F.cross_entropy(outputs.double(), labels, reduction="none")
        for outputs in (logits, quantized)
    )
    return _mean_and_error(after - before)


def output_kl(logits, quantized):
    """-> (mean of KL(softmax(logits) | softmax(quantized)) in nats, its standard error); no labels.

    Raises ValueError for shapes that do not fit, and for fewer than two inputs.
    """
    _check(logits, quantized)
    p, q = (F.log_softmax(outputs.double(), dim=1) for outputs in (logits, quantized))
    return _mean_and_error((p.exp() * (p - q)).sum(1))


def _mean_and_error(values):
    if len(values) < 2:
        raise ValueError(f"{len(values)} input has no standard error; give two or more")
    return values.mean().item(), (values.std() / math.sqrt(len(values))).item()


def _check(logits, quantized, labels=None):
    if logits.ndim != 2 or logits.shape != quantized.shape:
        raise ValueError(
            f"outputs have shapes {tuple(logits.shape)} and {tuple(quantized.shape)}; "
            "give [n, classes] twice, of the same inputs"
        )
    if labels is not None and labels.shape != logits.shape[:1]:
        raise ValueError(
            f"labels have shape {tuple(labels.shape)} for {len(logits)} inputs; give one each"
        )
