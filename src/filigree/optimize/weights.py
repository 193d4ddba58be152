"""The weights of a layer, and the equivalent forms in which a step can hold them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from filigree.computed_weights import computed_tensors
from filigree.nn.drop_in import DropIn
from filigree.nn.integer.integer_layer import IntegerLayer
from filigree.nn.sparse.masked import MaskedLayer
from filigree.nn.sparse.sparse_layer import SparseLayer
from filigree.ops.inference import Finishing
from filigree.ops.int8 import int8_weight
from filigree.ops.panel_weights import PANEL, PanelWeight, pack

_MOST_COLUMNS = 65536  # of 16 bits
_FEW = 8  # vectors of inputs, for which the nonzeros of each row may be taken one by one
_SPARSE = 0.75  # the density from which on no sparse form is tried
_MOST_TOGETHER = 4  # groups of a convolution that are multiplied as one
_MOST_NUMBERS = 1 << 24  # of a grouped convolution's weight with the zeros between its groups


@dataclass(frozen=True)
class LayerWeight:
    """`W = scale * matrix`, `(outputs, inputs)`: float32 and no scale, or small integers with one scale an output."""

    matrix: Tensor
    bias: Tensor | None
    integers: Tensor | None = None
    scale: Tensor | None = None
    relu: bool = False
    groups: int = 1

    def in_int8(self) -> tuple[Tensor, Tensor]:
        """The weight as integers of -127 to 127, and the scale of each output."""
        if self.integers is None or self.scale is None:
            return int8_weight(self.matrix)
        return self.integers, self.scale.expand(len(self.matrix))

    def forms(self, positions: Tensor, points: int, int8: bool = False) -> dict[str, tuple[PanelWeight, Tensor | None]]:
        """Packed weights by the names of their codings, each with the scale of its sums.

        Args:
            positions: `(inputs,)`, where they lie from the first one. points: how many vectors of inputs are multiplied
                at a time. int8: also those that round inputs and weights to bytes.
        """
        density = float(self.matrix.count_nonzero()) / max(1, self.matrix.numel())
        forms_by_coding: dict[str, tuple[PanelWeight, Tensor | None]] = {
            "floats": (self._by_groups(positions) or pack("floats", self.matrix, positions), None)
        }
        if self.integers is not None:
            forms_by_coding["bytes"] = pack("bytes", self.integers, positions), self.scale
        if density < _SPARSE:
            forms_by_coding["bitmap"] = pack("bitmap", self.matrix, positions), None
            if points <= _FEW and int(positions.max()) < _MOST_COLUMNS:
                for coding in ("rows", "windows", "narrow windows"):
                    forms_by_coding[coding] = pack(coding, self.matrix, positions), None
            if points > _FEW:
                forms_by_coding["tiles"] = pack("tiles", self.matrix, positions), None
        if int8:
            integers, scale = self.in_int8()
            codings = ["int8"]
            if density < _SPARSE:
                codings.append("int8 tiles" if points > _FEW else "int8 bitmap")
            forms_by_coding |= {coding: (pack(coding, integers, positions), scale) for coding in codings}
        return forms_by_coding

    def _by_groups(self, positions: Tensor) -> PanelWeight | None:
        """What is not zero in the matrix of a grouped convolution: of as many groups together as fill whole panels.

        None: there are no such groups, or so many of them fill a panel that most of it would be zeros.
        """
        outputs, inputs = self.matrix.shape
        together = PANEL // math.gcd(PANEL, outputs // self.groups)
        count = self.groups // together
        if count < 2 or self.groups % together or together > _MOST_TOGETHER:
            return None
        rows, columns = outputs // count, inputs // count
        blocks = [self.matrix[i * rows : (i + 1) * rows, i * columns : (i + 1) * columns] for i in range(count)]
        weight = pack("floats", torch.cat(blocks), positions[:columns])
        return weight._replace(groups=count, shift=int(positions[columns] - positions[0]))


def weight_of(module: Any) -> tuple[Any, LayerWeight] | None:
    """The `nn.Linear` or convolution that a layer equals, for its settings, and its weight; None: there is none.

    Weights that are computed and other padding than zeros are not taken. The matrix of a grouped convolution has zeros
    between the groups, that of a depthwise one is `(channels, taps)`.
    """
    if computed_tensors(module):
        return None
    integers = scale = None
    if isinstance(module, IntegerLayer):
        if module.activation is not None:
            return None
        if module.input_scale is None and module.counts.numel() and int(module.integers().abs().max()) <= 127:
            integers, scale = module.integers().to(torch.int8), module.scale.float()
    elif not isinstance(module, SparseLayer | MaskedLayer | DropIn) and type(module) not in _PLAIN:
        return None
    dense: Any = module.dense() if type(module) not in _PLAIN else module
    relu = isinstance(dense, nn.Sequential)
    layer = dense[0] if relu else dense
    if type(layer) not in _PLAIN or layer.weight.dtype is not torch.float32 or not layer.weight.is_cpu:
        return None
    matrix = layer.weight.detach().flatten(1)
    if not isinstance(layer, nn.Linear):
        if layer.padding_mode != "zeros":
            return None
        if layer.groups > 1:
            integers = scale = None
            if not is_depthwise(layer):
                if layer.groups * matrix.numel() > _MOST_NUMBERS:
                    return None
                matrix = torch.block_diag(*matrix.chunk(layer.groups))
    bias = None if layer.bias is None else layer.bias.detach()
    groups = 1 if isinstance(layer, nn.Linear) else layer.groups
    return layer, LayerWeight(matrix, bias, integers, scale, relu, groups)


def is_depthwise(conv: Any) -> bool:
    """Whether each channel of a convolution makes one output, by itself."""
    return 1 < conv.groups == conv.in_channels == conv.out_channels


def dense_reference(module: Any) -> nn.Module | None:
    """Torch's dense layer that a sparse layer or one of integers equals; None: it is torch's own, or not taken."""
    taken = weight_of(module) if type(module) not in _PLAIN else None
    if taken is None:
        return None
    dense, weight = taken
    return (nn.Sequential(dense, nn.ReLU()) if weight.relu else dense).eval()


_PLAIN = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def scaled(finish: Finishing, scale: Tensor | None) -> Finishing:
    """The same after sums that are multiplied by a scale."""
    if scale is None:
        return finish
    return finish._replace(scale=scale if finish.scale is None else finish.scale * scale)
