"""Which kernel runs where, and what is said where none can run."""

import os
import subprocess
import sys
import types

import pytest
import torch

from qbook.kernels.gpu import device
from qbook.kernels.rowwise import gpu as rowwise

# A machine without Triton: every import of it fails, as it does where it is not installed.
WITHOUT_TRITON = """
import importlib.abc, importlib.util, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "triton":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name == "triton" else find(name, *a)
"""


def fake(kind="cuda", **device_properties):
    return types.SimpleNamespace(device=torch.device(kind), **device_properties)


def test_every_room_can_be_imported_without_triton_and_says_what_is_missing():
    script = f"""{WITHOUT_TRITON}
import importlib, pkgutil, types, torch
import qbook.kernels
from qbook.kernels.gpu import contract, device

for room in contract.ROOMS:
    importlib.import_module(f"qbook.kernels.{{room}}.gpu")
from qbook.kernels.rowwise import gpu

codes, scale = gpu.quantize_int8(torch.ones(2, 3))
assert codes.tolist() == [[127] * 3] * 2
on_gpu = types.SimpleNamespace(device=torch.device("cuda"))
for call in (device.require, lambda: device.runs_triton(on_gpu)):
    try:
        call()
    except RuntimeError as error:
        assert "pip install triton" in str(error), error
    else:
        raise AssertionError("nothing was said")
"""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr


def test_importing_the_launchers_does_not_import_triton():
    script = """
import importlib, sys
from qbook.kernels.gpu import contract

for room in contract.ROOMS:
    importlib.import_module(f"qbook.kernels.{room}.gpu")
assert "triton" not in sys.modules, "imported"
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_interpreter_takes_tensors_on_the_cpu_only(monkeypatch):
    monkeypatch.setattr(device, "interpreted", lambda: True)
    assert device.runs_triton(torch.zeros(1))
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET=1"):
        device.runs_triton(fake())
    monkeypatch.setattr(device, "interpreted", lambda: False)
    assert not device.runs_triton(torch.zeros(1))
    assert device.runs_triton(fake())
    with pytest.raises(RuntimeError, match="cannot run on a GPU here"):
        device.require()


@pytest.mark.parametrize(
    ("capability", "expected"),
    [((7, 5), 75), ((8, 0), 80), ((8, 7), 86), ((9, 0), 90), ((10, 3), 100), ((12, 1), 120)],
)
def test_a_gpu_runs_the_kernels_of_the_best_architecture_it_has(capability, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert device.architecture(fake()) == expected


def test_a_gpu_that_is_too_old_is_told(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    with pytest.raises(RuntimeError, match=r"sm_70.*sm_75"):
        device.architecture(fake())


def test_another_gpu_can_be_asked_for_where_there_is_none(monkeypatch):
    monkeypatch.delenv("QBOOK_GPU", raising=False)
    assert device.architecture(torch.zeros(1)) == device.DEFAULT
    monkeypatch.setenv("QBOOK_GPU", "75")
    assert device.architecture(torch.zeros(1)) == 75
    monkeypatch.setenv("QBOOK_GPU", "sm_42")
    with pytest.raises(ValueError, match=r"'sm_42'.*75, 80"):
        rowwise.quantize_int8(torch.ones(1, 2))


def test_the_contracts_tool_refuses_what_it_does_not_know():
    command = [sys.executable, "-m", "qbook.kernels.gpu.contract"]
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    for arguments, told in [
        (["roowise"], "roowise unknown"),
        (["--arch", "42"], "42 unknown"),
    ]:
        done = subprocess.run(
            [*command, *arguments], capture_output=True, text=True, env=environment
        )
        assert done.returncode == 2
        assert told in done.stderr
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment | {"TRITON_INTERPRET": "1"}
    )
    assert "an interpreter compiles nothing" in done.stderr
