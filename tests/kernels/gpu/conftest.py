"""GPU kernels without a GPU: Triton interprets in this process, and compiles in others."""

import os
from pathlib import Path

import pytest

# Before Triton is imported.  Where there is a GPU, benchmarks.gpu compares the compiled kernels.
if not Path("/dev/nvidia0").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

pytest.importorskip("triton", reason="Triton has no wheel for this system")


@pytest.fixture
def on_the_cpu(monkeypatch):
    """The references run, as on a machine without a GPU and without the interpreter."""
    from qbook.kernels.gpu import device

    monkeypatch.setattr(device, "interpreted", lambda: False)


@pytest.fixture(params=[75, 80, 90])
def architecture(request, monkeypatch):
    """The kernels that a T4, an A100 and an H100 would run."""
    monkeypatch.setenv("QBOOK_GPU", str(request.param))
    return request.param
