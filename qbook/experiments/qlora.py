"""QLoRA on the character GPT: from Shakespeare to an encyclopaedia, on a frozen base of four bits.

The text is WikiText-2 with the characters that the model does not know left out: the "valid" part
is learnt from, the "test" part judged.  Every arm sees the same batches; its learning rate is the
best of ``RATES`` on the end of the text that is learnt from, which the judged arms do not see.
Book: 5, NF4 and QLoRA.  Run: ``python -m qbook.experiments.qlora``
"""

import math
import time

import torch
from torch import nn
from torch.nn import functional as F

from qbook import affine
from qbook.data import wikitext2
from qbook.experiments import recorded
from qbook.llm import lora, nf4
from qbook.models import char_gpt, weights

SEEDS = (0, 1)
STEPS, BATCH, RANK, ALPHA, JUDGED = 200, 8, 8, 16, 200
SCANNED_STEPS = 40
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
# The last tenth of the text that is learnt from chooses the learning rates.
LEARNT_SHARE = 0.9


def text(split):
    """-> ids [characters] of WikiText-2, "valid" or "test", without unknown characters"""
    known = set(char_gpt.ALPHABET)
    return char_gpt.encode("".join(c for c in wikitext2(split) if c in known))


def windows(ids, count=None):
    """ids -> [count, 129], one after the other from the start, or all of them"""
    found = ids.unfold(0, char_gpt.CONTEXT + 1, char_gpt.CONTEXT)
    return found if count is None else found[:count]


def integers(bits):
    """-> function Linear -> Linear with weights of such integers: zero-points, groups of 64"""

    def make_base(linear):
        w = linear.weight.detach()
        qparams = affine.choose_qparams(w, bits, axis=1, group_size=64, symmetric=False)
        return weights.replace(nn.Sequential(linear), {"0": affine.fake_quantize(w, qparams)})[0]

    return make_base


def full(model):
    """-> a copy with everything to train"""
    return weights.replace(model, {}).requires_grad_(True)


def adapters(make_base):
    return lambda model: lora.attach(model, RANK, alpha=ALPHA, make_base=make_base)


# What is learnt, and on which base.
ARMS = {
    "everything, float32": full,
    "adapters, float32 base": adapters(None),
    "adapters, NF4 base": adapters(lora.NF4Linear),
    "adapters, INT2 base": adapters(integers(2)),
}


def in_nf4(model):
    """-> a copy with all weights rounded to NF4, scales quantized twice"""
    rounded = {name: nf4.fake_quantize(w) for name, w in weights.weights(model).items()}
    return weights.replace(model, rounded)


def tune(model, ids, rate, *, seed, steps, batch_size):
    """Train what requires a gradient, in place: AdamW, cosine to zero, clipped at norm 1."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, betas=(0.9, 0.99), weight_decay=0.0)
    generator = torch.Generator().manual_seed(seed)
    places = torch.randint(len(ids) - char_gpt.CONTEXT, (steps, batch_size), generator=generator)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        batch = ids[places[step][:, None] + torch.arange(char_gpt.CONTEXT + 1)]
        loss = F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
    return optimizer


def memory(model, optimizer, batch):
    """-> dict of bytes: trained, frozen, gradients, optimizer, and kept for backward by a batch

    Frozen weights of an INT2 arm are counted as stored here, in float32.  Of the tensors kept for
    backward those count that are no parameter or buffer, each piece of memory once.
    """
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    kept = {}

    def keep(t):
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            # Held until the count is done, or its memory would be handed out again.
            kept[storage.data_ptr()] = storage
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        loss = model(batch).sum()
    trained = [p for p in model.parameters() if p.requires_grad]
    frozen = [p for p in model.parameters() if not p.requires_grad] + list(model.buffers())
    states = [t for state in optimizer.state.values() for t in state.values() if t.ndim]
    counts = {"trained": trained, "frozen": frozen, "gradients": trained, "optimizer": states}
    found = {name: sum(t.numel() * t.element_size() for t in ts) for name, ts in counts.items()}
    found["kept for backward"] = sum(storage.nbytes() for storage in kept.values())
    del loss
    return found


def run(arms=ARMS, seeds=SEEDS, *, rates=RATES, steps=STEPS, scanned_steps=SCANNED_STEPS,
        batch_size=BATCH, judged=JUDGED, report=None):  # fmt: skip
    """-> list of rows, dicts, one an arm: label, rate, scanned [[rate, loss]], before, after [one a
    seed], the same on Shakespeare, merged_in_nf4 (after, merged and rounded) [one a seed], memory

    Losses are cross-entropies in nats a character on ``judged`` windows.
    """
    model = char_gpt.load()
    learnt, held_out = text("valid"), windows(text("test"), judged)
    border = int(LEARNT_SHARE * len(learnt))
    learnt, chosen_on = learnt[:border], windows(learnt[border:], judged)
    old = char_gpt.windows("validation", judged)
    rows = []
    for label, prepare in arms.items():
        start = time.time()

        def tuned(rate, seed, steps, prepare=prepare):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                arm = prepare(model)
            return arm, tune(arm, learnt, rate, seed=seed, steps=steps, batch_size=batch_size)

        # Another seed than those that are judged.
        scanned = [
            [rate, char_gpt.cross_entropy(tuned(rate, 100, scanned_steps)[0], chosen_on)]
            for rate in rates
        ]
        rate = min(scanned, key=lambda pair: pair[1])[0]
        fresh = prepare(model)
        row = {
            "label": label,
            "rate": rate,
            "scanned": [[rate, round(loss, 4)] for rate, loss in scanned],
            "before": round(char_gpt.cross_entropy(fresh, held_out), 4),
            "shakespeare_before": round(char_gpt.cross_entropy(fresh, old), 4),
            "after": [],
            "shakespeare_after": [],
            "merged_in_nf4": [],
        }
        for seed in seeds:
            arm, optimizer = tuned(rate, seed, steps)
            row["after"].append(round(char_gpt.cross_entropy(arm, held_out), 4))
            row["shakespeare_after"].append(round(char_gpt.cross_entropy(arm, old), 4))
            merged = char_gpt.cross_entropy(in_nf4(lora.merge(arm)), held_out)
            row["merged_in_nf4"].append(round(merged, 4))
        row["memory"] = memory(arm, optimizer, held_out[:batch_size, :-1])
        row["seconds"] = round(time.time() - start)
        rows.append(row)
        if report:
            report(row)
    return rows


def main():
    start = time.time()
    path = recorded.save(
        "qlora",
        run(report=lambda row: print(row, flush=True)),
        command="python -m qbook.experiments.qlora",
        seeds=SEEDS,
        seconds=time.time() - start,
        steps=STEPS,
        batch_size=BATCH,
        rank=RANK,
        alpha=ALPHA,
        judged_windows=JUDGED,
    )
    print(path.name)


if __name__ == "__main__":
    main()
