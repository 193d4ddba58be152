"""How long a pruned network takes to be as good again (John 2019, 3.1): Theorem 1, and its gamma."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from filigree.computed_weights import copied
from filigree.convert import inference_context


@dataclass(frozen=True)
class Landscape:
    """Where a network stands: its weights, its loss on data, and the gradient there."""

    weights: Tensor
    loss: float
    gradient: Tensor

    @classmethod
    def of(cls, model: nn.Module, x: Tensor, y: Tensor) -> Landscape:
        trained = [p for p in model.parameters() if p.requires_grad]
        with inference_context(model), torch.enable_grad():
            loss = F.cross_entropy(model(x), y)
            gradients = torch.autograd.grad(loss, trained, allow_unused=True, materialize_grads=True)
        return cls(
            torch.cat([p.detach().flatten() for p in trained]).clone(),
            float(loss.detach()),
            torch.cat([g.flatten() for g in gradients]),
        )


class RetrainingBaseline:
    """A hook of `fg.fit` that keeps what Theorem 1 needs of a training: weights, loss and gradient at its start, and
    how many epochs it took.

        origin = fg.RetrainingBaseline(x, y)
        fg.fit(model, train, optimizer=optimizer, epochs=10, callbacks=origin)
        fg.retraining_bound(origin, model, pruned)

    Args:
        x, y: samples with integer labels, for losses and gradients.
    """

    def __init__(self, x: Tensor, y: Tensor) -> None:
        if not len(x) or len(x) != len(y):
            raise ValueError(
                f"RetrainingBaseline: expected as many samples as labels, at least one. Got {len(x)} and {len(y)}."
            )
        self.x, self.y = x, y
        self.start: Landscape | None = None
        self.epochs = 0

    def on_fit_start(self, state: Any) -> None:
        if self.start is None:
            self.start = Landscape.of(state.model, self.x, self.y)

    def on_epoch_end(self, state: Any) -> None:
        self.epochs += 1

    def state_dict(self) -> dict[str, Any]:
        start = self.start
        return {"epochs": self.epochs} | (
            {} if start is None else {"weights": start.weights, "loss": start.loss, "gradient": start.gradient}
        )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.epochs = int(state["epochs"])
        if "loss" in state:
            self.start = Landscape(state["weights"], float(state["loss"]), state["gradient"])


Form = Literal["printed", "derived"]


def retraining_bound(
    origin: RetrainingBaseline, trained: nn.Module, pruned: nn.Module, *, gamma: float = 1.0, form: Form = "derived"
) -> float:
    """Theorem 1: the epochs that a pruned network needs to be as good again.

    With g the gradients and L the cross-entropy on the origin's samples, t the epochs of the first training:

    - "printed" (3.1): `gamma mu1 / mu2 |g_initial|^2 / |g_pruned|^2 t`.
    - "derived": from t proportional to the loss to be lost, and 3.4, 3.5: `gamma mu1 / mu2 |g_pruned|^2 / |g_initial|^2
      t`, which with the mu of units is `gamma (L_pruned - L*) / (L_initial - L*) t`.

    mu by 3.2, 3.3 (`|g - g*| / |W - W*|`) where all three have the same shapes (connections), else by 3.4, 3.5 (`|g|^2
    / |L - L*|`). The inequality of Polyak and Lojasiewicz gives upper bounds only: neither form is proved to bound from
    below, and gamma is free: `fg.fit_gamma`.

    Args:
        origin: was a hook of the `fit` that trained. trained, pruned: the network after training, and pruned.
    """
    if form not in ("printed", "derived"):
        raise ValueError(f"retraining_bound: form must be 'printed' or 'derived'. Got {form!r}.")
    if origin.start is None or not origin.epochs:
        raise ValueError("retraining_bound: the origin saw no training. Give it to fit: callbacks=[origin].")
    at_first = origin.start
    best, now = (Landscape.of(_dense(model), origin.x, origin.y) for model in (trained, pruned))
    squares = [float(place.gradient.square().sum()) for place in (at_first, now)]
    if len(best.weights) == len(now.weights) == len(at_first.weights):
        mu = [
            float((place.gradient - best.gradient).norm() / (place.weights - best.weights).norm().clamp(min=1e-30))
            for place in (at_first, now)
        ]
    else:
        mu = [
            square / max(abs(place.loss - best.loss), 1e-30)
            for place, square in zip((at_first, now), squares, strict=True)
        ]
    ratio = squares[0] / max(squares[1], 1e-30)
    return gamma * mu[0] / max(mu[1], 1e-30) * (ratio if form == "printed" else 1 / ratio) * origin.epochs


def _dense(model: nn.Module) -> nn.Module:
    """Sparse layers as dense ones with zeros, so that weights compare one by one."""
    duplicate = copied(model)
    for name, module in list(duplicate.named_modules()):
        if hasattr(module, "flat_indices"):
            duplicate.set_submodule(name, module.dense())
    return duplicate


@dataclass(frozen=True)
class Gamma:
    """A fitted relation of gamma to how a network is retrained, a linear model of its logarithm.

    Attributes:
        names, coefficients: the terms of `log gamma`, and what each counts. deviation: of the logarithms about it.
    """

    names: tuple[str, ...]
    coefficients: tuple[float, ...]
    deviation: float

    def __call__(self, run: Mapping[str, Any]) -> float:
        """Gamma for a run: a mapping of the same keys, such as level, batch_size, optimizer and lr."""
        row = _terms([run], self.names)[0]
        return math.exp(float(np.dot(row, self.coefficients)))

    def interval(self, run: Mapping[str, Any]) -> tuple[float, float]:
        """95% of the runs are expected in here, if the logarithms are normal about the relation."""
        factor = math.exp(1.96 * self.deviation)
        return self(run) / factor, self(run) * factor

    def __str__(self) -> str:
        terms = ", ".join(f"{name} {value:+.2f}" for name, value in zip(self.names, self.coefficients, strict=True))
        return f"log gamma = {terms}; deviation {self.deviation:.2f}"


def fit_gamma(
    runs: Sequence[Mapping[str, Any]], bounds: Sequence[float], epochs: Sequence[float], ridge: float = 1e-3
) -> Gamma:
    """The empirical relation for gamma that John 2019 leaves to future work: gamma = epochs taken / bound at gamma 1.

    `log gamma = a + b log level + c log batch_size + d log lr + ...`: the logarithm of every positive number of a run,
    and a 0 or 1 for each further value of what is not a number (the optimizer); least squares with a slight ridge.

    Args:
        runs: what is known of each before retraining. bounds: of `retraining_bound`, gamma 1. epochs: that it took.

    Raises:
        ValueError: fewer than three runs, unequal lengths, or numbers that are not positive.
    """
    if not len(runs) == len(bounds) == len(epochs) or len(runs) < 3:
        raise ValueError(
            f"fit_gamma: expected as many runs as bounds and epochs, at least 3. "
            f"Got {len(runs)}, {len(bounds)} and {len(epochs)}."
        )
    numbers = [*bounds, *epochs, *(v for run in runs for v in run.values() if isinstance(v, int | float))]
    if wrong := [number for number in numbers if not 0 < number < math.inf]:
        raise ValueError(f"fit_gamma: bounds, epochs and the numbers of runs must be positive. Got {wrong[0]}.")
    names = ["1"]
    for key in dict.fromkeys(key for run in runs for key in run):
        values = list(dict.fromkeys(run[key] for run in runs))
        if all(isinstance(value, int | float) for value in values):
            names += [f"log {key}"] if len(values) > 1 else []
        else:
            names += [f"{key}={value}" for value in values[1:]]
    design = _terms(runs, names)
    wanted = np.log(np.asarray(epochs, float) / np.asarray(bounds, float))
    penalty = ridge * len(runs) * np.diag([0.0, *[1.0] * (len(names) - 1)])
    solved = np.linalg.solve(design.T @ design + penalty, design.T @ wanted)
    rest = wanted - design @ solved
    free = max(1, len(runs) - len(names))
    return Gamma(tuple(names), tuple(float(c) for c in solved), float(np.sqrt(rest @ rest / free)))


def _terms(runs: Sequence[Mapping[str, Any]], names: Sequence[str]) -> np.ndarray[Any, Any]:
    def term(run: Mapping[str, Any], name: str) -> float:
        if name == "1":
            return 1.0
        if name.startswith("log "):
            return math.log(run[name[4:]])
        key, value = name.split("=", 1)
        return float(str(run[key]) == value)

    return np.array([[term(run, name) for name in names] for run in runs])
