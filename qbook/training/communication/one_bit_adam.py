"""1-bit Adam: after a warm-up the variance is frozen, and signs of the momentum are sent.

Tang et al. 2021, arXiv:2102.02888, Algorithm 1.  Every compression keeps its error and adds it to
what it compresses next, on the rank that sends ("worker") and on the one that adds ("server").
Book: 5.2

Scale of the signs: mean |x|, the nearest that c * sign(x) comes to x.  The paper and DeepSpeed keep
the length instead, with the root mean square.  The servers are the ranks themselves, each of one
part of every tensor, as in DeepSpeed.
"""

import torch

from qbook import packing
from qbook.training.communication.hooks import FullAverage, in_parts


def signs(x):
    """x [..., n], n a multiple of 8 -> a bit an element, 1 for x >= 0, packed uint8 [..., n / 8]"""
    return packing.pack((x >= 0).to(torch.uint8), 1)


def values(packed, scale, count):
    """Packed bits [..., count / 8], scale that broadcasts -> +-scale [..., count]"""
    return (packing.unpack(packed, 1, count).to(scale.dtype) * 2 - 1) * scale


class OneBitAverage:
    """Means over all ranks with one bit an element, each way, and error feedback at both ends.

    Called with keys and tensors -> means.  Each rank sends its signs and one scale for each tensor;
    rank j adds up part j of every tensor and sends signs of the sum and a scale for each part.
    worker_errors, server_errors: what this rank owes for each key, [size, part] and [part]
    error_feedback=False forgets what it owes, to show what that costs.
    """

    def __init__(self, wire, *, error_feedback=True):
        self.wire, self.error_feedback = wire, error_feedback
        self.worker_errors, self.server_errors = {}, {}

    def __call__(self, keys, tensors):
        size = self.wire.size
        owed = [self._with_error(k, t) for k, t in zip(keys, tensors, strict=True)]
        real = [_real(t, o) for t, o in zip(tensors, owed, strict=True)]
        bits, scales = zip(*(_compress(o, r) for o, r in zip(owed, real, strict=True)), strict=True)
        for key, o, b, s, r in zip(keys, owed, bits, scales, real, strict=True):
            if self.error_feedback:
                self.worker_errors[key] = (o - values(b, s, o.shape[1])) * r
        message = torch.cat([*bits, *(_as_bytes(s).expand(size, -1) for s in scales)], dim=1)
        received = self.wire.exchange(message)

        counts = [o.shape[1] for o in owed]
        parts = [
            values(b, s, n).mean(dim=0)
            for b, s, n in zip(*_read(received, counts), counts, strict=True)
        ]
        parts = [p + self.server_errors.get(k, 0) for k, p in zip(keys, parts, strict=True)]
        own = [r[self.wire.rank] for r in real]
        bits, scales = zip(*(_compress(p, r) for p, r in zip(parts, own, strict=True)), strict=True)
        for key, p, b, s, r in zip(keys, parts, bits, scales, own, strict=True):
            if self.error_feedback:
                self.server_errors[key] = (p - values(b, s, len(p))) * r
        message = torch.cat([*bits, *(_as_bytes(s) for s in scales)])
        received = self.wire.gather(message)
        return [
            values(b, s, n).reshape(-1)[: t.numel()].reshape(t.shape)
            for b, s, n, t in zip(*_read(received, counts), counts, tensors, strict=True)
        ]

    def _with_error(self, key, tensor):
        """-> tensor plus what is owed, [size, part], part a multiple of 8"""
        padded = in_parts(tensor.detach().reshape(-1).float(), 8 * self.wire.size)
        return padded.reshape(self.wire.size, -1) + self.worker_errors.get(key, 0)


def _real(tensor, like):
    """1 where ``like`` [size, part] holds an element of the tensor, 0 where it was filled up"""
    places = torch.arange(like.numel(), device=like.device).reshape(like.shape)
    return (places < tensor.numel()).to(like.dtype)


def _compress(x, real):
    """-> bits, and the scale mean |x| over the real elements, float32 [1]"""
    return signs(x), ((x.abs() * real).sum() / real.sum().clamp(min=1)).reshape(1)


def _as_bytes(scale):
    return scale.view(torch.uint8)


def _read(received, counts):
    """received [size, bytes], bits then scales -> of each key, [size, n / 8] and [size, 1]"""
    pieces = received.split([n // 8 for n in counts] + [4] * len(counts), dim=1)
    # Copied: in place four bytes may begin anywhere, and a float32 may not.
    scales = [torch.stack(list(p)).view(torch.float32) for p in pieces[len(counts) :]]
    return pieces[: len(counts)], scales


class OneBitAdam(torch.optim.Optimizer):
    """Adam on local gradients: averages them itself, first as float32, then as 1-bit momentum.

    warm_up: steps of plain Adam on mean gradients, 15 to 20 % of all in the paper
    After them v stays as it is, its bias corrected once and for all.  An element whose v is 0 was
    never trained in the warm-up and is left alone: its sign would be noise over nothing.
    """

    def __init__(self, params, wire, *, warm_up, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
        if warm_up < 1:
            raise ValueError(f"warm_up={warm_up} leaves no variance to freeze; choose 1 or more")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})
        self.warm_up, self.steps = warm_up, 0
        self._full, self._one_bit = FullAverage(wire), OneBitAverage(wire)

    @torch.no_grad()
    def step(self, closure=None):
        loss = None if closure is None else closure()
        self.steps += 1
        pairs = [(g, p) for g in self.param_groups for p in g["params"] if p.grad is not None]
        keys = [p for _, p in pairs]
        if self.steps <= self.warm_up:
            means = self._full(keys, [p.grad for p in keys])
            for (group, p), g in zip(pairs, means, strict=True):
                self._adam(group, p, g)
        else:
            momenta = [
                torch.lerp(self.state[p]["m"], p.grad, 1 - group["betas"][0]) for group, p in pairs
            ]
            for (group, p), m in zip(pairs, self._one_bit(keys, momenta), strict=True):
                self.state[p]["m"] = m
                self._move(group, p)
        return loss

    def _adam(self, group, p, g):
        state, (b1, b2) = self.state[p], group["betas"]
        state["m"] = torch.lerp(state.get("m", torch.zeros_like(p)), g, 1 - b1)
        state["v"] = torch.lerp(state.get("v", torch.zeros_like(p)), g * g, 1 - b2)
        self._move(group, p)

    def _move(self, group, p):
        state, (b1, b2) = self.state[p], group["betas"]
        m = state["m"] / (1 - b1**self.steps)
        v = state["v"] / (1 - b2 ** min(self.steps, self.warm_up))
        p.sub_(group["lr"] * (state["v"] > 0) * m / (v.sqrt() + group["eps"]))
