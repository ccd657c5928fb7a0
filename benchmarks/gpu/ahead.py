"""Kernels compiled ahead, all at once on all cores: compiling, not running, is what takes minutes.

Inside ``compiling`` a launch is handed to Triton's compiler elsewhere and does not run: whoever
asked for it gets memory that nobody wrote.  The same launches, run later, find their kernels
compiled.  A library that tries many tiles, as gemlite does, has all of them compiled here and tries
them later.

Triton's compiler holds Python's lock, so that threads would take turns.  Each kernel is compiled by
a child process into Triton's cache on disk, from which this process then takes it.  The child
touches no GPU, as the children of a data loader do not.
"""

import contextlib
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import torch

from benchmarks.gpu import compare
from qbook.kernels.gpu.launch import Launch

# Seconds after which a child is given up, and its kernel compiled here.
PATIENCE = 90


@contextlib.contextmanager
def compiling():
    import triton
    from triton.runtime.autotuner import Autotuner

    # A kernel that does not compile says so when it runs.
    with (
        _Children(os.cpu_count()) as children,
        triton.AsyncCompileMode(children, ignore_errors=True),
        mock.patch.object(Launch, "run", _compile),
        mock.patch.object(Autotuner, "run", _compile_all),
        # Nothing was computed: nothing is wrong, and what comes behind a check compiles too.
        mock.patch.object(compare, "within"),
    ):
        yield


def rehearse(calls, device):
    """Call each inside ``compiling``, on a GPU; without one nothing is compiled

    A result out of unwritten memory may fail whatever looks at it; the real call will tell.
    """
    if torch.device(device).type != "cuda":
        return
    with compiling():
        for call in calls:
            with contextlib.suppress(Exception):
                call()


class _Children(ThreadPoolExecutor):
    """A thread for each child that is under way: it waits."""

    def submit(self, compile_kernel):
        return super().submit(_in_a_child, compile_kernel)


def _in_a_child(compile_kernel):
    child = os.fork()
    if child == 0:
        try:
            compile_kernel()
        finally:
            os._exit(0)
    end = time.monotonic() + PATIENCE
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            end = float("inf")
        time.sleep(0.01)
    # From the cache; or, where the child failed, here, with the compiler's error.
    return compile_kernel()


def _compile(launch):
    launch.kernel.warmup(**launch.arguments, grid=launch.grid, **launch.options)


def _compile_all(autotuner, *args, warmup, **kwargs):
    autotuner.warmup(*args, **kwargs)
