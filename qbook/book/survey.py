"""The survey as text: its headings, its numbered citations, the phases of its history.

Book: 1.2, 1.3
"""

import re
from dataclasses import dataclass

HEADING = re.compile(r"^##+ (\d+(?:\.\d+)*)\.? (.+)$", re.M)
CONTENTS = re.compile(r"^(\d+)\. \[(.+?)\]\(#.+?\)$", re.M)
PHASE = re.compile(r"^\*\*Phase (\d+) \((\d{4})-(\d{4}|Present)\).*\*\*$", re.M)
# A citation is "[9]" or "[7, 8]"; a link "[9](...)" is none.
CITATION = re.compile(r"(?<!\])\[(\d+(?:, ?\d+)*)\](?!\()")
# Intervals, as in "h in [0,1]", live in maths, and indices in code.
NOT_TEXT = re.compile(r"```.*?```|\$\$.*?\$\$|\$[^$\n]+\$|`[^`\n]+`", re.S)


@dataclass(frozen=True)
class Phase:
    """A phase of the survey's history: its years (last is None for "present"), what it cites."""

    number: int
    first: int
    last: int | None
    cited: tuple[int, ...]


def headings(text):
    """-> list of (number, title) of the numbered headings, in order: ("1.2", "...")."""
    return HEADING.findall(text)


def contents(text):
    """-> list of (number, title) of the table of contents."""
    return CONTENTS.findall(text)


def citations(text):
    """-> list of (section, number), one for each number that is cited.

    section: the number of the heading above; "0" before the first
    """
    # Blanked out, not removed, so that positions stay.
    prose = NOT_TEXT.sub(lambda match: " " * len(match[0]), text)
    return [
        (_section(text, match.start()), int(number))
        for match in CITATION.finditer(prose)
        for number in match[1].split(",")
    ]


def mentions(text, phrase):
    """-> list of the sections that contain the phrase, one entry each time, in any case.

    A hyphen of the phrase stands for a hyphen or a space.
    """
    pattern = re.compile(re.escape(phrase).replace("\\-", "[- ]"), re.I)
    return [_section(text, match.start()) for match in pattern.finditer(text)]


def phases(text):
    """-> the phases of the survey's history, in order."""
    matches = list(PHASE.finditer(text))
    found = []
    for match in matches:
        # A phase ends where the next one, or the next heading, begins.
        rest = text[match.end() :]
        ends = [other.start() for p in (PHASE, HEADING) for other in p.finditer(rest)]
        cited = tuple(number for _, number in citations(rest[: min(ends, default=len(rest))]))
        last = None if match[3] == "Present" else int(match[3])
        found.append(Phase(int(match[1]), int(match[2]), last, cited))
    return found


def _section(text, position):
    """The number of the last heading before a position, "0" if there is none."""
    numbers = [match[1] for match in HEADING.finditer(text) if match.start() < position]
    return numbers[-1] if numbers else "0"
