import json
from pathlib import Path

import pytest

from qbook.book import notebooks, prose

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "typed",
    [
        "It gained 3.5 dB.",
        "Only 12 % survive.",
        "It is 3× faster, or 4.2 times.",
        "- a list item with 0.25 bit",
        "| table | 2.5 |\n|---|---|\n| cell | x |",
        "```{note}\n:class: tip\nIt is 9.9.\n```",
        ":::{admonition} Title\nIt is 9.9.\n:::",
        "## A heading with 1.5 in it",
    ],
)
def test_a_typed_number_is_found(typed):
    assert prose.typed_numbers(typed)


@pytest.mark.parametrize(
    "backed",
    [
        "It gained {measured}`gain` dB.",
        "With $s = 0.5$ and\n\n$$\nx = 1.25\n$$",
        "The paper reports 75.8 % {cite}`nagel2020up`.",
        "See section 2.1 and Sections 3.1, 3.2 and 4.5; eq. 2.3.",
        "`x = 0.5` and 8 bits",
        "```python\nx = 0.5\n```",
        "Python 3.11 and torch 2.13 are needed.",
        "```{literalinclude} x.py\n```",
    ],
)
def test_a_backed_number_is_not(backed):
    assert prose.typed_numbers(backed) == []


@pytest.mark.parametrize(
    "page", sorted(ROOT.glob("book/**/*.md")), ids=lambda p: p.relative_to(ROOT).as_posix()
)
def test_no_page_types_a_number_that_nothing_backs(page):
    assert prose.typed_numbers(page.read_text()) == []


@pytest.mark.parametrize(
    "path", notebooks.paths(ROOT), ids=lambda p: p.relative_to(ROOT).as_posix()
)
def test_no_notebook_types_a_number_that_no_cell_backs(path):
    assert prose.unbacked_numbers(json.loads(path.read_text())) == []


def test_a_number_that_a_cell_printed_is_backed():
    code = {"cell_type": "code", "source": "", "outputs": [{"text": ["ratio = 1.25\n"]}]}
    text = {"cell_type": "markdown", "source": "The ratio is 1.25."}
    assert prose.unbacked_numbers({"cells": [code, text]}) == []
    assert prose.unbacked_numbers({"cells": [text]}) == ["1.25"]
