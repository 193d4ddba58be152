"""Every pair of methods works, or is refused by name; docs/composition.md says which."""

import pytest

import filigree as fg
from composition import METHODS, PAGE, REASONS, compose, exported, page, pairs, reason
from filigree.compress.compression import Compression
from filigree.convert import Conversion

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


def test_the_methods_are_all_there():
    """A method that is added to the library is added to the matrix."""
    parts = {
        "AsymmetricAuto",
        "EmptyIntegerLayers",
        "Resized",
        "FuseLinears",
        "UnitPruning",
    }  # of methods that are in it
    residual = {"StochasticDepth"}  # for residual blocks, which this network has none of
    here = {type(config).__name__ for config in METHODS.values()}
    known = [kind for base in (Conversion, Compression) for kind in base.kinds()]
    assert {kind for kind in known if kind in dir(fg) or kind in dir(fg.nn)} - parts - residual == here
