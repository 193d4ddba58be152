"""Three of scikit-learn's tables, and counts of 100,000 words: SparseMLPClassifier beside other classifiers."""

import pytest
from sklearn_contestants import compare


@pytest.mark.parametrize("name", ["breast-cancer", "wine", "digits", "counts"])
def test_sklearn_tables(suite, benchmark, name):
    compare(suite, name)
    benchmark.pedantic(lambda: None, rounds=1)
