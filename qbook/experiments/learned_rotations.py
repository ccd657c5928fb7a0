"""Which rotation of the stream?  Random ones of eight seeds, and what descent makes of some.

The character GPT, fused, its heads and the input of ``down`` rotated; weights and inputs rounded to
nearest.  Liu et al. 2025, arXiv:2405.16406 (SpinQuant), section 3.2.
Book: 5.9
Run: ``python -m qbook.experiments.learned_rotations BITS`` with BITS 4 or 3

Windows of the train split are learned from; the validation split is judged once an arm.
"""

import sys
import time

import torch
from torch.nn import functional as F

from qbook.experiments import recorded, rotations
from qbook.llm import hadamard, quarot, spinquant
from qbook.models import char_gpt

SEEDS, WINDOWS, STEPS, BATCH = tuple(range(8)), 100, 50, 8
# Arm: what is to be small (cross-entropy of the text, as in the paper, or divergence from the real
# model, which is less noisy), whether gradients pass through the scale, and lr for each width.  The
# paper's lr is 1.5; those of the divergence were chosen on windows of the train split.
ARMS = {
    "text": ("text", False, {4: 1.5, 3: 1.5}),
    "straight": ("model", False, {4: 15.0, 3: 4.0}),
    "through": ("model", True, {4: 15.0, 3: 4.0}),
}
TRIED = {
    4: {"starts": (0, 1, "axes"), "arms": tuple(ARMS)},
    3: {"starts": (0, 1), "arms": ("through",)},
}


def learned(everywhere, q, bits, *, steps=STEPS, seed=0, arm="through"):
    """The model of ``rotations.inside``, a first rotation -> q [128, 128];  arm: of ``ARMS``

    seed: of the windows of the train split
    """
    target, through_scale, rates = ARMS[arm]
    readers = [name for names in rotations.ONLINE.readers.values() for name in names]
    ids = char_gpt.windows("train", steps * BATCH, seed=100 + seed).reshape(steps, BATCH, -1)
    model = quarot.replace(everywhere, {})
    inner = [n for n in (*readers, *rotations.ONLINE.writers) if n != "head"]
    hooks = spinquant.round_inputs(model, inner, bits, through_scale=through_scale)

    def loss(call, step):
        logits = call(ids[step, :, :-1]).flatten(0, 1)
        if target == "text":
            return F.cross_entropy(logits, ids[step, :, 1:].flatten())
        real = rotations.predictions(everywhere, ids[step]).flatten(0, 1)
        return F.kl_div(logits.log_softmax(-1), real, log_target=True, reduction="batchmean")

    shared = {"bits": bits, "through_scale": through_scale, "skip": ("head",)}
    found = spinquant.learn(model, rotations.ONLINE, loss, q, steps=steps, lr=rates[bits], **shared)
    for hook in hooks:
        hook.remove()
    return found


def spread(ids, *, bits, seeds=SEEDS, starts=(0, 1), arms=tuple(ARMS), steps=STEPS, report=None):
    """-> list of dicts: random rotations of these seeds, then those learned from some starts

    starts: seeds, or "axes", the principal axes, which are judged as they are as well
    Each: ``compare`` on ids, and "train_kl", the divergence on 50 windows of the train split.
    """
    flat, train = rotations.fused(char_gpt.load()), char_gpt.windows("train", 50, seed=97)
    everywhere, axes, rows = rotations.inside(flat), rotations.principal_axes(flat), []
    pairs = [(part, rotations.predictions(everywhere, part)) for part in (ids, train)]
    tried = [("random", seed) for seed in (*seeds, *(s for s in starts if s == "axes"))]
    tried += [(arm, start) for arm in arms for start in starts]
    for arm, start in tried:
        q = axes if start == "axes" else hadamard.matrix(char_gpt.WIDTH, seed=start)
        if arm != "random":
            seed = 99 if start == "axes" else start
            q = learned(everywhere, q, bits, steps=steps, seed=seed, arm=arm)
        turned = quarot.rotate(rotations.doubled(everywhere), rotations.ONLINE, q).float()
        changed = rotations.rounded(turned, bits)
        judged, seen = (
            rotations.compare(real, rotations.predictions(changed, part), part)
            for part, real in pairs
        )
        row = {"arm": arm, "bits": bits, "start": start} | judged
        rows.append(row | {"train_kl": seen["kl"]})
        if report:
            report(rows[-1])
    return rows


def main():
    bits = int(sys.argv[1]) if len(sys.argv) > 1 and sys.argv[1].isdigit() else None
    if bits not in TRIED:
        sys.exit(f"BITS={' '.join(sys.argv[1:])!r}: choose from {', '.join(map(str, TRIED))}")
    torch.set_num_threads(1)
    start, ids = time.time(), char_gpt.windows("validation", WINDOWS)

    def report(row):
        print(round(time.time() - start), row, flush=True)

    results = spread(ids, bits=bits, **TRIED[bits], report=report)
    path = recorded.save(
        f"learned_rotations_{bits}",
        results,
        command=f"python -m qbook.experiments.learned_rotations {bits}",
        seeds=SEEDS,
        seconds=time.time() - start,
        windows=WINDOWS,
        steps=STEPS,
        batch=BATCH,
        arms=ARMS,
    )
    print(path.name)


if __name__ == "__main__":
    main()
