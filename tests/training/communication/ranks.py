"""What the ranks of the tests do, in a module that a fresh process can import.

``python -m torch.distributed.run --nproc-per-node 4 ranks.py`` adds numbers until it is ended.
"""

import os
import signal
import sys
import time

import numpy as np
import torch
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from qbook.training.communication import hooks, one_bit_adam, power_sgd, processes


def spread(rank, ranks=4):
    """Gradients as of an embedding -> two matrices and a vector

    Of even rows two ranks hold large parts of one sign and the others nothing: their sums are
    twice a part, more than mu = 1 bears and less than mu = 1 / 4 is made for.  The odd rows are
    fifteen binades smaller, where E4M3 ends.
    """
    draw = torch.Generator().manual_seed(100 + rank)
    tensors = []
    for shape in [(34, 65), (128,), (8, 3, 5)]:
        row = torch.arange(shape[0])
        large = (row % 2 == 0) & (((row // 2) % ranks == rank) | ((row // 2 + 1) % ranks == rank))
        size = 0.5 + 0.5 * torch.rand(shape, generator=draw)
        small = torch.randn(shape, generator=draw) * 2.0**-15
        odd = (row % 2 == 1).reshape(-1, *[1] * (len(shape) - 1))
        tensors.append(torch.where(large.reshape(odd.shape), size, torch.where(odd, small, 0.0)))
    return tensors


def averages(wire):
    """-> {name: (three rounds of means, bytes sent in the last)} of every average"""
    own, found = spread(wire.rank), {}
    for name, average in {
        "float32": hooks.FullAverage(wire),
        "post": hooks.Fp8Average(wire, 1.0),
        "pre": hooks.Fp8Average(wire, 1 / wire.size),
        "auto": hooks.Fp8Average(wire),
        "one bit": one_bit_adam.OneBitAverage(wire),
        "power": power_sgd.PowerSgd(wire, 2),
    }.items():
        rounds = []
        for _ in range(5):
            before = wire.sent
            rounds.append([m.clone() for m in average("abc", own)])
            sent = wire.sent - before
        found[name] = rounds, sent
    return found


def network():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 9))


def train(wire, model, average=None, *, steps=4, torchs=None):
    """Steps of SGD on batches of this rank -> the weights after each, a list of lists"""
    ddp, after = DistributedDataParallel(model), []
    if torchs is not None:
        ddp.register_comm_hook(torchs, powerSGD_hook.powerSGD_hook)
    elif average is not None:
        ddp.register_comm_hook(average, hooks.hook)
    for step in range(steps):
        x = torch.randn(8, 12, generator=torch.Generator().manual_seed(10 * step + wire.rank))
        model.zero_grad()
        ddp(x).square().sum().backward()
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.01 * p.grad
        after.append([p.detach().clone() for p in model.parameters()])
    return after


def through_ddp(wire):
    """-> the weights after steps with torch's own averages and with ours"""
    state = powerSGD_hook.PowerSGDState(
        process_group=None,
        matrix_approximation_rank=2,
        start_powerSGD_iter=2,
        min_compression_rate=1,
        use_error_feedback=True,
        warm_start=True,
        orthogonalization_epsilon=0,
    )
    return {
        "torch": train(wire, network()),
        "ours": train(wire, network(), hooks.FullAverage(wire)),
        "fp8": train(wire, network(), hooks.Fp8Average(wire)),
        "torch power": train(wire, network(), torchs=state, steps=6),
        "our power": train(wire, network(), Late(power_sgd.PowerSgd(wire, 2), wire), steps=6),
    }


class Late:
    """Full means in the first two steps, as torch's PowerSGD begins, then those of ``average``."""

    def __init__(self, average, wire):
        self.average, self.full, self.calls = average, hooks.FullAverage(wire), 0

    def __call__(self, keys, tensors):
        # The whole network is one bucket: a call is a step.
        self.calls += 1
        if self.calls == 3:
            # The first Q that torch's hook draws.
            torch.manual_seed(np.random.RandomState(0).randint(1_000_000_000))
            for key, tensor in zip(keys, tensors, strict=True):
                if self.average.compresses(tensor):
                    self.average.bases[key] = torch.randn(tensor.shape[1], self.average.rank)
        return (self.full if self.calls <= 2 else self.average)(keys, tensors)


def lose_one(wire, how):
    """Add numbers; rank 2 is killed, stops or has a bug at the fourth step -> never returns"""
    for step in range(10_000):
        if wire.rank == 2 and step == 3:
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if how == "stop":
                time.sleep(3600)
            raise KeyError("a bug of rank 2")
        wire.mean(torch.ones(1000))


def rank_and_pid(wire):
    return wire.rank, os.getpid()


def sleep(wire):
    time.sleep(3600)


def main():
    with processes.group(timeout=30) as wire:
        print(f"rank {wire.rank} is process {os.getpid()}", flush=True)
        while True:
            wire.mean(torch.ones(1000))
            time.sleep(0.01)


if __name__ == "__main__":
    sys.exit(main())
