"""A group's timings as a table for people and as a row for JSON."""

from benchmarks.gpu.peaks import COPY
from qbook.lab import timing

# Targets were set for Hopper; elsewhere they are told, and nothing depends on them.
TARGETS_APPLY_TO = 90


def row(operation, group, timings, eager):
    """-> what is recorded; ratio None: one of the two is not there"""
    targets = []
    for target in group.targets:
        ratio = None
        if target.case in timings and target.against in timings:
            ratio = timing.ratio(group, timings, target)
        reached = None if ratio is None else bool(ratio >= target.at_least)
        targets.append(vars(target) | {"ratio": ratio, "reached": reached})
    cases = {
        name: {
            "seconds": found.seconds,
            "quartiles": list(found.quartiles),
            "operations": group.work(name, "operation"),
            "bytes": group.work(name, "byte"),
        }
        for name, found in timings.items()
    }
    return {
        "operation": operation,
        "group": group.name,
        "cases": cases,
        "targets": targets,
        "units": dict(group.units),
        "eager": dict(eager),
        "absent": dict(group.absent),
    }


def table(group, timings, peaks, eager):
    """-> text: a line a case: time, speed against the first, share of bandwidth and arithmetic

    peaks:  "copy" -> bytes a second, unit -> operations a second
    """
    baseline = next(iter(timings))
    width = max(len(name) for name in (*timings, *group.absent))
    lines = [group.name]
    for name, found in timings.items():
        low, high = (1e6 * q for q in found.quartiles)
        ratio = timing.ratio(group, timings, timing.Target(name, baseline, 0))
        line = f"  {name:{width}} {1e6 * found.seconds:10.2f} us ({low:.2f} to {high:.2f})"
        line += f" {ratio:7.2f} x {share(group, name, 'byte', found, peaks, COPY)} of the copy"
        unit = group.units.get(name)
        if unit is not None:
            line += f" {share(group, name, 'operation', found, peaks, unit)} of {unit}"
        if name in eager:
            line += "  (in no graph, launches included)"
        lines.append(line)
    lines += [f"  {name:{width}} is not there: {why}" for name, why in group.absent.items()]
    return "\n".join(lines)


def share(group, name, per, found, peaks, peak):
    work = group.work(name, per)
    if work is None or peak not in peaks:
        return "    -"
    return f"{work / found.seconds / peaks[peak]:5.2f}"


def targets(row, apply):
    """-> lines, one a target; apply: whether they were set for this GPU"""
    for target in row["targets"]:
        mark = {True: "reached", False: "MISSED ", None: "not measured:"}[target["reached"]]
        mark = mark if apply or target["reached"] is None else "for information:"
        ratio = "" if target["ratio"] is None else f" {target['ratio']:.2f} x"
        per = "" if target["per"] == "call" else f" per {target['per']}"
        yield (
            f"    {mark} {target['case']}{ratio} of {target['against']}{per}, "
            f"at least {target['at_least']}"
        )


def missed(rows):
    """-> how many targets are measured and not reached"""
    return sum(t["reached"] is False for row in rows for t in row["targets"])
