"""Ranks as processes: start them, let them find each other, end them all when one is lost.

    with processes.group() as wire: ...              in a script that torchrun starts
    results = processes.run_processes(4, function)   in a notebook: function(wire) in 4 processes

Both speak through the same environment variables (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT), so a
function that runs in two processes on a laptop runs on a cluster.  The store of the group lives in
the process that starts the ranks and outlives each of them: whoever loses its peers calls the roll
there and can say who is missing.  Book: 5.2
"""

import contextlib
import datetime
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
import torch.distributed as dist

from qbook.training.communication.wire import Processes

# Seconds in which those that are left notice that they lost one, each in its next collective.
ROLL_CALL = 6.0
# What gloo, NCCL and the store say when a peer does not: they have no common type.
SIGNS_OF_LOSS = ("gloo", "nccl", "connection", "peer", "timed out", "timeout", "broken pipe")


class RankLost(RuntimeError):
    """Another rank ended or fell silent; the message names it and says what to do."""


class ProcessesFailed(RuntimeError):
    """A rank of ``run_processes`` failed.  returncodes, errors: of each rank, [n]; -9: SIGKILL."""

    def __init__(self, message, returncodes, errors):
        super().__init__(message)
        self.returncodes, self.errors = returncodes, errors


@contextlib.contextmanager
def group(*, timeout=60):
    """Join the ranks that were started together -> a ``wire.Processes``; leave at the end.

    A GPU a rank and NCCL where there are enough of them, else the CPU and gloo.
    timeout: seconds that any collective may wait for the others
    Raises RankLost when another rank ends or stays silent, ValueError outside a group.
    """
    if "RANK" not in os.environ:
        raise ValueError(
            "RANK is not set: start this with python -m torch.distributed.run --nproc-per-node 4, "
            "or call processes.run_processes(4, function)"
        )
    local = int(os.environ.get("LOCAL_RANK", 0))
    on_gpu = int(os.environ.get("LOCAL_WORLD_SIZE", 1)) <= torch.cuda.device_count()
    device = torch.device("cuda", local) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    patience = datetime.timedelta(seconds=timeout)
    store, rank, size = next(dist.rendezvous("env://", timeout=patience))
    roll = dist.PrefixStore("roll", store)
    try:
        dist.init_process_group(
            "nccl" if on_gpu else "gloo", store=store, rank=rank, world_size=size, timeout=patience
        )
        yield Processes(device)
        dist.barrier()
    except RuntimeError as error:
        if not any(sign in str(error).lower() for sign in SIGNS_OF_LOSS):
            raise
        raise RankLost(_who_is_missing(roll, rank, size, error)) from error
    dist.destroy_process_group()


def _who_is_missing(roll, rank, size, error):
    """Sign in, wait for the others -> the message of this rank"""
    try:
        roll.set(str(rank), "here")
        end = time.monotonic() + ROLL_CALL
        missing = [r for r in range(size) if not roll.check([str(r)])]
        while missing and time.monotonic() < end:
            time.sleep(0.05)
            missing = [r for r in range(size) if not roll.check([str(r)])]
    except RuntimeError:
        missing = None
    if missing:
        found = f"rank {', '.join(map(str, missing))} of {size} is gone or does not answer"
    elif missing is None:
        found = f"the process that started the {size} ranks is gone"
    else:
        found = f"all {size} ranks answer, but a connection between them broke"
    return (
        f"rank {rank} lost the group: {found}. The first error of that rank tells why (out of "
        f"memory? an exception?); then start all ranks again. The collective said: {error}"
    )


def run_processes(size, function, *arguments, timeout=120, patience=60, grace=20):
    """-> [function(wire, *arguments) of each rank], each rank a fresh process of this machine.

    function, arguments, results: picklable; the function is importable, not one of a notebook cell
    timeout: seconds for everything;  patience: seconds for one collective
    grace: seconds in which the others are to end once a rank has failed
    Raises ProcessesFailed when a rank fails or time is up; no process is left behind.
    """
    if size < 1 or function.__module__ == "__main__":
        raise ValueError(
            f"size={size}, function {function.__module__}.{function.__qualname__}: choose one "
            "process or more, and a function that a fresh process can import"
        )
    # The ranks' store: in this process, so that it outlives each of them.
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        (folder / "call").write_bytes(pickle.dumps((function, arguments, patience)))
        ranks = [_start(rank, size, store.port, folder) for rank in range(size)]
        try:
            late = _wait(ranks, timeout, grace)
        finally:
            for process in ranks:
                if process.poll() is None:
                    process.kill()
                process.wait()
        errors = [(folder / f"{r}.err").read_text(errors="replace") for r in range(size)]
        codes = [process.returncode for process in ranks]
        if any(codes):
            raise ProcessesFailed(_tell(codes, errors, late, timeout), codes, errors)
        return [pickle.loads((folder / f"{r}.result").read_bytes()) for r in range(size)]


def _start(rank, size, port, folder):
    environment = os.environ | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        # As torchrun does: all ranks are clients of the store.
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "OMP_NUM_THREADS": str(max((os.cpu_count() or 1) // size, 1)),
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
    }
    # One machine: no name has to be resolved.
    loopback = [name for _, name in socket.if_nameindex() if name in ("lo", "lo0")]
    if loopback:
        environment.setdefault("GLOO_SOCKET_IFNAME", loopback[0])
    code = "from qbook.training.communication import processes; processes.work()"
    with (folder / f"{rank}.err").open("wb") as errors:
        return subprocess.Popen(
            [sys.executable, "-c", code, str(folder), str(os.getpid())],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=errors,
            stderr=errors,
        )


def _wait(ranks, timeout, grace):
    """Wait for all -> were some still running when their time was up?"""
    end = time.monotonic() + timeout
    failed = False
    while any(process.poll() is None for process in ranks):
        if not failed and any(process.poll() for process in ranks):
            failed = True
            end = min(end, time.monotonic() + grace)
        if time.monotonic() > end:
            return True
        time.sleep(0.02)
    return False


def _tell(codes, errors, late, timeout):
    """-> what happened: the rank that did not merely lose the others first"""
    failed = [rank for rank, code in enumerate(codes) if code]
    first = next((r for r in failed if "RankLost" not in errors[r]), failed[0])
    how = f"code {codes[first]}"
    if codes[first] < 0:
        how = f"{signal.Signals(-codes[first]).name}" + (" of its starter" if late else "")
    time_up = f" when its time was up (timeout={timeout} s)" if late else ""
    return (
        f"rank {first} of {len(codes)} ended by {how}{time_up}; exit codes {codes}. "
        f"It said: {errors[first].strip()[-2000:] or 'nothing'}"
    )


def work():
    """What a process of ``run_processes`` does; sys.argv: the folder with the call, its starter."""
    folder = Path(sys.argv[1])
    threading.Thread(target=_end_with, args=(int(sys.argv[2]),), daemon=True).start()
    function, arguments, patience = pickle.loads((folder / "call").read_bytes())
    with group(timeout=patience) as wire:
        result = function(wire, *arguments)
    partial = folder / f"{os.environ['RANK']}.result"
    partial.write_bytes(pickle.dumps(result))


def _end_with(starter):
    while os.getppid() == starter:
        time.sleep(1)
    os._exit(1)
