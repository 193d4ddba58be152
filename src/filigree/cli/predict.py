"""`filigree predict`."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.progress import track
from torch import Tensor, nn

from filigree.cli.options import Missing, Model, Transpose, in_a_folder
from filigree.cli.output import out, tell
from filigree.cli.trained import as_weights, first_with_numbers, load_trained
from filigree.config import listed
from filigree.data.cells import is_number
from filigree.data.preprocessing import Preprocessing, preprocessing_of
from filigree.data.rows import Rows, read_rows
from filigree.io.storage import replacing
from filigree.ops.sparse_rows import is_sparse_rows, split_rows
from filigree.recipes import RecipeError

_BATCH, _SHOWN = 4096, 10


def predict(
    model: Model,
    source: Annotated[
        str, typer.Argument(metavar="DATA", help="A file with the columns that the model was trained on, in any order.")
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="FILE", help="Write all predictions, a .csv; without it the first are shown.",
            callback=in_a_folder,
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option("--target", metavar="NAME", help="The column of labels to judge by. Default: the training's."),
    ] = None,
    missing: Missing = None,
    transpose: Transpose = False,
) -> None:  # fmt: skip
    """Predict the rows of a file with a trained model: class and probabilities, also of several columns, or a number,
    and how good they are where labels are."""
    network = load_trained(model)
    own = preprocessing_of(network)
    if own is None:
        raise RecipeError(
            f"predict {model}: the model does not know its data. Train it by `filigree train`, or set "
            "model.preprocessing = fg.data.load(...).preprocessing before fg.save."
        )
    if Path(source).suffix == "":
        raise RecipeError(f"predict {model}: DATA must be a file. Got {source}.")
    first = first_with_numbers(network)
    options: dict[str, Any] = {"missing": missing, "transpose": transpose or None}
    rows = read_rows(source, own, features=getattr(first, "in_features", None), target=target, **options)
    for note in rows.notes:
        tell(f"{Path(source).name}: {note}")
    labels = {rows.label: rows.labels} if rows.labels else {}
    for name, _ in own.columns if own.feature_names else ():  # the table again, for each column that has a label
        labelled = read_rows(source, dataclasses.replace(own, columns=(), target_name=name), **options)
        labels |= {name: labelled.labels} if labelled.labels and labelled.label == name else {}
    outputs = _outputs(network, own, rows, f"predict {model}")
    columns, judged = _columns(outputs, own, rows, labels)
    header, lines = [name for name, _ in columns], list(zip(*(cells for _, cells in columns), strict=True))
    if output is not None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([header, *lines])
        with replacing(output) as file:
            file.write(text.getvalue().encode())
    else:
        for line in [header, *lines[:_SHOWN]]:
            tell("  ".join(f"{cell:>12}" for cell in line))
        if len(lines) > _SHOWN:
            tell(f"... and {len(lines) - _SHOWN:,} more rows; -o FILE writes all of them")
    for line in judged:
        tell(line)
    if output is not None:
        tell(f"wrote {output}: {len(lines):,} rows")


def _outputs(network: nn.Module, own: Preprocessing, rows: Rows, command: str) -> Tensor:
    batches = split_rows(rows.x, _BATCH)
    try:
        with torch.no_grad():
            shown = track(batches, "predicting", console=out, transient=True, disable=not out.is_terminal)
            parts = [_answers(network, as_weights(network, own(batch))) for batch in shown]
    except (RuntimeError, ValueError) as error:
        shape = tuple(rows.x.shape[1:])
        raise RecipeError(f"{command}: the model cannot read rows of shape {shape}: {error}") from None
    return torch.cat(parts).flatten(1).double()


def _answers(network: nn.Module, x: Tensor) -> Tensor:
    """The network's outputs; of a batch of sparse rows made dense, where its first layer reads dense ones only."""
    try:
        return network(x)
    except TypeError:
        if not is_sparse_rows(x):
            raise
        return network(x.to_dense())


def _columns(
    outputs: Tensor, own: Preprocessing, rows: Rows, labels: dict[str, list[str]]
) -> tuple[list[tuple[str, Sequence[Any]]], list[str]]:
    """The columns of what is written, name and cells, and lines on how good they are where there are labels."""
    columns: list[tuple[str, Sequence[Any]]] = [("row", rows.numbers), *labels.items()]
    width = outputs.shape[1]
    if own.task == "regression" and width != 1:
        raise RecipeError(f"predict: the model has {width} outputs for one quantity.")
    if width == 1 and not own.columns:
        numbers = own.quantities(outputs)[:, 0].tolist()
        columns.append(
            ("prediction" if own.task == "regression" else "output", [f"{number:.6g}" for number in numbers])
        )
        return columns, _errors(numbers, next(iter(labels.values()), [])) if own.task == "regression" else []
    judged, right = list[str](), list[list[bool | None]]()  # None: the label is missing
    for name, classes, shares in _said(outputs, own):
        chosen = [classes[i] for i in shares.argmax(1).tolist()]
        columns.append((f"prediction({name})" if name else "prediction", chosen))
        for each, column in zip(classes, shares.t().tolist(), strict=True):
            columns.append((f"p({name}={each})" if name else f"p({each})", [f"{share:.4f}" for share in column]))
        if known := labels.get(name or rows.label):
            hits = [_same(label, answer) if label else None for label, answer in zip(known, chosen, strict=True)]
            judged.append(f"accuracy {f'of {name} ' if name else ''}{_share(hits)} with a label")
            right.append(hits)
    if len(right) > 1:
        whole = [None if None in row else all(row) for row in zip(*right, strict=True)]
        judged.append(f"all right {_share(whole)} with all labels")
    return columns, judged


def _said(outputs: Tensor, own: Preprocessing) -> list[tuple[str, Sequence[str], Tensor]]:
    """Of each thing that a model says of a row: its name, "" where it is the only one, its classes, and their
    probabilities `(rows, classes)`."""
    width = outputs.shape[1]
    if not own.columns:
        names = own.class_names or tuple(map(str, range(width)))
        if len(names) != width:
            raise RecipeError(f"predict: the model has {width} outputs for {len(names)} classes: {listed(names)}.")
        return [("", names, outputs.softmax(1))]
    sizes = [max(1, len(classes)) for _, classes in own.columns]
    if sum(sizes) != width:
        shown = listed([f"{name} {size}" for (name, _), size in zip(own.columns, sizes, strict=True)])
        raise RecipeError(f"predict: the model has {width} outputs for the columns {shown}.")
    answers: list[tuple[str, Sequence[str], Tensor]] = []
    for (name, classes), scores in zip(own.columns, outputs.split(sizes, 1), strict=True):
        if classes:
            answers.append((name, classes, scores.softmax(1)))
        else:  # a label that is there (1) or not
            answers.append((name, ("0", "1"), torch.cat([(-scores).sigmoid(), scores.sigmoid()], 1)))
    return answers


def _share(hits: Sequence[bool | None]) -> str:
    """How many are right of those that are known, in words."""
    known = [hit for hit in hits if hit is not None]
    return f"{100 * sum(known) / max(1, len(known)):.2f}%: {sum(known):,} of {len(known):,} rows"


def _errors(numbers: list[float], labels: list[str]) -> list[str]:
    """R2 and the root of the mean squared error over the rows with a label that is a number."""
    pairs = [(a, float(label)) for a, label in zip(numbers, labels, strict=False) if is_number(label)]
    if not pairs:
        return []
    guess, truth = np.array(pairs).T
    rmse, variance = float(np.sqrt(((guess - truth) ** 2).mean())), float(truth.var())
    r2 = f"R2 {1 - rmse**2 / variance:.3f}, " if variance else ""
    return [f"{r2}RMSE {rmse:.6g}: {len(pairs):,} rows with a label"]


def _same(label: str, name: str) -> bool:
    """Whether a label is that of a class: as text, or as a number (1 and 1.0)."""
    try:
        return label == name or float(label) == float(name)
    except ValueError:
        return False
