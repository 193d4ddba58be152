"""`filigree predict`."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.progress import track
from torch import Tensor, nn

from filigree.cli.options import Missing, Model, in_a_folder
from filigree.cli.output import out, tell
from filigree.cli.trained import as_weights, load_trained
from filigree.config import listed
from filigree.data.preprocessing import Preprocessing, preprocessing_of
from filigree.data.rows import Rows, read_rows
from filigree.io.storage import replacing
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
) -> None:  # fmt: skip
    """Predict the rows of a file with a trained model: class and probabilities, and the accuracy where labels are."""
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
    rows = read_rows(source, own, features=getattr(first, "in_features", None), target=target, missing=missing)
    for note in rows.notes:
        tell(f"{Path(source).name}: {note}")
    outputs = _outputs(network, own, rows, f"predict {model}")
    header, lines, hits = _table(outputs, own, rows)
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
    if hits is not None:
        tell(f"accuracy {100 * sum(hits) / len(hits):.2f}%: {sum(hits):,} of {len(hits):,} rows with a label")
    if output is not None:
        tell(f"wrote {output}: {len(lines):,} rows")


def _outputs(network: nn.Module, own: Preprocessing, rows: Rows, command: str) -> Tensor:
    batches = rows.x.split(_BATCH)
    try:
        with torch.no_grad():
            shown = track(batches, "predicting", console=out, transient=True, disable=not out.is_terminal)
            parts = [network(as_weights(network, own(batch))) for batch in shown]
    except (RuntimeError, ValueError) as error:
        shape = tuple(rows.x.shape[1:])
        raise RecipeError(f"{command}: the model cannot read rows of shape {shape}: {error}") from None
    return torch.cat(parts).flatten(1).double()


def _table(outputs: Tensor, own: Preprocessing, rows: Rows) -> tuple[list[str], list[list[Any]], list[bool] | None]:
    """Header and rows of what is written, and which labels were met: None where there is no label to compare."""
    header = ["row"] + ([rows.label] if rows.labels else [])
    lead = [[n, *([rows.labels[i]] if rows.labels else [])] for i, n in enumerate(rows.numbers)]
    width = outputs.shape[1]
    if width == 1:
        return [*header, "output"], [[*a, f"{b:.6g}"] for a, b in zip(lead, outputs[:, 0].tolist(), strict=True)], None
    names = own.class_names or tuple(map(str, range(width)))
    if len(names) != width:
        raise RecipeError(f"predict: the model has {width} outputs for {len(names)} classes: {listed(names)}.")
    chosen = [names[i] for i in outputs.argmax(1).tolist()]
    shares = outputs.softmax(1).tolist()
    header += ["prediction", *(f"p({name})" for name in names)]
    lines = [[*a, b, *(f"{p:.4f}" for p in c)] for a, b, c in zip(lead, chosen, shares, strict=True)]
    hits = None
    if rows.labels:
        hits = [_same(label, name) for label, name in zip(rows.labels, chosen, strict=True) if label]
    return header, lines, hits


def _same(label: str, name: str) -> bool:
    """Whether a label is that of a class: as text, or as a number (1 and 1.0)."""
    try:
        return label == name or float(label) == float(name)
    except ValueError:
        return False
