"""The config `RoundToNearest`: weights rounded to the nearest of a few integers, the baseline of quantisation."""

from __future__ import annotations

from typing import Annotated, Any

import pydantic
import torch
from torch import nn

from filigree.calibration import Calibration
from filigree.compress.compression import Compression
from filigree.config import config
from filigree.convert import Change, Conversion, replace_module
from filigree.nn.integer.empty_integer_layers import (
    EmptyIntegerLayers,
    has_integer_form,
    integer_layer,
    weight_matrix,
)


@config
class RoundToNearest(Compression):
    """Weights rounded to the nearest multiple of a scale, `largest |w| / (2^(bits - 1) - 1)` of each row: a baseline.

    Args:
        bits: of an integer, with its sign; 2 to 16.
    """

    bits: Annotated[int, pydantic.Field(ge=2, le=16)] = 8

    def accepts(self, module: nn.Module) -> bool:
        return has_integer_form(module)

    @torch.no_grad()
    def compress(
        self, model: nn.Module, names: list[str], data: Calibration | None
    ) -> tuple[list[Change], list[tuple[Conversion, list[str]]]]:
        changes: list[Change] = []
        steps: list[tuple[Conversion, list[str]]] = []
        for name in names:
            layer: Any = model.get_submodule(name)
            weight = weight_matrix(layer)
            scale = weight.abs().amax(1).clamp(min=torch.finfo(weight.dtype).tiny) / (2 ** (self.bits - 1) - 1)
            counts = (weight / scale[:, None]).round().to(torch.int32)
            rounded = integer_layer(layer, counts, scale, None, layer.bias)
            replace_module(model, name, rounded)
            changes.append(Change.of(name, layer, rounded, f"{rounded.bits:.3g} bits a weight"))
            steps.append((EmptyIntegerLayers.like(rounded), [name]))
        return changes, steps
