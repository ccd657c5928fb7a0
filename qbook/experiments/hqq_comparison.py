"""HQQ beside its neighbours: the same groups of 64, with and without data, at 4, 3 and 2 bits.

Weights, outputs of layers and seconds on a block of MiniLM and on all of the character GPT, whose
cross-entropy judges too.  GPTQ alone sees inputs.  Book: 5, HQQ.
Run: ``python -m qbook.experiments.hqq_comparison``
"""

import time
from functools import partial

import numpy as np
import torch

from qbook import affine, footprint, granularity
from qbook.data import sst2
from qbook.experiments import recorded
from qbook.llm import hqq
from qbook.models import char_gpt, minilm, weights
from qbook.ptq import gptq, simulate
from qbook.ranges import mse

GROUP_SIZE, WIDTHS = 64, (4, 3, 2)
# Bits of a group's zero-point: a code of as many bits as a weight, or a real number of sixteen.
REAL_ZERO = 16


def _nearest(w, h, bits):
    return affine.fake_quantize(w, _qparams(w, bits))


def _searched(w, h, bits):
    groups = granularity.split_groups(w, GROUP_SIZE, 1)
    low, high = mse.search(groups, bits, axis=2, symmetric=False, steps=25)
    qparams = affine.qparams_from_range(low, high, bits, symmetric=False)
    return affine.fake_quantize(groups, qparams).reshape(w.shape)


def _gptq(w, h, bits):
    qparams = _qparams(w.double().numpy(), bits)
    codes = gptq.quantize_blocks(w.double().numpy(), h, qparams)
    return torch.from_numpy(affine.dequantize(codes, qparams)).to(w.dtype)


def _hqq(w, h, bits, **options):
    return hqq.dequantize(hqq.quantize(w, bits, group_size=GROUP_SIZE, **options))


def _qparams(w, bits):
    return affine.choose_qparams(w, bits, axis=1, group_size=GROUP_SIZE, symmetric=False)


# Label -> function (w [out, in], h [in, in], bits) -> w_hat, and whether its zeros are real.
METHODS = {
    "nearest": (_nearest, False),
    "nearest, real zero": (partial(_hqq, solve=hqq.start), True),
    "HQQ": (_hqq, True),
    "HQQ, beta 1000": (partial(_hqq, beta=1000.0), True),
    "least squares, zero and scale": (partial(_hqq, solve=hqq.alternate_both), True),
    "searched range": (_searched, False),
    "GPTQ": (_gptq, False),
}


def layers_of_minilm(sentences=48):
    """-> dict: name -> (w, h of calibration, h of other sentences), the six Linears of block 2"""
    model, (texts, _) = minilm.load(), sst2("train")
    seen = [
        simulate.record(model, lambda m, part=part: m.encode(texts[part]))
        for part in (slice(0, sentences), slice(sentences, 2 * sentences))
    ]
    names = [name for name in weights.weights(model) if ".2." in name]
    return _with_hessians(model, names, seen)


def layers_of_char_gpt(windows=24):
    """-> as ``layers_of_minilm``, every Linear; text of the training and of the validation part"""
    model = char_gpt.load()
    seen = [
        simulate.record(model, lambda m, ids=ids: m(ids[:, :-1]))
        for ids in (
            char_gpt.windows("train", windows, seed=0),
            char_gpt.windows("validation", windows),
        )
    ]
    return _with_hessians(model, list(weights.weights(model)), seen)


def _with_hessians(model, names, seen):
    matrices = weights.weights(model)
    return {
        name: (matrices[name], *(
            gptq.hessian(torch.cat([x.flatten(0, -2) for x in part[name]]).double().numpy())
            for part in seen
        ))
        for name in names
    }  # fmt: skip


def run(layers, judge=None, *, widths=WIDTHS, methods=METHODS, report=None):
    """layers: as ``layers_of_minilm`` -> list of rows, dicts: bits, method, size (bits a weight),
    weight_07 and weight_2 (sum |e|^p over sum |w|^p, p = 0.7 and 2), output (on other inputs, over
    the outputs' energy): means over layers; seconds; judged, if there is ``judge(dict of w_hat)``
    """
    rows = []
    for bits in widths:
        for label, (method, real_zero) in methods.items():
            errors, found, seconds = [], {}, 0.0
            for name, (w, h, h_other) in layers.items():
                start = time.perf_counter()
                # GPTQ inverts the Hessian; that is its own time.
                found[name] = method(w, gptq.dampen(h), bits)
                seconds += time.perf_counter() - start
                e, w = (w - found[name]).double(), w.double()
                errors.append([
                    *(float(e.abs().pow(p).sum() / w.abs().pow(p).sum()) for p in (0.7, 2)),
                    gptq.output_error(e.numpy(), 0 * e.numpy(), h_other)
                    / gptq.output_error(w.numpy(), 0 * w.numpy(), h_other),
                ])  # fmt: skip
            row = dict(
                zip(("weight_07", "weight_2", "output"), np.mean(errors, axis=0), strict=True)
            )
            row = {key: float(f"{value:.5g}") for key, value in row.items()}
            zero_bits = REAL_ZERO if real_zero else bits
            size = footprint.bits_per_weight(bits, GROUP_SIZE, zero_point_bits=zero_bits)
            row |= {"bits": bits, "method": label, "size": size, "seconds": round(seconds, 2)}
            if judge:
                row["judged"] = round(judge(found), 4)
            rows.append(row)
            if report:
                report(row)
    return rows


def main():
    start = time.time()
    report = partial(print, flush=True)
    model, held_out = char_gpt.load(), char_gpt.windows("validation", 200)
    results = {
        "minilm": run(layers_of_minilm(), report=report),
        "char_gpt": run(
            layers_of_char_gpt(),
            lambda found: char_gpt.cross_entropy(weights.replace(model, found), held_out),
            report=report,
        ),
        "char_gpt_real": round(char_gpt.cross_entropy(model, held_out), 4),
    }
    path = recorded.save(
        "hqq_comparison",
        results,
        command="python -m qbook.experiments.hqq_comparison",
        seeds=[0],
        seconds=time.time() - start,
        group_size=GROUP_SIZE,
    )
    print(path.name)


if __name__ == "__main__":
    main()
