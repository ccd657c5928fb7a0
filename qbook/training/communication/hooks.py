"""Mean gradients over all ranks, in float32 or as FP8 codes, and the hook that gives them to DDP.

    ddp = torch.nn.parallel.DistributedDataParallel(model)
    ddp.register_comm_hook(hooks.Fp8Average(wire), hooks.hook)

Peng et al. 2023, arXiv:2310.18313, section 2.1.  An all-reduce is a reduce-scatter, in which each
rank adds up one part of the vector for all, and an all-gather of these parts: codes travel both
times and float32 only adds.  Libraries add bytes as integers, and FP8 sums that are rounded at
every hop stagnate (``auto_scale.add_in_hops``).  Book: 5.2
"""

import torch

from qbook.formats import E4M3
from qbook.training.communication import auto_scale


def hook(average, bucket):
    """A communication hook of DistributedDataParallel; its state is one of the averages.

    What an average remembers is kept under the parameters themselves, for DDP regroups its buckets
    after the first step.
    """
    views = bucket.gradients()
    for view, value in zip(views, average(bucket.parameters(), views), strict=True):
        view.copy_(value)
    done = torch.futures.Future()
    done.set_result(bucket.buffer())
    return done


class FullAverage:
    """Means in float32: what DDP does without a hook.  Called with keys and tensors -> means."""

    def __init__(self, wire):
        self.wire = wire

    def __call__(self, keys, tensors):
        return split(self.wire.mean(join(tensors)), tensors)


class Fp8Average:
    """Means whose sums travel as FP8 codes, a scale for each tensor.  Keys, tensors -> means.

    mu: None: found by ``auto_scale.next_mu``, for each key, from 1 on;  a number: constant (1:
        post-scaling, 1 / size: pre-scaling, 1 / sqrt(size): the released MS-AMP)
    mus, saturated: mu of each key for the next step, its share of saturated sums at the last
    """

    def __init__(self, wire, mu=None, *, fmt=E4M3, window=auto_scale.WINDOW):
        self.wire, self.mu, self.fmt, self.window = wire, mu, fmt, window
        self.mus, self.saturated = {}, {}

    def __call__(self, keys, tensors):
        largest = torch.stack([t.detach().abs().max().float() for t in tensors])
        # Maxima of NaN are whatever the library makes of them; of infinity they are infinity.
        largest = self.wire.largest(torch.nan_to_num(largest, nan=torch.inf, posinf=torch.inf))
        scales = auto_scale.shared_scale(largest, self.fmt)
        mus = [self.mus.setdefault(key, 1.0 if self.mu is None else self.mu) for key in keys]
        codes = [
            auto_scale.encode(t, scale, mu, self.fmt)
            for t, scale, mu in zip(tensors, scales, mus, strict=True)
        ]
        summed = split(self._add(join(codes)), tensors)
        means = []
        for key, scale, mu, c in zip(keys, scales, mus, summed, strict=True):
            self.saturated[key] = auto_scale.saturated_share(c, self.fmt)
            if self.mu is None:
                self.mus[key] = auto_scale.next_mu(mu, self.saturated[key], window=self.window)
            means.append(auto_scale.mean(c, scale, mu, self.wire.size, self.fmt))
        return means

    def _add(self, codes):
        """codes [n] of this rank -> codes of the sum over all ranks [n]"""
        received = self.wire.exchange(in_parts(codes, self.wire.size))
        own_part = self.fmt.encode(self.fmt.decode(received).sum(dim=0))
        return self.wire.gather(own_part).flatten()[: len(codes)]


def join(tensors):
    """Tensors -> one vector with all their elements"""
    return torch.cat([t.reshape(-1) for t in tensors])


def split(vector, like):
    """The inverse of ``join``: a vector -> views of the shapes of ``like``"""
    parts = vector.split([t.numel() for t in like])
    return [part.reshape(t.shape) for part, t in zip(parts, like, strict=True)]


def in_parts(vector, count):
    """vector [n] -> [count, ceil(n / count)], zeros at its end"""
    parts = vector.new_zeros(count, -(-len(vector) // count))
    parts.view(-1)[: len(vector)] = vector
    return parts
