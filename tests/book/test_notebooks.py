import json
import re
from pathlib import Path

import nbformat
import pytest

from qbook.book import notebooks

ROOT = Path(__file__).parents[2]
each_notebook = pytest.mark.parametrize(
    "path", notebooks.paths(ROOT), ids=lambda p: p.relative_to(ROOT).as_posix()
)


def read(path):
    return nbformat.read(path, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def lab_outputs(notebook):
    for cell in code_cells(notebook):
        for output in cell.outputs:
            yield output, output.get("metadata", {}).get("qbook", {})


@each_notebook
def test_stored_outputs_are_those_of_the_code_as_it_is(path):
    assert not notebooks.is_stale(path, ROOT), "run `make notebooks`"


@each_notebook
def test_a_notebook_is_small_and_stores_outputs_without_errors(path):
    assert path.stat().st_size <= 300_000
    cells = code_cells(read(path))
    assert any(cell.outputs for cell in cells)
    assert not [o for cell in cells for o in cell.outputs if o.output_type == "error"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))


@each_notebook
def test_the_header_is_the_runner_s(path):
    stored, fresh = read(path), read(path)
    notebooks.write_header(fresh, path, ROOT)
    assert [cell.source for cell in stored.cells] == [cell.source for cell in fresh.cells]


@each_notebook
def test_every_picture_is_shown_by_lab_with_checked_data_and_alternative_text(path):
    for output, about in lab_outputs(read(path)):
        if "image/png" in output.get("data", {}):
            assert about["alt"]
            assert about["caption"]
        if about:
            name = about.get("name") or about["slider"]
            assert (path.parent / "figures" / f"{name}.json").exists()


@each_notebook
def test_no_stored_output_is_a_warning(path):
    for cell in code_cells(read(path)):
        assert all(output.get("name") != "stderr" for output in cell.outputs), cell.id


@each_notebook
def test_only_cells_whose_outputs_vary_are_left_out_of_the_comparison(path):
    for cell in code_cells(read(path)):
        if notebooks.IGNORE in cell.metadata.get("tags", []):
            live = cell.id.startswith("live") and not quoted_or_drawn(cell.source)
            assert cell.id == "setup" or live or "lab.slider(" in cell.source, cell.id


def quoted_or_drawn(source):
    """What a page shows must not vary from run to run: timings on the reader's machine do."""
    return "lab.result(" in source or "lab.show(" in source


@each_notebook
def test_cells_are_short(path):
    for cell in code_cells(read(path)):
        drawing = "plt.subplots" in cell.source or "lab.show" in cell.source
        assert len(cell.source.splitlines()) <= (45 if drawing else 25), cell.id


@each_notebook
def test_a_page_of_the_same_folder_and_stem_stands_beside_it(path):
    mirrored = path.relative_to(ROOT / "notebooks").with_suffix(".md")
    assert (ROOT / "book" / mirrored).exists()


def test_no_baseline_is_left_over_and_no_figure_has_two():
    names = [
        about.get("name") or about["slider"]
        for path in notebooks.paths(ROOT)
        for _, about in lab_outputs(read(path))
        if about
    ]
    assert len(names) == len(set(names))
    assert {p.stem for p in ROOT.glob("notebooks/**/figures/*.json")} == set(names)


def test_every_page_shows_figures_and_quotes_results_of_its_notebook():
    for path in notebooks.paths(ROOT):
        page = ROOT / "book" / path.relative_to(ROOT / "notebooks").with_suffix(".md")
        assert "{measured}`" in page.read_text(), page
        assert "```{run-it}" in page.read_text(), page


def test_the_repository_s_address_stands_in_one_place():
    from qbook.book import config

    url, _ = config.repository(ROOT)
    project = re.search(r'Repository = "(.*)"', (ROOT / "pyproject.toml").read_text())[1]
    assert project == url


def test_metadata_tell_where_and_when_the_outputs_were_made():
    for path in notebooks.paths(ROOT):
        about = json.loads(path.read_text())["metadata"]["qbook"]
        assert about.keys() >= {"key", "seconds", "machine", "date", "versions"}
