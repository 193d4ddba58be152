"""Export writes a model as a file that runs without Python: ONNX, or C."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from filigree.export.c.export_c import export_c
from filigree.export.c.training import Training
from filigree.export.onnx.export_onnx import OnnxLayer, OnnxReport, export_onnx
from filigree.untrained import warn_if_untrained

_WRITERS: dict[str, Callable[..., Any]] = {".onnx": export_onnx, ".c": export_c}
_OPTIONS = {
    ".onnx": list(inspect.signature(export_onnx).parameters)[4:],  # after model, path, example, training
    ".c": [field.name for field in dataclasses.fields(Training)],
}


def export(model: nn.Module, path: str | Path, example: Any = None, *, training: bool = False, **options: Any) -> Any:
    """Write a model to a file of the kind that its name ends in: `.onnx` (`export_onnx`) or `.c` (`export_c`).

    Args:
        model: any torch module; it is left as it was. path: the file.
        example: an input batch, or a tuple of the model's inputs. training: with what is needed to train it; C only.
        options: of the writer.

    Returns:
        A printable report.

    Raises:
        ValueError: a name that ends in neither. TypeError: an option that the writer does not have.
    """
    suffix = Path(path).suffix
    if suffix not in _WRITERS:
        raise ValueError(f"export: path must end in {' or '.join(_WRITERS)}. Got {str(path)!r}.")
    for name in options:
        if name not in _OPTIONS[suffix]:
            raise TypeError(f"export: {suffix} files have the options {', '.join(_OPTIONS[suffix])}. Got {name!r}.")
    warn_if_untrained(model, "export")
    return _WRITERS[suffix](model, path, example, training=training, **options)


__all__ = ["OnnxLayer", "OnnxReport", "export", "export_c", "export_onnx"]
