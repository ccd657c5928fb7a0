import nbformat

from qbook.book import dependencies


def test_dependencies_follow_imports_through_the_package(tmp_path):
    for name, text in {
        "qbook/__init__.py": "",
        "qbook/a.py": "from qbook import b\n",
        "qbook/b.py": "import numpy\n",
        "qbook/room/__init__.py": "",
        "qbook/room/c.py": "import qbook.a\n",
        "qbook/other.py": "",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = dependencies.files("from qbook.room import c", tmp_path)
    names = [p.relative_to(tmp_path / "qbook").as_posix() for p in found]
    assert names == ["__init__.py", "a.py", "b.py", "room/__init__.py", "room/c.py"]


def test_editing_a_module_makes_exactly_its_notebooks_stale(tmp_path):
    for name in ("qbook/a.py", "qbook/b.py", "constraints.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x = 1\n")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("from qbook import a")])
    before = dependencies.key(notebook, tmp_path)
    (tmp_path / "qbook/b.py").write_text("x = 2\n")
    assert dependencies.key(notebook, tmp_path) == before
    (tmp_path / "qbook/a.py").write_text("x = 2\n")
    assert dependencies.key(notebook, tmp_path) != before


def test_a_new_record_of_an_experiment_makes_its_notebooks_stale(tmp_path):
    folder = tmp_path / "qbook/experiments/results"
    folder.mkdir(parents=True)
    for name in ("__init__.py", "experiments/__init__.py", "experiments/a.py"):
        (tmp_path / "qbook" / name).write_text("")
    (tmp_path / "constraints.txt").write_text("")
    (folder / "a_small.json").write_text("1")
    cell = nbformat.v4.new_code_cell("from qbook.experiments import a")
    notebook = nbformat.v4.new_notebook(cells=[cell])
    before = dependencies.key(notebook, tmp_path)
    (folder / "other.json").write_text("1")
    assert dependencies.key(notebook, tmp_path) == before
    (folder / "a_small.json").write_text("2")
    assert dependencies.key(notebook, tmp_path) != before


def test_a_record_that_is_loaded_by_name_makes_its_notebooks_stale(tmp_path):
    folder = tmp_path / "qbook/experiments/results"
    folder.mkdir(parents=True)
    (tmp_path / "constraints.txt").write_text("")
    for name in ("timings", "other"):
        (folder / f"{name}.json").write_text("1")
    cell = nbformat.v4.new_code_cell('rows = recorded.load("timings")["results"]')
    notebook = nbformat.v4.new_notebook(cells=[cell])
    before = dependencies.key(notebook, tmp_path)
    (folder / "other.json").write_text("2")
    assert dependencies.key(notebook, tmp_path) == before
    (folder / "timings.json").write_text("2")
    assert dependencies.key(notebook, tmp_path) != before
