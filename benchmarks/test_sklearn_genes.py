"""The gene sets: SparseMLPClassifier against scikit-learn's MLPClassifier, accuracy and the time of `fit`, one thread.

Each is fitted to the same folds in turns, with its default settings; MLPClassifier also with our width, and ours with
moving connections. Goal: less time than MLPClassifier at equal accuracy.
"""

import statistics
import time

import pytest
import torch
from sklearn.neural_network import MLPClassifier
from threadpoolctl import threadpool_limits

import filigree as fg
from filigree.sklearn import SparseMLPClassifier

FOLDS, REPEATS = 3, 5
OURS = "SparseMLPClassifier"
CONTESTANTS = {
    OURS: SparseMLPClassifier,
    "SparseMLPClassifier, SET": lambda random_state: SparseMLPClassifier(schedule="SET", random_state=random_state),
    "MLPClassifier": MLPClassifier,
    "MLPClassifier, 500 units": lambda random_state: MLPClassifier((500,), random_state=random_state),
}


@pytest.mark.parametrize("name", ["prostate-ge", "glioma", "tox-171"])
def test_sklearn_genes(suite, benchmark, name):
    try:
        folds = list(fg.data.cross_validation(name, folds=FOLDS, repeats=REPEATS, seed=1))
    except FileNotFoundError as error:
        pytest.skip(str(error))
    threads = torch.get_num_threads()
    scores, seconds, epochs = ({label: [] for label in CONTESTANTS} for _ in range(3))
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            for number, fold in enumerate([folds[0], *folds]):  # the first twice: it warms up
                train, test = ((part.x.numpy(), part.y.numpy()) for part in (fold.train, fold.test))
                for label, make in CONTESTANTS.items():
                    model = make(random_state=number)
                    began = time.perf_counter()
                    model.fit(*train)
                    seconds[label].append(time.perf_counter() - began)
                    scores[label].append(model.score(*test))
                    epochs[label].append(model.n_iter_)
    finally:
        torch.set_num_threads(threads)
    for measured in (*scores.values(), *seconds.values(), *epochs.values()):
        del measured[0]
    for label in CONTESTANTS:
        row = {
            "data": name, "contestant": label, "folds": len(folds), "accuracy": statistics.mean(scores[label]),
            "deviation": statistics.stdev(scores[label]), "seconds": statistics.median(seconds[label]),
            "epochs": statistics.median(epochs[label]),
        }  # fmt: skip
        if label != OURS:
            ratios = [theirs / ours for theirs, ours in zip(seconds[label], seconds[OURS], strict=True)]
            low, median, high = statistics.quantiles(ratios, n=4)
            mean, *interval = fg.data.paired_interval(scores[OURS], scores[label], test_share=1 / (FOLDS - 1))
            row |= {"ours_more_accurate_by": mean, "interval": interval}
            row |= {"times_ours": median, "times_ours_quartiles": [low, high]}
        suite.add(**row)
    benchmark.pedantic(lambda: None, rounds=1)
