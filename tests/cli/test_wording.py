"""Counts read as English does."""

import re

import pytest
from places import ROOT

from scalade.results.wording import count_of

NOUNS = "run|case|step|row|rank|node|job|attempt|layout|host|part|figure"


@pytest.mark.parametrize("count, said", [(0, "0 runs"), (1, "1 run"), (2, "2 runs"), (12345, "12,345 runs")])
def test_a_count_agrees_with_its_noun(count, said):
    assert count_of(count, "run") == said


def test_words_that_take_no_s():
    assert [count_of(n, "case lacks", "cases lack") for n in (1, 2)] == ["1 case lacks", "2 cases lack"]


def test_no_message_builds_a_plural_of_its_own():
    """Where one may be meant: outside the laws, whose tables have several rows, and constants."""
    wrong = re.compile(rf"\{{len\([\w.]+\)(:,)?\}} ({NOUNS})s\b|['\"]s['\"] (\*|if) ")
    found = [
        f"{file.relative_to(ROOT)}:{number}: {line.strip()}"
        for folder in ("results", "launch")
        for file in (ROOT / folder).rglob("*.py")
        if "laws" not in file.parts
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if wrong.search(line)
    ]
    assert not found
