"""What leads from a data set's raw rows to a network's inputs, and what its inputs and outputs are called."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from filigree.config import check_choice, clipped, listed
from filigree.data.encodings import Encoding
from filigree.nn.standardize import Standardize
from filigree.ops.sparse_rows import is_scipy_sparse, is_sparse_rows, sparse_rows, times_columns

_ATTRIBUTE = "preprocessing"


@dataclass(frozen=True, eq=False)
class Preprocessing:
    """`inputs = (rows - mean) / deviation`, and names.

    A model trained by a recipe has one as its attribute `preprocessing`, which `fg.save` writes and `fg.load` gives
    back: `model(model.preprocessing(rows))`. `fg.export` writes it into the file, which then reads raw rows. Set it on
    a model of your own: `model.preprocessing = data.preprocessing`.

    Attributes:
        mean, deviation: float64, a number for each feature `(features,)`, or `(1,)` one for all.
        feature_names: of the columns, where they have names. class_names: of the outputs, where they are known.
        target_name: of the label's column. encodings: of a table's columns of words or dates, whose
            features are among `feature_names`; `fg.data.read_rows` applies them.
        missing: "mean": for a value that is missing, the training took the mean.
        task: "classification", or "regression": the network's one output is `(y - target_mean) / target_deviation`.
        transpose: samples stood in columns. first: of svmlight's format, the number of the first feature.
        columns: of a model that says several things of a row, the name and the classes of each, whose scores are its
            outputs in turn; no classes: one output, by whose sign a label is there.

    Raises:
        ValueError: numbers that are not finite, deviations that are not above 0, or another number of names.
    """

    mean: Tensor
    deviation: Tensor
    feature_names: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    target_name: str = ""
    encodings: tuple[Encoding, ...] = ()
    missing: str = "refuse"
    task: str = "classification"
    target_mean: float = 0.0
    target_deviation: float = 1.0
    transpose: bool = False
    first: int | None = None
    columns: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def __post_init__(self) -> None:
        for name in ("mean", "deviation"):
            numbers = torch.as_tensor(getattr(self, name), dtype=torch.float64).reshape(-1)
            object.__setattr__(self, name, numbers)
        for name in ("feature_names", "class_names"):
            names = tuple(getattr(self, name))
            if not all(isinstance(each, str) for each in names):
                raise ValueError(f"Preprocessing: {name} must be text. Got {names[:5]!r}.")
            object.__setattr__(self, name, names)
        if self.mean.shape != self.deviation.shape or not len(self.mean):
            shapes = f"{tuple(self.mean.shape)} and {tuple(self.deviation.shape)}"
            raise ValueError(f"Preprocessing: mean and deviation must be as many numbers, at least one. Got {shapes}.")
        if not bool(self.mean.isfinite().all() and self.deviation.isfinite().all() and (self.deviation > 0).all()):
            raise ValueError("Preprocessing: mean and deviation must be finite, and deviation above 0.")
        if len(self.mean) > 1 and len(self.feature_names) not in (0, len(self.mean)):
            features = f"{len(self.mean)} features and {len(self.feature_names)} names"
            raise ValueError(f"Preprocessing: each feature must have a name, or none. Got {features}.")
        encodings = tuple(each if isinstance(each, Encoding) else Encoding(**each) for each in self.encodings)
        object.__setattr__(self, "encodings", encodings)
        if absent := {name for each in encodings for name in each.features} - {*self.feature_names}:
            raise ValueError(f"Preprocessing: encodings must be of its features. Got {listed(sorted(absent))}.")
        check_choice("Preprocessing", "missing", self.missing, ("refuse", "mean"))
        check_choice("Preprocessing", "task", self.task, ("classification", "regression"))
        for number in ("target_mean", "target_deviation"):
            object.__setattr__(self, number, float(getattr(self, number)))
        if not math.isfinite(self.target_mean) or not 0 < self.target_deviation < math.inf:
            raise ValueError(
                "Preprocessing: target_mean must be finite, target_deviation finite and above 0. "
                f"Got {self.target_mean} and {self.target_deviation}."
            )
        if self.first not in (None, 0, 1):
            raise ValueError(f"Preprocessing: first must be 0, 1 or None. Got {self.first!r}.")
        columns = tuple((name, tuple(classes)) for name, classes in self.columns)
        object.__setattr__(self, "columns", columns)
        words = [word for name, classes in columns for word in (name, *classes)]
        if not all(isinstance(word, str) for word in words) or (columns and self.task == "regression"):
            raise ValueError(f"Preprocessing: columns must be names and classes, text. Got {clipped(columns)}.")
        if not isinstance(self.target_name, str):
            raise ValueError(f"Preprocessing: target_name must be text. Got {self.target_name!r}.")

    def __call__(self, rows: Any) -> Tensor:
        """Raw rows `(n, ...)`, a tensor or what numpy takes, as the network's inputs of the same shape, float32.

        A CSR tensor, or a sparse matrix of scipy, stays sparse, unless a mean is to be subtracted.
        """
        if is_scipy_sparse(rows):
            rows = sparse_rows(rows)
        x = rows if isinstance(rows, Tensor) else torch.tensor(rows)
        if x.dim() < 2 or (len(self.mean) > 1 and math.prod(x.shape[1:]) != len(self.mean)):
            features = f"{len(self.mean)} features" if len(self.mean) > 1 else "features"
            raise ValueError(f"preprocessing: rows must be (rows, {features}). Got {tuple(x.shape)}.")
        if is_sparse_rows(x) and not self.mean.any():
            return times_columns(x, 1 / self.deviation)
        return self.layer()(x.to_dense() if is_sparse_rows(x) else x)

    def raw(self, inputs: Tensor) -> Tensor:
        """The rows that give these inputs, in the inputs' type."""
        if is_sparse_rows(inputs):
            if not self.mean.any():
                return times_columns(inputs, self.deviation, inputs.dtype)
            inputs = inputs.to_dense()
        mean, deviation = (t.to(inputs.device) for t in (self.mean, self.deviation))
        return (inputs.flatten(1).double() * deviation + mean).to(inputs.dtype).reshape(inputs.shape)

    def quantities(self, outputs: Tensor) -> Tensor:
        """The quantities that a regression's outputs stand for, `outputs * target_deviation + target_mean`, float64."""
        return outputs.double() * self.target_deviation + self.target_mean

    @property
    def leaves_outputs(self) -> bool:
        """Whether the model's outputs are the answers as they are."""
        return self.target_mean == 0 and self.target_deviation == 1

    def output_layer(self, dtype: torch.dtype = torch.float32) -> Standardize:
        """`quantities` as a module, to put behind a model."""
        return Standardize(-self.target_mean / self.target_deviation, 1 / self.target_deviation, dtype)

    @property
    def leaves_numbers(self) -> bool:
        """Whether inputs are raw rows as they are: there are names only."""
        return bool((self.mean == 0).all() and (self.deviation == 1).all())

    def layer(self, dtype: torch.dtype = torch.float32) -> Standardize:
        """The standardisation as a module, which `nn.Sequential(layer, model)` puts before a model."""
        return Standardize(self.mean, self.deviation, dtype)

    def to_dict(self) -> dict[str, Any]:
        return {
            "mean": self.mean, "deviation": self.deviation, "feature_names": list(self.feature_names),
            "class_names": list(self.class_names), "target_name": self.target_name,
            "encodings": [each.to_dict() for each in self.encodings], "missing": self.missing,
            "task": self.task, "target_mean": self.target_mean, "target_deviation": self.target_deviation,
            "transpose": self.transpose, "first": self.first,
            "columns": [[name, list(classes)] for name, classes in self.columns],
        }  # fmt: skip


def preprocessing_of(model: nn.Module) -> Preprocessing | None:
    """What belongs before a model, if it has been set on it."""
    own = getattr(model, _ATTRIBUTE, None)
    return own if isinstance(own, Preprocessing) else None


def set_preprocessing(model: nn.Module, preprocessing: Preprocessing | None) -> None:
    """Set it as the model's attribute `preprocessing`; None leaves the model as it is."""
    if preprocessing is not None:
        setattr(model, _ATTRIBUTE, preprocessing)
