"""The book's own Sphinx roles and directives; all of them render what stands elsewhere once.

{measured}`name`           a result of the notebook that mirrors this page
{measured}`folder/stem::name`  a result of another notebook
```{survey} 2.1.2-d        margin note: what the survey says and whether it holds
```{ledger}                the table of all claims with their evidence
```{run-times}             every notebook with its seconds and machine
```{run-it}                box: the notebook of this page, on Colab and as rendered here
```{shown} fig-name        a figure or slider out of the notebook of this page, with its number
"""

import base64
import json
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.util.docutils import SphinxRole

from qbook.book import config, notebooks
from qbook.book.sphinx_ledger import Ledger, Survey
from qbook.book.sphinx_markdown import Markdown


class Measured(SphinxRole):
    """A result that a notebook stored with ``lab.result``, injected by MyST-NB's glue."""

    def run(self):
        from myst_nb.ext.glue.roles import PasteTextRole

        notebook, _, name = self.text.rpartition("::")
        stem = notebook or self.env.docname.removeprefix("book/")
        up = "../" * self.env.docname.count("/")
        target = f"{up}notebooks/{stem}.ipynb::{name}"
        return PasteTextRole()(
            "glue:text", f"{{glue:text}}`{target}:s`", f"{target}:s", self.lineno, self.inliner
        )


class RunTimes(Markdown):
    """Seconds, machine and date of every notebook's stored run."""

    def run(self):
        rows = ["| notebook | seconds | run on | versions | date |", "|---|--:|---|---|---|"]
        for path in notebooks.paths(self.env.srcdir):
            about = json.loads(path.read_text())["metadata"].get("qbook", {})
            name = path.relative_to(self.env.srcdir).with_suffix("").as_posix()
            self.env.note_dependency(str(path))
            versions = ", ".join(f"{k} {v}" for k, v in about["versions"].items())
            cells = [about["seconds"], about["machine"], versions, about["date"]]
            rows.append(f"| {{doc}}`/{name}` | {' | '.join(map(str, cells))} |")
        return self.parse(rows)


class Shown(Markdown):
    """A figure that a notebook shows with ``lab.show``, or a slider, with the caption it gave."""

    required_arguments = 1
    option_spec = {"notebook": directives.unchanged}  # noqa: RUF012

    def run(self):
        name, root = self.arguments[0], Path(self.env.srcdir)
        stem = self.options.get("notebook", self.env.docname.removeprefix("book/"))
        path = root / "notebooks" / f"{stem}.ipynb"
        self.env.note_dependency(str(path))
        for about, data in _outputs(path):
            if about.get("slider") == name:
                raw = nodes.raw("", "".join(data["text/html"]), format="html")
                return [*self.parse([f"({name})=", ""]), raw]
            if about.get("name") == name:
                image = root / "_build" / "figures" / f"{name}.png"
                image.parent.mkdir(parents=True, exist_ok=True)
                image.write_bytes(base64.b64decode("".join(data["image/png"])))
                return self.parse(
                    [
                        f":::{{figure}} /_build/figures/{name}.png",
                        f":name: {name}",
                        f":alt: {about['alt']}",
                        "",
                        about["caption"],
                        ":::",
                    ]
                )
        raise self.error(f"no figure {name!r} in notebooks/{stem}.ipynb; run `make notebooks`")


def _outputs(path):
    """-> (what lab said about it, data) of each output of a notebook."""
    for cell in json.loads(path.read_text())["cells"]:
        for output in cell.get("outputs", []):
            yield output.get("metadata", {}).get("qbook", {}), output.get("data", {})


class RunIt(Markdown):
    """The box that leads from a page to its notebook, with the seconds that it takes."""

    option_spec = {"notebook": directives.unchanged}  # noqa: RUF012

    def run(self):
        stem = self.options.get("notebook", self.env.docname.removeprefix("book/"))
        path = Path(self.env.srcdir, "notebooks", f"{stem}.ipynb")
        about = json.loads(path.read_text())["metadata"].get("qbook", {})
        repository, branch = config.repository(self.env.srcdir)
        colab = repository.replace("https://github.com", "https://colab.research.google.com/github")
        return self.parse(
            [
                ":::{admonition} Run it",
                ":class: tip",
                f"Every figure and number of this page comes from {{doc}}`its notebook "
                f"</notebooks/{stem}>` ({about.get('seconds')} seconds on {about.get('machine')}). "
                f"[Open it in Colab]({colab}/blob/{branch}/notebooks/{stem}.ipynb).",
                ":::",
            ]
        )


def _drop_thebe(app, pagename, templatename, context, doctree):
    """Two extensions declare the address of Thebe's script even where it is switched off."""
    context["script_files"] = [
        script
        for script in context["script_files"]
        if "THEBE_JS_URL" not in (getattr(script, "attributes", {}).get("body") or "")
    ]


def setup(app):
    app.connect("html-page-context", _drop_thebe, priority=900)
    app.add_role("measured", Measured())
    for name, directive in {
        "survey": Survey,
        "ledger": Ledger,
        "run-times": RunTimes,
        "run-it": RunIt,
        "shown": Shown,
    }.items():
        app.add_directive(name, directive)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
