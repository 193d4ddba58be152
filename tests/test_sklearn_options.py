"""What estimators take beside dense data: weights, several labels, sparse matrices, calibration, threads; files."""

import warnings

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import log_loss, recall_score

import filigree as fg
from filigree.export.c.compiler import compiler
from filigree.io.storage import read_state, write_state
from filigree.sklearn import SparseMLPClassifier, SparseMLPRegressor

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),  # a few epochs are enough
    pytest.mark.filterwarnings("ignore:SparseMLPClassifier. calibrate:UserWarning"),  # and so are a few samples
]
QUICK = {"hidden_layer_sizes": (40,), "random_state": 0, "max_iter": 8}
RNG = np.random.default_rng(0)
X = RNG.normal(size=(120, 60))
Y = np.array(["a", "b", "c"])[np.digitize(X[:, 0] + 0.3 * RNG.normal(size=120), [-0.5, 0.5])]
SEVERAL = (X[:, :4] > 0).astype(int)


@pytest.mark.parametrize("kind", [SparseMLPClassifier, SparseMLPRegressor])
def test_weights_of_samples_are_their_numbers(kind):
    """A weight of 2 is the sample twice, a weight of 0 its absence, where a batch holds all of them."""
    y = Y if kind is SparseMLPClassifier else X[:, 0]
    counts = np.arange(120) % 3
    weighted = kind(**QUICK, batch_size=500).fit(X, y, sample_weight=counts * 7.0)
    repeated = kind(**QUICK, batch_size=500).fit(X.repeat(counts, 0), y.repeat(counts))
    plain = kind(**QUICK, batch_size=500).fit(X, y)
    answers = "predict_proba" if kind is SparseMLPClassifier else "predict"
    a, b, c = (getattr(model, answers)(X) for model in (weighted, repeated, plain))
    np.testing.assert_allclose(a, b, atol=1e-6)
    assert np.abs(a - c).max() > 1e-3
    assert weighted.loss_curve_[-1] == pytest.approx(repeated.loss_curve_[-1], rel=1e-5)
    for wrong, message in ((-counts, "sample_weight must be at least 0"), (np.zeros(120), "at least one non-zero")):
        with pytest.raises(ValueError, match=message):
            kind(**QUICK).fit(X, y, sample_weight=wrong)


def test_weights_of_classes():
    rare = np.where(X[:, 0] + 0.5 * RNG.normal(size=120) > 1.1, "rare", "common")
    sizes = {name: (rare == name).sum() for name in ("rare", "common")}
    own = {name: 60 / size for name, size in sizes.items()}
    fits = [
        SparseMLPClassifier(**QUICK, class_weight=given).fit(X, rare, sample_weight=weight)
        for given, weight in (("balanced", None), (own, None), (None, np.vectorize(own.get)(rare)), (None, None))
    ]
    balanced, by_dict, by_hand, plain = (model.predict_proba(X) for model in fits)
    np.testing.assert_allclose(balanced, by_dict, atol=1e-6)
    np.testing.assert_allclose(balanced, by_hand, atol=1e-6)
    assert balanced[:, 1].mean() > plain[:, 1].mean() + 0.02
    recalls = [recall_score(rare, model.predict(X), pos_label="rare") for model in fits]
    assert recalls[0] >= recalls[3]
    streamed = SparseMLPClassifier(**QUICK, class_weight=own).partial_fit(X, rare, ["common", "rare"])
    assert streamed.predict_proba(X)[:, 1].mean() > 0.2
    for model, data, message in (
        (SparseMLPClassifier(**QUICK, class_weight="heavy").fit, (X, rare), "class_weight must be None, 'balanced' or"),
        (SparseMLPClassifier(**QUICK, class_weight=own).fit, (X, SEVERAL), "class_weight must be .* a list of 4 dicts"),
        (
            SparseMLPClassifier(**QUICK, class_weight="balanced").partial_fit,
            (X, rare, [0, 1]),
            r"a dict.*compute_class_weight",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            model(*data)


def test_classes_may_be_absent_from_a_part_of_the_data():
    """From a batch of `partial_fit`, from a fold, and from the part that is trained on."""
    part, classes = Y != "c", ["a", "b", "c"]
    kept = []
    for given in (None, {"c": 9.0}, {"b": 1}, {"b": 5.0, "c": 1}):
        model = SparseMLPClassifier(**QUICK, class_weight=given).partial_fit(X[part], Y[part], classes)
        kept.append(model.partial_fit(X[part], Y[part]).predict_proba(X))
    assert np.array_equal(kept[0], kept[1])
    assert np.array_equal(kept[0], kept[2])
    assert kept[3][:, 1].mean() > kept[0][:, 1].mean()
    SparseMLPClassifier(**QUICK, class_weight={"a": 1, "b": 2, "c": 3}).fit(X[part], Y[part])
    for fit in (lambda m: m.fit(X, Y), lambda m: m.partial_fit(X[part], Y[part], classes)):
        with pytest.raises(ValueError, match="class_weight must be None, 'balanced' or a dict"):
            fit(SparseMLPClassifier(**QUICK, class_weight=[1, 2, 3]))
        with pytest.raises(ValueError, match=r"class_weight must be of the classes \['a' 'b' 'c'\]\. Got 'd' too"):
            fit(SparseMLPClassifier(**QUICK, class_weight={"a": 2.0, "d": 3.0}))
    numbers = np.arange(120) % 2
    numbers[0] = 7
    for options in ({"early_stopping": True}, {"calibrate": True}):
        model = SparseMLPClassifier(**QUICK | options).fit(X, numbers)
        where = model._hold_out(numbers)[1][0]  # the only sample of a class is not trained on
        alone = np.arange(120) % 2
        alone[where] = 7
        model.fit(X, alone)
        assert model.classes_.tolist() == [0, 1, 7]
        assert model.predict_proba(X).shape == (120, 3)
    with pytest.raises(ValueError, match=r"y must be of the classes \[0 1 7\]\. Got 9 too"):
        model.set_params(warm_start=True).fit(X, np.where(alone == 7, 9, alone))


def test_several_labels_a_sample():
    model = SparseMLPClassifier((40,), random_state=0, max_iter=60).fit(X, SEVERAL)
    assert model.predict(X).shape == model.predict_proba(X).shape == (120, 4)
    assert (model.predict(X) == SEVERAL).mean() > 0.95
    assert np.array_equal(model.predict_proba(X) > 0.5, model.predict(X) == 1)
    np.testing.assert_allclose(np.exp(model.predict_log_proba(X)), model.predict_proba(X), atol=1e-6)
    again = SparseMLPClassifier((40,), random_state=0, max_iter=60).fit(X, scipy.sparse.csr_matrix(SEVERAL))
    assert np.array_equal(again.predict_proba(X), model.predict_proba(X))
    with pytest.raises(ValueError, match=r"y must have 4 column\(s\), as before"):
        model.partial_fit(X, Y)
    early = SparseMLPClassifier(**QUICK, early_stopping=True, calibrate=True).fit(X, SEVERAL)
    assert early.temperature_ > 0


def test_sparse_matrices_are_fitted_as_dense_ones_are():
    rows = scipy.sparse.random(150, 300, 0.03, "csr", random_state=1)
    label = np.asarray(rows[:, :60].sum(1)).ravel() > 0.8
    for standardize in (False, True):
        options = QUICK | {"standardize": standardize}
        sparse = SparseMLPClassifier(**options).fit(rows, label)
        kept = sparse.predict_proba(rows)
        np.testing.assert_allclose(sparse.predict_proba(rows.toarray()), kept, atol=1e-9)
        np.testing.assert_allclose(sparse.predict_proba(rows.tocoo()), kept, atol=1e-9)
        scaled = rows.toarray() / (sparse.scaler_.scale_ if standardize else 1.0)
        dense = SparseMLPClassifier(**options | {"standardize": False}).fit(scaled, label)
        np.testing.assert_allclose(dense.predict_proba(scaled), kept, atol=1e-6)
    fitted_dense = SparseMLPClassifier(**QUICK).fit(rows.toarray(), label)
    np.testing.assert_allclose(fitted_dense.predict_proba(rows), fitted_dense.predict_proba(rows.toarray()), atol=1e-9)
    y = label.astype(float)
    answers = []
    for first, second in (
        (rows, rows),
        (rows, rows.toarray()),
        (rows.toarray(), rows.toarray()),
        (rows.toarray(), rows),
    ):
        streamed = SparseMLPRegressor(**QUICK).partial_fit(first, y).partial_fit(second, y)
        answers.append(streamed.predict(rows))
    assert np.isfinite(answers).all()
    np.testing.assert_allclose(answers[0], answers[1], atol=1e-9)  # the first call decides whether X is centred
    np.testing.assert_allclose(answers[2], answers[3], atol=1e-9)


def test_a_hundred_thousand_sparse_features_stay_sparse():
    rows = scipy.sparse.random(300, 100_000, 0.001, "csr", random_state=0, dtype=np.float32)
    label = np.asarray(rows[:, :50_000].sum(1) > rows[:, 50_000:].sum(1)).ravel()
    seen = []

    def note(module, inputs):
        seen.append(inputs[0].layout)

    model = SparseMLPClassifier((50,), random_state=0, max_iter=1).fit(rows, label)
    hook = model.network_.fc1.register_forward_pre_hook(note)
    model.set_params(warm_start=True, max_iter=4).fit(rows, label)
    hook.remove()
    assert set(seen) == {torch.sparse_csr}
    assert model.score(rows, label) > 0.9


def test_probabilities_are_calibrated_on_samples_held_out():
    x = RNG.normal(size=(900, 20))
    label = (RNG.random(900) < 1 / (1 + np.exp(-x[:, 0]))).astype(int)  # never sure
    options = {"hidden_layer_sizes": (200,), "random_state": 0, "max_iter": 40, "n_iter_no_change": np.inf}
    plain = SparseMLPClassifier(**options, validation_fraction=0.3).fit(x[:450], label[:450])
    model = SparseMLPClassifier(**options, validation_fraction=0.3, calibrate=True).fit(x[:450], label[:450])
    assert model.temperature_ > 1.5  # it was too sure
    assert plain.temperature_ == 1
    calibrated, sure = (log_loss(label[450:], m.predict_proba(x[450:])) for m in (model, plain))
    assert calibrated < sure - 0.2
    held = model._hold_out(label[:450])[1]  # by hand: no other temperature is better there
    logits = np.log(model.predict_proba(x[held]))
    losses = [
        float(torch.nn.functional.cross_entropy(torch.from_numpy(logits / t), torch.from_numpy(label[held])))
        for t in (0.9, 1.0, 1.1)
    ]
    assert losses[1] < min(losses[0], losses[2])
    with pytest.raises(AttributeError, match="has no attribute 'partial_fit'"):
        model.partial_fit(x, label)


def test_a_temperature_stays_in_its_range_and_says_where_it_is_in_doubt():
    y = np.arange(120) % 2
    x = np.where(y == 1, 10.0, -10.0)[:, None] + RNG.normal(size=(120, 3))  # all are right: the colder the better
    options = QUICK | {"calibrate": True}
    for share, message in (
        (0.03, "a temperature of 4 samples says little"),
        (0.25, "30 samples lies at or beyond 0.1"),
    ):
        with pytest.warns(UserWarning, match=f"SparseMLPClassifier: calibrate: .*{message}"):
            model = SparseMLPClassifier(**options, validation_fraction=share).fit(x, y)
        assert 0.1 <= model.temperature_ <= 10


def test_threads_are_those_that_are_given_and_change_nothing():
    before = torch.get_num_threads()
    alone = SparseMLPClassifier(**QUICK, n_jobs=1).fit(X, Y)
    assert torch.get_num_threads() == before
    every = SparseMLPClassifier(**QUICK, n_jobs=-1).fit(X, Y)
    assert np.array_equal(alone.predict_proba(X), every.predict_proba(X))
    with pytest.raises(ValueError, match="n_jobs must be None or a whole number"):
        SparseMLPClassifier(**QUICK, n_jobs=0).fit(X, Y)


FRAME = pd.DataFrame(X, columns=[f"gene {i}" for i in range(60)])
FITTED = {
    "words": (SparseMLPClassifier(**QUICK, schedule=fg.Constant(0.2), dropout=0.1, class_weight="balanced"), FRAME, Y),
    "several": (SparseMLPClassifier(**QUICK, early_stopping=True), X.astype(np.float32), SEVERAL),
    "numbers": (SparseMLPRegressor(**QUICK, n_iter_no_change=np.inf), X, 1e5 + 10 * X[:, :2]),
    "sparse": (SparseMLPClassifier(**QUICK, calibrate=True), scipy.sparse.csr_matrix(X * (X > 1)), Y == "a"),
    "as it is": (SparseMLPRegressor(**QUICK, standardize=False), X, X[:, 0]),
}


@pytest.mark.parametrize("kind", FITTED)
def test_a_file_gives_the_estimator_back(kind, tmp_path):
    model, x, y = FITTED[kind]
    model.fit(x, y)
    model.save(tmp_path / "m.safetensors")
    again = fg.load(tmp_path / "m.safetensors")
    assert type(again) is type(model)
    assert again.get_params() == model.get_params()
    assert np.array_equal(again.predict(x), model.predict(x))
    if hasattr(model, "predict_proba"):
        assert np.array_equal(again.predict_proba(x), model.predict_proba(x))
        assert np.array_equal(again.classes_, model.classes_)
        assert again.classes_.dtype == model.classes_.dtype
    if kind == "words":
        assert list(again.feature_names_in_) == list(FRAME.columns)
    assert again.loss_curve_ == model.loss_curve_
    assert np.array_equal(again.feature_importances_, model.feature_importances_)
    if not (model.early_stopping or getattr(model, "calibrate", False)):
        again.set_params(**{"class_weight": None} if kind == "words" else {}).partial_fit(x, y)
        assert again.n_iter_ == model.n_iter_ + 1


def test_a_file_that_is_no_estimator(tmp_path):
    model = SparseMLPClassifier(**QUICK, schedule=lambda epoch: 0.1).fit(X, Y)
    file = tmp_path / "m.safetensors"
    with pytest.raises(TypeError, match="schedule must be a plain value or a config to be written"):
        model.save(file)
    assert not file.exists()
    SparseMLPClassifier(**QUICK).fit(X, Y).save(file)
    whole = read_state(file)
    for change in (
        {"kind": "Pipeline"},
        {"parameters": {"hidden": 3}},
        {"fitted": whole["estimator"]["fitted"] | {"n_features_in_": 7}},
        {"fitted": whole["estimator"]["fitted"] | {"classes_": {"values": ["a"], "dtype": "<U1"}}},
        {"fitted": {}},
    ):
        write_state(file, whole | {"estimator": whole["estimator"] | change})
        with pytest.raises(ValueError, match="does not hold a whole estimator") as raised:
            fg.load(file)
        assert "\n" not in str(raised.value)


@pytest.mark.skipif(compiler() is None, reason="no C compiler")
@pytest.mark.parametrize("kind", ["several", "sparse"])
def test_labels_and_calibrated_probabilities_are_exported(kind, tmp_path):
    model, x, y = FITTED[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(x, y)
    assert "compared with torch" in str(model.export(tmp_path / "m.c", x))
