"""Numbers in prose: injected from a result, part of a formula, quoted with a citation, or wrong.

The check finds decimals, percentages and factors ("3.2×") that somebody typed.  Whole numbers
without a unit pass: "8 bits" is a name, not a measurement.
"""

import re

# Directives whose content is no prose.
NOT_PROSE = {"code", "code-block", "code-cell", "literalinclude", "math", "image", "glue", "raw"}
TYPED = re.compile(
    r"(?<![\w.])\d+(?:\.\d+)+|(?<![\w.])\d+(?:\.\d+)? ?(?:%|×|x\b|times\b|percent\b)"
)
# What makes a dotted number a name: a section, an equation, a version.
NAMED = re.compile(
    r"(?:sections?|chapters?|survey|eq\.|equations?|tables?|algorithms?|figures?|version|Python|torch|"
    r"NumPy|CUDA|§|arXiv:|CC BY-SA)[\s\xa0]*(?:[\d.]+(?:,|,? and|,? or|,? to|–|-)?\s*)*$",
    re.I,
)


def typed_numbers(markdown):
    """-> the numbers of a page's prose that nothing backs, in order.

    Maths, code, roles (an injected result is a role) and links are no prose.  A paragraph that
    carries a citation may quote the paper's own figures.
    """
    return [
        number for text, cited in _paragraphs(markdown) if not cited for number in _in_text(text)
    ]


def unbacked_numbers(notebook):
    """-> numbers typed in a notebook's Markdown that no code cell holds or printed."""
    backing = []
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            backing.append("".join(cell["source"]))
            for output in cell["outputs"]:
                backing.append("".join(output.get("text", "")))
                texts = [v for k, v in output.get("data", {}).items() if "text/plain" in k]
                backing += ["".join(text) for text in texts]
    backing = "\n".join(backing)
    return [
        number
        for cell in notebook["cells"]
        if cell["cell_type"] == "markdown"
        for number in typed_numbers("".join(cell["source"]))
        if re.match(r"[\d.]+", number)[0] not in backing
    ]


def _in_text(text):
    return [m[0] for m in TYPED.finditer(text) if not NAMED.search(text[: m.start()])]


def _paragraphs(markdown):
    """-> (text, carries a citation?) of each paragraph, heading, list item and table cell."""
    for token in _parser().parse(markdown):
        if token.type == "inline":
            text = "".join(_text(child) for child in token.children)
            cited = any(
                child.type == "myst_role" and child.meta["name"].startswith("cite")
                for child in token.children
            )
            yield text, cited
        elif token.type in ("fence", "colon_fence"):
            directive = re.match(r"\{([\w:-]+)\}", token.info)
            if directive and directive[1] not in NOT_PROSE:
                yield from _paragraphs(re.sub(r"\A(?::[\w-]+:.*\n)+", "", token.content))


def _text(token):
    if token.type == "text":
        return token.content
    return "\n" if token.type == "softbreak" else " "


def _parser():
    from markdown_it import MarkdownIt
    from mdit_py_plugins.colon_fence import colon_fence_plugin
    from mdit_py_plugins.dollarmath import dollarmath_plugin
    from mdit_py_plugins.front_matter import front_matter_plugin
    from mdit_py_plugins.myst_role import myst_role_plugin

    parser = MarkdownIt("commonmark").enable("table")
    for plugin in (front_matter_plugin, myst_role_plugin, dollarmath_plugin, colon_fence_plugin):
        parser.use(plugin)
    return parser
