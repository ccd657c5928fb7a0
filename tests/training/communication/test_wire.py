import time

import pytest
import torch

from qbook.training.communication import wire


def collect(w):
    x = torch.arange(6.0) + 10 * w.rank
    pieces = torch.arange(w.size * 3).reshape(w.size, 3).to(torch.uint8) + 50 * w.rank
    return {
        "exchange": w.exchange(pieces),
        "gather": w.gather(torch.tensor([w.rank, 7])),
        "mean": w.mean(x),
        "largest": w.largest(torch.tensor([float(w.rank), -float(w.rank)])),
    }


@pytest.mark.parametrize("size", [1, 2, 5])
def test_threads_exchange_gather_and_reduce(size):
    for rank, found in enumerate(wire.run_threads(size, collect)):
        expected = [[3 * rank + j + 50 * i for j in range(3)] for i in range(size)]
        assert found["exchange"].tolist() == expected
        assert found["exchange"].dtype == torch.uint8
        assert found["gather"].tolist() == [[i, 7] for i in range(size)]
        assert found["mean"].tolist() == [j + 5 * (size - 1) for j in range(6)]
        assert found["largest"].tolist() == [size - 1, 0]


@pytest.mark.parametrize("size", [1, 4])
def test_bytes_are_those_of_a_ring(size):
    def count(w):
        sent = []
        for call in (
            lambda: w.exchange(torch.zeros(size, 10, dtype=torch.uint8)),
            lambda: w.gather(torch.zeros(10, dtype=torch.uint8)),
            lambda: w.mean(torch.zeros(40)),
        ):
            before = w.sent
            call()
            sent.append(w.sent - before)
        return sent

    # 40 bytes cut in 4: 3 of the pieces travel in the exchange and in the gather, and of the
    # 160 bytes of float32 three quarters travel twice.
    expected = [0, 0, 0] if size == 1 else [30, 30, 240]
    assert wire.run_threads(size, count) == [expected] * size


def test_the_first_error_of_a_thread_is_raised_and_nobody_waits_for_it():
    def fail(w):
        if w.rank == 1:
            raise KeyError("a bug of rank 1")
        w.mean(torch.ones(2))

    start = time.monotonic()
    with pytest.raises(KeyError, match="a bug of rank 1"):
        wire.run_threads(3, fail)
    assert time.monotonic() - start <= 10


def test_a_silent_thread_is_not_waited_for_longer_than_the_timeout():
    def stay_away(w):
        return None if w.rank == 1 else w.mean(torch.ones(2))

    start = time.monotonic()
    with pytest.raises(RuntimeError):
        wire.run_threads(2, stay_away, timeout=0.5)
    assert time.monotonic() - start <= 10


def test_pieces_must_be_one_row_a_rank():
    with pytest.raises(ValueError, match=r"\(3, 2\): pass \[2, n\]"):
        wire.run_threads(2, lambda w: w.exchange(torch.zeros(3, 2)))
