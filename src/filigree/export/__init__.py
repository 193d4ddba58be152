"""Export writes a model as a file that runs without Python: ONNX, or C."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from filigree.data.preprocessing import preprocessing_of
from filigree.export.c.export_c import export_c
from filigree.export.c.training_options import Training
from filigree.export.onnx.export_onnx import OnnxLayer, OnnxReport, export_onnx
from filigree.export.raw_rows import names_for_the_file, raw_batches, raw_example, reads_raw_rows, says_quantities
from filigree.untrained import warn_if_untrained
from filigree.wrappers import unwrapped

_WRITERS: dict[str, Callable[..., Any]] = {".onnx": export_onnx, ".c": export_c}
_OPTIONS = {
    ".onnx": list(inspect.signature(export_onnx).parameters)[4:],  # after model, path, example, training
    ".c": [*(field.name for field in dataclasses.fields(Training)), "activations", "target", "flash", "ram"],
}


def export(
    model: nn.Module, path: str | Path, example: Any = None, *, training: bool = False, raw: bool | None = None,
    **options: Any,
) -> Any:  # fmt: skip
    """Write a model to a file of the kind that its name ends in: `.onnx` (`export_onnx`) or `.c` (`export_c`).

    Args:
        model: any torch module; it is left as it was. What `torch.compile` and data parallelism wrap is written without
            them. path: the file.
        example: an input batch, or a tuple of the model's inputs. training: with what is needed to train it; C only.
        raw: the file reads raw rows: the model's `preprocessing` (`fg.data.Preprocessing`, as a recipe leaves it) is
            written before its first layer, what makes quantities of a regression's outputs behind its last, and names
            of features and classes into the metadata of an ONNX file. The example is of the model's inputs all the
            same. Default: True if the model has one and the file does not train.
        options: of the writer.

    Returns:
        A printable report.

    Raises:
        ValueError: a name that ends in neither; a module of TorchScript, a lazy one that never ran; `raw=True` of a
            model without `preprocessing`, or of one that trains.
        TypeError: no torch module; an option that the writer does not have.
    """
    if not isinstance(model, nn.Module):
        own = ". It writes itself, with its scaling: estimator.export(path)" * hasattr(model, "export")
        raise TypeError(f"export: model must be a torch module. Got a {type(model).__name__}{own}.")
    model = unwrapped(model)
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(
                f"export: {name or 'the model'!r} must be a module of Python. Got a {type(module).__name__}."
            )
        if any(map(is_lazy, module.parameters(recurse=False))):
            raise ValueError(f"export: {name or 'the model'!r} has no weights yet: run the model on a batch before.")
    suffix = Path(path).suffix
    if suffix not in _WRITERS:
        raise ValueError(f"export: path must end in {' or '.join(_WRITERS)}. Got {str(path)!r}.")
    for name in options:
        if name not in _OPTIONS[suffix]:
            raise TypeError(f"export: {suffix} files have the options {', '.join(_OPTIONS[suffix])}. Got {name!r}.")
    warn_if_untrained(model, "export")
    preprocessing = preprocessing_of(model)
    if raw and (preprocessing is None or training):
        reason = "for inference" if training else "of a model with an attribute preprocessing (fg.data.Preprocessing)"
        raise ValueError(f"export: raw=True is {reason}.")
    if preprocessing is not None and not training and raw is not False:
        if suffix == ".onnx":
            given = options.get("metadata") or {}
            options["metadata"] = (
                {**names_for_the_file(preprocessing), **given} if isinstance(given, Mapping) else given
            )
        if not preprocessing.leaves_outputs:
            model = says_quantities(model, preprocessing)
        if not preprocessing.leaves_numbers:
            model, example = reads_raw_rows(model, preprocessing), raw_example(example, preprocessing)
            if (given := options.get("calibration")) is not None:
                options["calibration"] = raw_batches(given, preprocessing)
    return _WRITERS[suffix](model, path, example, training=training, **options)


__all__ = ["OnnxLayer", "OnnxReport", "export", "export_c", "export_onnx"]
