"""The gene sets: SparseMLPClassifier against scikit-learn's classifiers, accuracy and the time of `fit`, one thread.

Goal: less time than MLPClassifier at equal accuracy.
"""

import pytest
from sklearn_contestants import compare


@pytest.mark.parametrize("name", ["prostate-ge", "glioma", "tox-171"])
def test_sklearn_genes(suite, benchmark, name):
    try:
        compare(suite, name)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    benchmark.pedantic(lambda: None, rounds=1)
