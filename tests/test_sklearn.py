"""scikit-learn estimators."""

import numpy as np
import pytest
from sklearn.utils.estimator_checks import check_estimator

from filigree.sklearn import FastfoodFeatures


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
