"""Put what leads from raw rows to a model's inputs before the model, so that a file reads raw rows, and what leads from
its outputs to quantities behind it."""

from __future__ import annotations

import json
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from filigree.data.preprocessing import Preprocessing
from filigree.nn.sparse.sparse_sequential import SEQUENCES

_SAMPLES = 32


def reads_raw_rows(model: nn.Module, own: Preprocessing) -> nn.Module:
    """Return a model of raw rows with the same modules, which keep their names where the model is a plain sequence."""
    parts = _parts(model)
    return nn.Sequential(OrderedDict({_free("preprocessing", parts): own.layer(_dtype(model)), **parts}))


def says_quantities(model: nn.Module, own: Preprocessing) -> nn.Module:
    """Return a model that says a regression's quantities in their unit, of the same modules."""
    parts = _parts(model)
    return nn.Sequential(OrderedDict({**parts, _free("quantity", parts): own.output_layer(_dtype(model))}))


def _parts(model: nn.Module) -> dict[str, nn.Module]:
    is_plain = type(model) in SEQUENCES and not (model._forward_hooks or model._forward_pre_hooks)
    return dict(model.named_children()) if is_plain else {"model": model}


def _free(name: str, parts: dict[str, nn.Module]) -> str:
    while name in parts:
        name += "_"
    return name


def _dtype(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def raw_example(example: Any, own: Preprocessing) -> Any:
    """Return the raw rows of an example of the model's inputs; drawn ones where there is none and a width is known.

    Raises:
        ValueError: several inputs.
    """
    if isinstance(example, tuple | list):
        if len(example) != 1:
            raise ValueError(f"export: preprocessing is of one input. Got {len(example)}: set raw=False.")
        example = example[0]
    if example is None and len(own.mean) > 1:
        example = torch.randn(_SAMPLES, len(own.mean), generator=torch.Generator().manual_seed(0))
    return own.raw(example) if isinstance(example, Tensor) and example.dim() > 1 else example


def raw_batches(given: Any, own: Preprocessing) -> Any:
    """Return the raw rows of calibration data: a tensor, or batches of inputs or of (inputs, labels)."""
    if isinstance(given, Tensor):
        return raw_example(given, own)
    return [raw_example(batch[0] if isinstance(batch, tuple | list) else batch, own) for batch in given]


def names_for_the_file(own: Preprocessing) -> dict[str, str]:
    """Return the names as an ONNX file's metadata: lists in JSON."""
    named: dict[str, Any] = {"feature_names": own.feature_names, "class_names": own.class_names}
    if own.columns:
        named["target_names"], named["class_names"] = zip(*own.columns, strict=True)
    lists = {key: json.dumps(names, ensure_ascii=False) for key, names in named.items() if names}
    return lists | ({"target_name": own.target_name} if own.target_name else {})
