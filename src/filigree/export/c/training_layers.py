"""Read a model as the layers of a C program that trains: what each computes, holds, reads and makes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from filigree.export.answers import answers
from filigree.export.c.chain import chain
from filigree.export.c.kept import View
from filigree.export.c.layers import steps
from filigree.export.c.rows import in_a_row, row_geometry
from filigree.export.c.source import CConstant, Names, smallest_unsigned
from filigree.export.c.stages import Shape, geometry_constant, pool_geometry, shape_after, sides
from filigree.nn.sparse.sparse_conv2d import conv_geometry
from filigree.ops.c_steps import Elementwise, Pool, Reshape, TrainedLinear, refuse, trained_convolution, trained_linear

_UNKNOWN = "which a program that trains cannot hold"
_ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.Tanh, nn.Sigmoid, nn.Hardtanh)
_POOLS = (nn.MaxPool1d, nn.AvgPool1d, nn.AdaptiveAvgPool1d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
_KEYS = ("values", "bias", "unit", "error", "columns", "starts", "geometry", "outputs")  # of names in C


@dataclass
class Trained:
    """It holds a layer of a program that trains; in C its arrays are called `{label}_{key}`.

    Attributes:
        kind: "dense", "sparse", "convolution", or of pooling "max", "average", "padded average".
        before, shape: of a sample that it reads and makes.
        numbers: values, and bias where it has one, float32; the unit of values that are int8; the largest error so far,
            where that chooses gradients. index: columns and starts of a sparse layer.
        geometry: the windows of a convolution or of pooling. activation: what follows it directly.
        frozen: its weights are constants. top: so many of a sample's gradients of what it makes count, the largest.
    """

    name: str
    label: str
    kind: str
    before: Shape
    shape: Shape
    numbers: dict[str, np.ndarray]
    index: dict[str, np.ndarray]
    geometry: CConstant | None = None
    activation: Elementwise | None = None
    frozen: bool = False
    top: int | None = None

    @property
    def is_trained(self) -> bool:
        return bool(self.numbers) and not self.frozen

    @property
    def inputs(self) -> int:
        return math.prod(self.before)

    @property
    def outputs(self) -> int:
        return math.prod(self.shape)

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """Name the arrays as in C; one without elements holds a zero, as C has no arrays of nothing."""
        stored = {**self.numbers, **self.index}.items()
        return {f"{self.label}_{key}": array if array.size else np.zeros(1, array.dtype) for key, array in stored}

    @property
    def what(self) -> str:
        kind = self.kind if self.geometry else "linear"
        return f"{kind} {sides(self.before)} -> {sides(self.shape)}"

    def prepare(self, in_integers: bool, by_error: bool) -> None:
        """Round the weights to whole numbers of a unit; make room for the largest error."""
        if self.numbers and in_integers:
            values = self.numbers["values"]
            unit = np.float32(np.abs(values).max(initial=0) / 64 or 1 / 64)
            whole = np.rint(values / unit).astype(np.int8)
            self.numbers |= {"values": whole, "unit": np.array([unit], np.float32)}
        if by_error:
            self.numbers["error"] = np.zeros(1, np.float32)

    @property
    def macs(self) -> int:
        """Count the multiply-adds of a step a sample: forward, the gradient of the weights and that of the input."""
        positions = math.prod(self.shape[1:])
        return (1 if self.frozen else 3) * positions * self.numbers["values"].size if self.numbers else 0


def trained_layers(model: nn.Module, example: Tensor | None) -> tuple[Shape, Shape, list[Trained]]:
    """Return the shapes of a sample and of what is made of it, and the layers of a model in training mode.

    Raises:
        ValueError: what cannot be a layer of such a program, by its name; shapes that do not fit.
    """
    layers: list[Trained] = []
    seen: set[nn.Module] = set()
    names = Names()
    whole: Shape | None = None if example is None else tuple(example.shape[1:])
    shape = whole
    for name, module in chain(model, _is_known, _UNKNOWN):
        for step in _steps(module, name):
            if isinstance(step, Elementwise):
                _activate(layers[-1] if layers else None, step, name)
                continue
            if isinstance(step, Reshape):
                shape = None if shape is None else shape_after(name, step.module, shape)
                continue
            if not layers and isinstance(step, TrainedLinear) and step.geometry is None:
                shape = (step.columns,)  # known without an example
                whole = shape if whole is None or math.prod(whole) != step.columns else whole
            if shape is None or whole is None:
                raise ValueError(
                    "export: the shape of the input is not known. Give a batch: fg.export(model, path, x)."
                )
            if isinstance(step, TrainedLinear) and module in seen:
                raise refuse(name, "is used twice, which a program that trains cannot do")
            seen.add(module)
            label = next(label for label in names.labels(name) if names.take({f"{label}_{key}" for key in _KEYS}))
            make = _weighted if isinstance(step, TrainedLinear) else _pool
            layers.append(make(step, module, shape, label))
            shape = layers[-1].shape
    if not any(layer.is_trained for layer in layers):
        raise ValueError("export: a program that trains needs a linear layer or a convolution to train. It has none.")
    first = next(number for number, layer in enumerate(layers) if layer.is_trained)
    for layer in layers[first:]:
        if layer.frozen:
            raise refuse(layer.name, f"has frozen weights behind {layers[first].name!r}, which trains: freeze that too")
    for key in ("columns", "starts"):  # one type for all layers, so that they share their functions
        sparse = [layer for layer in layers if layer.index]
        if sparse:
            kind = max((layer.index[key].dtype for layer in sparse), key=lambda dtype: dtype.itemsize)
            for layer in sparse:
                layer.index[key] = layer.index[key].astype(kind)
    assert whole is not None
    assert shape is not None
    return whole, shape, layers


def _is_known(module: nn.Module) -> bool:
    nothing = isinstance(module, nn.Dropout) and not module.p
    plain = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Identity, nn.Flatten, View, *_POOLS, *_ACTIVATIONS)
    return nothing or type(module) in plain or answers(module, "c_training_form", eval_only=False)


def _steps(module: nn.Module, name: str) -> list[Any]:
    layer: Any = module
    if not _is_known(module):  # in place of a function of the forward
        raise refuse(name, f"is a {type(module).__name__}, {_UNKNOWN}")
    if answers(module, "c_training_form", eval_only=False):
        return layer.c_training_form(name)
    if type(module) is nn.Linear:
        return [trained_linear(module, name)]
    if type(module) is nn.Conv2d:
        return [trained_convolution(module, name, conv_geometry(module))]
    if type(module) is nn.Conv1d:
        return in_a_row(name, trained_convolution(module, name, row_geometry(module)))
    return [] if isinstance(module, nn.Dropout) else steps(module, name)


def _weighted(step: TrainedLinear, module: nn.Module, shape: Shape, label: str) -> Trained:
    name, rows = step.name, step.rows
    if not all(bool(parameter.isfinite().all()) for parameter in module.parameters()):
        raise refuse(name, "has weights that are not finite")
    trains = {parameter.requires_grad for parameter in module.parameters()}
    if len(trains) > 1:
        raise refuse(name, "has frozen weights beside others that train: freeze all of a layer, or none")
    rest: Any = {"frozen": trains == {False}, "top": step.top}
    numbers = {"values": step.values} | ({} if step.bias is None else {"bias": step.bias})
    if step.geometry is not None:
        if len(shape) != 3 or shape[0] != step.inputs:
            raise refuse(name, f"reads ({step.inputs}, height, width) a sample. Got {shape}")
        out = (rows, *step.geometry.output(*shape[1:]))
        geometry = geometry_constant(label, shape, out, step.geometry)
        return Trained(name, label, "convolution", shape, out, numbers, {}, geometry, **rest)
    if shape != (step.columns,):
        raise refuse(name, f"reads {step.columns} numbers a sample, flat. Got {shape}")
    if step.indices is None or step.indptr is None:
        return Trained(name, label, "dense", shape, (rows,), numbers, {}, **rest)
    if rows * step.columns >= 2**32:
        raise refuse(name, f"has {rows * step.columns} weights, of which a program that trains rewires fewer than 2^32")
    # rewiring may write any column, not only those in use now
    columns = step.indices.astype(np.min_scalar_type(step.columns - 1))
    index = {"columns": columns, "starts": smallest_unsigned(step.indptr)}
    return Trained(name, label, "sparse", shape, (rows,), numbers, index, **rest)


def _pool(step: Pool, module: nn.Module, shape: Shape, label: str) -> Trained:
    if len(shape) != 3:
        raise refuse(step.name, f"reads (channels, height, width) a sample. Got {shape}")
    out, geometry = pool_geometry(step, shape)
    return Trained(step.name, label, step.take, shape, out, {}, {}, geometry_constant(label, shape, out, geometry))


def _activate(layer: Trained | None, step: Elementwise, name: str) -> None:
    if layer is None or layer.activation is not None:
        raise refuse(name, "must follow a layer with weights, or pooling, directly")
    if step.function == "leaky_relu" and dict(step.numbers)["slope"] < 0:
        raise refuse(name, "must have a slope of at least 0: its input is computed from its output")
    layer.activation = step
