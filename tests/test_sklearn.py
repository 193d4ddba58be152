"""scikit-learn estimators."""

import pickle
import warnings

import joblib
import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits, make_classification, make_regression
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.feature_selection import SelectFromModel
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, cross_val_score, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.utils.estimator_checks import check_estimator, parametrize_with_checks

import filigree as fg
from c_program import run_c
from filigree.export.c.compiler import compiler
from filigree.sklearn import FastfoodFeatures, SparseMLPClassifier, SparseMLPRegressor


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
@pytest.mark.parametrize("kernel", ["rbf", "arc_cosine"])
def test_estimator_checks(kernel):
    check_estimator(FastfoodFeatures(n_components=32, kernel=kernel))


def test_the_error_falls_with_the_root_of_the_features():
    x = np.random.default_rng(0).normal(size=(60, 8)) / 2
    exact = np.exp(-0.5 * ((x[:, None] - x[None]) ** 2).sum(-1))
    errors = []
    for n in (64, 256, 1024, 4096):
        z = [FastfoodFeatures(n, gamma=0.5, random_state=seed).fit_transform(x) for seed in range(20)]
        errors.append(np.sqrt(np.mean([(part @ part.T - exact) ** 2 for part in z])))
    slope = np.polyfit(np.log([64, 256, 1024, 4096]), np.log(errors), 1)[0]
    assert -0.6 < slope < -0.4


def test_bad_arguments_are_named():
    for arguments in ({"kernel": "poly"}, {"n_components": 0}, {"gamma": 0.0}):
        with pytest.raises(ValueError, match="FastfoodFeatures"):
            FastfoodFeatures(**arguments).fit(np.zeros((3, 2)))


# -- the multilayer perceptrons ---------------------------------------------------------------------------------------


def expected_to_fail(estimator):
    """What is drawn for each sample is not drawn twice for one of weight 2: parts that are held out, dropout."""
    if not (estimator.early_stopping or estimator.dropout):
        return {}
    names = (f"check_sample_weight_equivalence_on_{kind}_data" for kind in ("dense", "sparse"))
    return dict.fromkeys(names, "draws by sample")


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # the checks cut max_iter themselves
@parametrize_with_checks(
    [
        SparseMLPClassifier((50,), max_iter=60),  # of the default 200: for time
        SparseMLPRegressor((50,), max_iter=60),
        SparseMLPClassifier((50,), epsilon=1, schedule="SET", dropout=0.1),  # sparse even there
        SparseMLPRegressor((50, 20), density=0.5, schedule=fg.LinearDecrease(0.2), max_iter=50),
        SparseMLPClassifier((50,), early_stopping=True),
        SparseMLPRegressor((50,), early_stopping=True),
    ],
    expected_failed_checks=expected_to_fail,
)
def test_sparse_mlps_pass_the_checks_of_scikit_learn(estimator, check):
    check(estimator)


def genes(samples=90, features=600, seed=0):
    """Few samples of many features, of which the first ten tell the three classes apart; their names."""
    generator = np.random.default_rng(seed)
    y = np.arange(samples) % 3
    x = generator.normal(size=(samples, features)).astype(np.float32)
    x[:, :10] += generator.normal(size=(3, 10)).astype(np.float32)[y] * 3
    return x * generator.uniform(0.1, 100, features).astype(np.float32), np.array(["benign", "mixed", "tumour"])[y]


X, Y = genes()
QUICK = {"hidden_layer_sizes": (100,), "random_state": 0}


def test_it_classifies_labels_that_are_words():
    model = SparseMLPClassifier(**QUICK).fit(X[:60], Y[:60])
    assert model.score(X[60:], Y[60:]) > 0.9
    assert list(model.classes_) == ["benign", "mixed", "tumour"]
    probabilities = model.predict_proba(X[60:])
    assert np.allclose(probabilities.sum(1), 1, atol=1e-6)
    assert np.array_equal(model.classes_[probabilities.argmax(1)], model.predict(X[60:]))
    assert np.allclose(np.exp(model.predict_log_proba(X[60:])), probabilities, atol=1e-6)
    assert model.n_iter_ == len(model.loss_curve_) == len(model.history_) < 200
    assert isinstance(model.network_.fc1, fg.nn.SparseLinear)
    assert model.network_.fc1.nnz == 5 * (600 + 100)
    assert model.network_.fc1.values.dtype == torch.float32


def test_the_first_features_of_the_ranking_are_those_that_matter():
    for kind in ({}, {"schedule": "SET", "n_iter_no_change": 30}):
        model = SparseMLPClassifier(**QUICK, **kind).fit(X, Y)
        importances = model.feature_importances_
        assert importances.shape == (600,)
        assert importances.sum() == pytest.approx(1)
        ranking = np.argsort(-importances, kind="stable")
        assert np.isin(ranking[:10], range(10)).sum() >= 7
        assert np.array_equal(ranking, fg.feature_ranking(model.network_))
    dense = SparseMLPClassifier((20,), density=1.0, random_state=0).fit(X, Y)
    assert np.isin(np.argsort(-dense.feature_importances_)[:10], range(10)).sum() >= 7


@pytest.mark.long("trains by cross-validation")
def test_in_pipelines_selection_and_search():
    selecting = SelectFromModel(SparseMLPClassifier(**QUICK), threshold=-np.inf, max_features=20)
    pipe = make_pipeline(MinMaxScaler(), selecting, SparseMLPClassifier((20,), random_state=0))
    assert cross_val_score(pipe, X, Y, cv=3).mean() > 0.9
    assert pipe.fit(X, Y)[1].get_support().sum() == 20
    grid = {"schedule": ["Static", fg.Constant(0.2)]}
    model = SparseMLPClassifier(**QUICK, dropout=0.2, max_iter=20, n_iter_no_change=np.inf)
    alone, threads, processes = (GridSearchCV(model, grid, cv=2, n_jobs=jobs) for jobs in (1, 4, 2))
    alone.fit(X, Y)
    with joblib.parallel_backend("threading"):
        threads.fit(X, Y)
    processes.fit(X, Y)
    for other in (threads, processes):
        assert np.array_equal(alone.cv_results_["mean_test_score"], other.cv_results_["mean_test_score"])
        assert np.array_equal(alone.predict_proba(X), other.predict_proba(X))


def test_a_random_state_says_it_all():
    first = SparseMLPClassifier(**QUICK, schedule="SET", dropout=0.3).fit(X, Y)
    torch.rand(7)  # the global generator has no say
    again = clone(first).fit(X, Y)
    other = clone(first).set_params(random_state=1).fit(X, Y)
    assert np.array_equal(first.predict_proba(X), again.predict_proba(X))
    assert first.loss_curve_ == again.loss_curve_
    assert not np.array_equal(first.predict_proba(X), other.predict_proba(X))


def test_the_schedule_moves_connections():
    fixed = SparseMLPClassifier(**QUICK, max_iter=5, n_iter_no_change=np.inf).fit(X, Y)
    for schedule, zeta in (("SET", 0.4), ("LDV", None), ("OSV", None), ("EXD", 0.1), (fg.Constant(0.2), None)):
        model = clone(fixed).set_params(schedule=schedule, zeta=zeta).fit(X, Y)
        rates = [row["zeta"] for row in model.history_]
        expected = zeta or (0.2 if schedule == fg.Constant(0.2) else 0.3)
        assert rates[0] == pytest.approx(expected)
        assert rates[-1] == 0  # none after the last epoch
        assert model.network_.fc1.nnz == fixed.network_.fc1.nnz
        assert not torch.equal(model.network_.fc1.indices, fixed.network_.fc1.indices)


def test_partial_fit_goes_on_also_after_pickling():
    parts = np.random.default_rng(0).permutation(90).reshape(3, 30)

    def stream(model, pickled=False):
        for epoch in range(24):
            part, first = parts[epoch % 3], {"classes": ["benign", "mixed", "tumour"]} if epoch == 0 else {}
            model.partial_fit(X[part], Y[part], **first)
            model = pickle.loads(pickle.dumps(model)) if pickled else model
        return model

    model = stream(SparseMLPClassifier(**QUICK, schedule="SET"))
    assert model.n_iter_ == 24
    assert [row["epoch"] for row in model.history_] == list(range(24))
    assert model.loss_curve_[-1] < model.loss_curve_[0] / 2
    assert model.score(X, Y) > 0.9
    assert model._evolution.epoch == 23
    again = stream(SparseMLPClassifier(**QUICK, schedule="SET"), pickled=True)
    assert np.array_equal(again.predict_proba(X), model.predict_proba(X))


def test_partial_fit_refuses_by_name():
    with pytest.raises(ValueError, match="classes must be given"):
        SparseMLPClassifier().partial_fit(X, Y)
    model = SparseMLPClassifier(**QUICK).partial_fit(X, Y, ["benign", "mixed", "tumour"])
    with pytest.raises(ValueError, match="those of the first call"):
        model.partial_fit(X, Y, ["benign", "mixed"])
    with pytest.raises(ValueError, match=r"of the classes .* Got .*other"):
        model.partial_fit(X[:2], ["benign", "other"])
    model = SparseMLPClassifier(**QUICK)
    with pytest.raises(ValueError, match="of the classes"):
        model.partial_fit(X, Y, ["benign", "mixed"])
    model.partial_fit(X, Y, ["benign", "mixed", "tumour"])  # the call that failed left nothing behind
    assert model.n_iter_ == 1
    with pytest.raises(AttributeError, match="partial_fit"):
        SparseMLPRegressor(early_stopping=True).partial_fit(X, np.zeros(90))


def test_early_stopping_keeps_the_best_epoch():
    noisy = np.where(np.random.default_rng(0).random(90) < 0.4, "mixed", Y)  # so that it overfits
    model = SparseMLPClassifier(**QUICK, early_stopping=True, validation_fraction=0.2, n_iter_no_change=5)
    losses = [row["val_loss"] for row in model.fit(X, noisy).history_]
    _, held = train_test_split(np.arange(90), test_size=0.2, stratify=noisy, random_state=model._seed)
    kept = log_loss(noisy[held], model.predict_proba(X[held]))
    assert model.n_iter_ < 200
    assert min(losses) - 1e-4 <= kept <= min(losses) + model.tol
    assert kept < losses[-1]


def test_warm_start_goes_on_and_fit_begins_anew():
    model = SparseMLPClassifier(**QUICK, max_iter=3, n_iter_no_change=np.inf).fit(X, Y)
    first = model.loss_curve_
    assert model.fit(X, Y).loss_curve_ == first
    model.set_params(warm_start=True).fit(X, Y)
    assert model.loss_curve_[0] < first[-1]
    with pytest.raises(ValueError, match="of the classes"):
        model.fit(X[:3], ["a", "b", "c"])


def test_it_warns_where_training_had_not_converged():
    with pytest.warns(ConvergenceWarning, match="max_iter=2 epochs"):
        SparseMLPClassifier(**QUICK, max_iter=2).fit(X, Y)


def test_it_warns_where_training_diverged():
    x, y = load_digits(return_X_y=True)
    for kind, scale in ((SparseMLPClassifier, 16), (SparseMLPRegressor, 1)):
        model = kind(standardize=False, random_state=0, max_iter=15)
        with pytest.warns(ConvergenceWarning, match=r"training diverged: .*smaller learning_rate_init"):
            model.fit(x * scale, y)


def test_a_rare_class_is_no_divergence():
    """One sample in 150 is of the second class: a constant answer loses .04, an untrained network .69."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(600, 8)), (np.arange(600) % 150 == 0).astype(int)
    x[:, 0] += 6 * y
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*had not converged")
        for seed in range(3):
            SparseMLPClassifier((20,), random_state=seed, max_iter=2).fit(x, y)


def test_partial_fit_standardises_by_all_it_has_seen():
    model = SparseMLPRegressor(**QUICK)
    for part in range(0, 90, 30):
        model.partial_fit(X[part : part + 30], X[part : part + 30, 0])
    assert np.allclose(model.scaler_.mean_, X.mean(0), atol=1e-3)
    assert model.target_scaler_.mean_ == pytest.approx(X[:, 0].mean(), rel=1e-4)
    x, y = load_digits(return_X_y=True)
    few = SparseMLPClassifier(random_state=0, learning_rate_init=0.005)
    for i in range(0, 800, 2):
        few.partial_fit(x[i : i + 2], y[i : i + 2], classes=range(10))
    assert few.score(x, y) > 0.8


def test_a_narrow_network_is_dense_and_float64_stays():
    x, y = load_digits(return_X_y=True)
    model = SparseMLPClassifier((10,), epsilon=20, random_state=0, schedule="SET", max_iter=15, n_iter_no_change=np.inf)
    model.fit(x[:1200], y[:1200])
    assert type(model.network_.fc1).__name__ == "FeatureMajorLinear"
    assert model.predict_proba(x).dtype == np.float64
    assert model.score(x[1200:], y[1200:]) > 0.85


def test_regression_of_several_targets_of_any_scale():
    x, y = make_regression(300, 50, n_informative=5, n_targets=3, random_state=0)
    y = y * [1, 1000, 0.001] + [0, 5e4, 1]
    model = SparseMLPRegressor((200,), epsilon=3, random_state=0).fit(x[:200], y[:200])
    assert model.predict(x[200:]).shape == (100, 3)
    assert model.score(x[200:], y[200:]) > 0.8
    one = SparseMLPRegressor((200,), epsilon=3, random_state=0).fit(x[:200], y[:200, 1])
    assert one.predict(x[200:]).shape == (100,)
    assert one.score(x[200:], y[200:, 1]) > 0.8
    streamed = SparseMLPRegressor((200,), epsilon=3, random_state=0)
    for _ in range(60):
        streamed.partial_fit(x[:200], y[:200])
    assert streamed.score(x[200:], y[200:]) > 0.8
    with pytest.raises(ValueError, match=r"3 column\(s\), as before. Got 1"):
        streamed.partial_fit(x, y[:, 0])


def test_without_standardizing_the_data_are_taken_as_they_are():
    x, y = make_classification(200, 20, n_informative=5, random_state=0)
    model = SparseMLPClassifier(**QUICK, standardize=False).fit(x, y)
    assert model.scaler_ is None
    same = SparseMLPClassifier(**QUICK).fit(x, y)
    moved = SparseMLPClassifier(**QUICK).fit(x * 1000 + 7, y)
    assert np.allclose(same.predict_proba(x), moved.predict_proba(x * 1000 + 7), atol=1e-6)
    assert not np.allclose(same.predict_proba(x), model.predict_proba(x), atol=1e-3)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hidden_layer_sizes", (0,)), ("activation", "softplus"), ("schedule", "RIGL"), ("batch_size", 0),
        ("max_iter", 0), ("n_iter_no_change", 0), ("tol", -1.0), ("validation_fraction", 1.0),
        ("hidden_layer_sizes", (20, 1.5)), ("hidden_layer_sizes", "wide"), ("batch_size", 16.5), ("max_iter", 2.5),
        ("max_iter", True), ("n_iter_no_change", 1.5), ("learning_rate_init", 0.0), ("learning_rate_init", "adaptive"),
        ("learning_rate_init", np.nan), ("momentum", 1.0), ("momentum", -0.1), ("tol", None),
    ],
)  # fmt: skip
def test_bad_parameters_are_named(name, value):
    with pytest.raises(ValueError, match=f"SparseMLPRegressor: {name} must be "):
        SparseMLPRegressor(**{name: value}).fit(X, np.zeros(90))


def test_parameters_that_exclude_one_another():
    with pytest.raises(ValueError, match=r"density must be None where epsilon is given\. Got 0\.1"):
        SparseMLPClassifier(epsilon=1, density=0.1).fit(X, Y)
    with pytest.raises(ValueError, match=r"zeta must be None where the schedule is not given by its name\. Got 0\.1"):
        SparseMLPClassifier(schedule=fg.Constant(0.2), zeta=0.1).fit(X, Y)
    with pytest.raises(NotFittedError):
        _ = SparseMLPClassifier().feature_importances_


def test_scales_are_those_of_what_is_trained_on():
    x = np.random.default_rng(0).normal(size=(120, 5))
    made = SparseMLPRegressor(max_iter=2, early_stopping=True, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made.fit(x, x[:, 0])
    assert made.scaler_.n_samples_seen_ == made.target_scaler_.n_samples_seen_ == 108


def test_warm_start_goes_on_with_the_same_network():
    x, y = np.random.default_rng(0).normal(size=(60, 5)), np.arange(60) % 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = SparseMLPClassifier(hidden_layer_sizes=(20,), max_iter=2, warm_start=True).fit(x, y)
        made.set_params(max_iter=3).fit(x, y)
        with pytest.raises(ValueError, match=r"made with hidden_layer_sizes=\(20,\)"):
            made.set_params(hidden_layer_sizes=(30,)).fit(x, y)


def test_targets_far_from_zero_keep_their_digits():
    x = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32)
    y = 1e8 + x[:, 0].astype(np.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = SparseMLPRegressor(max_iter=60, random_state=0, density=1.0).fit(x, y)
    assert made.score(x, y) > 0.8


def test_a_user_s_flushing_of_denormals_stays():
    x, y = np.random.default_rng(0).normal(size=(40, 5)), np.arange(40) % 2
    torch.set_flush_denormal(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            SparseMLPClassifier(max_iter=1).fit(x, y)
        assert torch.tensor(1e-310, dtype=torch.float64) * 1 == 0
    finally:
        torch.set_flush_denormal(False)


# -- export -----------------------------------------------------------------------------------------------------------


def _fitted(kind, standardize=True):
    if kind == "regressor":
        targets = np.stack([1000 + 5 * X[:, 0], X[:, 1]], 1)
        return SparseMLPRegressor((30,), standardize=standardize, max_iter=3, n_iter_no_change=np.inf).fit(X, targets)
    return SparseMLPClassifier(**QUICK, max_iter=3, n_iter_no_change=np.inf).fit(X, Y)


@pytest.mark.parametrize(
    "kind", ["classifier", pytest.param("regressor", marks=pytest.mark.long("the C test has its arithmetic"))]
)
def test_an_exported_estimator_reads_raw_features(kind, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    model = _fitted(kind)
    expected = model.predict(X) if kind == "regressor" else model.predict_proba(X)
    report = model.export(tmp_path / "m.onnx", seconds=0)
    assert report.relative < 1e-4
    session = runtime.InferenceSession(tmp_path / "m.onnx")
    (outputs,) = session.run(None, {session.get_inputs()[0].name: X})
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    names = session.get_modelmeta().custom_metadata_map.get("class_names")
    assert names == (None if kind == "regressor" else '["benign", "mixed", "tumour"]')


@pytest.mark.skipif(compiler() is None, reason="there is no C compiler")
@pytest.mark.parametrize("kind", ["classifier", "regressor"])
def test_an_estimator_in_c_equals_its_predictions(kind, tmp_path):
    model = _fitted(kind)
    for rows in (X, None):
        assert model.export(tmp_path / "m.c", rows).relative < 1e-4  # compiled, and compared with torch
    expected = model.predict(X) if kind == "regressor" else model.predict_proba(X)
    np.testing.assert_allclose(run_c(tmp_path / "m.c", X), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_the_estimator_itself_is_what_exports(tmp_path):
    model = _fitted("classifier")
    with pytest.raises(TypeError, match=r"Got a SparseMLPClassifier. It writes itself.*: estimator.export\(path\)"):
        fg.export(model, tmp_path / "m.onnx")
    with pytest.raises(NotFittedError):
        SparseMLPClassifier().export(tmp_path / "m.onnx")
