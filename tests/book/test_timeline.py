import re
from pathlib import Path

import pytest

from qbook.book import timeline

ROOT = Path(__file__).parents[2]
ENTRIES = {
    key: dict(re.findall(r"^  (\w+) = \{(.*)\},$", body, re.M))
    for key, body in re.findall(
        r"^@\w+\{([^,]+),\n(.*?)^\}", (ROOT / "book" / "references.bib").read_text(), re.M | re.S
    )
}


@pytest.mark.parametrize("event", timeline.EVENTS, ids=lambda event: event.key)
def test_a_date_agrees_with_the_bibliography(event):
    entry = ENTRIES[event.key]
    if "eprint" in entry:
        # The first four digits of an arXiv identifier are the year and the month.
        assert event.date == f"20{entry['eprint'][:2]}-{entry['eprint'][2:4]}"
    # Nothing is printed before the public could read of it, nor long after (Lloyd's is the record).
    assert event.date[:4] <= entry["year"]
    assert int(entry["year"]) - int(event.date[:4]) <= (25 if event.name == "Lloyd" else 2)


def test_the_events_are_in_order_and_named_once():
    years = [event.year for event in timeline.EVENTS]
    assert years == sorted(years)
    for field in ("name", "key"):
        values = [getattr(event, field) for event in timeline.EVENTS]
        assert len(set(values)) == len(values)


def test_the_surveys_references_are_those_of_its_list():
    # The fourteen that its text cites, by arXiv identifier.
    identifiers = [
        "2005.14165", "1602.02830", "1603.05279", "1606.06160", "1710.03740", "2004.10568",
        "2102.05426", "2203.05740", "2208.07339", "2310.18313", "2402.17764", "1308.3432",
        "2211.10438", "2306.00978",
    ]  # fmt: skip
    for number, identifier in enumerate(identifiers, start=1):
        assert ENTRIES[timeline.by_survey_number(number).key]["eprint"] == identifier


def test_an_unknown_reference_is_named():
    with pytest.raises(ValueError, match="reference 21"):
        timeline.by_survey_number(21)


def test_a_month_is_its_middle_and_a_year_its_middle():
    assert timeline.Event("1957", "a", "k", 2, "i").year == 1957.5
    # Half a month after the start of July: 6.5 twelfths.
    assert abs(timeline.Event("1948-07", "a", "k", 2, "i").year - (1948 + 6.5 / 12)) <= 1e-9
