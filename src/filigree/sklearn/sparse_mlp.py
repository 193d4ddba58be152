"""What the sparse multilayer perceptrons for scikit-learn share: parameters, training, the ranking of features."""

from __future__ import annotations

import copy
import json
import math
import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import scipy  # its parts load at their first use
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
from filigree.convert import convert_
from filigree.data.preprocessing import Preprocessing, set_preprocessing
from filigree.dynamics import Evolution
from filigree.export import export
from filigree.io.saving import description
from filigree.io.storage import write_state
from filigree.nn import SparseLinear
from filigree.nn.sparse.sparse import Sparse
from filigree.nn.standardize import Standardize
from filigree.ops.denormals import without_denormals
from filigree.ops.sparse_rows import sparse_rows
from filigree.sklearn import running
from filigree.sklearn.parameters import ACTIVATIONS, EPSILON, PRESETS, ZETA, check_parameters
from filigree.sklearn.plain_estimators import names_of_targets, plain_estimator
from filigree.sklearn.sample_weights import beside, checked_weights, product, together, weighted_mean
from filigree.topology import ErdosRenyi
from filigree.topology.science import input_strength
from filigree.train import EarlyStopping, History
from filigree.train import fit as train_network

FLOATS = [np.float64, np.float32]  # dtypes of X; others become the first
_STRUCTURE = ("hidden_layer_sizes", "activation", "dropout", "epsilon", "density", "standardize")  # of a network
FIRST = 0.1  # scale of the first layer's initial weights: what they learn then outweighs what they were drawn with
CHUNK = 1024  # samples predicted at a time
CHECKED = 32  # samples on which an exported file is compared


class SparseMLP(BaseEstimator):
    """A multilayer perceptron that is sparse from the start, trained by stochastic gradient descent.

    Inputs may be sparse matrices of scipy, also of 10^5 features: a product visits the connections of the features
    that a sample has.

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
            (of `partial_fit` those of all the data so far). Sparse inputs are divided by the deviation only.
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
        n_jobs: threads of `fit` and `predict`; by default torch's own number, -1: all cores.

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
        n_jobs: int | None = None,
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
        self.n_jobs = n_jobs

    # -- what a classifier and a regressor differ in -----------------------------------------------------------------

    def _validate(self, X: Any, y: Any, reset: bool) -> tuple[np.ndarray, np.ndarray]:
        """X and y as checked arrays; `reset` takes note of what they look like."""
        raise NotImplementedError

    def _learn_targets(
        self, y: np.ndarray, weights: np.ndarray | None, kept: np.ndarray | slice, classes: Any = None
    ) -> int:
        """Take note of the classes in y (or of those given), or of the scale of `y[kept]`, of these weights.

        Returns how many outputs.
        """
        raise NotImplementedError

    @property
    def _width(self) -> int:
        """How many outputs the network has."""
        raise NotImplementedError

    def _weights_of_classes(self, y: np.ndarray, classes: Any) -> np.ndarray | None:
        """The weight of each sample by its class, one of `classes` (None: of y's); None where classes have none."""
        return None

    def _rescale(self, X: Any, y: np.ndarray, weights: np.ndarray | None) -> None:
        """More data: update the scalers."""
        if self.scaler_ is not None:
            running.rescale_(self.scaler_, self._dense_where_centred(X), weights)

    def _targets(self, y: np.ndarray) -> Tensor:
        """y as the loss reads it."""
        raise NotImplementedError

    _learning_rate: float  # where it is not given
    _target_names: Sequence[str] = ()  # of y's columns, where they have some

    def _losses(self, output: Tensor, target: Tensor) -> Tensor:
        """The loss of each sample, `(batch,)`."""
        raise NotImplementedError

    def _target_of(self, columns: Tensor) -> Tensor:
        """Targets as `_losses` reads them, of columns that have weights beside them."""
        return columns.to(self._dtype)

    def _constant_loss(self, target: Tensor, weights: Tensor) -> float:
        """The loss of the best answer that does not look at X; weights `(samples,)` are of mean 1."""
        raise NotImplementedError

    def _blind_loss(self, constant: float) -> float:
        """The loss of an answer that knows nothing of the targets either, as that of an untrained network."""
        return constant

    def _calibrate(self, outputs: Tensor, target: Tensor) -> None:
        """Make the network's outputs as sure as they are right; these are of samples that were held out."""

    def _preprocessing(self) -> Preprocessing | None:
        """What `filigree predict` needs beside the network; None where it could not say what this estimator does."""
        raise NotImplementedError

    # -- fitting -----------------------------------------------------------------------------------------------------

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train on `X` `(samples, features)`, dense or sparse, and `y`, anew unless `warm_start`.

        The loss is the mean of those of the samples, each times its weight, where the weights' own mean is taken for
        1. Sparse matrices of scipy are never made dense, unless `warm_start` goes on from standardised dense data.
        """
        check_parameters(self)
        fresh = not (self.warm_start and hasattr(self, "network_"))
        X, y, weights = self._checked(X, y, sample_weight, fresh)
        if not fresh:
            self._targets(y)  # refuses labels or columns that do not fit, before anything changes
        weights = together(weights, self._weights_of_classes(y, None if fresh else getattr(self, "classes_", None)))
        if fresh:
            self._seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        else:
            self._refuse_changes()
        kept, held = np.arange(X.shape[0]), np.arange(0)
        calibrates = getattr(self, "calibrate", False)
        if self.early_stopping or calibrates:
            kept, held = self._hold_out(y)
        if fresh:  # the scales are those of what is trained on
            some = None if weights is None else weights[kept]
            self._begin(X[kept], self._learn_targets(y, some, kept), some)
        self._connect()
        target, validation = self._targets(y), None
        if self.early_stopping:
            validation = self._inputs(X[held]), beside(target[held], None if weights is None else weights[held])
        stopping = None
        if math.isfinite(self.n_iter_no_change):
            metric = "val_loss" if self.early_stopping else "train_loss"
            stopping = EarlyStopping(metric, int(self.n_iter_no_change), "min", self.early_stopping, self.tol)
        mine = None if weights is None else weights[kept]
        history = self._train(
            X[kept], target[kept], mine, self.max_iter, self._seed, validation, stopping, self._evolution or ()
        )
        self._remember(history.rows)
        if calibrates:
            self._calibrate(self._outputs_of(X[held]), target[held])
        of_each = torch.ones(len(kept)) if mine is None else torch.from_numpy(mine)
        constant = self._constant_loss(target[kept], of_each.double())
        if running.diverged(self.loss_curve_, constant, self._blind_loss(constant)):
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
            raise ValueError(f"{type(self).__name__}: early_stopping and calibrate hold samples out. Got n_samples=1.")
        count, labels = math.ceil(self.validation_fraction * len(y)), None
        if is_classifier(self) and y.ndim == 1:
            sizes = np.unique(y, return_counts=True)[1]
            if sizes.min() > 1 and len(y) >= 2 * len(sizes):
                count, labels = min(max(count, len(sizes)), len(y) - len(sizes)), y
        return train_test_split(np.arange(len(y)), test_size=count, random_state=self._seed, stratify=labels)

    def _checked(self, X: Any, y: Any, sample_weight: Any, fresh: bool) -> tuple[Any, np.ndarray, np.ndarray | None]:
        """The samples whose weight is not 0, as arrays, and their weights; `fresh`: note what they look like."""
        targets = names_of_targets(y)
        X, y = self._validate(X, y, reset=fresh)
        if fresh:
            self._target_names = targets
        weights = checked_weights(sample_weight, X, type(self).__name__)
        if weights is not None and not weights.all():  # as if these samples were not there
            return X[weights > 0], y[weights > 0], weights[weights > 0]
        return X, y, weights

    def _partial_fit(self, X: Any, y: Any, sample_weight: Any, classes: Any = None) -> Self:
        """One epoch on these data; connections move before it, so that the network is left as it was trained."""
        check_parameters(self)
        fresh = not hasattr(self, "network_")
        X, y, weights = self._checked(X, y, sample_weight, fresh)
        if not fresh:
            self._targets(y)  # refuses labels or columns that do not fit, before anything changes
        weights = product(weights, self._weights_of_classes(y, classes if fresh else getattr(self, "classes_", None)))
        if fresh:
            self._seed = int(check_random_state(self.random_state).randint(2**31 - 1))
            self._begin(X, self._learn_targets(y, weights, slice(None), classes), weights)
            self._connect()
        else:
            self._rescale(X, y, weights)
        target = self._targets(y)
        if self._evolution is not None and self.history_:
            self._evolution.step(self.history_[-1])
        rows = self._train(X, target, weights, 1, self._seed + self.n_iter_).rows
        self._remember([*self.history_, *(row | {"epoch": self.n_iter_} for row in rows)])
        return self

    def _begin(self, X: Any, outputs: int, weights: np.ndarray | None) -> None:
        """A new network for such data."""
        self._built_by = {name: getattr(self, name) for name in _STRUCTURE}
        centred = not scipy.sparse.issparse(X)
        self.scaler_ = StandardScaler(with_mean=centred).fit(X, None, weights) if self.standardize else None
        hidden = np.atleast_1d(np.asarray(self.hidden_layer_sizes, int)).tolist()
        epsilon = EPSILON if self.epsilon is None and self.density is None else self.epsilon
        with torch.device("meta"):  # dense weights are never made, however wide
            network = models.mlp([X.shape[1], *hidden, outputs], self.dropout, ACTIVATIONS[self.activation])
            network.to(torch.float32 if X.dtype == np.float32 else torch.float64)
        convert_(network, Sparse(ErdosRenyi(epsilon=epsilon, density=self.density), seed=self._seed))
        generator = torch.Generator().manual_seed(self._seed)  # not torch's global one: parallel threads would share it
        for _, layer in list(network.named_modules()):
            if isinstance(layer, nn.Linear):  # as torch does it, but for the bias
                nn.init.kaiming_uniform_(layer.weight, a=5**0.5, generator=generator)
                nn.init.zeros_(layer.bias)
        running.draw_dropout_from_(network, generator)
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
        self, X: Any, target: Tensor, weights: np.ndarray | None, epochs: int, seed: int, validation: Any = None,
        stopping: EarlyStopping | None = None, callbacks: Any = (),
    ) -> History:  # fmt: skip
        def loss(output: Tensor, target: Tensor) -> Tensor:
            return self._losses(output, target).mean()

        def weighted_loss(output: Tensor, columns: Tensor) -> Tensor:
            return weighted_mean(self._losses(output, self._target_of(columns[:, :-1])), columns[:, -1])

        with without_denormals(), running.threads(self.n_jobs):
            return train_network(
                self.network_, (self._inputs(X), beside(target, weights)), optimizer=self._optimizer, epochs=epochs,
                batch_size=int(self.batch_size), loss=loss if weights is None else weighted_loss,
                validation=validation, callbacks=callbacks, early_stopping=stopping, seed=seed,
                progress=bool(self.verbose),
            )  # fmt: skip

    def _remember(self, rows: list[dict[str, Any]]) -> None:
        self.history_, self.n_iter_ = rows, len(rows)
        self.loss_curve_ = [row["train_loss"] for row in rows]

    # -- using -------------------------------------------------------------------------------------------------------

    @property
    def _dtype(self) -> torch.dtype:
        return self.network_.get_parameter("fc1.bias").dtype

    def _dense_where_centred(self, X: Any) -> Any:
        """X, dense where the scaler centres it: it was trained on dense data, whose mean is not 0."""
        centred = self.scaler_ is not None and self.scaler_.with_mean
        return X.toarray() if centred and scipy.sparse.issparse(X) else X

    def _inputs(self, X: Any) -> Tensor:
        """X as the network reads it: scaled, a copy, in the network's dtype; sparse where X is and is not centred."""
        X = self._dense_where_centred(X)
        values = X.copy() if self.scaler_ is None else self.scaler_.transform(X)
        return (sparse_rows if scipy.sparse.issparse(values) else torch.from_numpy)(values).to(self._dtype)

    def _outputs(self, X: Any) -> Tensor:
        """`(samples, features)` to the network's outputs `(samples, outputs)`."""
        check_is_fitted(self, "network_")
        return self._outputs_of(validate_data(self, X, accept_sparse="csr", dtype=FLOATS, reset=False))

    def _outputs_of(self, X: Any) -> Tensor:
        with torch.no_grad(), running.threads(self.n_jobs):
            return torch.cat(
                [self.network_(self._inputs(X[i : i + CHUNK])).contiguous() for i in range(0, X.shape[0], CHUNK)]
            )

    def save(self, path: str | Path) -> None:
        """Write the fitted estimator to one safetensors file, without pickle; `fg.load(path)` gives it back.

        `filigree predict` and `show` read the file too. Predictions come back bit for bit; the optimizer's momentum
        begins anew. Raises `TypeError` for a `schedule` that is neither a name, a number nor a config.
        """
        check_is_fitted(self, "network_")
        network = copy.deepcopy(self.network_)
        running.draw_dropout_as_torch_(network)
        set_preprocessing(network, self._preprocessing())
        write_state(path, description(network) | {"estimator": plain_estimator(self)})

    def restore_network(self, network: nn.Module) -> None:
        """Take the network of a file; what else was learned is there already. `ValueError`: their widths differ."""
        outputs = self._width
        last = [layer for layer in network.modules() if hasattr(layer, "out_features")][-1]
        scaled = self.n_features_in_ if self.scaler_ is None else len(self.scaler_.scale_)
        widths = network.get_submodule("fc1").in_features, scaled, last.out_features
        if widths != (self.n_features_in_, self.n_features_in_, outputs):
            raise ValueError(f"a network and scales of {widths} for {self.n_features_in_} features, {outputs} outputs")
        running.draw_dropout_from_(network, torch.Generator().manual_seed(self._seed))
        self.network_ = network.eval()
        self._remember(self.history_)
        self._connect()

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
            X = validate_data(self, X, accept_sparse="csr", dtype=FLOATS, reset=False)
            X = X.toarray() if scipy.sparse.issparse(X) else X
        dtype = self._dtype
        before: list[tuple[str, nn.Module]] = []
        if self.scaler_ is not None:
            before.append(("scaling", Standardize(*self._scales(), dtype)))
        model = nn.Sequential(OrderedDict([*before, *self.network_.named_children(), *self._after(dtype)]))
        if Path(path).suffix == ".onnx":
            options["metadata"] = self._names() | options.get("metadata", {})
        return export(model.eval(), path, torch.from_numpy(np.array(X)).to(dtype), **options)

    def _scales(self) -> tuple[np.ndarray, np.ndarray]:
        """The mean and the deviation by which the inputs are standardised; 0 and 1 where they are not."""
        if self.scaler_ is None:
            return np.zeros(1), np.ones(1)
        return (
            self.scaler_.mean_ if self.scaler_.with_mean else np.zeros_like(self.scaler_.scale_)
        ), self.scaler_.scale_

    def _after(self, dtype: torch.dtype) -> list[tuple[str, nn.Module]]:
        """What makes the estimator's answers of the network's outputs, by name."""
        raise NotImplementedError

    def _names(self) -> dict[str, str]:
        """What an exported file says of its inputs and outputs: lists in JSON."""
        names = getattr(self, "feature_names_in_", None)
        return {} if names is None else {"feature_names": json.dumps([str(name) for name in names])}

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

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
