"""The wire between ranks: three collectives, and a count of the bytes that each rank sends.

``Processes`` speaks through torch.distributed: gloo on CPUs, NCCL on GPUs.  ``Threads`` lets ranks
be threads of one process, for notebooks and tests: same calls, same bytes.  Book: 5.2

Bytes are those of bandwidth-optimal algorithms (Thakur et al. 2005, "Optimization of collective
communication operations in MPICH"): a ring sends n bytes around as N - 1 pieces of n / N.
"""

import threading

import torch
import torch.distributed as dist


class Wire:
    """rank: 0 ... size - 1;  size: ranks;  device: where tensors live;  sent: bytes so far."""

    def __init__(self, rank, size, device="cpu"):
        self.rank, self.size, self.device = rank, size, torch.device(device)
        self.sent = 0

    def exchange(self, pieces):
        """pieces [size, n], row j for rank j -> [size, n], row i from rank i; (N - 1) n values"""
        self._check(pieces)
        self.sent += (self.size - 1) * pieces[0].nbytes
        return self._exchange(pieces.contiguous())

    def gather(self, piece):
        """piece [n] of this rank -> [size, n], row i from rank i; (N - 1) n values sent"""
        self.sent += (self.size - 1) * piece.nbytes
        return self._gather(piece.contiguous())

    def mean(self, x):
        """x [n] -> its mean over all ranks, the same on each; 2 (N - 1) / N values an element"""
        self.sent += 2 * (self.size - 1) * x.nbytes // self.size
        return self._reduce(x, "sum") / self.size

    def largest(self, x):
        """x [n] -> the elementwise maximum over all ranks"""
        self.sent += 2 * (self.size - 1) * x.nbytes // self.size
        return self._reduce(x, "max")

    def _check(self, pieces):
        if pieces.ndim != 2 or pieces.shape[0] != self.size:
            raise ValueError(
                f"pieces of shape {tuple(pieces.shape)}: pass [{self.size}, n], a row a rank"
            )


class Processes(Wire):
    """Ranks are processes of torch.distributed's default group; see ``processes.group``."""

    def __init__(self, device="cpu"):
        super().__init__(dist.get_rank(), dist.get_world_size(), device)

    def _exchange(self, pieces):
        received = torch.empty_like(pieces)
        dist.all_to_all_single(received, pieces)
        return received

    def _gather(self, piece):
        received = piece.new_empty(self.size, len(piece))
        dist.all_gather(list(received), piece)
        return received

    def _reduce(self, x, how):
        x = x.clone()
        dist.all_reduce(x, dist.ReduceOp.SUM if how == "sum" else dist.ReduceOp.MAX)
        return x


class Threads(Wire):
    """Ranks are threads that lay their tensors on a common table; see ``run_threads``."""

    def __init__(self, rank, size, table, barrier):
        super().__init__(rank, size)
        self._table, self._barrier = table, barrier

    def _all(self, x):
        self._table[self.rank] = x
        self._barrier.wait()
        laid = list(self._table)
        # Nobody lays the next tensor before everyone has taken this one.
        self._barrier.wait()
        return laid

    def _exchange(self, pieces):
        return torch.stack([laid[self.rank] for laid in self._all(pieces)])

    def _gather(self, piece):
        return torch.stack(self._all(piece))

    def _reduce(self, x, how):
        laid = torch.stack(self._all(x))
        return laid.sum(dim=0) if how == "sum" else laid.amax(dim=0)


def run_threads(size, function, *arguments, timeout=60):
    """-> [function(wire, *arguments) of each rank], each rank a thread of this process.

    Raises what the first failing rank raised; the others end, at the latest after ``timeout``
    seconds of waiting in one collective.
    """
    table, barrier = [None] * size, threading.Barrier(size, timeout=timeout)
    results, errors = [None] * size, []

    def work(rank):
        try:
            results[rank] = function(Threads(rank, size, table, barrier), *arguments)
        except BaseException as error:
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=work, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        # A broken barrier is what the others see of the first error.
        raise next(
            (e for e in errors if not isinstance(e, threading.BrokenBarrierError)), errors[0]
        )
    return results
