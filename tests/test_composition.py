"""Every pair of methods works, or is refused by name; docs/composition.md says which."""

import pytest

from composition import METHODS, PAGE, REASONS, compose, exported, page, pairs, reason

FOUND: dict[tuple[str, str], str] = {}


@pytest.mark.parametrize("first", METHODS)
def test_works_or_is_refused_by_name(first):
    for a, b in pairs():
        if a == first:
            FOUND[a, b] = compose(a, b, exported(a, b))
            assert not FOUND[a, b] or reason(FOUND[a, b]) in REASONS, FOUND[a, b]
            assert "\n" not in FOUND[a, b]


def test_the_page_says_the_same():
    if len(FOUND) < len(pairs()):
        pytest.skip("the pairs were not all tried in this run")
    assert PAGE.read_text() == page(FOUND)
