"""What the sparse multilayer perceptrons for scikit-learn share: parameters, training, the ranking of features."""

from __future__ import annotations

import json
import math
import numbers
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, is_classifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from filigree import models
from filigree.analyze import patterns
from filigree.convert import convert_, replace_module
from filigree.dynamics import EXD, LDV, OSV, SET, Evolution, Static
from filigree.export import export
from filigree.nn import SparseLinear
from filigree.nn.dropout.dropout import FastDropout
from filigree.nn.sparse.sparse import Sparse
from filigree.nn.standardize import Standardize
from filigree.ops import kernels
from filigree.ops.dropout import dropout
from filigree.topology import ErdosRenyi
from filigree.topology.science import input_strength
from filigree.train import EarlyStopping, History
from filigree.train import fit as train_network

FLOATS = [np.float64, np.float32]  # dtypes of X; others become the first
ACTIVATIONS = {"relu": "relu", "tanh": "tanh", "logistic": "sigmoid"}  # scikit-learn's names: those of fg.models.mlp
PRESETS: dict[str, Callable[..., Evolution]] = {  # of model, optimizer, zeta and options of `Evolution`
    "Static": lambda model, optimizer, zeta, **options: Evolution(model, optimizer, Static(), **options),
    "SET": SET,
    "LDV": lambda model, optimizer, zeta, **options: LDV(model, optimizer, zeta, min(zeta, 0.01), **options),
    "OSV": lambda model, optimizer, zeta, **options: OSV(model, optimizer, zeta, min(zeta, 0.01), **options),
    "EXD": partial(EXD, horizon=500),
}
_STRUCTURE = ("hidden_layer_sizes", "activation", "dropout", "epsilon", "density", "standardize")  # of a network
EPSILON, ZETA = 5.0, 0.3  # where they are None
FIRST = 0.1  # scale of the first layer's initial weights: what they learn then outweighs what they were drawn with
CHUNK = 1024  # samples predicted at a time
CHECKED = 32  # samples on which an exported file is compared


def takes_parts(self: SparseMLP) -> bool:
    """Whether the estimator has `partial_fit`, which holds no data out."""
    if self.early_stopping:
        raise AttributeError(f"{type(self).__name__}: partial_fit does not support early_stopping=True.")
    return True


class SparseMLP(BaseEstimator):
    """A multilayer perceptron that is sparse from the start, trained by stochastic gradient descent.

    Parameters that `sklearn.neural_network.MLPClassifier` has too mean the same. The defaults are for many features and
    few samples. The network trains in the dtype of X: float32 takes half the time and memory of float64.

    Args:
        hidden_layer_sizes: widths of the hidden layers. A layer that `epsilon` or `density` would fill is dense.
        activation: "relu", "tanh" or "logistic".
        epsilon: a layer has `epsilon (n_in + n_out)` connections (`fg.ErdosRenyi`); by default 5.
        density: the share of the places that are connected, in place of `epsilon`.
        schedule: which share of the connections moves after each epoch: "Static" (none), "SET" (zeta), "LDV", "OSV",
            "EXD" (less and less), or what `fg.Evolution` takes: a schedule, a number, a callable. Its horizon is
            `max_iter`. Moving costs about as much as ten steps.
        zeta: the share that moves first, of a schedule given by its name; by default 0.3.
        dropout: after each hidden layer, in [0, 1).
        standardize: z-score the inputs, and the targets of a regression, by the training data's mean and deviation
            (of `partial_fit` those of all the data so far).
        batch_size: samples a step.
        learning_rate_init, momentum: of the descent; by default 0.2 for classes, 0.03 for regression, and 0.9.
        max_iter: epochs at most; a `ConvergenceWarning` says that training had not ended by then, or that it diverged.
        tol, n_iter_no_change: training ends when the loss has not improved by more than `tol` for so many epochs
            (`np.inf`: only after `max_iter`).
        early_stopping: hold out a part of the data, let the loss there decide in place of the training loss, and keep
            the network of its best epoch.
        validation_fraction: that part, in (0, 1).
        random_state: an integer, a RandomState, or None; an integer gives the same network every time.
        warm_start: let `fit` go on from the network that is there.
        verbose: show the loss of every epoch.

    Attributes:
        network_: the torch module, in eval mode, for `fg.measure`, `fg.analyze`, `fg.save`, `fg.compress_`. It reads
            scaled inputs; `export` writes it with the scaling.
        scaler_: of the inputs; None without `standardize`.
        history_: what was measured, a row an epoch, see `filigree.train.History`.
        loss_curve_, n_iter_: the training losses in it, and its length.
        n_features_in_, feature_names_in_: as everywhere in scikit-learn.
    """

    def __init__(
        self,
        hidden_layer_sizes: int | Sequence[int] = (500,),
        activation: Literal["relu", "tanh", "logistic"] = "relu",
        *,
        epsilon: float | None = None,
        density: float | None = None,
        schedule: Any = "Static",
        zeta: float | None = None,
        dropout: float = 0.0,
        standardize: bool = True,
        batch_size: int = 128,
        learning_rate_init: float | None = None,
        momentum: float = 0.9,
        max_iter: int = 200,
        tol: float = 1e-3,
        n_iter_no_change: float = 10,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        random_state: Any = None,
        warm_start: bool = False,
        verbose: bool = False,
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.epsilon = epsilon
        self.density = density
        self.schedule = schedule
        self.zeta = zeta
        self.dropout = dropout
        self.standardize = standardize
        self.batch_size = batch_size
        self.learning_rate_init = learning_rate_init
        self.momentum = momentum
        self.max_iter = max_iter
        self.tol = tol
        self.n_iter_no_change = n_iter_no_change
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.random_state = random_state
        self.warm_start = warm_start
        self.verbose = verbose

    # -- what a classifier and a regressor differ in -----------------------------------------------------------------

    def _validate(self, X: Any, y: Any, reset: bool) -> tuple[np.ndarray, np.ndarray]:
        """X and y as checked arrays; `reset` takes note of what they look like."""
        raise NotImplementedError

    def _learn_targets(self, y: np.ndarray) -> int:
        """Take note of the classes, or of the targets' scale. Returns the number of outputs."""
        raise NotImplementedError

    def _rescale(self, X: np.ndarray, y: np.ndarray) -> None:
        """More data: update the scalers."""
        if self.scaler_ is not None:
            self.scaler_.partial_fit(X)

    def _targets(self, y: np.ndarray) -> Tensor:
        """y as the loss reads it."""
        raise NotImplementedError

    _learning_rate: float  # where it is not given

    def _loss(self, output: Tensor, target: Tensor) -> Tensor:
        raise NotImplementedError

    def _constant_loss(self, target: Tensor) -> float:
        """The loss of the best answer that does not look at X."""
        raise NotImplementedError

    def _blind_loss(self, target: Tensor) -> float:
        """The loss of an answer that knows nothing of the targets either, as that of an untrained network."""
        return self._constant_loss(target)

    # -- fitting -----------------------------------------------------------------------------------------------------

    def fit(self, X: Any, y: Any) -> Self:
        """Train on `X` `(samples, features)` and `y`, anew unless `warm_start`."""
        self._check()
        fresh = not (self.warm_start and hasattr(self, "network_"))
        X, y = self._validate(X, y, reset=fresh)
        if fresh:
            self._seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        else:
            self._refuse_changes()
        kept, held = np.arange(len(X)), np.arange(0)
        if self.early_stopping:
            kept, held = self._hold_out(y)
        if fresh:  # the scales are those of what is trained on
            self._begin(X[kept], self._learn_targets(y[kept]))
        self._connect()
        x, target, validation = self._inputs(X[kept]), self._targets(y[kept]), None
        if self.early_stopping:
            validation = self._inputs(X[held]), self._targets(y[held])
        stopping = None
        if math.isfinite(self.n_iter_no_change):
            metric = "val_loss" if self.early_stopping else "train_loss"
            stopping = EarlyStopping(metric, int(self.n_iter_no_change), "min", self.early_stopping, self.tol)
        history = self._train(x, target, self.max_iter, self._seed, validation, stopping, self._evolution or ())
        self._remember(history.rows)
        constant = self._constant_loss(target)
        if _diverged(self.loss_curve_, constant, self._blind_loss(target)):
            warnings.warn(
                f"{type(self).__name__}: training diverged: the loss was up to {max(self.loss_curve_):.3g} and ended "
                f"at {self.loss_curve_[-1]:.3g}; that of a constant answer is {constant:.3g}. Try a smaller "
                "learning_rate_init or standardize=True.",
                ConvergenceWarning,
                stacklevel=2,
            )
        elif stopping is not None and history.stopped is None:
            warnings.warn(
                f"{type(self).__name__}: training had not converged after max_iter={self.max_iter} epochs.",
                ConvergenceWarning,
                stacklevel=2,
            )
        return self

    def _hold_out(self, y: np.ndarray) -> list[np.ndarray]:
        """The numbers of the samples to train on, and to stop by: of each class one at least, where it has two."""
        if len(y) < 2:
            raise ValueError(f"{type(self).__name__}: early_stopping holds samples out. Got n_samples=1.")
        count, labels = math.ceil(self.validation_fraction * len(y)), None
        if is_classifier(self):
            sizes = np.unique(y, return_counts=True)[1]
            if sizes.min() > 1 and len(y) >= 2 * len(sizes):
                count, labels = min(max(count, len(sizes)), len(y) - len(sizes)), y
        return train_test_split(np.arange(len(y)), test_size=count, random_state=self._seed, stratify=labels)

    def _partial_fit(self, X: Any, y: Any, outputs: Callable[[np.ndarray], int]) -> Self:
        """One epoch on these data; connections move before it, so that the network is left as it was trained."""
        self._check()
        fresh = not hasattr(self, "network_")
        X, y = self._validate(X, y, reset=fresh)
        if fresh:
            self._seed = int(check_random_state(self.random_state).randint(2**31 - 1))
            self._begin(X, outputs(y))
            self._connect()
        else:
            self._targets(y)  # refuses labels or columns that do not fit, before anything changes
            self._rescale(X, y)
        x, target = self._inputs(X), self._targets(y)
        if self._evolution is not None and self.history_:
            self._evolution.step(self.history_[-1])
        rows = self._train(x, target, 1, self._seed + self.n_iter_).rows
        self._remember([*self.history_, *(row | {"epoch": self.n_iter_} for row in rows)])
        return self

    def _check(self) -> None:
        """Errors that name our parameters; what is left is refused by those that read it, by the same names."""
        widths = self.hidden_layer_sizes if np.iterable(self.hidden_layer_sizes) else [self.hidden_layer_sizes]
        rate, patience, share = self.learning_rate_init, self.n_iter_no_change, self.validation_fraction
        named = isinstance(self.schedule, str)
        for name, right, expected in (
            ("hidden_layer_sizes", all(map(_is_count, widths)), "whole numbers of at least 1"),
            ("activation", self.activation in ACTIVATIONS, f"one of {', '.join(ACTIVATIONS)}"),
            ("schedule", not named or self.schedule in PRESETS, f"a schedule or one of {', '.join(PRESETS)}"),
            ("zeta", named or self.zeta is None, "None where the schedule is not given by its name"),
            ("density", self.density is None or self.epsilon is None, "None where epsilon is given"),
            ("batch_size", _is_count(self.batch_size), "a whole number of at least 1"),
            ("learning_rate_init", rate is None or (_is_real(rate) and 0 < rate < math.inf), "None or above 0"),
            ("momentum", _is_real(self.momentum) and 0 <= self.momentum < 1, "at least 0 and below 1"),
            ("max_iter", _is_count(self.max_iter), "a whole number of at least 1"),
            ("n_iter_no_change", patience == math.inf or _is_count(patience), "a whole number of at least 1 or np.inf"),
            ("tol", _is_real(self.tol) and self.tol >= 0, "at least 0"),
            ("validation_fraction", _is_real(share) and 0 < share < 1, "between 0 and 1"),
        ):
            if not right:
                raise ValueError(f"{type(self).__name__}: {name} must be {expected}. Got {getattr(self, name)!r}.")

    def _begin(self, X: np.ndarray, outputs: int) -> None:
        """A new network for such data."""
        self._built_by = {name: getattr(self, name) for name in _STRUCTURE}
        self.scaler_ = StandardScaler().fit(X) if self.standardize else None
        hidden = np.atleast_1d(np.asarray(self.hidden_layer_sizes, int)).tolist()
        epsilon = EPSILON if self.epsilon is None and self.density is None else self.epsilon
        with torch.device("meta"):  # dense weights are never made, however wide
            network = models.mlp([X.shape[1], *hidden, outputs], self.dropout, ACTIVATIONS[self.activation])
            network.to(torch.from_numpy(X[:0].copy()).dtype)
        convert_(network, Sparse(ErdosRenyi(epsilon=epsilon, density=self.density), seed=self._seed))
        generator = torch.Generator().manual_seed(self._seed)  # not torch's global one: parallel threads would share it
        for name, layer in list(network.named_modules()):
            if isinstance(layer, nn.Linear):  # as torch does it, but for the bias
                nn.init.kaiming_uniform_(layer.weight, a=5**0.5, generator=generator)
                nn.init.zeros_(layer.bias)
            elif isinstance(layer, nn.Dropout):
                replace_module(network, name, _Dropout(layer.p, generator))
        first = network.get_submodule("fc1")
        with torch.no_grad():
            (first.values if isinstance(first, SparseLinear) else first.get_parameter("weight")).mul_(FIRST)
        self.network_ = network.eval()
        self._remember([])

    def _refuse_changes(self) -> None:
        """`warm_start` goes on with the network that is there."""
        for name, before in self._built_by.items():
            now = getattr(self, name)
            if not np.array_equal(now, before):
                raise ValueError(
                    f"{type(self).__name__}: warm_start goes on with the network made with {name}={before!r}. "
                    f"Got {now!r}: set warm_start=False."
                )

    def _connect(self) -> None:
        """Optimizer and evolution of the network."""
        rate = self._learning_rate if self.learning_rate_init is None else self.learning_rate_init
        self._optimizer = torch.optim.SGD(self.network_.parameters(), rate, self.momentum, fused=True)
        self._evolution = None
        if patterns(self.network_):  # small layers may all be dense
            make: Callable[..., Evolution] = Evolution
            rate = self.schedule
            if isinstance(self.schedule, str):
                make, rate = PRESETS[self.schedule], ZETA if self.zeta is None else self.zeta
            self._evolution = make(self.network_, self._optimizer, rate, epochs=self.max_iter, seed=self._seed)

    def _train(
        self, x: Tensor, target: Tensor, epochs: int, seed: int, validation: Any = None,
        stopping: EarlyStopping | None = None, callbacks: Any = (),
    ) -> History:  # fmt: skip
        with _without_denormals():
            return train_network(
                self.network_, (x, target), optimizer=self._optimizer, epochs=epochs, batch_size=int(self.batch_size),
                loss=self._loss, validation=validation, callbacks=callbacks, early_stopping=stopping, seed=seed,
                progress=bool(self.verbose),
            )  # fmt: skip

    def _remember(self, rows: list[dict[str, Any]]) -> None:
        self.history_, self.n_iter_ = rows, len(rows)
        self.loss_curve_ = [row["train_loss"] for row in rows]

    # -- using -------------------------------------------------------------------------------------------------------

    def _inputs(self, X: np.ndarray) -> Tensor:
        """X as the network reads it: scaled, a copy, in the network's dtype."""
        values = np.array(X) if self.scaler_ is None else self.scaler_.transform(X)
        return torch.from_numpy(values).to(self.network_.get_parameter("fc1.bias").dtype)

    def _outputs(self, X: Any) -> Tensor:
        """`(samples, features)` to the network's outputs `(samples, outputs)`."""
        check_is_fitted(self, "network_")
        X = validate_data(self, X, dtype=FLOATS, reset=False)
        with torch.no_grad():
            return torch.cat([self.network_(part) for part in self._inputs(X).split(CHUNK)])

    def export(self, path: str | Path, X: Any = None, **options: Any) -> Any:
        """Write the fitted estimator, its scaling included, as `fg.export` does: to `.onnx` or `.c`.

        The file reads rows of raw features, in the network's dtype (C: float32). It gives what `predict_proba` does, or
        `predict` of a regressor; an ONNX file holds the names of classes and features as metadata.

        Args:
            X: rows on which the file is compared with torch; by default drawn from the training data's mean and
                deviation. options: of `fg.export`.

        Returns:
            A printable report. Raises as `fg.export` does.
        """
        check_is_fitted(self, "network_")
        if X is None:
            X = np.random.default_rng(0).normal(size=(CHECKED, self.n_features_in_))
            X = X if self.scaler_ is None else self.scaler_.inverse_transform(X)
        else:
            X = validate_data(self, X, dtype=FLOATS, reset=False)
        dtype = self.network_.get_parameter("fc1.bias").dtype
        before: list[tuple[str, nn.Module]] = []
        if self.scaler_ is not None:
            before.append(("scaling", Standardize(self.scaler_.mean_, self.scaler_.scale_, dtype)))
        model = nn.Sequential(OrderedDict([*before, *self.network_.named_children(), *self._after(dtype)]))
        if Path(path).suffix == ".onnx":
            options["metadata"] = self._names() | options.get("metadata", {})
        return export(model.eval(), path, torch.from_numpy(np.array(X)).to(dtype), **options)

    def _after(self, dtype: torch.dtype) -> list[tuple[str, nn.Module]]:
        """What makes the estimator's answers of the network's outputs, by name."""
        raise NotImplementedError

    def _names(self) -> dict[str, str]:
        """What an exported file says of its inputs and outputs: lists in JSON."""
        names = getattr(self, "feature_names_in_", None)
        return {} if names is None else {"feature_names": json.dumps([str(name) for name in names])}

    @property
    def feature_importances_(self) -> np.ndarray:
        """`(features,)`, of sum 1: the sum of |w| over a feature's connections, what `fg.feature_ranking` ranks by.

        It compares features of one scale: standardised ones.
        """
        check_is_fitted(self, "network_")
        pattern = patterns(self.network_).get("fc1")
        if pattern is not None:
            strength = input_strength(pattern)
        else:
            strength = self.network_.get_parameter("fc1.weight").detach().abs().sum(0).numpy()
        return strength / (strength.sum() or 1.0)


def _diverged(losses: Sequence[float], constant: float, blind: float) -> bool:
    """Whether nothing was learned, or the loss burst: as its units die it comes back near that of a constant answer.

    An untrained network's loss is no burst, however little a constant answer loses where one class is rare.
    """
    burst = max(losses) > 10 * max(constant, blind) and losses[-1] > constant / 2
    return constant > 0 and (burst or (len(losses) > 1 and losses[-1] >= max(losses[0], constant)))


def _is_real(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) >= 1


class _Dropout(FastDropout):
    """Dropout with a generator of its own, so that estimators fitted in parallel threads do not disturb each other."""

    def __init__(self, p: float, generator: torch.Generator) -> None:
        super().__init__(p)
        self.generator = generator

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return dropout(x, self.p, int(torch.randint(2**63 - 1, (), generator=self.generator)))


@contextmanager
def _without_denormals() -> Iterator[None]:
    """Momentum of dead connections decays into denormal numbers, and they slow every step down."""
    flushed = bool(torch.tensor(1e-310, dtype=torch.float64) * 1 == 0)  # as the user may have it
    kernels.flush_denormals(True)
    try:
        yield
    finally:
        kernels.flush_denormals(flushed)
