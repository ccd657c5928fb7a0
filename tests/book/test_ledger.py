import re
from pathlib import Path

import pytest

from qbook.book import ledger

ROOT = Path(__file__).parents[2]

# Every statement of the survey that the book treats so far, by section.
STATEMENTS = {
    "0": "1 2 3",
    "1.1": "a b c d e f g",
    "1.2": "a b c d e f g",
    "1.3": "",
    "2.1.1": "",
    "2.1.2": "a b c d",
    "2.1.3": "",
    "2.2": "a b c",
    "2.3": "",
    "2.4": "a b",
}


def statements():
    for section, letters in STATEMENTS.items():
        for letter in letters.split():
            yield f"{section}.{letter}" if letter.isdigit() else f"{section}-{letter}"
        if not letters:
            yield section


ENTRY = """
- id: 2.2-b
  claim: The error is at most half a step.
  verdict: needs a condition
  why: Only inside the range.
  source: derived
  evidence: [tests/test_a.py::test_it, "notebooks/02/error.ipynb#cell"]
"""
NOTEBOOK = (
    '{"cells": [{"cell_type": "markdown", "id": "cell"}, {"cell_type": "code", "id": "setup"},'
    ' {"cell_type": "code", "id": "cell"}]}'
)


@pytest.fixture
def book(tmp_path):
    def write(name, text):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    write("book/claims/02/error.yml", ENTRY)
    write("book/02/error.md", "# Error\n")
    write("tests/test_a.py", "def test_it():\n    pass\n")
    write("notebooks/02/error.ipynb", NOTEBOOK)
    report(tmp_path)
    return tmp_path


def report(root, test="", cell=""):
    (root / "report.xml").write_text(
        '<testsuites><testsuite><testcase classname="tests.test_a" name="test_it[1]">'
        f'{test}</testcase><testcase classname="notebooks.02.error.ipynb" name="Cell 1">{cell}'
        "</testcase></testsuite></testsuites>"
    )


def not_run(root):
    return ledger.not_run(ledger.load(root), [root / "report.xml"], root)


def test_every_statement_of_the_first_two_chapters_has_an_entry():
    assert {claim.id for claim in ledger.load(ROOT)} >= set(statements())


def test_all_evidence_and_every_page_of_the_book_exists():
    assert ledger.missing_evidence(ledger.load(ROOT), ROOT) == []


def test_every_claim_stands_in_the_margin_of_its_page():
    for claim in ledger.load(ROOT):
        text = (ROOT / f"{claim.page}.md").read_text()
        noted = re.findall(r"```\{survey\} (.*)", text)
        assert claim.id in " ".join(noted).replace(",", " ").split(), claim.id


def test_complete_evidence_passes(book):
    assert ledger.missing_evidence(ledger.load(book), book) == []
    assert not_run(book) == ([], [])


@pytest.mark.parametrize(
    "gone", ["tests/test_a.py", "notebooks/02/error.ipynb", "book/02/error.md"]
)
def test_evidence_or_a_page_that_does_not_exist_is_told(book, gone):
    (book / gone).unlink()
    [problem] = ledger.missing_evidence(ledger.load(book), book)
    assert gone.removeprefix("book/") in problem


def test_a_renamed_test_or_cell_is_told(book):
    (book / "tests/test_a.py").write_text("def test_it_all():\n    pass\n")
    (book / "notebooks/02/error.ipynb").write_text(NOTEBOOK.replace('"cell"}]', '"other"}]'))
    assert len(ledger.missing_evidence(ledger.load(book), book)) == 2


def test_claims_come_in_the_order_of_the_survey_s_sections(book):
    ids = ["2.2-b", "2.10", "3.1", "3.1.1-a", "3.1.1-b", "0.1"]
    entries = "".join(ENTRY.replace("2.2-b", f'"{name}"') for name in ids)
    (book / "book/claims/02/error.yml").write_text(entries)
    order = [claim.id for claim in ledger.load(book)]
    assert order == ["0.1", "2.2-b", "2.10", "3.1", "3.1.1-a", "3.1.1-b"]


@pytest.mark.parametrize("outcome", ["<failure/>", "<error/>"])
def test_evidence_that_failed_is_told(book, outcome):
    report(book, test=outcome)
    assert not_run(book) == (["2.2-b: tests/test_a.py::test_it did not run or did not pass"], [])
    report(book, cell=outcome)
    assert len(not_run(book)[0]) == 1


def test_evidence_that_never_ran_is_told(book):
    (book / "report.xml").write_text("<testsuites/>")
    assert len(not_run(book)[0]) == 2


def test_evidence_skipped_for_want_of_data_is_told_and_excused(book):
    report(book, test="<skipped/>")
    assert not_run(book) == ([], ["2.2-b: tests/test_a.py::test_it not run for want of data"])
    (book / "lacking.json").write_text('["notebooks/02/error.ipynb"]')
    assert len(not_run(book)[1]) == 2


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("needs a condition", "perhaps", "perhaps"),
        ("  source: derived\n", "", "source"),
        (r"evidence: \[.*\]", "evidence: []", "needs evidence"),
        ("\\Z", ENTRY.replace("\\", ""), "twice"),
    ],
)
def test_a_malformed_entry_is_refused(book, old, new, told):
    (book / "book/claims/02/error.yml").write_text(re.sub(old, new, ENTRY, count=1))
    with pytest.raises(ValueError, match=told):
        ledger.load(book)
