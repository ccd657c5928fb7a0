"""The GPU benchmark without a GPU: kernels in the interpreter, graphs and events by a stand-in."""

import contextlib
import functools
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

# Before Triton is imported, as in tests/kernels/gpu.
if not Path("/dev/nvidia0").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

pytest.importorskip("triton", reason="Triton has no wheel for this system")

import torch

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import clock, compare, peers, report, tune
from benchmarks.gpu.group import Group
from qbook.experiments import recorded
from qbook.kernels.gpu import device
from qbook.lab import timing
from qbook.lab.timing import Target, Timing

ROOT = Path(__file__).parents[1]
OPERATIONS = [
    "dp4a_matmul",
    "fp4_matmul",
    "fp8_matmul",
    "int4_matmul",
    "int8_matmul",
    "outlier_matmul",
    "rowwise",
    "ternary_matmul",
]
# Not on a machine that has torch and Triton and nothing of this project's requirements.
FOREIGN = ("pooch", "IPython", "ipywidgets", "numba", "matplotlib", "bitsandbytes", "gemlite")


def test_every_module_is_an_operation_or_known_not_to_be():
    assert command.operations() == OPERATIONS


def test_nothing_is_imported_that_a_bare_machine_lacks():
    names = [f"benchmarks.gpu.{p.stem}" for p in (ROOT / "benchmarks/gpu").glob("*.py")]
    code = f"""
import importlib, sys
for name in {FOREIGN}:
    sys.modules[name] = None
for name in {sorted(names)}:
    importlib.import_module(name)
import qbook.experiments.recorded
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_is_missing_in_one_line(capsys):
    assert command.main([]) == 2
    told = capsys.readouterr().out
    assert told.count("\n") == 1
    assert "GPU" in told


def test_a_record_of_tiny_shapes_is_refused():
    with pytest.raises(SystemExit) as refused:
        command.main(["--quick", "--record"])
    assert refused.value.code == 2


# --- The operations, in the interpreter.


@pytest.mark.parametrize("name", OPERATIONS)
def test_some_checks_of_each_operation_hold(name):
    found = list(command.module(name).checks("cpu"))
    assert len({label for label, _ in found}) == len(found)
    # A few of each kind; all of them run in the benchmark itself, compiled.
    for number in {*range(0, len(found), max(1, len(found) // 5)), len(found) - 1}:
        found[number][1]()


def first_group(name):
    return next(iter(command.module(name).groups("cpu", quick=True)))


@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_has_groups_that_are_right_and_know_their_work(name):
    group = first_group(name)
    group.check()
    assert group.ours
    for case in group.cases:
        assert group.work(case, "byte") > 0
        assert case not in group.absent
    if name != "rowwise":
        assert set(group.units.values()) <= {"bf16", "fp16", "int8", "fp8"}
        assert group.work("qbook", "operation") > 0


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_wrong_number_fails_the_check_of_a_group(name, monkeypatch):
    group = first_group(name)
    right = group.cases["qbook"]

    def wrong():
        found = right()
        y = found[0] if isinstance(found, tuple) else found
        # One number, by a step of eight bits or more: no rounding explains it.
        flat = y.view(torch.uint8) if y.element_size() == 1 else y
        flat[-1, -1] = flat[-1, -1] + (1 if flat.dtype == torch.uint8 else 0.25 * y.abs().max() + 1)
        return found

    monkeypatch.setitem(group.cases, "qbook", wrong)
    with pytest.raises(ValueError, match="1 of"):
        group.check()


@pytest.mark.parametrize("name", [n for n in OPERATIONS if n != "rowwise"])
def test_candidates_of_the_tuner_run(name):
    problem = next(iter(command.module(name).tunings("cpu", quick=True)))
    assert len(problem.cases) > 3
    chosen = next(iter(problem.cases))
    with compare.poisoned():
        found = problem.cases[chosen]()
    problem.check(found=found)
    found[-1, -1] += 1000
    with pytest.raises(ValueError, match="1 of"):
        problem.check(found=found)


def test_every_target_of_the_plan_is_in_a_group():
    from benchmarks.gpu import fp8_matmul, int4_matmul, int8_matmul, ternary_matmul

    least = {m: [t for _, t in targets] for m, targets in int4_matmul.TARGETS.items()}
    assert least == {
        1: [2.2, 1.0], 4: [], 16: [1.9, 1.0], 64: [1.3, 1.0], 256: [], 1024: [0.75], 4096: [0.9]
    }  # fmt: skip
    assert [t.at_least for t in int8_matmul.SHAPES[8192, 8192, 8192]] == [1.3, 1.0]
    assert [t.at_least for t in fp8_matmul.SHAPES[8192, 8192, 8192]] == [1.4, 0.85]
    assert ternary_matmul.TARGETS[1][0][1] == 2.6
    assert [t.at_least for t in first_group("rowwise").targets] == [0.8]


# --- Comparing.


def test_nan_and_unwritten_memory_are_wrong():
    with compare.poisoned():
        nothing = torch.empty(3, 2)
    with pytest.raises(ValueError, match=r"6 of 6 numbers .* at \[0, 0\]: nan instead of 0"):
        compare.within("y", nothing, torch.zeros(3, 2), torch.inf)
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_product_may_be_rounded_but_not_more():
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(n, 512, generator=generator).half() for n in (7, 33))
    y = (x.double() @ w.double().T).half()
    compare.product("y", y, x, w)
    # Rounded to eight bits, wrong in one column of inputs, or in one place.
    for wrong in (y.bfloat16().half(), y - x[:, :1] * w[:, 0], y.clone()):
        wrong[3, 5] += 0.5
        with pytest.raises(ValueError, match="numbers are wrong"):
            compare.product("y", wrong, x, w)


def test_equal_wants_the_type_and_every_bit():
    zero = torch.zeros(2)
    compare.equal("y", zero, torch.zeros(2))
    with pytest.raises(ValueError, match="2 of 2"):
        compare.equal("y", -zero, zero)
    with pytest.raises(ValueError, match="float32, not"):
        compare.equal("y", zero, zero.half())
    with pytest.raises(ValueError, match=r"shape \[2\], not \[3\]"):
        compare.equal("y", zero, torch.zeros(3))


def test_a_library_that_fails_or_computes_something_else_says_why():
    absent, y = {}, torch.ones(2, 2, dtype=torch.float64)
    assert peers.attempt("good", absent, lambda: lambda: 1.01 * y, y) is not None
    assert peers.attempt("wrong", absent, lambda: lambda: 2 * y, y) is None
    assert peers.attempt("nan", absent, lambda: lambda: torch.nan * y, y) is None

    def missing():
        import no_such_library  # noqa: F401

    assert peers.attempt("missing", absent, missing, y) is None
    assert absent["wrong"].startswith("computes something else: 1.000")
    assert "no_such_library" in absent["missing"]
    assert set(absent) == {"wrong", "nan", "missing"}


def test_bitsandbytes_multiplies_the_weight_that_it_is_given():
    pytest.importorskip("bitsandbytes")
    from benchmarks.gpu import fp4_matmul, weights

    weight, absent = weights.draw("nf4", 128, 256, 64, "cpu"), {}
    for m in (1, 5):
        x = weights.activations(m, 256, torch.float16, "cpu")
        expected = x.double() @ weight.w_hat.T
        build = functools.partial(fp4_matmul.bitsandbytes, weight, x)
        assert peers.attempt("bitsandbytes", absent, build, expected), absent


# --- The clock.


def test_copies_exceed_the_cache_and_are_taken_in_turns(monkeypatch):
    monkeypatch.setattr(clock, "cache_bytes", lambda device: 1000)
    weights = clock.copies(torch.arange(3), 300, "cpu")
    # 4 caches of 1000 bytes, 300 a copy.
    assert len(weights) == 14
    assert len({w.data_ptr() for w in weights}) == 14
    assert all(torch.equal(w, weights[0]) for w in weights)
    call = clock.rotate(lambda w: w.data_ptr(), weights)
    assert call.copies == 14
    assert [call() for _ in range(15)] == [w.data_ptr() for w in [*weights, weights[0]]]
    assert len(clock.copies(torch.zeros(1), 1, "cpu")) == clock.MOST_COPIES


@pytest.mark.parametrize(
    ("seconds", "one_call", "turn", "calls"),
    [(2e-3, 1e-5, 1, 200), (2e-3, 1e-5, 8, 200), (2e-3, 1e-5, 7, 203), (2e-3, 1, 3, 3)],
)
def test_a_turn_is_whole_rounds_of_the_copies(seconds, one_call, turn, calls):
    assert clock.calls_that_last(seconds, one_call, turn) == calls
    assert clock.calls_that_last(1, 1e-9, 1) == clock.MOST_CALLS


class Gpu:
    """A stand-in for torch.cuda: time passes only where a call executes, not where it is captured.

    ``capturing`` is the list of what a graph holds, None outside; ``order`` what was replayed.
    """

    def __init__(self, monkeypatch):
        self.now, self.capturing, self.order, self.stream_now = 0.0, None, [], "outside"
        gpu = self

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self):
                self.time = gpu.now

            def elapsed_time(self, end):
                return 1e3 * (end.time - self.time)

        class Graph:
            def replay(self):
                gpu.order.append((self.holds[0][0], len(self.holds)))
                for _, seconds in self.holds:
                    gpu.now += seconds

        @contextlib.contextmanager
        def graph(cuda_graph, stream):
            gpu.capturing, gpu.stream_now = [], stream
            yield
            # As in torch, an error inside leaves the stream current.
            cuda_graph.holds, gpu.capturing, gpu.stream_now = gpu.capturing, None, "outside"

        def set_stream(stream):
            gpu.capturing, gpu.stream_now = None, stream

        @contextlib.contextmanager
        def stream(inside):
            gpu.stream_now = inside
            yield
            gpu.stream_now = "outside"

        place = types.SimpleNamespace(device="cuda:0", wait_stream=lambda other: None)
        for name, value in {
            "Event": Event,
            "CUDAGraph": Graph,
            "graph": graph,
            "stream": stream,
            "set_stream": set_stream,
            "Stream": lambda device: place,
            "current_stream": lambda: place,
            "synchronize": lambda: None,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)

    def case(self, name, seconds, copies=1, capturable=True):
        def call():
            if self.capturing is None:
                self.now += seconds
            elif not capturable:
                raise RuntimeError("operation not permitted when stream is capturing\nmore")
            else:
                self.capturing.append((name, seconds))

        call.copies = copies
        return call


def test_graphs_are_timed_in_turns_and_what_cannot_be_captured_with_its_launches(monkeypatch):
    gpu = Gpu(monkeypatch)
    cases = {
        "fast": gpu.case("fast", 1e-5, copies=7),
        "slow": gpu.case("slow", 3e-3),
        "waits": gpu.case("waits", 1e-4, capturable=False),
    }
    found, eager = clock.interleave(cases, "cuda", rounds=4)
    assert {name: pytest.approx(t.seconds) for name, t in found.items()} == {
        "fast": 1e-5,
        "slow": 3e-3,
        "waits": 1e-4,
    }
    assert all(len(t.rounds) == 4 for t in found.values())
    assert eager == {"waits": "operation not permitted when stream is capturing"}
    # One round more than counted, every second one backwards; before, each is measured three times.
    turns = gpu.order[-10:]
    names = [name for name, _ in turns]
    assert names == ["fast", "slow", "slow", "fast"] * 2 + ["fast", "slow"]
    # 2 ms, in whole rounds of 7 copies; the graph that was captured first is long enough for slow.
    assert set(turns) == {("fast", 203), ("slow", 8)}
    assert gpu.capturing is None


def test_too_few_rounds_and_a_clock_that_stands_still_are_told(monkeypatch):
    gpu = Gpu(monkeypatch)
    with pytest.raises(ValueError, match="rounds=2"):
        clock.interleave({"a": gpu.case("a", 1e-3)}, "cuda", rounds=2)
    with pytest.raises(ValueError, match="0 cases"):
        clock.interleave({}, "cuda")
    with pytest.raises(ValueError, match=r"took 0.0 s"):
        clock.summary([1.0, 0.0, 1.0])


# --- Tables, targets, the record.


def fake_group():
    targets = (
        Target("qbook", "torch.mm bf16", 2.0),
        Target("qbook", "torch.mm bf16", 5.0),
        Target("qbook", "gemlite", 1.0),
        Target("qbook", "torch.mm bf16", 0.5, "byte"),
    )
    return Group(
        "W4A16 1x8x8",
        {"torch.mm bf16": None, "qbook": None},
        1e9,
        {"torch.mm bf16": 4e6, "qbook": 1e6},
        targets,
        units={"torch.mm bf16": "bf16", "qbook": "fp16"},
        absent={"gemlite": "ModuleNotFoundError: No module named 'gemlite'"},
    )


def fake_timings():
    seconds = {"torch.mm bf16": 4e-6, "qbook": 1e-6}
    return {name: Timing(s, (0.9 * s, 1.1 * s), (s, s, s)) for name, s in seconds.items()}


def test_a_row_holds_what_the_notebook_needs_and_is_json():
    row = report.row("int4_matmul", fake_group(), fake_timings(), {"qbook": "waits"})
    assert json.loads(json.dumps(row, allow_nan=False)) == row
    assert row["cases"]["qbook"] == {
        "seconds": 1e-6,
        "quartiles": [0.9e-6, 1.1e-6],
        "operations": 1e9,
        "bytes": 1e6,
    }
    assert [(t["ratio"], t["reached"]) for t in row["targets"]] == [
        (pytest.approx(4), True),
        (pytest.approx(4), False),
        (None, None),
        (pytest.approx(1), True),
    ]
    assert report.missed([row, row]) == 2


def test_the_table_tells_time_ratio_and_shares_of_what_was_measured():
    peaks = {"copy": 4e12, "bf16": 1e15}
    table = report.table(fake_group(), fake_timings(), peaks, {"qbook": "waits"})
    first, ours, gone = table.splitlines()[1:]
    # 4 MB in 4 us: 1 TB/s of 4; 1e9 operations in 4 us: 250 T/s of 1000.
    assert "4.00 us (3.60 to 4.40)    1.00 x  0.25 of the copy  0.25 of bf16" in first
    # The unit fp16 was not measured.
    assert "4.00 x  0.25 of the copy     - of fp16  (in no graph, launches included)" in ours
    assert gone.endswith(
        "gemlite       is not there: ModuleNotFoundError: No module named 'gemlite'"
    )


def test_targets_are_judged_on_the_gpus_that_they_were_set_for_alone(capsys):
    row = report.row("int4_matmul", fake_group(), fake_timings(), {})
    lines = [line.split()[0] for line in report.targets(row, apply=True)]
    assert lines == ["reached", "MISSED", "not", "reached"]
    lines = [line.split()[0] for line in report.targets(row, apply=False)]
    assert lines == ["for", "for", "not", "for"]
    assert command.summary([row], wrong=0, apply=True) == 1
    assert command.summary([row], wrong=0, apply=False) == 0
    assert command.summary([], wrong=1, apply=False) == 1
    assert "!   4.00    5.00  W4A16 1x8x8, qbook against torch.mm bf16" in capsys.readouterr().out


def operation(check, group):
    return types.SimpleNamespace(
        checks=lambda device: [("a check", check)], groups=lambda device, quick: [group]
    )


def fails(*_):
    raise ValueError("1 of 4 numbers are wrong")


@pytest.mark.parametrize("place", ["check", "group", "nowhere"])
def test_what_is_wrong_is_told_and_not_timed(place, monkeypatch, capsys):
    check = fails if place == "check" else lambda: None
    cases = {"torch": lambda: None, "qbook": lambda: None}
    group = Group("bad", cases, 1, 1, check=fails if place == "group" else lambda: None)
    modules = {
        "bad": operation(check, group),
        "good": operation(lambda: None, Group("good", cases, 1, 1)),
    }
    monkeypatch.setattr(command, "module", modules.get)
    rows, wrong = command.run(["bad", "good"], "cpu", rounds=3, quick=True)
    told = capsys.readouterr().out
    names = [row["group"] for row in rows]
    if place == "nowhere":
        assert names == ["peaks", "bad", "good"]
        assert wrong == 0
        return
    assert names == ["peaks", "good"]
    assert wrong == 1
    assert "WRONG bad" in told
    assert "1 of 4 numbers are wrong" in told


def test_the_record_says_on_what_machine(tmp_path, monkeypatch):
    properties = types.SimpleNamespace(
        name="a GPU", major=9, minor=0, multi_processor_count=132, L2_cache_size=5, total_memory=7
    )
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: properties)
    monkeypatch.setattr(recorded, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["benchmarks/gpu/__main__.py", "--record"])
    row = report.row("int4_matmul", fake_group(), fake_timings(), {})
    command.record([row], seconds=3, rounds=15)
    found = recorded.load(command.RECORD)
    assert found["results"] == [row]
    assert found["command"] == "python -m benchmarks.gpu --record"
    assert (found["gpu"]["name"], found["gpu"]["capability"]) == ("a GPU", "9.0")
    assert set(found["libraries"]) == {"triton", "gemlite", "bitsandbytes"}


def test_the_tuner_ranks_what_is_right_and_says_what_is_not(monkeypatch):
    seconds = {"chosen": 3e-6, "faster": 1e-6, "wrong": 1e-7}

    def spill():
        raise RuntimeError("out of resource: shared memory\nand more")

    def check(found):
        if found == "wrong":
            raise ValueError("3 of 4 numbers are wrong")

    def times(cases, device, rounds):
        return {c: Timing(seconds[c], (0, 0), (seconds[c],) * 3) for c in cases}, {}

    monkeypatch.setattr(clock, "interleave", times)
    cases = {name: lambda name=name: name for name in seconds} | {"large": spill}
    problem = tune.Problem("1x8x8", cases, check)
    ranking, wrong = tune.rank(problem, "cpu")
    assert ranking == [("faster", 1e-6), ("chosen", 3e-6)]
    assert set(wrong) == {"wrong", "large"}
    told = tune.report(problem, ranking, wrong)
    assert "2.      3.00 us  chosen  <- chosen today" in told
    assert "out: large: RuntimeError: out of resource: shared memory\n" in told
    assert "3.00 x today's:\n    'faster'," in told


REHEARSAL = """
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

class Driver:
    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)
    def get_current_device(self):
        return 0
    def get_current_stream(self, device):
        return 0

driver.set_active(Driver())
from benchmarks.gpu import ahead
from qbook.kernels.gpu import device
from qbook.kernels.rowwise import gpu, triton_kernels

device.runs_triton = lambda tensor: True
x = torch.ones(3, 50)
with ahead.compiling():
    gpu.quantize_int8(x)
    gpu.quantize_fp8(x)
compiled = triton_kernels.quantize_short.device_caches[0][0]
print(sorted(kernel.metadata.name for kernel in compiled.values()))
"""


def test_launches_compile_ahead_in_children_and_do_not_run(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", REHEARSAL], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == "['quantize_short', 'quantize_short']\n"
    assert len(list(tmp_path.rglob("*.cubin"))) == 2


def test_a_table_of_timings_agrees_with_the_shared_ratio():
    group, timings = fake_group(), fake_timings()
    assert timing.ratio(group, timings, group.targets[0]) == pytest.approx(4)
    assert device.ARCHITECTURES.count(report.TARGETS_APPLY_TO) == 1
