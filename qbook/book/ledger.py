"""The claims ledger: does the survey hold?

``book/claims/`` mirrors the pages: ``book/claims/02-foundations/error.yml`` holds the survey's
statements that ``book/02-foundations/error.md`` treats.  An entry has the claim in our words, our
verdict, why, the source, and the evidence: cells of notebooks and tests, which are named
``notebooks/02-foundations/error.ipynb#cell-id`` and ``tests/test_affine.py::test_name``.
"""

import json
import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

import yaml

VERDICTS = {
    "holds": "Holds",
    "needs a condition": "Needs a condition",
    "wrong": "Wrong",
    "cannot be checked here": "Cannot be checked here",
}


@dataclass(frozen=True)
class Claim:
    """One statement of the survey and what became of it.

    id:   the survey's section and a letter ("2.1.2-d"); section 0 is the abstract
    page: the book's page that treats it ("book/02-foundations/error"), from the file's place
    """

    id: str
    claim: str
    verdict: str
    why: str
    source: str
    evidence: tuple[str, ...]
    page: str

    @property
    def section(self):
        """The survey's section, two levels deep: "2.1"; "0" for the abstract."""
        parts = self.id.partition("-")[0].split(".")
        return "0" if parts[0] == "0" else ".".join(parts[:2])


def load(root="."):
    """-> all claims below root/book/claims in the survey's order.

    Raises ValueError that names the entry that is malformed or stands twice.
    """
    claims = []
    folder = Path(root, "book", "claims")
    for path in sorted(folder.rglob("*.yml")):
        page = f"book/{path.relative_to(folder).with_suffix('').as_posix()}"
        claims += [_claim(entry, page) for entry in yaml.safe_load(path.read_text())]
    ids = [claim.id for claim in claims]
    twice = {i for i in ids if ids.count(i) > 1}
    if twice:
        raise ValueError(f"claims listed twice: {sorted(twice)}")
    return sorted(claims, key=_place)


def _place(claim):
    """Section 2.2 before 2.10, and 3.1 before 3.1.1-a."""
    return [int(n) for n in re.findall(r"\d+", claim.id)], claim.id


def _claim(entry, page):
    expected = set(Claim.__annotations__) - {"page"}
    if set(entry) != expected:
        raise ValueError(
            f"claim {entry.get('id')} of {page}: fields {set(entry) ^ expected} differ"
        )
    claim = Claim(
        **{**entry, "id": str(entry["id"]), "evidence": tuple(entry["evidence"]), "page": page}
    )
    if claim.verdict not in VERDICTS:
        raise ValueError(f"claim {claim.id}: verdict {claim.verdict!r} is none of {[*VERDICTS]}")
    if not claim.evidence and claim.verdict != "cannot be checked here":
        raise ValueError(f"claim {claim.id}: the verdict {claim.verdict!r} needs evidence")
    return claim


def missing_evidence(claims, root="."):
    """Sentences, one for each evidence or page that does not exist below ``root``."""
    problems = []
    for claim in claims:
        if not (Path(root) / f"{claim.page}.md").exists():
            problems.append(f"{claim.id}: no page {claim.page}.md")
        problems += [
            f"{claim.id}: {item} does not exist"
            for item in claim.evidence
            if not _exists(item, root)
        ]
    return problems


def not_run(claims, reports, root="."):
    """-> (problems, excused): sentences, one for each evidence that no report shows as passed.

    reports: JUnit XML files of the test run and of the notebooks' run (nbval).  Excused is what was
    skipped for want of a data file.
    """
    passed, skipped = set(), set()
    for report in map(Path, reports):
        for case in ET.parse(report).iter("testcase"):
            name = case.get("classname"), re.sub(r"\[.*", "", case.get("name"))
            tags = {child.tag for child in case}
            if "skipped" in tags:
                skipped.add(name)
            elif not tags & {"failure", "error"}:
                passed.add(name)
    lacking = _lacking(reports)
    problems, excused = [], []
    for claim in claims:
        for item in claim.evidence:
            name = _junit_name(item, root)
            if item.partition("#")[0] in lacking or name in skipped - passed:
                excused.append(f"{claim.id}: {item} not run for want of data")
            elif name not in passed:
                problems.append(f"{claim.id}: {item} did not run or did not pass")
    return problems, excused


def _lacking(reports):
    """Notebooks that nbval's run left out, from the list beside its report."""
    lists = [Path(report).with_name("lacking.json") for report in reports]
    return {name for path in lists if path.exists() for name in json.loads(path.read_text())}


def _exists(item, root):
    if "#" in item:
        return _cell_number(item, root) is not None
    path, _, test = item.partition("::")
    source = Path(root) / path
    return source.exists() and re.search(rf"^def {re.escape(test)}\(", source.read_text(), re.M)


def _junit_name(item, root):
    """The (classname, name) under which pytest or nbval reports an item."""
    if "#" in item:
        path = item.partition("#")[0]
        return path.replace("/", "."), f"Cell {_cell_number(item, root)}"
    path, _, test = item.partition("::")
    return path.removesuffix(".py").replace("/", "."), test


def _cell_number(item, root):
    """The number of the code cell with this id among the notebook's code cells, or None."""
    path, _, cell_id = item.partition("#")
    notebook = Path(root) / path
    if not notebook.exists():
        return None
    cells = json.loads(notebook.read_text())["cells"]
    code = [cell["id"] for cell in cells if cell["cell_type"] == "code"]
    return code.index(cell_id) if cell_id in code else None


def main(arguments):
    """``python -m qbook.book.ledger REPORT.xml ...``: 1 where an entry's evidence did not run."""
    claims = load()
    problems = missing_evidence(claims)
    excused = []
    if not problems:
        problems, excused = not_run(claims, arguments)
    print("\n".join(problems + excused))
    print(
        f"ledger: {len(claims)} claims, {len(problems)} pieces of evidence failed, "
        f"{len(excused)} not checked for want of data"
    )
    return bool(problems)


if __name__ == "__main__":
    import sys

    sys.exit(main(sys.argv[1:]))
