"""The ledger in the book: margin notes beside the text, and the page with every claim."""

import html
from pathlib import Path

from qbook.book import config, ledger
from qbook.book.sphinx_markdown import Markdown

BADGES = {
    "holds": "success",
    "needs a condition": "warning",
    "wrong": "danger",
    "cannot be checked here": "dark",
}


class Survey(Markdown):
    """What the survey says on this point, our verdict and the way to the ledger, in the margin."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self):
        claims = _claims(self)
        lines = [":::{margin} The survey"]
        for name in self.arguments[0].replace(",", " ").split():
            if name not in claims:
                raise self.error(f"no claim {name!r} in book/claims/")
            claim = claims[name]
            lines += [
                f"{_badge(claim)} {claim.claim} [{claim.id}](#claim-{_slug(claim.id)})",
                "",
            ]
        return self.parse([*lines, ":::"])


class Ledger(Markdown):
    """Every claim: what the survey says, the verdict, why, and the cell or test that shows it."""

    def run(self):
        claims = _claims(self).values()
        problems = ledger.missing_evidence(claims, self.env.srcdir)
        if problems:
            raise self.error("; ".join(problems))
        counts = {v: sum(claim.verdict == v for claim in claims) for v in ledger.VERDICTS}
        lines = [
            "Of the "
            + f"{len(claims)} statements examined so far, "
            + ", ".join(f"{n} {_PHRASES[v]}" for v, n in counts.items())
            + ".",
            "",
        ]
        section = None
        for claim in claims:
            if claim.section != section:
                section = claim.section
                lines += [f"## {_heading(section)}", ""]
            lines += [
                f"(claim-{_slug(claim.id)})=",
                f":::{{card}} {claim.id} {_badge(claim)}",
                f":class-card: claim claim-{_slug(claim.verdict)}",
                "",
                f"**The survey says:** {claim.claim}",
                "",
                claim.why,
                "",
                f"*Source:* {claim.source} · *Page:* {{doc}}`/{claim.page}`"
                + (f" · *Shown by:* {self.evidence(claim)}" if claim.evidence else ""),
                ":::",
                "",
            ]
        return self.parse(lines)

    def evidence(self, claim):
        repository, branch = config.repository(self.env.srcdir)
        shown = []
        for item in claim.evidence:
            path, _, name = item.replace("::", "#").partition("#")
            if path.endswith(".ipynb"):
                shown.append(f"{{doc}}`{name} </{path.removesuffix('.ipynb')}>`")
            else:
                shown.append(f"[`{name}`]({repository}/blob/{branch}/{path})")
        return ", ".join(shown)


_PHRASES = {
    "holds": "hold",
    "needs a condition": "need a condition",
    "wrong": "are wrong",
    "cannot be checked here": "cannot be checked here",
}


def _claims(directive):
    for path in Path(directive.env.srcdir, "book", "claims").rglob("*.yml"):
        directive.env.note_dependency(str(path))
    return {claim.id: claim for claim in ledger.load(directive.env.srcdir)}


def _badge(claim):
    return f"{{bdg-{BADGES[claim.verdict]}}}`{ledger.VERDICTS[claim.verdict]}`"


def _heading(section):
    return "The survey's abstract" if section == "0" else f"The survey's section {section}"


def _slug(text):
    return html.escape(text).replace(".", "-").replace(" ", "-")
