"""Recorded results: what a long run found, with what is needed to judge and repeat it.

Book: used throughout.
"""

import datetime
import json
import os
import platform
from importlib.metadata import version
from pathlib import Path

import qbook
from qbook.lab.session import cpu_name

RESULTS = Path(__file__).parent / "results"


def save(name, results, *, command, seeds, seconds, **settings):
    """Write ``results/NAME.json``: results (anything JSON can hold) and where they come from.

    command: what a reader types to repeat the run;  seeds: list;  seconds: of wall clock, in all;
    settings: what else decides the figures, such as steps and samples.  -> the path
    """
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    record = {
        "command": command,
        "date": datetime.date.today().isoformat(),
        "device": gpu or cpu_name(),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("numpy", "torch")}
        # Of the code that ran, also where it is used from a checkout.
        | {"qbook": qbook.__version__},
        "seeds": list(seeds),
        "seconds": round(seconds),
        **settings,
        "results": results,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    partial = path.with_suffix(".partial")
    # Whole or not at all: an interrupted run leaves the old file.
    partial.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")
    os.replace(partial, path)
    return path


def load(name):
    """-> the record that ``save`` wrote, a dict.  Raises ValueError for a name without a record."""
    path = RESULTS / f"{name}.json"
    if not path.exists():
        known = ", ".join(sorted(p.stem for p in RESULTS.glob("*.json"))) or "nothing yet"
        raise ValueError(f"no results are recorded under {name!r}; recorded: {known}")
    return json.loads(path.read_text())


def provenance(record):
    """record -> one line for the reader: date, device, versions, seeds, minutes, command."""
    versions = " · ".join(f"{name} {number}" for name, number in record["versions"].items())
    return (
        f"Recorded {record['date']} on {record['device']} ({record['threads']} threads), {versions}"
        f", seeds {record['seeds']}, {record['seconds']} s: {record['command']}"
    )
