"""The notebooks' runner: ``python -m qbook.book.notebooks`` runs those whose outputs are stale.

Stale is a notebook whose key (see ``dependencies``) changed since its outputs were stored.  Key,
seconds and machine stand in its metadata under ``qbook``.
"""

import datetime
import importlib.metadata
import os
import time
from pathlib import Path

from qbook.book import config, dependencies

# The cells that every notebook shares, written by the runner so that the address of the repository
# stands in one place.
HEADER = "header"
IGNORE = "nbval-ignore-output"


def paths(root="."):
    """All notebooks of the book, sorted."""
    return sorted(
        p for p in Path(root, "notebooks").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts
    )


def needs(notebook):
    """Names of the data files without which the notebook cannot run."""
    return notebook.metadata.get("qbook", {}).get("needs", [])


def run(path, root="."):
    """Execute a notebook in its folder, store outputs, figure baselines, key, seconds, machine."""
    import nbformat
    from nbclient import NotebookClient

    from qbook.lab.session import cpu_name

    notebook = nbformat.read(path, as_version=4)
    write_header(notebook, path, root)
    os.environ.update(QBOOK_STATIC="1", QBOOK_FIGURES="update")
    start = time.perf_counter()
    NotebookClient(
        notebook,
        timeout=300,
        kernel_name="python3",
        coalesce_streams=True,
        resources={"metadata": {"path": str(path.parent)}},
    ).execute()
    versions = {name: importlib.metadata.version(name) for name in ("numpy", "torch", "matplotlib")}
    notebook.metadata["qbook"] = {
        **notebook.metadata.get("qbook", {}),
        "key": dependencies.key(notebook, root),
        "seconds": round(time.perf_counter() - start, 1),
        "machine": cpu_name(),
        "date": datetime.date.today().isoformat(),
        "versions": versions,
    }
    notebook.metadata["kernelspec"] = {
        "display_name": "Python 3", "language": "python", "name": "python3",
    }  # fmt: skip
    notebook.metadata["language_info"] = {"name": "python"}
    describe_figures(notebook)
    nbformat.write(notebook, path)


def describe_figures(notebook):
    """Copy the alternative text of ``lab.show`` to where MyST-NB reads it.

    nbval compares a slider's HTML to the letter; its data are checked, the renderer's digits are
    not.
    """
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        for field in ("execution", "collapsed"):
            cell.metadata.pop(field, None)
        for output in cell.outputs:
            about = output.get("metadata", {}).get("qbook", {})
            if "alt" in about:
                cell.metadata["mystnb"] = {"image": {"alt": about["alt"]}}
            if "slider" in about:
                cell.metadata["tags"] = sorted({*cell.metadata.get("tags", []), IGNORE})


def write_header(notebook, path, root="."):
    """Put the Colab badge and the set-up cell on top, with the repository's one address."""
    import nbformat

    repository, branch = config.repository(root)
    relative = Path(path).resolve().relative_to(Path(root).resolve()).as_posix()
    page = "/".join(["book", *relative.split("/")[1:]]).removesuffix(".ipynb")
    colab = repository.replace("https://github.com", "https://colab.research.google.com/github")
    badge = (
        f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
        f"({colab}/blob/{branch}/{relative})"
        f" &nbsp; The derivations are in the [chapter]({repository}/blob/{branch}/{page}.md)."
    )
    setup = (
        "import importlib.util\n\n"
        'if importlib.util.find_spec("qbook") is None:  # on Colab\n'
        f'    %pip install -q "qbook @ git+{repository}@{branch}"\n\n'
        "from qbook import lab\n\n"
        "lab.setup(seed=0)"
    )
    cells = [cell for cell in notebook.cells if HEADER not in cell.metadata.get("tags", [])]
    notebook.cells = [
        nbformat.v4.new_markdown_cell(
            badge, id="badge", metadata={"tags": [HEADER, "remove-cell"]}
        ),
        nbformat.v4.new_code_cell(
            setup, id="setup", metadata={"tags": [HEADER, IGNORE, "hide-input"]}
        ),
        *cells,
    ]
    # The title comes first, for the table of contents.
    titles = [i for i, cell in enumerate(notebook.cells) if cell.source.startswith("# ")]
    if titles:
        notebook.cells.insert(0, notebook.cells.pop(titles[0]))


def is_stale(path, root="."):
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    return notebook.metadata.get("qbook", {}).get("key") != dependencies.key(notebook, root)


def runnable(chosen):
    """-> (notebooks whose data can be had, {notebook: the files it lacks}); tries to fetch them."""
    import nbformat

    ready, lacking, failed = [], {}, set()
    for path in chosen:
        names = needs(nbformat.read(path, as_version=4))
        lacks = [name for name in names if name in failed or not _fetched(name)]
        failed.update(lacks)
        if lacks:
            lacking[path] = lacks
        else:
            ready.append(path)
    return ready, lacking


def _fetched(name):
    from qbook import data

    try:
        data.fetch(name)
    except OSError:
        return False
    return True


def main(arguments):
    """Run stale notebooks (``--all``: every one; paths: these)."""
    chosen = [Path(a) for a in arguments if not a.startswith("--")] or paths()
    chosen = [path for path in chosen if "--all" in arguments or is_stale(path)]
    lacking = runnable(chosen)[1]
    for path in chosen:
        if path in lacking:
            print(f"{path}: stale, but not run for want of {', '.join(lacking[path])}")
            continue
        print(f"{path}: running", flush=True)
        run(path)


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
