"""The kernels' own tests again, compiled for processors that lack what this one has."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# Once is enough for what does not compile kernels for the processor at hand.
ELSEWHERE = ("test_older_processors.py", "test_isa.py", "test_compiled.py")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("processor", ["haswell", "generic"])
def test_kernels_are_right_on(processor):
    """haswell: AVX2 without AVX-512 or VNNI; generic: the oldest that the architecture allows."""
    files = sorted(path for path in HERE.glob("test_*.py") if path.name not in ELSEWHERE)
    environment = os.environ | {"NUMBA_CPU_NAME": processor, "NUMBA_CPU_FEATURES": ""}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", *files]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
