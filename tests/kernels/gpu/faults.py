"""Seeded faults: a test that cannot fail proves nothing.

A fault replaces one text in a kernel's source.  The changed module takes the kernel's place, the
check of the room runs, and must fail.
"""

import importlib.util
import sys
from pathlib import Path

import pytest


def must_fail(monkeypatch, tmp_path, module, old, new, check, users=()):
    """check() passes on module and must raise AssertionError once ``old`` reads ``new`` in it.

    The launcher must look its kernels up when it is called, as ``from room import module`` does
    inside a function.
    users:  modules that import ``module`` at their top, in the order of their imports: they are
            read again, unchanged, so that they see the fault
    """
    source = Path(module.__file__).read_text()
    assert source.count(old) >= 1, f"the fault's place is gone: {old!r}"
    check()
    _replace(monkeypatch, tmp_path, module, source.replace(old, new, 1))
    for user in users:
        _replace(monkeypatch, tmp_path, user, Path(user.__file__).read_text())
    with pytest.raises(AssertionError):
        check()


def _replace(monkeypatch, tmp_path, module, source):
    """A module of that source takes the module's place."""
    # Triton reads a kernel's source from its file.
    name = f"faulty_{module.__name__.replace('.', '_')}"
    path = tmp_path / f"{name}.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(name, path)
    faulty = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(faulty)
    room, stem = module.__name__.rsplit(".", 1)
    monkeypatch.setattr(sys.modules[room], stem, faulty)
    monkeypatch.setitem(sys.modules, module.__name__, faulty)
