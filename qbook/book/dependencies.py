"""What a notebook's stored outputs depend on: its code, the modules of qbook it imports, the pins.

Imports are followed through the package by reading its source, so that a change of one module
makes exactly those notebooks stale that can notice.  An experiment brings its recorded results, and
so does a call of ``recorded.load`` with a name.
"""

import ast
import hashlib
import re
from pathlib import Path


def key(notebook, root="."):
    """Hash of everything the stored outputs depend on."""
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    source = "\n".join(map(_without_magics, code))
    paths = files(source, root)
    digest = hashlib.sha256("\0".join(code).encode())
    found = sorted({*records(paths), *loaded(source, root)})
    for path in [*paths, *found, Path(root, "constraints.txt")]:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def files(code, root="."):
    """The files of qbook that this code imports, and those that they import, sorted."""
    found, waiting = set(), _imported(code)
    while waiting:
        for path in _files(waiting.pop(), root):
            if path not in found:
                found.add(path)
                waiting |= _imported(path.read_text())
    return sorted(found)


def records(paths):
    """The recorded results of the experiments among these modules, sorted."""
    experiments = [path for path in paths if path.parent.name == "experiments"]
    return sorted(
        record
        for path in experiments
        for record in (path.parent / "results").glob(f"{path.stem}*.json")
    )


def loaded(code, root="."):
    """The recorded results that this code loads by a name written out."""
    names = {
        argument.value
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "load"
        for argument in node.args
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
    }
    folder = Path(root, "qbook", "experiments", "results")
    return sorted(path for path in folder.glob("*.json") if path.stem in names)


def _without_magics(code):
    return re.sub(r"^(\s*)[%!].*$", r"\1pass", code, flags=re.M)


def _imported(code):
    """Dotted names below qbook that the code imports; attributes of the package count."""
    names = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.split(".")[0] == "qbook"}


def _files(name, root):
    """The files behind a dotted name: its module or package, and the packages above it."""
    parts = name.split(".")
    files = []
    for end in range(1, len(parts) + 1):
        base = Path(root, *parts[:end])
        files += [p for p in (base.with_suffix(".py"), base / "__init__.py") if p.exists()]
    return files
