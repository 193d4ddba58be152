"""Every pair of methods works, or is refused by name; docs/composition.md says which."""

import pytest

from composition import METHODS, PAGE, REASONS, compose, exported, head, pairs, reason, row


@pytest.mark.parametrize("first", METHODS)
def test_works_or_is_refused_by_name(first):
    cells = {(a, b): compose(a, b, exported(a, b)) for a, b in pairs() if a == first}
    for message in cells.values():
        assert not message or reason(message) in REASONS, message
        assert "\n" not in message
    assert row(first, cells) in PAGE.read_text().splitlines(), "python tests/composition.py writes the page anew"


def test_the_page_is_of_these_methods():
    assert PAGE.read_text().startswith(head())
    assert len(PAGE.read_text().splitlines()) == len((head() + "\n").splitlines()) - 1 + len(METHODS)
