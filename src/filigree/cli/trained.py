"""Trained models as commands take them, and samples that they read."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from filigree import data
from filigree.config import listed
from filigree.data import DataSet, Split
from filigree.data.preprocessing import Preprocessing, preprocessing_of
from filigree.data.readers import is_file_name
from filigree.data.rows import read_rows
from filigree.io.saving import load_network
from filigree.ops.sparse_rows import as_dense, rows_of
from filigree.recipes import MODEL, RecipeError, checksum, data_of
from filigree.train import Record
from filigree.train.evaluation import dtype_of


def load_trained(model: Path) -> nn.Module:
    """The model of a file, or of a run's folder, in eval mode.

    Raises:
        RecipeError: a folder that is no run; a file of another kind.
    """
    if model.is_dir() and not (model / MODEL).is_file():
        runs = sorted(str(file.parent) for file in model.glob(f"*/{MODEL}"))
        where = f"Its runs are {listed(runs)}." if runs else "`filigree train` leaves one in its folder."
        raise RecipeError(f"{model}: a folder without {MODEL}. {where}")
    if is_file_name(model):
        raise RecipeError(f"{model}: a model is needed (.safetensors, or the folder of a run). This is a file of data.")
    return load_network(model / MODEL if model.is_dir() else model).eval()


def run_of(model: Path, source: str) -> Record | None:
    """The record of the run that trained a model on these data, if it lies beside it; a file may be named otherwise,
    as from another folder."""
    folder = model if model.is_dir() else model.parent
    try:
        record = Record.load(folder)
    except (FileNotFoundError, ValueError):
        return None
    known, file = record.config.get("data", {}), Path(source)
    if known.get("name") == source:
        return record
    if not is_file_name(source) or not file.is_file() or known.get("sha256") != checksum(file):
        return None
    known["name"] = source
    return record


def load_samples(
    network: nn.Module, source: str, command: str, seed: int = 0, trained_by: Record | None = None, **reading: Any
) -> DataSet:
    """A data set or a user's file, as images where the first layer with weights is a convolution; split as for the run
    that trained the model, if that is known: its test part has then not been trained on. `reading` are arguments of
    `fg.data.load` for a file, in place of the run's.

    Raises:
        RecipeError: the network cannot read its samples.
    """
    first = next((m for m in network.modules() if hasattr(m, "kernel_size") or hasattr(m, "in_features")), None)
    images = hasattr(first, "kernel_size")
    known = preprocessing_of(network)
    if known is not None and known.columns:
        names = listed([name for name, _ in known.columns])
        raise RecipeError(f"{command}: the model says several things of a row ({names}). A data set has one label.")
    if trained_by is None and known is not None and is_file_name(source):
        reading = {"task": known.task, "transpose": known.transpose} | reading
    if trained_by is None:
        samples = data.load(source, seed=seed, images=images, **reading)
    else:
        trained_by.config["data"] |= reading
        samples = data_of(trained_by)
    samples = _as_it_reads(network, samples, known if trained_by is None else None, command)
    x = samples.test.x
    try:
        with torch.no_grad():
            network(rows_of(x, slice(0, 2)))
    except (RuntimeError, TypeError, ValueError) as error:
        width = getattr(first, "in_features", None)
        reason = f"It reads {width} features." if width is not None and x.shape[1:] != (width,) else str(error)
        raise RecipeError(
            f"{command}: the model cannot read samples of {source}, of shape {tuple(x.shape[1:])}. {reason}"
        ) from None
    return samples


def _as_it_reads(network: nn.Module, samples: DataSet, known: Preprocessing | None, command: str) -> DataSet:
    """The samples in the type of the network's weights and, where it knows how its inputs were made of rows, made in
    that way and not by the mean and deviation of these samples; its classes have its numbers."""
    read = samples.preprocessing
    if known is not None and (read is None or len(known.mean) not in (1, math.prod(samples.train.x.shape[1:]))):
        known = None  # of other columns: the network will refuse them
    numbers: Tensor | None = None
    if known is not None and known.class_names and samples.class_names and known.class_names != samples.class_names:
        if strange := sorted({*samples.class_names} - {*known.class_names}):
            classes = listed(known.class_names)
            raise RecipeError(f"{command}: the model has the classes {classes}. Got {listed(strange)} too.")
        numbers = torch.tensor([known.class_names.index(name) for name in samples.class_names])

    def converted(split: Split) -> Split:
        x, y = split
        if known is not None and read is not None:
            if not (torch.equal(known.mean, read.mean) and torch.equal(known.deviation, read.deviation)):
                x = known(read.raw(x.double()))  # a sparse x is dense then, if the model subtracts a mean
            if known.task == "regression":
                y = (read.quantities(y) - known.target_mean) / known.target_deviation
            elif numbers is not None:
                y = numbers[y]
        return Split(as_weights(network, x), as_weights(network, y))

    held = None if samples.validation is None else converted(samples.validation)
    return replace(samples, train=converted(samples.train), validation=held, test=converted(samples.test))


def example_for(
    network: nn.Module, source: str | None, command: str, trained_by: Record | None = None, calibrates: bool = False,
    **reading: Any,
) -> Tensor:  # fmt: skip
    """16 samples: of the data set's test part, or random ones as wide as the first layer; if the example calibrates,
    512 of the training part. Of a file for a model that says several things of a row, the first ones. Other arguments
    as of `load_samples`.

    Raises:
        RecipeError: the network cannot read them, or begins with something that has no width.
    """
    count, known = 512 if calibrates else 16, preprocessing_of(network)
    if source is not None and known is not None and known.columns and is_file_name(source):
        options = {name: reading[name] for name in ("target", "missing", "transpose") if name in reading}
        rows = read_rows(source, known, features=getattr(first_with_numbers(network), "in_features", None), **options).x
        return as_weights(network, as_dense(known(rows_of(rows, slice(0, count)))))
    if source is not None:
        data = load_samples(network, source, command, 0, trained_by, **reading)
        return as_dense(rows_of(data.train.x if calibrates else data.test.x, slice(0, count)))
    if calibrates:
        raise RecipeError(f"{command}: --data is needed, as the data from which the scales of activations are taken.")
    first = first_with_numbers(network)
    if not hasattr(first, "in_features"):
        kind = "nothing that has weights" if first is None else f"a {type(first).__name__}"
        raise RecipeError(f"{command}: --data is needed as an example. The model begins with {kind}.")
    return as_weights(network, torch.randn(16, first.in_features, generator=torch.Generator().manual_seed(0)))


def first_with_numbers(network: nn.Module) -> Any:
    """The first module with parameters or buffers of its own."""
    return next((m for m in network.modules() if [*m.parameters(False), *m.buffers(False)]), None)


def as_weights(network: nn.Module, x: Tensor) -> Tensor:
    """Floating-point numbers in the type of the network's weights, if it has any."""
    return x.to(dtype_of(network) or x.dtype) if x.is_floating_point() else x
