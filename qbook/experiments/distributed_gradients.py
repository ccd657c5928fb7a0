"""Mean gradients of the character GPT over four processes, by every way of sending them.

Book: 5.2.  Record anew, from two processes on a laptop to a cluster:
``python -m torch.distributed.run --nproc-per-node 4 -m qbook.experiments.distributed_gradients``
"""

import math
import time

import torch
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from qbook.experiments import recorded
from qbook.models import char_gpt
from qbook.training.communication import hooks, one_bit_adam, power_sgd, processes

FP8 = {
    "post-scaling": lambda wire: hooks.Fp8Average(wire, 1.0),
    "pre-scaling": lambda wire: hooks.Fp8Average(wire, 1 / wire.size),
    "constant": lambda wire: hooks.Fp8Average(wire, 1 / math.sqrt(wire.size)),
    "auto-scaling": hooks.Fp8Average,
}
AVERAGES = (
    {"float32": hooks.FullAverage}
    | FP8
    | {
        "1 bit": one_bit_adam.OneBitAverage,
        "1 bit, forgetful": lambda wire: one_bit_adam.OneBitAverage(wire, error_feedback=False),
        "PowerSGD": lambda wire: power_sgd.PowerSgd(wire, 4),
    }
)
# 1-bit Adam compresses its momentum, not gradients: it is an optimizer, not a hook.
ARMS = ("float32", *FP8, "PowerSGD", "1-bit Adam")
STEPS, WINDOWS, LEARNING_RATE, WARM_UP = 200, 4, 1e-3, 0.2


def gradients(model, ids):
    """ids [n, t + 1] -> the gradient of each parameter, a list of float32"""
    model.zero_grad()
    loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
    return list(torch.autograd.grad(loss, list(model.parameters())))


def batches(wire, steps, windows, seed=0):
    """-> this rank's own windows of training text [steps, windows, 129], on its device"""
    ids = char_gpt.windows("train", steps * wire.size * windows, seed=seed)
    return ids.reshape(steps, wire.size, windows, -1)[:, wire.rank].to(wire.device)


def errors(wire, names=tuple(AVERAGES), steps=8, settling=4, windows=WINDOWS):
    """Every way of averaging the same gradients, of the trained model -> {name: figures}

    error:    |mean sent - mean| / |mean|, over all parameters, root mean square of the last steps
    typical:  mean over the elements of |their error| / |their value|, at most 1
    flushed:  share of the nonzero means that arrive as 0;  saturated: of sums at FP8's largest
    owed:     |sum of all means sent - sum of all means| / |sum of all means|, over all steps
    bytes:    sent by this rank in a step;  mu: geometric mean over the parameters
    same:     did every rank receive the same bits?
    """
    model = char_gpt.load().to(wire.device)
    keys = list(model.parameters())
    averages = {name: AVERAGES[name](wire) for name in names}
    full = hooks.FullAverage(wire)
    rows = {name: [] for name in names}
    totals = {name: 0.0 for name in names}
    total, same, sent = 0.0, dict.fromkeys(names, True), {}
    for step, ids in enumerate(batches(wire, settling + steps, windows)):
        own = gradients(model, ids)
        exact = hooks.join(full(keys, own)).double()
        total = total + exact
        for name, average in averages.items():
            before = wire.sent
            means = hooks.join(average(keys, own))
            sent[name] = wire.sent - before
            same[name] &= _same_everywhere(wire, means)
            totals[name] = totals[name] + means.double()
            if step >= settling:
                rows[name].append(_figures(means.double(), exact, average))
    table = {}
    for name in names:
        squares, typical, flushed, saturated = zip(*rows[name], strict=True)
        table[name] = {
            "error": math.sqrt(sum(squares) / steps),
            "typical": sum(typical) / steps,
            "flushed": sum(flushed) / steps,
            "saturated": sum(saturated) / steps,
            "owed": float((totals[name] - total).norm() / total.norm()),
            "bytes": sent[name],
            "same": same[name],
        }
        mus = getattr(averages[name], "mus", None)
        if mus:
            table[name]["mu"] = math.exp(sum(map(math.log, mus.values())) / len(mus))
    return table


def _figures(means, exact, average):
    off, there = (means - exact).abs(), exact != 0
    shares = getattr(average, "saturated", {})
    counts = [key.numel() for key in shares]
    return (
        float((off.norm() / exact.norm()) ** 2),
        float((off[there] / exact[there].abs()).clamp(max=1).mean()),
        float((means[there] == 0).double().mean()),
        sum(s * n for s, n in zip(shares.values(), counts, strict=True)) / max(sum(counts), 1),
    )


def _same_everywhere(wire, vector):
    every = wire.gather(vector.view(torch.uint8))
    # The comparison is not part of what a method sends.
    wire.sent -= (wire.size - 1) * vector.nbytes
    return bool((every == every[0]).all())


def train(wire, arm, *, steps=STEPS, windows=WINDOWS, judged=100, seed=0):
    """A new model, trained on ``wire.size * windows`` windows a step -> losses, validation, bytes

    All arms start from the same weights, see the same windows and use Adam at one learning rate.
    losses: [[step, mean training loss of the ranks]];  bytes: sent by this rank in the last step
    """
    torch.manual_seed(seed)
    model = char_gpt.CharGPT().to(wire.device)
    if arm == "1-bit Adam":
        ddp, warm_up = model, max(int(WARM_UP * steps), 1)
        optimizer = one_bit_adam.OneBitAdam(
            model.parameters(), wire, warm_up=warm_up, lr=LEARNING_RATE
        )
    else:
        ddp = DistributedDataParallel(model)
        ddp.register_comm_hook(AVERAGES[arm](wire), hooks.hook)
        optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    losses, since, sent, every = [], 0.0, 0, max(steps // 30, 1)
    for step, ids in enumerate(batches(wire, steps, windows)):
        before = wire.sent
        optimizer.zero_grad()
        loss = F.cross_entropy(ddp(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        sent = wire.sent - before
        since += loss.item()
        if (step + 1) % every == 0:
            mean = wire.mean(torch.tensor([since / every], device=wire.device)).item()
            losses.append([step + 1, round(mean, 4)])
            since = 0.0
    held_out = char_gpt.windows("validation", judged).to(wire.device)
    validation = char_gpt.cross_entropy(model.eval(), held_out)
    return {"losses": losses, "validation": round(validation, 4), "bytes": sent}


def run(wire, *, report=None, **training):
    """-> {"parameters", "errors": of ``errors``, "training": {arm: of ``train``}}"""
    table = errors(wire)
    if report:
        report(table)
    arms = {}
    for arm in ARMS:
        arms[arm] = train(wire, arm, **training)
        if report:
            report(arm, arms[arm]["validation"], arms[arm]["bytes"])
    parameters = sum(p.numel() for p in char_gpt.CharGPT().parameters())
    return {"parameters": parameters, "errors": table, "training": arms}


def main():
    start = time.time()
    with processes.group(timeout=120) as wire:
        first = wire.rank == 0
        found = run(wire, report=(lambda *what: print(*what, flush=True)) if first else None)
        if first:
            recorded.save(
                "distributed_gradients",
                found,
                command="python -m torch.distributed.run --nproc-per-node 4 "
                "-m qbook.experiments.distributed_gradients",
                seeds=[0],
                seconds=time.time() - start,
                ranks=wire.size,
                backend="NCCL" if wire.device.type == "cuda" else "gloo",
                steps=STEPS,
                windows=WINDOWS,
                learning_rate=LEARNING_RATE,
            )


if __name__ == "__main__":
    main()
