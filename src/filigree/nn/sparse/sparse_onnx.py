"""The forms in which a sparse layer can stand in an ONNX file; the one that runs fastest is found by measurement."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from filigree.export.onnx.program import Session, part, translate
from filigree.measure.timing import time_interleaved
from filigree.nn.sparse.masked import MaskedLayer
from filigree.nn.sparse.sparse_conv2d import SparseConv2d
from filigree.nn.sparse.sparse_layer import SparseLayer
from filigree.nn.sparse.sparse_linear import SparseLinear

Choice = Literal["measure", "dense", "gather"]


class _Weight(nn.Module):
    """A weight `(out_features, in_features)`, in the file as its connections and their places, 8 bytes each.

    They are put into zeros, which ONNX Runtime does once, when it loads the file. Where more than half of all places
    are connected the weight itself is smaller.
    """

    def __init__(self, layer: SparseLayer) -> None:
        super().__init__()
        self.sides = layer.out_features, layer.in_features
        size = layer.out_features * layer.in_features
        flat_indices = layer.flat_indices().to(torch.int32 if size < 2**31 else torch.int64)
        self.scattered = 2 * layer.nnz < size
        values = layer.values.detach()
        if not self.scattered:
            values = values.new_zeros(size).scatter(0, flat_indices.long(), values).view(self.sides)
        self.register_buffer("values", values)
        self.register_buffer("places", flat_indices if self.scattered else None)

    def forward(self) -> Tensor:
        values = self.get_buffer("values")
        if not self.scattered:
            return values
        zeros = values.new_zeros(self.sides[0] * self.sides[1])
        return zeros.scatter(0, self.get_buffer("places").long(), values).view(self.sides)


class _DenseLinear(nn.Module):
    """The product with the whole weight."""

    def __init__(self, layer: SparseLinear) -> None:
        super().__init__()
        self.weight, self.bias, self.relu = _Weight(layer), layer.bias, layer.relu

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight(), self.bias)
        return y.relu() if self.relu else y


class _GatherLinear(nn.Module):
    """For each unit its inputs, times their weights, summed: `y_o = sum_k w_ok x_c(o, k)`.

    Units with fewer connections than the largest fan-in have zeros behind theirs.
    """

    def __init__(self, layer: SparseLinear) -> None:
        super().__init__()
        columns, values = _table(layer, 0)
        self.register_buffer("columns", columns)
        self.register_buffer("values", values)
        self.bias, self.relu, self.fan_in = layer.bias, layer.relu, values.shape[1]

    def forward(self, x: Tensor) -> Tensor:
        y = self.sums(x)
        y = y if self.bias is None else y + self.bias
        return y.relu() if self.relu else y

    def sums(self, x: Tensor) -> Tensor:
        inputs = x.index_select(-1, self.get_buffer("columns")).unflatten(-1, (-1, self.fan_in))
        return (inputs * self.get_buffer("values")).sum(-1)


class _GatherLinearByFeature(_GatherLinear):
    """The same with a feature of the whole batch as one row, which pays for larger batches."""

    def sums(self, x: Tensor) -> Tensor:
        values = self.get_buffer("values")
        rows = x.reshape(-1, x.shape[-1]).t().index_select(0, self.get_buffer("columns"))
        y = values.unsqueeze(1) @ rows.unflatten(0, (-1, self.fan_in))  # (out, 1, fan_in) (out, fan_in, batch)
        return y.squeeze(1).t().reshape(*x.shape[:-1], values.shape[0])


class _DenseConv2d(nn.Module):
    """The convolution with the whole weight."""

    def __init__(self, layer: SparseConv2d) -> None:
        super().__init__()
        self.weight, self.bias = _Weight(layer), layer.bias
        self.like: Any = [layer.dense().to("meta")]  # its hyperparameters; in a list, so that it is no submodule

    def forward(self, x: Tensor) -> Tensor:
        like = self.like[0]
        return like._conv_forward(x, self.weight().view(like.weight.shape), self.bias)


class _GatherConv2d(nn.Module):
    """`_GatherLinear` at each position, on the patches that it reads."""

    def __init__(self, layer: SparseConv2d) -> None:
        super().__init__()
        self.around, self.geometry, self.bias = layer._around, layer._geometry, layer.bias
        self.mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        columns, values = _table(layer, layer.out_channels // layer.groups)
        self.register_buffer("columns", columns)
        self.register_buffer("values", values[:, :, None])

    def forward(self, x: Tensor) -> Tensor:
        g, values = self.geometry, self.get_buffer("values")
        x = F.pad(x, self.around, mode=self.mode)
        sides = [
            (size - d * (k - 1) - 1) // s + 1
            for size, k, s, d in zip(x.shape[2:], g.kernel, g.stride, g.dilation, strict=True)
        ]
        patches = F.unfold(x, g.kernel, dilation=g.dilation, stride=g.stride)  # (batch, channels taps, positions)
        inputs = patches.index_select(1, self.get_buffer("columns")).unflatten(1, values.shape[:2])
        y = (inputs * values).sum(2)
        y = y if self.bias is None else y + self.bias[:, None]
        return y.unflatten(2, sides)


def _table(layer: SparseLayer, group: int) -> tuple[Tensor, Tensor]:
    """For each output the inputs it is connected to, flat, and the weights `(out, fan_in)`, padded with zeros.

    Args:
        group: outputs that read the same inputs, of a convolution; 0: all do.
    """
    counts = layer.indptr.diff().long()
    row = torch.repeat_interleave(counts)
    slot = torch.arange(layer.nnz) - layer.indptr[:-1].long()[row]
    column = layer.indices.int()
    if group:
        column = column + (row // group * layer.in_features).int()
    fan_in = max(1, int(counts.max()) if counts.numel() else 0)
    columns = torch.zeros(layer.out_features, fan_in, dtype=torch.int32).index_put((row, slot), column)
    values = layer.values.detach()
    return columns.flatten(), values.new_zeros(layer.out_features, fan_in).index_put((row, slot), values)


FORMS: dict[type[SparseLayer], dict[str, Callable[[Any], nn.Module]]] = {
    SparseLinear: {"dense": _DenseLinear, "gather": _GatherLinear, "gather by feature": _GatherLinearByFeature},
    SparseConv2d: {"dense": _DenseConv2d, "gather": _GatherConv2d},
}


def sparse_layers(model: nn.Module) -> dict[str, SparseLayer]:
    """The sparse layers of a model by name; masked ones as the sparse ones that they are equal to."""
    found: dict[str, SparseLayer] = {}
    for name, module in model.named_modules():
        if isinstance(module, MaskedLayer):
            found[name] = module.sparse()
        elif isinstance(module, SparseLayer):
            found[name] = module
    return found


def chosen_forms(
    layers: dict[str, SparseLayer], inputs: dict[str, Tensor], choice: Choice, seconds: float
) -> dict[str, tuple[nn.Module, str, str]]:
    """For each sparse layer its module in the file, what form that is, and a note of the times.

    Args:
        inputs: what each layer reads. choice: "dense"; "gather", the faster of its kinds; or "measure", the fastest of
            all. seconds: how long each form is timed in ONNX Runtime.
    """
    forms: dict[str, dict[str, nn.Module]] = {}
    for name, layer in layers.items():
        kinds = next(table for kind, table in FORMS.items() if isinstance(layer, kind))
        wanted = [form for form in kinds if choice == "measure" or form.startswith(choice)]
        forms[name] = {form: kinds[form](layer) for form in wanted}
    times = _times({name: made for name, made in forms.items() if len(made) > 1}, inputs, seconds)
    found = {}
    for name, made in forms.items():
        best = min(made, key=lambda form: times.get((name, form), 0.0))
        note = ", ".join(f"{form} {times[name, form]:.3g} ms" for form in made if (name, form) in times)
        found[name] = made[best], best, note
    return found


class _SideBySide(nn.Module):
    """Every form of every layer on the layer's own input."""

    def __init__(self, forms: dict[str, dict[str, nn.Module]]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleList(made.values()) for made in forms.values())

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        return [form(x) for forms, x in zip(self.layers, inputs, strict=True) for form in forms]  # type: ignore[attr-defined]


def _times(
    forms: dict[str, dict[str, nn.Module]], inputs: dict[str, Tensor], seconds: float
) -> dict[tuple[str, str], float]:
    """Milliseconds of each form in ONNX Runtime: all are translated in one go, and each then runs by itself."""
    if not forms:
        return {}
    given = tuple(inputs[name] for name in forms)
    names = [f"input{i}" for i in range(len(given))]
    keys = [(name, form) for name, made in forms.items() for form in made]
    model = translate(_SideBySide(forms), given, False, names, [f"output{i}" for i in range(len(keys))])
    times: dict[tuple[str, str], float] = {}
    number = 0
    for name, made, x, source in zip(forms, forms.values(), given, names, strict=False):
        works = []
        for _ in made:
            session = Session(part(model, [source], [f"output{number}"]))
            works.append(lambda session=session, x=x: session.run([x]))
            number += 1
        for form, timing in zip(made, time_interleaved(works, seconds), strict=True):
            times[name, form] = timing.median
    return times
