"""Estimators of several columns of classes or numbers, and weights of samples in `partial_fit`."""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import cross_val_score
from sklearn.multioutput import MultiOutputClassifier
from sklearn.tree import DecisionTreeClassifier
from torch import nn
from torch.nn import functional

import filigree as fg
from command_line import call
from filigree.export.c.compiler import compiler
from filigree.export.c.int8_network import Int8Network
from filigree.sklearn import SparseMLPClassifier, SparseMLPRegressor
from filigree.sklearn.labels import Columns, SoftmaxOfColumns

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # a few epochs are enough
QUICK = {"hidden_layer_sizes": (40,), "random_state": 0, "max_iter": 8}
RNG = np.random.default_rng(0)
X = RNG.normal(size=(120, 30)).astype(np.float32)
SIZE = np.array(["large", "medium", "small"])[np.digitize(X[:, 0], [-0.5, 0.5])]
COUNT = np.digitize(X[:, 1], [-0.5, 0, 0.5]) + 7
FRAME = pd.DataFrame({"size": SIZE, "count": COUNT})


def test_a_class_in_each_column_as_trees_take_them():
    y = np.stack([np.digitize(X[:, 0], [-0.5, 0.5]), COUNT], 1)
    model = SparseMLPClassifier((40,), random_state=0, max_iter=60).fit(X, y)
    tree = DecisionTreeClassifier().fit(X, y)
    alone = MultiOutputClassifier(SparseMLPClassifier((40,), random_state=0, max_iter=60)).fit(X, y)
    for ours, theirs in zip(model.classes_, tree.classes_, strict=True):
        assert np.array_equal(ours, theirs)
    assert model.predict(X).shape == tree.predict(X).shape == (120, 2)
    assert model.score(X, y) > 0.95
    assert model.score(X, y) == (model.predict(X) == y).all(1).mean() == pytest.approx(alone.score(X, y), abs=0.05)
    shapes = [part.shape for part in model.predict_proba(X)]
    assert shapes == [part.shape for part in tree.predict_proba(X)] == [(120, 3), (120, 4)]
    for i, (part, logarithms) in enumerate(zip(model.predict_proba(X), model.predict_log_proba(X), strict=True)):
        np.testing.assert_allclose(part.sum(1), 1, atol=1e-6)
        np.testing.assert_allclose(np.exp(logarithms), part, atol=1e-6)
        assert np.array_equal(model.classes_[i][part.argmax(1)], model.predict(X)[:, i])
    assert cross_val_score(SparseMLPClassifier(**QUICK | {"max_iter": 40}), X, y, cv=2).mean() > 0.25  # of 1/12
    calibrated = SparseMLPClassifier(**QUICK, early_stopping=True, calibrate=True, validation_fraction=0.2).fit(X, y)
    assert calibrated.temperature_ != 1


def test_columns_of_words_and_numbers_and_of_two_classes():
    model = SparseMLPClassifier((40,), random_state=0, max_iter=60).fit(X, FRAME)
    assert model.predict(X).dtype == object
    assert model.score(X, FRAME) > 0.9
    assert [each.tolist() for each in model.classes_] == [["large", "medium", "small"], [7, 8, 9, 10]]
    twos = (X[:, :2] > 0).astype(int) + 1  # to scikit-learn an indicator of labels, though 0 is not in it
    assert set(SparseMLPClassifier(**QUICK).fit(X, twos).predict(X).ravel()) == {1, 2}
    for wrong in (X[:, :2], np.stack([COUNT, X[:, 0]], 1)):
        with pytest.raises(ValueError, match="Unknown label type"):
            SparseMLPClassifier(**QUICK).fit(X, wrong)
    with pytest.raises(ValueError, match=r"y must have 2 column\(s\), as before"):
        model.set_params(warm_start=True).fit(X, SIZE)
    with pytest.raises(ValueError, match=r"of the classes \['large' 'medium' 'small'\]. Got 'huge' too"):
        model.fit(X, FRAME.assign(size="huge"))


def test_scores_compare_rows_with_rows():
    model = SparseMLPClassifier((8,), max_iter=2, random_state=0).fit(X, SIZE)
    right = float((model.predict(X) == SIZE).mean())
    assert model.score(X, SIZE) == model.score(X, SIZE.reshape(-1, 1)) == right > 0
    for other in (SIZE[:1], SIZE[:5], np.stack([SIZE, SIZE], 1)):
        with pytest.raises(ValueError, match="y must have the shape"):
            model.score(X, other)


def test_losses_of_columns_are_the_mean_of_theirs():
    labels = Columns([np.array(["a", "b", "c"]), np.array([3, 5])])
    output = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    y = np.array([["a", 5], ["b", 3], ["c", 3], ["a", 5], ["a", 3], ["b", 5]], object)
    target = labels.targets(y)
    assert target.tolist() == [[0, 1], [1, 0], [2, 0], [0, 1], [0, 0], [1, 1]]
    of_columns = [functional.cross_entropy(output[:, a:b], target[:, i]) for i, (a, b) in enumerate([(0, 3), (3, 5)])]
    mine = labels.losses(output, target).mean()
    torch.testing.assert_close(mine, sum(of_columns) / 2)
    for gradient, expected in zip(
        torch.autograd.grad(mine, output), torch.autograd.grad(sum(of_columns) / 2, output), strict=True
    ):
        torch.testing.assert_close(gradient, expected)
    shares = torch.full((6,), 1 / 6, dtype=torch.float64)
    entropies = [-(np.bincount(target[:, i]) / 6 * np.log(np.bincount(target[:, i]) / 6)).sum() for i in (0, 1)]
    assert labels.constant_loss(target, shares) == pytest.approx(np.mean(entropies))


def test_probabilities_of_columns_are_a_layer_without_sizes():
    """`sizes` is what pruning asks of every layer."""
    layer = SoftmaxOfColumns([2, 3])
    assert layer.sizes() is None
    torch.testing.assert_close(layer(torch.zeros(1, 5)), torch.tensor([[1 / 2] * 2 + [1 / 3] * 3]))


def test_weights_of_the_classes_of_columns_multiply():
    y = np.stack([np.digitize(X[:, 0], [0.5, 1]), COUNT], 1)
    each = [{0: 1.0, 1: 3.0, 2: 5.0}, {10: 2.0}]
    by_hand = np.array([each[0].get(a, 1.0) * each[1].get(b, 1.0) for a, b in y])
    listed, weighted, balanced, plain = (
        np.hstack(SparseMLPClassifier(**QUICK, class_weight=given).fit(X, y, weight).predict_proba(X))
        for given, weight in ((each, None), (None, by_hand), ("balanced", None), (None, None))
    )
    np.testing.assert_allclose(listed, weighted, atol=1e-6)
    assert balanced[:, 2].mean() > plain[:, 2].mean()
    present = (X[:, :2] > 1).astype(int)  # labels that are there or not
    assert SparseMLPClassifier(**QUICK, class_weight="balanced").fit(X, present).predict_proba(X).mean() > 0.3
    for wrong in ({0: 1.0}, each[:1], "heavy"):
        with pytest.raises(ValueError, match="class_weight must be None, 'balanced' or a list of 2 dicts"):
            SparseMLPClassifier(**QUICK, class_weight=wrong).fit(X, y)
    with pytest.raises(ValueError, match=r"class_weight must be of the classes \[0 1 2\]. Got 9 too"):
        SparseMLPClassifier(**QUICK, class_weight=[{9: 1.0}, {}]).fit(X, y)


def test_columns_in_parts_from_a_file_and_exported(tmp_path):
    classes = [["large", "medium", "small"], [7, 8, 9, 10]]
    model = SparseMLPClassifier(**QUICK).partial_fit(X[:5], FRAME[:5], classes)
    for _ in range(20):
        model.partial_fit(X, FRAME)
    assert model.score(X, FRAME) > 0.5
    for wrong in ([7, 8], classes[:1], [["large"], [7]]):
        with pytest.raises(ValueError, match="classes must be those of the first call"):
            model.partial_fit(X, FRAME, wrong)
        with pytest.raises(ValueError, match=r"classes must be|of the classes"):
            SparseMLPClassifier(**QUICK).partial_fit(X, FRAME, wrong)
    model.save(tmp_path / "m.safetensors")
    again = fg.load(tmp_path / "m.safetensors")
    assert np.array_equal(again.predict(X), model.predict(X))
    assert [each.dtype for each in again.classes_] == [each.dtype for each in model.classes_]
    again.partial_fit(X, FRAME)
    assert again.n_iter_ == 22
    report = model.export(tmp_path / "m.onnx", X[:8])
    assert "onnx" in str(report).lower()
    if compiler() is not None:
        assert "compared with torch" in str(model.export(tmp_path / "m.c", X[:8]))


def table(file, **labels):
    """X as a .csv, with columns in another order, and these labels among them."""
    names = [f"f{i}" for i in range(30)]
    pd.DataFrame(X, columns=names)[names[::-1]].assign(**labels).to_csv(file, index=False)
    return pd.DataFrame(X, columns=names)


def test_the_command_line_predicts_each_column(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    frame = table("all.csv", size=np.where(np.arange(120) == 3, "", SIZE), count=COUNT)
    model = SparseMLPClassifier((40,), random_state=0, max_iter=30).fit(frame, FRAME)
    model.save("m.safetensors")
    code, out, err = call(monkeypatch, capsys, "predict", "m.safetensors", "all.csv", "-o", "out.csv")
    assert (code, err) == (0, "")
    written = pd.read_csv("out.csv")
    sizes, counts = ["large", "medium", "small"], [7, 8, 9, 10]
    assert written.columns.tolist() == [
        *("row", "size", "count", "prediction(size)"), *(f"p(size={name})" for name in sizes), "prediction(count)",
        *(f"p(count={name})" for name in counts),
    ]  # fmt: skip
    predicted, shares = model.predict(frame), model.predict_proba(frame)
    assert (written["prediction(size)"] == predicted[:, 0]).all()
    assert (written["prediction(count)"] == predicted[:, 1]).all()
    np.testing.assert_allclose(written[[f"p(size={name})" for name in sizes]], shares[0], atol=1e-4)
    np.testing.assert_allclose(written[[f"p(count={name})" for name in counts]], shares[1], atol=1e-4)
    hits, labelled = predicted == FRAME.to_numpy(), np.arange(120) != 3
    assert f"accuracy of size {100 * hits[labelled, 0].mean():.2f}%" in out
    assert f"accuracy of count {100 * hits[:, 1].mean():.2f}%: {hits[:, 1].sum()} of 120 rows with a label" in out
    assert f"all right {100 * hits.all(1)[labelled].mean():.2f}%: {hits.all(1)[labelled].sum()} of 119 rows" in out
    table("new.csv")
    code, out, _ = call(monkeypatch, capsys, "predict", "m.safetensors", "new.csv")
    assert code == 0
    assert "accuracy" not in out
    assert "prediction(size)" in out
    assert "says count: 7, 8, 9, 10" in call(monkeypatch, capsys, "show", "m.safetensors")[1]
    refused = call(
        monkeypatch, capsys, "compress", "m.safetensors", "RoundToNearest", "-o", "c.safetensors", "--data", "all.csv"
    )
    assert refused[0] == 2
    assert "the model says several things of a row (size, count)" in refused[2]
    words = "export", "m.safetensors", "-o", "m.c", "--activations", "int8", "--data", "all.csv"
    code, out, err = call(monkeypatch, capsys, *words)
    assert code == 0, err
    if compiler() is not None:
        assert "bit for bit: largest difference 0" in out


def test_labels_that_are_there_or_not_are_predicted_from_a_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    y = pd.DataFrame((X[:, :2] > 0.5).astype(int), columns=["warm", "wet"])
    frame = table("all.csv", **y)
    model = SparseMLPClassifier(**QUICK).fit(frame, y)
    model.save("m.safetensors")
    assert call(monkeypatch, capsys, "predict", "m.safetensors", "all.csv", "-o", "out.csv")[0] == 0
    written = pd.read_csv("out.csv")
    np.testing.assert_allclose(written[["p(warm=1)", "p(wet=1)"]], model.predict_proba(frame), atol=1e-4)
    assert np.array_equal(written[["prediction(warm)", "prediction(wet)"]], model.predict(frame))
    assert "says wet: whether it is there" in call(monkeypatch, capsys, "show", "m.safetensors")[1]


def test_columns_without_names_are_numbered(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.savetxt("rows.csv", X, delimiter=",")
    model = SparseMLPClassifier(**QUICK).fit(X, np.stack([SIZE, COUNT.astype(str)], 1))
    model.save("m.safetensors")
    assert call(monkeypatch, capsys, "predict", "m.safetensors", "rows.csv", "-o", "out.csv")[0] == 0
    assert (pd.read_csv("out.csv")["prediction(y1)"] == model.predict(X)[:, 0]).all()


def test_a_series_names_the_label(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    frame = table("all.csv", size=SIZE, other=1)
    SparseMLPClassifier(**QUICK).fit(frame, FRAME["size"]).save("m.safetensors")
    assert "of 120 rows with a label" in call(monkeypatch, capsys, "predict", "m.safetensors", "all.csv")[1]


def test_columns_in_integers_of_8_bits(tmp_path):
    model = SparseMLPClassifier((40,), random_state=0, max_iter=30).fit(X, FRAME)
    report = model.export(tmp_path / "m.c", X, activations="int8")
    assert [layer.what for layer in report.layers][-1] == "softmax"
    if compiler() is not None:
        assert report.difference == 0
    shares = torch.from_numpy(np.hstack(model.predict_proba(X)))
    whole = nn.Sequential(*model.network_.children(), SoftmaxOfColumns([3, 4])).eval()
    stored = Int8Network(whole, torch.from_numpy(model.scaler_.transform(X)))(
        torch.from_numpy(model.scaler_.transform(X))
    )
    assert (stored - shares).abs().mean() < 0.02
    np.testing.assert_allclose(stored[:, :3].sum(1), 1, atol=0.02)


@pytest.mark.parametrize("kind", [SparseMLPClassifier, SparseMLPRegressor])
def test_weights_of_samples_in_parts(kind):
    """A weight of 2 is the sample twice in one batch, whose mean then is over twice as many; 0 is its absence."""
    classifies = kind is SparseMLPClassifier
    y, known = (SIZE, [np.unique(SIZE)]) if classifies else (X[:, :2].astype(float) * 9 + 1e3, [])
    answers = "predict_proba" if classifies else "predict"
    options = QUICK | {"batch_size": 500, "learning_rate_init": 0.02}
    counts = np.arange(120) % 3
    weighted, repeated, plain = kind(**options), kind(**options), kind(**options)
    for part in (slice(0, 60), slice(60, 120), slice(0, 120)):
        of_part = counts[part]
        present = of_part.sum() / (of_part > 0).sum()  # the mean of a step is over the samples that are there
        first = {"classes": known[0]} if classifies and part.stop == 60 else {}
        weighted.partial_fit(X[part], y[part], **first, sample_weight=of_part / present)
        repeated.partial_fit(X[part].repeat(of_part, 0), y[part].repeat(of_part, 0), **first)
        plain.partial_fit(X[part], y[part], **first)
    a, b, c = (getattr(model, answers)(X) for model in (weighted, repeated, plain))
    scale = 1 if classifies else 9
    assert np.abs(a - b).max() < 2e-2 * scale  # the scales weigh the calls otherwise: by the sums of their weights
    assert np.abs(a - c).max() > np.abs(a - b).max()
    heavy, twice = kind(**options), kind(**options)
    for model, factor in ((heavy, 2.0), (twice, 1.0)):  # weights are factors of the losses, so of the descent
        model.set_params(learning_rate_init=0.02 / factor, standardize=False)
        target = y if classifies else y[:, 0] / 1e3
        model.partial_fit(X, target, *known, sample_weight=np.full(120, factor))
    np.testing.assert_allclose(getattr(heavy, answers)(X), getattr(twice, answers)(X), rtol=1e-5)
    for wrong, message in ((-counts, "sample_weight must be at least 0"), (np.zeros(120), "at least one non-zero")):
        with pytest.raises(ValueError, match=message):
            kind(**QUICK).partial_fit(X, y, *known, sample_weight=wrong)


def test_scales_of_weighted_and_unweighted_parts_are_those_of_all():
    weights = RNG.uniform(0.1, 2, 60)
    for order in ((weights, None), (None, weights), (weights / 1e3, None)):
        model = SparseMLPRegressor(**QUICK)
        for part, own in zip((slice(0, 60), slice(60, 120)), order, strict=True):
            model.partial_fit(X[part].astype(float), X[part, 0], own)
        whole = np.concatenate([np.ones(60) if own is None else own for own in order])
        np.testing.assert_allclose(model.scaler_.mean_, np.average(X, 0, whole), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(model.target_scaler_.mean_, np.average(X[:, 0], 0, whole), rtol=1e-5, atol=1e-6)


def test_parts_weigh_classes_and_samples_together():
    own = {"large": 3.0, "small": 0.5}
    by_hand = np.vectorize(lambda name: own.get(name, 1.0))(SIZE) * np.linspace(0.5, 1.5, 120)
    together = SparseMLPClassifier(**QUICK, class_weight=own)
    alone = SparseMLPClassifier(**QUICK)
    together.partial_fit(X, SIZE, np.unique(SIZE), np.linspace(0.5, 1.5, 120))
    alone.partial_fit(X, SIZE, np.unique(SIZE), sample_weight=by_hand)
    np.testing.assert_allclose(together.predict_proba(X), alone.predict_proba(X), atol=1e-6)


def test_regression_of_several_columns_in_parts():
    y = np.stack([X[:, 0], 1e5 + 100 * X[:, 1]], 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = SparseMLPRegressor((40,), random_state=0, max_iter=100).fit(X, y)
    assert model.score(X, y) > 0.9
    with pytest.raises(ValueError, match=r"y must have 2 column\(s\), as before. Got 1"):
        model.partial_fit(X, y[:, 0])
