import subprocess
import sys

import pytest

from qbook.kernels import isa, threads


def run(code, **environment):
    import os

    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_importing_the_kernels_compiles_nothing():
    code = """
import pkgutil, importlib, sys
import qbook.kernels
for module in pkgutil.walk_packages(qbook.kernels.__path__, "qbook.kernels."):
    importlib.import_module(module.name)
from numba.core.dispatcher import Dispatcher
compiled = [
    f"{name}.{key}"
    for name, module in sys.modules.items() if name.startswith("qbook.kernels")
    for key, value in vars(module).items()
    if isinstance(value, Dispatcher) and value.signatures
]
assert not compiled, compiled
"""
    assert run(code).returncode == 0


def test_features_are_those_of_the_forced_processor():
    shown = run(
        "from qbook.kernels import isa; print(isa.available())",
        NUMBA_CPU_NAME="haswell",
        NUMBA_CPU_FEATURES="",
    )
    assert shown.stdout.strip() == "('portable', 'reference')"


def test_a_forced_set_is_used_and_explained():
    shown = run("from qbook.kernels import isa; print(isa.explain())", QBOOK_KERNELS="portable")
    assert shown.stdout.startswith("kernels: portable (forced by QBOOK_KERNELS=portable: ")


def test_a_set_that_cannot_run_here_is_refused_with_what_can():
    shown = run(
        "from qbook.kernels import isa; isa.choose()",
        QBOOK_KERNELS="avx512vnni",
        NUMBA_CPU_NAME="haswell",
        NUMBA_CPU_FEATURES="",
    )
    expected = "'avx512vnni' is not to be had here; this process can run portable, reference"
    assert expected in shown.stderr


def test_the_best_set_comes_first_and_the_reference_last(monkeypatch):
    monkeypatch.delenv("QBOOK_KERNELS", raising=False)
    assert isa.choose() == isa.available()[0]
    assert isa.available()[-1] == isa.REFERENCE
    assert "portable" in isa.available()
    with pytest.raises(ValueError, match="'mmx' is no instruction set; this process can run"):
        isa.choose("mmx")


def test_threads_are_numbas_unless_asked():
    import numba

    assert threads.count() == numba.get_num_threads()
    assert threads.count(1) == 1
    with pytest.raises(ValueError, match="threads=0 is not to be had; this process has 1 to"):
        threads.count(0)
