from qbook.book import survey

# The shape of the survey's Markdown in words of our own; numbers that are no citations included.
TEXT = """# A survey

1. [First](#1-first)
2. [Second](#2-second)
3. [Never written](#3-never)

Before any heading [1].

## 1. First

A claim [2], two claims [3, 4], a link [5](https://example.org), an index `a[6]`.

### 1.1 A history

**Phase 1 (2016-2018): Early**
- one [7] and another [8]
- more

**Phase 2 (2018-Present): Late**
- a third [9]

### 1.2 Maths

Here $h \\in [0,1]$ and

$$x \\in [10]$$

```
array[11]
```

## 2. Second

Again [2].
"""


def test_citations_are_found_with_their_section():
    assert survey.citations(TEXT) == [
        ("0", 1), ("1", 2), ("1", 3), ("1", 4), ("1.1", 7), ("1.1", 8), ("1.1", 9), ("2", 2)
    ]  # fmt: skip


def test_mentions_ignore_case_and_hyphens():
    assert survey.mentions(TEXT, "a claim") == ["1"]
    assert survey.mentions("Mixed-Precision, mixed precision", "mixed-precision") == ["0", "0"]
    assert survey.mentions(TEXT, "never said") == []


def test_headings_and_contents_are_told_apart():
    assert [number for number, _ in survey.headings(TEXT)] == ["1", "1.1", "1.2", "2"]
    assert survey.contents(TEXT) == [("1", "First"), ("2", "Second"), ("3", "Never written")]


def test_a_phase_knows_its_years_and_what_it_cites():
    assert survey.phases(TEXT) == [
        survey.Phase(1, 2016, 2018, (7, 8)),
        survey.Phase(2, 2018, None, (9,)),
    ]


def test_a_text_without_any_of_it_gives_nothing():
    assert survey.citations("") == survey.headings("") == survey.phases("") == []
