"""Every pair of methods works, or is refused by name; docs/composition.md says which, by rules and exceptions."""

import re

import pytest

from composition import METHODS, PAGE, REASONS, WRITER, compose, exported, outcomes_of, page, pairs

EXCEPTIONS = {
    (first, second): "" if outcome == "works" else outcome
    for second, first, outcome in re.findall(r"^- `([^`]+)` after `([^`]+)`: (.+)\.$", PAGE.read_text(), re.M)
}


LATER = [
    pytest.param(part, id=f"{part + 1} of 4", marks=pytest.mark.long("the other pairs: a minute and a half"))
    for part in (1, 2, 3)
]


def on_the_page(pair):
    """What the page says of a pair: its own line, or else the rules."""
    return EXCEPTIONS.get(pair, WRITER["predicted"](pair))


@pytest.mark.parametrize("part", [pytest.param(0, id="a fourth of the pairs"), *LATER])
@pytest.mark.parametrize("first", METHODS)
@pytest.mark.filterwarnings("ignore:.*were never trained")  # a mollified block begins by leaving out its body
def test_works_or_is_refused_by_name(first, part):
    seconds = [b for a, b in pairs() if a == first]
    cells = {(first, b): compose(first, b, exported(first, b)) for b in seconds[part::4]}
    assert not any("\n" in message for message in cells.values())
    outcomes = outcomes_of(cells)
    assert set(outcomes.values()) <= {"", *REASONS}
    told = {pair: on_the_page(pair) for pair in outcomes}
    assert outcomes == told, "python tests/composition.py writes the page anew"


def test_the_page_is_what_its_rules_and_exceptions_make():
    assert PAGE.read_text() == page({pair: on_the_page(pair) for pair in pairs()})
