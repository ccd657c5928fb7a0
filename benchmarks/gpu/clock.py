"""Seconds on a GPU: calls in a CUDA graph, cases in turns, operands that no cache holds.

A graph replays many calls as one submission, so that Python and the driver cost nothing between
them.  Graphs of all cases are queued round after round without waiting; events on the device's own
clock lie around each.  A call that waits for the GPU, as one that reads a number back does, cannot
be captured: it is timed with its launches, and the row says so.

torch.cuda.graph: warmed up before on the stream that captures; the addresses of that time are in
the graph, therefore operands stay alive and a call takes the next copy of them by itself.
"""

import copy
import itertools
import math
import statistics

import torch

from qbook.lab import timing

# Once around the rotation more than this many times the L2 cache passes by.
BEYOND_CACHE = 4
MOST_COPIES, MOST_CALLS = 64, 512


def copies(operand, nbytes, device):
    """operand, of nbytes -> list of it and of copies of it, more than the L2 cache holds

    operand:  a tensor, or anything made of tensors that ``copy.deepcopy`` takes
    """
    count = min(MOST_COPIES, math.ceil(BEYOND_CACHE * cache_bytes(device) / max(1, nbytes)))
    return [operand, *(copy.deepcopy(operand) for _ in range(count - 1))]


def cache_bytes(device):
    """-> bytes of the L2 cache; 0 without a GPU, where nothing is worth timing"""
    if torch.device(device).type != "cuda":
        return 0
    return torch.cuda.get_device_properties(device).L2_cache_size


def rotate(function, *operands):
    """lists of equal length -> call(): function of the next of each; ``call.copies`` of them"""
    turns = itertools.cycle(zip(*operands, strict=True))

    def call():
        return function(*next(turns))

    call.copies = len(operands[0])
    return call


def interleave(cases, device, *, rounds=15, seconds=2e-3):
    """name -> callable -> name -> ``timing.Timing`` of one call, name -> why it is in no graph

    seconds:  that a turn of a case lasts.  Raises ValueError for no cases or fewer than 3 rounds.
    """
    if torch.device(device).type != "cuda":
        return timing.interleave(cases, rounds=rounds, seconds=1e-4), {}
    if not cases or rounds < 3:
        raise ValueError(f"{len(cases)} cases in rounds={rounds}; pass one case, 3 rounds or more")
    turns, eager = {}, {}
    for name, case in cases.items():
        try:
            turns[name] = _captured(case, seconds)
        except RuntimeError as error:
            turns[name] = _launched(case, seconds)
            eager[name] = str(error).partition("\n")[0]
    events = {name: [] for name in cases}
    # The first round brings clocks and caches to where they stay; it is not counted.
    for number in range(rounds + 1):
        for name in list(cases)[:: 1 if number % 2 == 0 else -1]:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            turns[name][0]()
            end.record()
            events[name].append((start, end))
    torch.cuda.synchronize()
    taken = {
        name: [start.elapsed_time(end) / 1e3 / turns[name][1] for start, end in pairs[1:]]
        for name, pairs in events.items()
    }
    return {name: summary(times) for name, times in taken.items()}, eager


def summary(times):
    """seconds of one call in each round -> ``timing.Timing``"""
    if not min(times) > 0:
        raise ValueError(f"a call took {min(times)} s; let each turn last longer")
    low, middle, high = statistics.quantiles(times, n=4)
    return timing.Timing(middle, (low, high), tuple(times))


def calls_that_last(seconds, one_call, turn):
    """-> how many calls of ``one_call`` seconds last ``seconds``: whole turns around the copies"""
    wanted = min(MOST_CALLS, max(1, seconds / one_call))
    return turn * math.ceil(wanted / turn)


def _captured(case, seconds):
    """-> function that runs some calls, how many.  Raises RuntimeError where a call cannot."""
    turn = getattr(case, "copies", 1)
    # What Python and the driver take must not count: the first graph is timed, not the calls.
    first = turn * math.ceil(8 / turn)
    graph = _capture(case, first)
    calls = calls_that_last(seconds, _lasts(graph.replay) / first, turn)
    if calls > first:
        graph = _capture(case, calls)
    else:
        calls = first
    return graph.replay, calls


def _launched(case, seconds):
    turn = getattr(case, "copies", 1)
    case()
    calls = calls_that_last(seconds, _lasts(case), turn)

    def run():
        for _ in range(calls):
            case()

    return run, calls


def _lasts(run):
    """-> seconds on the device's clock, the shortest of three"""
    pairs = []
    for _ in range(3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        pairs.append((start, end))
    torch.cuda.synchronize()
    return min(start.elapsed_time(end) for start, end in pairs) / 1e3


def _capture(case, calls):
    outside = torch.cuda.current_stream()
    inside = _capture_stream(outside.device)
    inside.wait_stream(outside)
    # All that happens once, such as compiling, loading and a library's workspace, happens here,
    # on the stream that will capture, which may do none of it.
    with torch.cuda.stream(inside):
        for _ in range(getattr(case, "copies", 1)):
            case()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, stream=inside):
            for _ in range(calls):
                # The result is dropped, and the graph's pool gives its memory to the next call.
                case()
    except RuntimeError:
        # torch.cuda.graph leaves its stream current when the capture fails.
        torch.cuda.set_stream(outside)
        torch.cuda.synchronize()
        raise
    outside.wait_stream(inside)
    return graph


_streams = {}


def _capture_stream(device):
    # One for all: libraries keep a workspace for each stream that they ever saw.
    if device not in _streams:
        _streams[device] = torch.cuda.Stream(device)
    return _streams[device]
