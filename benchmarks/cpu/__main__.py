"""Every CPU kernel against what a user would pick instead.

    python -m benchmarks.cpu                        all operations, with one thread and with two
    python -m benchmarks.cpu --only int8_matmul     one module of this folder, or several
    python -m benchmarks.cpu --threads 1 --record   write the results where the notebooks find them
    python -m benchmarks.cpu --roofline FILE        draw the roofline of one thread into an image

Each number of threads is a process of its own, pinned to as many cores, because the libraries read
it when they start.  Exit status 1 where a target is missed.
"""

import argparse
import importlib
import json
import os
import pkgutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import benchmarks.cpu

POOLS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
NOT_OPERATIONS = {"__main__", "peers", "ggml"}
RECORD = "cpu_kernels"


def operations():
    """-> names of the modules that have ``groups``"""
    names = {module.name for module in pkgutil.iter_modules(benchmarks.cpu.__path__)}
    return sorted(names - NOT_OPERATIONS)


def run_here(names, count, rounds):
    """Time all groups in this process -> list of rows that JSON can hold"""
    from qbook.kernels import isa
    from qbook.lab import timing

    # With one thread the process's own time: preemption by other work does not count.
    clock = time.process_time if count == 1 else time.perf_counter
    print(f"{isa.explain()}, {count} thread{'s' if count > 1 else ''}", flush=True)
    rows = []
    for name in names:
        module = importlib.import_module(f"benchmarks.cpu.{name}")
        for group in module.groups():
            timings = timing.interleave(group.cases, rounds=rounds, clock=clock)
            print(timing.table(group, timings), flush=True)
            rows.append(row(name, count, group, timings))
            for target in rows[-1]["targets"]:
                print(
                    f"    {'reached' if target['reached'] else 'MISSED '} "
                    f"{target['ratio']:.2f} x {target['against']}, at least {target['at_least']}"
                )
    return rows


def row(operation, count, group, timings):
    from qbook.lab import timing

    targets = []
    for target in group.targets:
        ratio = timing.ratio(group, timings, target)
        targets.append(vars(target) | {"ratio": ratio, "reached": bool(ratio >= target.at_least)})
    cases = {
        name: {
            "seconds": found.seconds,
            "quartiles": found.quartiles,
            "operations": group.work(name, "operation"),
            "bytes": group.work(name, "byte"),
        }
        for name, found in timings.items()
    }
    return {
        "operation": operation,
        "group": group.name,
        "threads": count,
        "cases": cases,
        "targets": targets,
    }


def run_pinned(names, count, rounds):
    """The same in a process with ``count`` threads on as many cores -> rows"""
    cores = sorted(os.sched_getaffinity(0))[-count:] if hasattr(os, "sched_getaffinity") else None
    pin = (lambda: os.sched_setaffinity(0, cores)) if cores else None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.json"
        command = [sys.executable, "-m", "benchmarks.cpu", "--worker", str(path)]
        command += ["--threads", str(count), "--rounds", str(rounds), "--only", *names]
        environment = os.environ | dict.fromkeys(POOLS, str(count))
        subprocess.run(command, check=True, env=environment, preexec_fn=pin)
        return json.loads(path.read_text())


def scaling(rows):
    """Print how much faster qbook is with each number of threads than with one."""
    single = {r["group"]: r for r in rows if r["threads"] == 1}
    for found in rows:
        if found["threads"] > 1 and found["group"] in single and "qbook" in found["cases"]:
            one, more = (r["cases"]["qbook"]["seconds"] for r in (single[found["group"]], found))
            print(f"{found['group']:50} {found['threads']} threads: {one / more:.2f} x one")


def summary(rows):
    """Print the targets -> how many are missed"""
    print("\n   ratio  target")
    missed = 0
    for found in rows:
        for target in found["targets"]:
            missed += not target["reached"]
            mark = "  " if target["reached"] else "! "
            print(
                f"{mark}{target['ratio']:6.2f}  {target['at_least']:6.2f}"
                f"  {found['group']}, {target['case']} against {target['against']}"
                f" ({found['threads']} threads)"
            )
    return missed


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", default=operations(), choices=operations())
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--roofline", type=Path, metavar="FILE")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.worker:
        rows = run_here(asked.only, asked.threads[0], asked.rounds)
        asked.worker.write_text(json.dumps(rows))
        return 0
    start = time.perf_counter()
    counts = [n for n in asked.threads if n <= (os.cpu_count() or 1)]
    rows = [r for count in counts for r in run_pinned(asked.only, count, asked.rounds)]
    scaling(rows)
    missed = summary(rows)
    if asked.roofline:
        from qbook.lab import roofline_plot

        roofline_plot.draw(rows, counts[0]).savefig(asked.roofline, bbox_inches="tight")
        print(f"drawn: {asked.roofline}")
    if asked.record:
        from qbook.experiments import recorded
        from qbook.kernels import isa

        path = recorded.save(
            RECORD,
            rows,
            command=f"python -m benchmarks.cpu {' '.join(sys.argv[1:])}",
            seeds=[0],
            seconds=time.perf_counter() - start,
            kernels=isa.choose(),
            rounds=asked.rounds,
        )
        print(f"written: {path.name}")
    return missed > 0


if __name__ == "__main__":
    sys.exit(main())
