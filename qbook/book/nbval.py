"""Re-run every cell of every notebook and compare: outputs by nbval, figures by their data.

``python -m qbook.book.nbval [pytest arguments]``.  A notebook whose data can neither be found nor
downloaded is left out, and named in ``_build/reports/lacking.json`` for the ledger.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from qbook.book import notebooks

CELL_TIMEOUT = 120  # seconds; nbval's own default is 2000


def command(paths, arguments=()):
    """The pytest call that checks these notebooks."""
    return [
        *(sys.executable, "-m", "pytest", "--nbval", *map(str, paths)),
        f"--nbval-cell-timeout={CELL_TIMEOUT}",
        *("--nbval-current-env", "-p", "no:cacheprovider", "-n", "2", "--dist", "loadscope"),
        *arguments,
    ]


def environment():
    """Figures are checked against their baselines, sliders are static, a process has one thread."""
    threads = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    return {**os.environ, "QBOOK_FIGURES": "check", "QBOOK_STATIC": "1", **threads}


def main(arguments):
    ready, lacking = notebooks.runnable(notebooks.paths())
    for path, names in lacking.items():
        print(f"{path}: NOT CHECKED for want of {', '.join(names)}; set QBOOK_DATA to their folder")
    report = Path("_build", "reports", "lacking.json")
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text(json.dumps([path.as_posix() for path in lacking]))
    return subprocess.run(command(ready, arguments), env=environment()).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
