"""`filigree show`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rich.table import Table
from torch import nn

from filigree.analyze import patterns
from filigree.cli.options import Model
from filigree.cli.output import print_whole, tell
from filigree.cli.trained import load_trained
from filigree.config import listed
from filigree.convert import conversions
from filigree.data.preprocessing import preprocessing_of
from filigree.measure.cost import stored
from filigree.notebook import layer_rows
from filigree.recipes import MODEL
from filigree.topology import science
from filigree.train import Record
from filigree.train.history import score_of

_LINES, _COLUMNS = 12, 64  # of the picture of a pattern
_SHADES = " .:-=+*#%@"


def show(model: Model) -> None:
    """Show what a model file holds: inputs and classes, layers, connections, bytes, and how it was trained."""
    network = load_trained(model)
    for line in [*_origin(model / MODEL if model.is_dir() else model), *_use(network)]:
        tell(line)
    table = Table("layer", "what it is", "parameters", "nonzeros", "density", "multiply-adds")
    for column in table.columns[2:]:
        column.justify = "right"
    for row in layer_rows(network):
        table.add_row(*row)
    print_whole(table)
    tell(str(stored(network)))
    for name, pattern in patterns(network).items():
        tell(f"\nconnections of {name}: inputs from left to right, outputs from top to bottom")
        for line in _picture(pattern):
            tell(line)


def _origin(file: Path) -> list[str]:
    """Lines on a model's file, and on the run that left it there."""
    lines = [f"{file}: {file.stat().st_size:,} bytes"]
    if file.name != MODEL:  # what else lies in a run's folder, the run has not trained
        return lines
    try:
        record = Record.load(file.parent)
    except (FileNotFoundError, ValueError):
        return lines
    name, value = score_of(record.metrics, "test") or ("", 0.0)
    rmse = record.metrics.get("test_rmse")
    judged = f", test accuracy {100 * value:.2f}%" if name == "accuracy" else f", test R2 {value:.3f}" if name else ""
    judged += f", RMSE {rmse:.6g}" if rmse is not None else ""
    lines.append(
        f"trained by recipe {record.recipe}, method {record.method}, seed {record.seed}, "
        f"{len(record.history)} epochs{judged}"
    )
    return lines + record.notes


def _use(network: nn.Module) -> list[str]:
    """Lines on what a model reads and says, and on its conversions."""
    lines = [f"converted by {config}: {listed(list(names))}" for config, names in conversions(network)]
    if (own := preprocessing_of(network)) is not None:
        count = len(own.feature_names) or len(own.mean)
        names = f": {listed(own.feature_names, 10)}" if own.feature_names else ""
        if count > 1:
            lines.append(f"reads {count:,} features{names}")
        if own.class_names:
            lines.append(f"says {own.target_name or 'the class'}: {listed(own.class_names, 10)}")
        for name, classes in own.columns:
            lines.append(f"says {name}: {listed(classes, 10) if classes else 'whether it is there'}")
        if own.task == "regression":
            lines.append(
                f"says {own.target_name or 'a quantity'}, a number: "
                f"output x {own.target_deviation:.6g} + {own.target_mean:.6g}"
            )
    return lines


def _picture(pattern: science.SparseMatrix) -> list[str]:
    """A pattern in lines of text: the more connections in a part of it, the darker its sign."""
    shares = science.coarse(pattern, (_LINES, _COLUMNS))
    shades = np.ceil(shares / (shares.max() or 1) * (len(_SHADES) - 1)).astype(int)
    return ["".join(_SHADES[shade] for shade in line) for line in shades]
