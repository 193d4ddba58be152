"""`filigree predict`."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.progress import track
from torch import Tensor, nn

from filigree.cli.options import Missing, Model, Transpose, in_a_folder
from filigree.cli.output import out, tell
from filigree.cli.trained import as_weights, load_trained
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
    """Predict the rows of a file with a trained model: class and probabilities, or a number, and how good they are
    where labels are."""
    network = load_trained(model)
    own = preprocessing_of(network)
    if own is None:
        raise RecipeError(
            f"predict {model}: the model does not know its data. Train it by `filigree train`, or set "
            "model.preprocessing = fg.data.load(...).preprocessing before fg.save."
        )
    if Path(source).suffix == "":
        raise RecipeError(f"predict {model}: DATA must be a file. Got {source}.")
    first: Any = next((m for m in network.modules() if [*m.parameters(False), *m.buffers(False)]), None)
    rows = read_rows(
        source, own, features=getattr(first, "in_features", None), target=target, missing=missing,
        transpose=transpose or None,
    )  # fmt: skip
    for note in rows.notes:
        tell(f"{Path(source).name}: {note}")
    outputs = _outputs(network, own, rows, f"predict {model}")
    header, lines, judged = _table(outputs, own, rows)
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
    if judged:
        tell(judged)
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


def _table(outputs: Tensor, own: Preprocessing, rows: Rows) -> tuple[list[str], list[list[Any]], str]:
    """Header and rows of what is written, and a line on how good they are, "" where there is no label to compare."""
    header = ["row"] + ([rows.label] if rows.labels else [])
    lead = [[n, *([rows.labels[i]] if rows.labels else [])] for i, n in enumerate(rows.numbers)]
    width = outputs.shape[1]
    if own.task == "regression" and width != 1:
        raise RecipeError(f"predict: the model has {width} outputs for one quantity.")
    if width == 1:
        name = "prediction" if own.task == "regression" else "output"
        numbers = own.quantities(outputs)[:, 0].tolist()
        lines = [[*a, f"{b:.6g}"] for a, b in zip(lead, numbers, strict=True)]
        return [*header, name], lines, _errors(numbers, rows.labels or []) if own.task == "regression" else ""
    names = own.class_names or tuple(map(str, range(width)))
    if len(names) != width:
        raise RecipeError(f"predict: the model has {width} outputs for {len(names)} classes: {listed(names)}.")
    chosen = [names[i] for i in outputs.argmax(1).tolist()]
    shares = outputs.softmax(1).tolist()
    header += ["prediction", *(f"p({name})" for name in names)]
    lines = [[*a, b, *(f"{p:.4f}" for p in c)] for a, b, c in zip(lead, chosen, shares, strict=True)]
    if not rows.labels:
        return header, lines, ""
    hits = [_same(label, name) for label, name in zip(rows.labels, chosen, strict=True) if label]
    accuracy = f"accuracy {100 * sum(hits) / len(hits):.2f}%"
    return header, lines, f"{accuracy}: {sum(hits):,} of {len(hits):,} rows with a label"


def _errors(numbers: list[float], labels: list[str]) -> str:
    """R2 and the root of the mean squared error over the rows with a label that is a number."""
    pairs = [(a, float(label)) for a, label in zip(numbers, labels, strict=False) if is_number(label)]
    if not pairs:
        return ""
    guess, truth = np.array(pairs).T
    rmse, variance = float(np.sqrt(((guess - truth) ** 2).mean())), float(truth.var())
    r2 = f"R2 {1 - rmse**2 / variance:.3f}, " if variance else ""
    return f"{r2}RMSE {rmse:.6g}: {len(pairs):,} rows with a label"


def _same(label: str, name: str) -> bool:
    """Whether a label is that of a class: as text, or as a number (1 and 1.0)."""
    try:
        return label == name or float(label) == float(name)
    except ValueError:
        return False
