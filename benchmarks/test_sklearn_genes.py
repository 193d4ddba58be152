"""The gene sets: SparseMLPClassifier against scikit-learn's classifiers, accuracy and the time of `fit`, one thread.

Goal: less time than MLPClassifier at equal accuracy. Each set goes to the record as it is done; `-k glioma` runs one.
"""

import pytest
from sklearn_contestants import compare

SETS = ["prostate-ge", "glioma", "tox-171"]


@pytest.mark.parametrize("name", SETS)
def test_sklearn_genes(suite, benchmark, name):
    suite.networks, suite.keys = SETS, ("data",)
    try:
        compare(suite, name)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    suite.save()
    benchmark.pedantic(lambda: None, rounds=1)
