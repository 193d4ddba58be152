"""The parameters of the sparse multilayer perceptrons: what they may be."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from filigree.dynamics import EXD, LDV, OSV, SET, Evolution, Static
from filigree.sklearn.running import is_count, is_real

ACTIVATIONS = {"relu": "relu", "tanh": "tanh", "logistic": "sigmoid"}  # scikit-learn's names: those of fg.models.mlp
PRESETS: dict[str, Callable[..., Evolution]] = {  # of model, optimizer, zeta and options of `Evolution`
    "Static": lambda model, optimizer, zeta, **options: Evolution(model, optimizer, Static(), **options),
    "SET": SET,
    "LDV": lambda model, optimizer, zeta, **options: LDV(model, optimizer, zeta, min(zeta, 0.01), **options),
    "OSV": lambda model, optimizer, zeta, **options: OSV(model, optimizer, zeta, min(zeta, 0.01), **options),
    "EXD": partial(EXD, horizon=500),
}
EPSILON, ZETA = 5.0, 0.3  # where they are None


def check_parameters(estimator: Any) -> None:
    """Errors that name our parameters; what is left is refused by those that read it, by the same names."""
    who, widths = type(estimator).__name__, estimator.hidden_layer_sizes
    widths = widths if np.iterable(widths) else [widths]
    rate, patience, share = estimator.learning_rate_init, estimator.n_iter_no_change, estimator.validation_fraction
    named = isinstance(estimator.schedule, str)
    for name, right, expected in (
        ("hidden_layer_sizes", all(map(is_count, widths)), "whole numbers of at least 1"),
        ("activation", estimator.activation in ACTIVATIONS, f"one of {', '.join(ACTIVATIONS)}"),
        ("schedule", not named or estimator.schedule in PRESETS, f"a schedule or one of {', '.join(PRESETS)}"),
        ("zeta", named or estimator.zeta is None, "None where the schedule is not given by its name"),
        ("density", estimator.density is None or estimator.epsilon is None, "None where epsilon is given"),
        ("batch_size", is_count(estimator.batch_size), "a whole number of at least 1"),
        ("learning_rate_init", rate is None or (is_real(rate) and 0 < rate < math.inf), "None or above 0"),
        ("momentum", is_real(estimator.momentum) and 0 <= estimator.momentum < 1, "at least 0 and below 1"),
        ("max_iter", is_count(estimator.max_iter), "a whole number of at least 1"),
        ("n_iter_no_change", patience == math.inf or is_count(patience), "a whole number of at least 1 or np.inf"),
        ("tol", is_real(estimator.tol) and estimator.tol >= 0, "at least 0"),
        ("validation_fraction", is_real(share) and 0 < share < 1, "between 0 and 1"),
        ("n_jobs", estimator.n_jobs is None or is_count(abs(estimator.n_jobs)), "None or a whole number that is not 0"),
    ):
        if not right:
            raise ValueError(f"{who}: {name} must be {expected}. Got {getattr(estimator, name)!r}.")
