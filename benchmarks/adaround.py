"""AdaRound by the Gram matrix against minibatches: ``python -m benchmarks.adaround``.

A layer of 512 x 512, 4 bits, 1024 samples, 2000 steps, in float32.  The naive version is the
paper's recipe, word for word: 32 samples a step, slopes by autograd, torch's Adam.  It runs 50
steps behind the warm-up, and its time is scaled to 2000.  A step of ours stands for 1024 samples
and one of it for 32, so the ratio is given for a sample, too.
"""

import platform
import sys
import time

import numpy as np
import torch

from qbook import affine
from qbook.lab.session import cpu_name
from qbook.ptq import adaround

SIZE = 512
SAMPLES = 1024
BITS = 4
STEPS = 2000
BATCH = 32
NAIVE_STEPS = 50
LAM = 0.01
TARGET_SECONDS = 60


def problem():
    """-> w [out, in], x [samples, in] with correlated inputs, qparams: float32 torch tensors"""
    rng = np.random.default_rng(0)
    w = rng.normal(size=(SIZE, SIZE))
    x = rng.normal(size=(SAMPLES, SIZE)) @ rng.normal(size=(SIZE, SIZE)) / SIZE**0.5
    w, x = (torch.from_numpy(a.astype(np.float32)) for a in (w, x))
    return w, x, affine.choose_qparams(w, BITS, axis=1)


def naive(w, x, qparams, steps, *, generator, beta=20.0):
    """The objective as the paper writes it -> logits [out, in] after ``steps`` minibatches"""
    scale, zero_point = qparams.scale, qparams.zero_point
    floor = torch.floor(w / scale)
    v = adaround.initial_logits(w / scale - floor).requires_grad_()
    optimizer = torch.optim.Adam([v], lr=0.001)
    for _ in range(steps):
        batch = x[torch.randperm(len(x), generator=generator)[:BATCH]]
        h = torch.clamp(torch.sigmoid(v) * 1.2 - 0.1, 0, 1)
        codes = torch.clamp(floor + zero_point + h, qparams.qmin, qparams.qmax)
        w_hat = scale * (codes - zero_point)
        loss = ((batch @ w.T - batch @ w_hat.T) ** 2).sum(dim=1).mean()
        loss = loss + LAM * (1 - (2 * h - 1).abs() ** beta).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return v.detach()


def seconds(function, *arguments, **keywords):
    start = time.perf_counter()
    result = function(*arguments, **keywords)
    return time.perf_counter() - start, result


def main():
    w, x, qparams = problem()
    generator = torch.Generator().manual_seed(0)
    adaround.optimise(w, x, qparams, steps=3)
    naive(w, x, qparams, 3, generator=generator)
    # Half of the naive steps before ours and half behind, so that a busy machine slows both.
    half = NAIVE_STEPS // 2
    before, _ = seconds(naive, w, x, qparams, half, generator=generator)
    ours, codes = seconds(adaround.optimise, w, x, qparams, steps=STEPS)
    after, _ = seconds(naive, w, x, qparams, half, generator=generator)
    theirs = (before + after) / (2 * half) * STEPS
    learnt, nearest = (
        adaround.errors(w, c, x, qparams).sum().item() for c in (codes, affine.quantize(w, qparams))
    )
    print(
        f"{cpu_name()}, {torch.get_num_threads()} threads, Python {platform.python_version()}, "
        f"torch {torch.__version__}"
    )
    print(f"Gram matrix, all samples   {ours:6.1f} s for {STEPS} steps")
    print(f"autograd, {BATCH} samples      {theirs:6.1f} s, scaled from {2 * half} steps")
    print(f"a step    {theirs / ours:6.2f} times the speed of the naive one")
    print(f"a sample  {theirs / ours * SAMPLES / BATCH:6.1f} times the speed")
    print(f"output error {learnt / nearest:.3f} of that of nearest rounding")
    print(f"target: {TARGET_SECONDS} s or less on two cores")
    return not ours <= TARGET_SECONDS


if __name__ == "__main__":
    sys.exit(main())
