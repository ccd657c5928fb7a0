"""Every GPU kernel: first whether it is right, then how fast it is beside what a user would pick.

    python -m benchmarks.gpu                      all operations
    python -m benchmarks.gpu --only int4_matmul   one module of this folder, or several
    python -m benchmarks.gpu --record             write the results where the notebooks find them
    python -m benchmarks.gpu --tune int4_matmul   rank the tiles that its room may choose from
    python -m benchmarks.gpu --quick              tiny shapes: does everything run?

An operation with a failed check is not timed.  Exit status 1 for a failed check or, on the GPUs
that targets were set for, a missed target; 2 where kernels cannot run.
"""

import argparse
import contextlib
import importlib
import pkgutil
import subprocess
import sys
import time

import benchmarks.gpu

NOT_OPERATIONS = {
    "__main__", "ahead", "clock", "compare", "group", "peaks", "peers", "report", "tune", "weights",
}  # fmt: skip
RECORD = "gpu_kernels"


def operations():
    """-> names of the modules that have ``checks`` and ``groups``"""
    names = {module.name for module in pkgutil.iter_modules(benchmarks.gpu.__path__)}
    return sorted(names - NOT_OPERATIONS)


def module(name):
    return importlib.import_module(f"benchmarks.gpu.{name}")


def tell(text):
    print(text, flush=True)


def compile_ahead(names, device, quick):
    """Build everything once and run nothing: kernels compile on all cores meanwhile."""
    from benchmarks.gpu import ahead

    def everything():
        for name in names:
            # What cannot even be prepared will be told when its turn comes.
            with contextlib.suppress(Exception):
                yield from (call for _, call in module(name).checks(device))
                for group in module(name).groups(device, quick):
                    yield from group.cases.values()

    start = time.perf_counter()
    ahead.rehearse(everything(), device)
    tell(f"compiled ahead in {time.perf_counter() - start:.0f} s")


def check(name, device):
    """Print each check that fails -> how many"""
    start, count, failed = time.perf_counter(), 0, 0
    for label, call in module(name).checks(device):
        count += 1
        # A kernel that does not compile or launch has failed too.
        try:
            call()
        except Exception as error:
            failed += 1
            tell(f"  WRONG {name}, {label}: {type(error).__name__}: {error}")
    took = time.perf_counter() - start
    tell(f"{name}: {count - failed} of {count} checks hold ({took:.0f} s)")
    return failed


def time_groups(name, device, peaks, rounds, quick, apply):
    """Check each group at its shape, time it, print it -> rows, number of groups that are wrong"""
    from benchmarks.gpu import clock, report

    rows, label = [], name
    try:
        for group in module(name).groups(device, quick):
            label = group.name
            group.check()
            timings, eager = clock.interleave(group.cases, device, rounds=rounds)
            found = report.row(name, group, timings, eager)
            lines = [report.table(group, timings, peaks, eager), *report.targets(found, apply)]
            tell("\n".join(lines))
            rows.append(found)
    # Wrong, or without memory, or not to be launched: all end this operation, not the run.
    except Exception as error:
        tell(f"  WRONG {label}: {type(error).__name__}: {error}")
        return rows, 1
    return rows, 0


def run(names, device, *, rounds=15, quick=False, apply=True):
    """Everything but the record -> rows, number of failed checks"""
    from benchmarks.gpu import clock, peaks, report

    compile_ahead(names, device, quick)
    ceiling = peaks.group(device, quick)
    timings, eager = clock.interleave(ceiling.cases, device, rounds=rounds)
    rates, rows, wrong = peaks.rates(ceiling, timings), [], 0
    rows.append(report.row("peaks", ceiling, timings, eager))
    tell("; ".join(f"{name} {rate / 1e12:.3g} T/s" for name, rate in rates.items()))
    for name in names:
        failed = check(name, device)
        if not failed:
            found, failed = time_groups(name, device, rates, rounds, quick, apply)
            rows += found
        wrong += failed
    return rows, wrong


def summary(rows, wrong, apply):
    """Print the targets in short -> exit status"""
    from benchmarks.gpu import report

    tell("\n   ratio  target")
    for row in rows:
        for target in row["targets"]:
            ratio = "     -" if target["ratio"] is None else f"{target['ratio']:6.2f}"
            mark = "! " if target["reached"] is False else "  "
            tell(
                f"{mark}{ratio}  {target['at_least']:6.2f}"
                f"  {row['group']}, {target['case']} against {target['against']}"
            )
    count = report.missed(rows)
    tell(f"{wrong} checks failed, {count} targets missed{'' if apply else ' (set for sm_90)'}")
    return int(wrong > 0 or (apply and count > 0))


def tune_operation(name, device, quick=False):
    from benchmarks.gpu import tune

    found = module(name)
    if not hasattr(found, "tunings"):
        tell(f"{name} has no tiles to choose from")
        return 0
    wrong = 0
    for problem in found.tunings(device, quick):
        ranking, out = tune.rank(problem, device)
        tell(tune.report(problem, ranking, out))
        wrong += not ranking
    return int(wrong > 0)


def machine():
    """-> what else the record says of the GPU and its software"""
    import torch
    import triton

    from benchmarks.gpu import peers

    properties = torch.cuda.get_device_properties()
    return {
        "gpu": {
            "name": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "driver": driver(),
            "cuda": torch.version.cuda,
            "multiprocessors": properties.multi_processor_count,
            "l2_bytes": properties.L2_cache_size,
            "memory_bytes": properties.total_memory,
        },
        "libraries": {"triton": triton.__version__} | peers.versions(),
    }


def driver():
    """-> version of the driver as nvidia-smi tells it; None without that program"""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.split("\n")[0].strip() or None


def record(rows, seconds, rounds):
    from qbook.experiments import recorded

    path = recorded.save(
        RECORD,
        rows,
        command=" ".join(["python -m benchmarks.gpu", *sys.argv[1:]]),
        seeds=[0],
        seconds=seconds,
        rounds=rounds,
        **machine(),
    )
    tell(f"written: {path.name}")


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", default=operations(), choices=operations())
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--tune", choices=operations(), metavar="OPERATION")
    asked = parser.parse_args(arguments)
    if asked.quick and asked.record:
        parser.error("--quick times nothing worth recording; leave out one of the two")
    from benchmarks.gpu import report
    from qbook.kernels.gpu import device as gpu

    try:
        gpu.require()
    except RuntimeError as error:
        tell(str(error))
        return 2
    start, device = time.perf_counter(), "cuda"
    tell(gpu.explain())
    if asked.tune:
        return tune_operation(asked.tune, device, asked.quick)
    import torch

    apply = gpu.architecture(torch.empty(0, device=device)) == report.TARGETS_APPLY_TO
    apply = apply and not asked.quick
    rows, wrong = run(asked.only, device, rounds=asked.rounds, quick=asked.quick, apply=apply)
    status = summary(rows, wrong, apply)
    tell(f"{time.perf_counter() - start:.0f} s in all")
    if asked.record:
        record(rows, time.perf_counter() - start, asked.rounds)
    return status


if __name__ == "__main__":
    sys.exit(main())
