"""The checks themselves: break one thing in a copy of a notebook and watch the run turn red."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from qbook.book import nbval

ROOT = Path(__file__).parents[2]
CHAPTER = Path("notebooks/02-foundations")
STEM = "uniform"


@pytest.fixture
def copy(tmp_path):
    """A notebook with its figures' baselines, and the package, somewhere else."""
    (tmp_path / CHAPTER / "figures").mkdir(parents=True)
    shutil.copy(ROOT / CHAPTER / f"{STEM}.ipynb", tmp_path / CHAPTER)
    for path in (ROOT / CHAPTER / "figures").glob(f"fig-{STEM}-*.json"):
        shutil.copy(path, tmp_path / CHAPTER / "figures")
    shutil.copytree(
        ROOT / "qbook", tmp_path / "qbook", ignore=shutil.ignore_patterns("__pycache__")
    )
    return tmp_path


def check(root):
    """-> (passed?, output) of the notebooks' check, as ``make test`` calls it, on the copy."""
    done = subprocess.run(
        nbval.command([CHAPTER / f"{STEM}.ipynb"], ["-n", "0"]),
        cwd=root,
        env={**nbval.environment(), "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
    )
    return done.returncode == 0, done.stdout + done.stderr


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_the_untouched_copy_passes(copy):
    passed, output = check(copy)
    assert passed, output


@pytest.mark.parametrize("figure", ["staircase", "explore"])
def test_changed_data_of_a_figure_or_a_slider_turn_the_run_red(copy, figure):
    path = copy / CHAPTER / f"figures/fig-{STEM}-{figure}.json"
    data = json.loads(path.read_text())
    key = next(key for key, values in data.items() if isinstance(values, list) and max(values))
    # One per cent of the largest value, in one point of one curve.
    data[key][0] += 0.01 * max(map(abs, data[key]))
    path.write_text(json.dumps(data))
    passed, output = check(copy)
    assert not passed
    assert "FigureChanged" in output


def test_a_changed_result_turns_the_run_red(copy):
    notebook = json.loads((copy / CHAPTER / f"{STEM}.ipynb").read_text())
    records = [
        output["data"]
        for cell in notebook["cells"]
        for output in cell.get("outputs", [])
        if output.get("metadata", {}).get("scrapbook", {}).get("name") == "sqnr_4"
    ]
    [record] = records
    [mime] = record
    record[mime] = ["'99.9'"]
    (copy / CHAPTER / f"{STEM}.ipynb").write_text(json.dumps(notebook))
    passed, output = check(copy)
    assert not passed
    assert "99.9" in output


def test_a_changed_formula_turns_the_run_red(copy):
    edit(copy / "qbook/affine.py", "steps = np.rint(steps)", "steps = np.floor(steps)")
    passed, _ = check(copy)
    assert not passed


def test_a_changed_formula_turns_the_tests_red(copy):
    edit(copy / "qbook/affine.py", "qmin - xp.round(low / scale)", "xp.round(low / scale) - qmin")
    shutil.copytree(ROOT / "tests", copy / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    done = subprocess.run(
        [*nbval.command([])[:3], "tests/test_affine.py", "-x", "-p", "no:cacheprovider"],
        cwd=copy,
        env={**nbval.environment(), "PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stdout
    assert "1 failed" in done.stdout
