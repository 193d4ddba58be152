"""SparseMLPClassifier against scikit-learn's classifiers on some data: accuracy, and the time of `fit`.

Each is fitted to the same folds in turns, on one thread, with its default settings; MLPClassifier also with our width,
and ours with moving connections. Goal: less time than MLPClassifier at equal accuracy. Inputs are standardised, but for
the counts, which scikit-learn's networks take minutes for: there they are left out. On the gene sets boosted trees have
fewer folds. Times are those of the processor: with one thread each they are the wall clock's on an idle machine, and
hardly more on a busy one.
"""

import itertools
import json
import statistics
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import scipy.sparse
import sklearn.datasets
import torch
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.neural_network import MLPClassifier
from threadpoolctl import threadpool_limits

import filigree as fg
from filigree.sklearn import SparseMLPClassifier

FOLDS, FEW, RETIMED = 3, 6, 3
REPEATS = {"breast-cancer": 2, "wine": 2, "digits": 2}  # of the others 5
OURS, TREES = "SparseMLPClassifier", "HistGradientBoostingClassifier"
TABLES = {"breast-cancer": "load_breast_cancer", "wine": "load_wine"}
CONTESTANTS = {
    OURS: SparseMLPClassifier,
    "SparseMLPClassifier, SET": lambda random_state: SparseMLPClassifier(schedule="SET", random_state=random_state),
    "MLPClassifier": MLPClassifier,
    "MLPClassifier, 500 units": lambda random_state: MLPClassifier((500,), random_state=random_state),
    "LogisticRegression": LogisticRegression,
    TREES: HistGradientBoostingClassifier,
}
OF_COUNTS = (OURS, "SparseMLPClassifier, SET", "LogisticRegression")


def folds_of(name):
    """The name's folds as pairs of training and test part, each x and y."""
    if name == "counts":
        x, y = counts()
        for train, test in StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(x, y):
            yield (x[train], y[train]), (x[test], y[test])
        return
    source, options = name, {}
    if name in TABLES:
        source, options = getattr(sklearn.datasets, TABLES[name])(as_frame=True).frame, {"target": "target"}
    options |= {"folds": FOLDS, "repeats": REPEATS.get(name, 5), "seed": 1, "standardize": "feature"}
    for fold in fg.data.cross_validation(source, **options):
        yield tuple((part.x.numpy(), part.y.numpy()) for part in (fold.train, fold.test))


def counts(samples=3000, words=100_000, classes=4, length=100):
    """Made texts: 100 words each, of 100,000, a tenth of them from the thousand that their class prefers."""
    generator = np.random.default_rng(0)
    y = np.arange(samples) % classes
    drawn = generator.zipf(1.3, (samples, length)) * 7919 % words
    own = generator.random((samples, length)) < 0.1
    drawn[own] = (generator.integers(1000, size=(samples, length)) + 1000 * y[:, None])[own]
    rows = np.arange(samples).repeat(length)
    return scipy.sparse.csr_matrix((np.ones(samples * length, np.float32), (rows, drawn.ravel())), (samples, words)), y


def compare(suite, name):
    """Add a row for each contestant."""
    scores, seconds, epochs = measured(name, list(folds_of(name)))
    for label in scores:
        count = len(scores[label])
        row = {
            "data": name, "contestant": label, "folds": count, "accuracy": statistics.mean(scores[label]),
            "deviation": statistics.stdev(scores[label]), "epochs": statistics.median(epochs[label]),
        }  # fmt: skip
        if label != OURS:
            mean, *interval = fg.data.paired_interval(scores[OURS][:count], scores[label], test_share=1 / (FOLDS - 1))
            row |= {"ours_more_accurate_by": mean, "interval": interval}
        suite.add(**row | times_of(label, seconds))


def measured(name, folds):
    """Accuracies, seconds and epochs of each contestant, a number a fold."""
    threads, wide = torch.get_num_threads(), folds[0][0][0].shape[1] > 1000
    contestants = {label: make for label, make in CONTESTANTS.items() if name != "counts" or label in OF_COUNTS}
    scores, seconds, epochs = ({label: [] for label in contestants} for _ in range(3))
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1), warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            for number, (train, test) in enumerate([folds[0], *folds]):  # the first twice: it warms up
                for label, make in contestants.items():
                    if label == TREES and wide and number > FEW:  # seconds a fit
                        continue
                    model = make(random_state=number)
                    began = time.process_time()
                    model.fit(*train)
                    seconds[label].append(time.process_time() - began)
                    scores[label].append(model.score(*test))
                    epochs[label].append(int(np.max(model.n_iter_)))
    finally:
        torch.set_num_threads(threads)
    for of_folds in (*scores.values(), *seconds.values(), *epochs.values()):
        del of_folds[0]
    return scores, seconds, epochs


def times_of(label, seconds):
    """The times of a row."""
    row = {"seconds": statistics.median(seconds[label]), "timed_folds": len(seconds[label])}
    if label != OURS:
        pairs = zip(seconds[label], seconds[OURS][: len(seconds[label])], strict=True)
        low, median, high = statistics.quantiles([theirs / ours for theirs, ours in pairs], n=4)
        row |= {"times_ours": median, "times_ours_quartiles": [low, high]}
    return row


if __name__ == "__main__":  # with a record and names of data: times anew, on a few folds, where the run was disturbed
    file = Path(sys.argv[1])
    record = json.loads(file.read_text())
    for name in sys.argv[2:]:
        times = measured(name, list(itertools.islice(folds_of(name), RETIMED)))[1]
        for row in (row for row in record["rows"] if row["data"] == name):
            row |= times_of(row["contestant"], times)
    rows = ",\n  ".join(map(json.dumps, record.pop("rows")))
    file.write_text(f'{json.dumps(record, indent=1)[:-2]},\n "rows": [\n  {rows}\n ]\n}}\n')
