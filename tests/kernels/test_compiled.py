import os
import shutil
import subprocess
import sys
from pathlib import Path

import qbook.kernels
from qbook.kernels import compiled

CODE = """
import numpy as np
from qbook.kernels.int8_matmul import matmul, panels, vectors
w = panels.pack(np.full((16, 16), 3, np.int8))
print(matmul.matmul(np.full((1, 16), 2, np.int8), w, num_threads=1)[0, 0])
print(sum(vectors.multiply.stats.cache_hits.values()))
"""


def copy_of_the_package(folder):
    source = Path(qbook.kernels.__file__).parents[1]
    target = folder / "qbook"
    shutil.copytree(source / "kernels", target / "kernels", ignore=shutil.ignore_patterns("__pyc*"))
    for name in ("__init__.py", "affine.py", "blocks.py", "granularity.py", "requantize.py"):
        shutil.copy(source / name, target / name)
    return target


def run(folder):
    environment = os.environ | {"PYTHONPATH": str(folder), "NUMBA_CPU_NAME": "generic"}
    environment |= {"NUMBA_CPU_FEATURES": ""}
    command = [sys.executable, "-c", CODE]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [int(line) for line in done.stdout.split()]


def test_kernels_are_cached_on_disk_until_any_source_changes(tmp_path):
    package = copy_of_the_package(tmp_path)
    assert run(tmp_path) == [96, 0]
    assert run(tmp_path) == [96, 1]
    # A wrong multiplication in a file that holds no kernel, only what kernels are made of.
    source = package / "kernels" / "simd" / "tile.py"
    text = source.read_text()
    right = "builder.add(builder.load(place, align=1), own)"
    wrong = text.replace(right, right.replace("add", "sub"))
    assert wrong != text
    source.write_text(wrong)
    product, hits = run(tmp_path)
    assert hits == 0
    assert product != 96


def test_the_stamp_is_that_of_all_sources():
    assert len(compiled.source_stamp()) == 64


def test_a_kernel_can_be_decorated_with_and_without_options():
    @compiled.kernel
    def plain(x):
        return x + 1

    @compiled.kernel(parallel=False)
    def with_options(x):
        return x + 2

    assert plain(1) == 2
    assert with_options(1) == 3
