"""PowerSGD: send two thin factors of the mean gradient matrix, found by one power iteration.

Vogels et al. 2019, arXiv:1905.13727, Algorithms 1 (compression) and 2 (error feedback).  Ranks
never see a full matrix: the mean of M_i Q is (mean M) Q, so linear pieces can be averaged.
Book: 5.2
"""

import torch

from qbook.training.communication.hooks import join, split


def orthogonalize(p):
    """p [m, r] -> an orthonormal basis of its columns [m, r]"""
    return torch.linalg.qr(p).Q


class PowerSgd:
    """Means of rank r over all ranks, with what was left out added next time.  Keys, tensors.

    Tensors of less than two dimensions, and those whose factors are not smaller than they are
    themselves, are averaged in float32.
    errors: what each key still owes, of this rank;  bases: the last Q of each key, [n, r]
    warm_start: begin from the last Q, not from a new random one
    """

    def __init__(self, wire, rank=2, *, warm_start=True, error_feedback=True, seed=0):
        if rank < 1:
            raise ValueError(f"rank={rank} sends nothing; choose 1 or more")
        self.wire, self.rank = wire, rank
        self.warm_start, self.error_feedback = warm_start, error_feedback
        self.errors, self.bases = {}, {}
        # The same on every rank: all project on the same Q.
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, keys, tensors):
        thin = [self.compresses(t) for t in tensors]
        means = [None] * len(tensors)
        rest = [t for t, is_thin in zip(tensors, thin, strict=True) if not is_thin]
        full = iter(split(self.wire.mean(join(rest)), rest) if rest else [])
        low = iter(
            self._compress(
                [k for k, is_thin in zip(keys, thin, strict=True) if is_thin],
                [t for t, is_thin in zip(tensors, thin, strict=True) if is_thin],
            )
        )
        for i, is_thin in enumerate(thin):
            means[i] = next(low if is_thin else full)
        return means

    def compresses(self, tensor):
        """Is it a matrix, and are its factors smaller than it?"""
        if tensor.ndim < 2:
            return False
        m = tensor.shape[0]
        n = tensor.numel() // m
        return self.rank < min(m, n) and self.rank * (m + n) < m * n

    def _compress(self, keys, tensors):
        if not keys:
            return []
        owed = [self.errors.get(k, 0) for k in keys]
        matrices = [(t + e).reshape(t.shape[0], -1) for t, e in zip(tensors, owed, strict=True)]
        bases = [self._basis(k, m) for k, m in zip(keys, matrices, strict=True)]
        ps = [m @ q for m, q in zip(matrices, bases, strict=True)]
        ps = [orthogonalize(p) for p in split(self.wire.mean(join(ps)), ps)]
        qs = [m.T @ p for m, p in zip(matrices, ps, strict=True)]
        qs = split(self.wire.mean(join(qs)), qs)
        means = []
        for key, t, m, p, q in zip(keys, tensors, matrices, ps, qs, strict=True):
            mean = p @ q.T
            self.bases[key] = q
            if self.error_feedback:
                self.errors[key] = (m - mean).reshape(t.shape)
            means.append(mean.reshape(t.shape))
        return means

    def _basis(self, key, matrix):
        if self.warm_start and key in self.bases:
            return self.bases[key]
        shape = matrix.shape[1], self.rank
        return torch.randn(shape, generator=self._generator).to(matrix)
