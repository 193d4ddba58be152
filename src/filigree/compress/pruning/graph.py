"""Which units of a network can go, and what goes with them: torch-pruning's dependency graph in plain numbers."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from filigree.config import one_line
from filigree.convert import inference_context
from filigree.modes import evaluating
from filigree.nn.resizing import has_units, sizes_of
from filigree.optional import needed
from filigree.summary import macs_of


@dataclass(frozen=True)
class Reader:
    """A layer that reads the units: which of its input columns (or channels), and the unit of each."""

    name: str
    columns: Tensor
    units: Tensor


@dataclass(frozen=True)
class Units:
    """Units (or filters) that stay or go together: the outputs of one layer, or of several that are summed.

    Attributes:
        name: of the first layer that makes them. count: how many there are.
        makers: layers that make them, with the unit of each of their outputs. readers: layers that read them.
        tie: grouped convolutions among them want the same units of each of so many equal blocks.
    """

    name: str
    count: int
    makers: dict[str, Tensor]
    readers: list[Reader]
    tie: int = 1


class Graph:
    """The units of a model, found by running it on an example.

    Raises:
        ValueError: a model that cannot be traced, in one line.
    """

    def __init__(self, model: nn.Module, example: Tensor) -> None:
        self.model = model
        self.names = {module: name for name, module in model.named_modules()}
        torch_pruning = needed("torch_pruning", "pruning", "pruning")
        logging.getLogger("torch_pruning").setLevel(logging.ERROR)
        kinds = {type(module) for module in model.modules() if has_units(module)}
        pruner = type("LayerPruner", (_LayerPruner, torch_pruning.BasePruningFunc), {})
        custom = {kind: pruner() for kind in kinds if not issubclass(kind, nn.Linear | nn.Conv2d)}
        try:
            with evaluating(model), torch.enable_grad():  # it is traced by its graph of gradients
                self._graph = torch_pruning.DependencyGraph().build_dependency(
                    model, example_inputs=example, verbose=False, customized_pruners=custom
                )
            groups = list(self._graph.get_all_groups(root_module_types=list(kinds)))
        except Exception as error:  # torch-pruning says what it does not know in many ways
            raise ValueError(f"pruning: this model cannot be traced: {one_line(error)}") from None
        self.units: list[Units] = []
        self._roots: dict[str, tuple[nn.Module, Any]] = {}
        for group in groups:
            units = self._read(group)
            if units is not None:
                self.units.append(units)
                self._roots[units.name] = (group[0].dep.target.module, group[0].dep.handler)

    def _read(self, group: Any) -> Units | None:
        """The group in plain numbers; None where no layer reads its units: they are outputs of the model."""
        makers: dict[str, Tensor] = {}
        readers = []
        for item in group:
            module, name = item.dep.target.module, self.names.get(item.dep.target.module)
            if name is None or not has_units(module):
                continue
            columns, units = torch.tensor(item.idxs), torch.tensor(item.root_idxs)
            is_input = item.dep.handler.__name__ == "prune_in_channels"
            if is_input and not _is_depthwise(module):
                readers.append(Reader(name, columns, units))
            else:
                order = columns.argsort()
                makers[name] = units[order]
        if not readers or not makers:
            return None
        count = int(max(int(units.max()) for units in makers.values())) + 1
        layers = [self.model.get_submodule(name) for name in (*makers, *(reader.name for reader in readers))]
        groups = [m.groups for m in layers if isinstance(m, nn.Conv2d) and m.groups > 1 and not _is_depthwise(m)]
        return Units(next(iter(makers)), count, makers, readers, math.lcm(*groups))

    def remove(self, removed: Mapping[str, Tensor]) -> None:
        """Take units out of the model in place: of each `Units.name`, these."""
        for name, units in removed.items():
            if len(units):
                module, handler = self._roots[name]
                group = self._graph.get_pruning_group(module, handler, idxs=units.tolist())
                if not self._graph.check_pruning_group(group):
                    raise ValueError(f"pruning: {name!r}: a layer would be left without units.")
                group.prune()


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.groups > 1 and module.groups == module.in_channels


def pruned(model: nn.Module, removed: Mapping[str, Tensor], example: Tensor) -> nn.Module:
    """A copy of the model without these units, checked by running it.

    Raises:
        ValueError: names the first layer whose units the graph does not know how to take out.
    """
    shape = _output_shape(model, example)
    try:
        return _tried(model, removed, example, shape)
    except Exception:
        for name, units in removed.items():
            if len(units):
                try:
                    _tried(model, {name: units}, example, shape)
                except Exception as error:
                    reason = one_line(error, 160)
                    raise ValueError(f"pruning: the units of {name!r} cannot be taken out: {reason}") from None
        raise ValueError("pruning: these units cannot be taken out together. Name fewer layers with where=.") from None


def without(count: int, units: Tensor) -> Tensor:
    """All but these of so many units, sorted."""
    others = torch.ones(count, dtype=torch.bool)
    others[units] = False
    return others.nonzero().squeeze(1)


def _tried(model: nn.Module, removed: Mapping[str, Tensor], example: Tensor, shape: torch.Size) -> nn.Module:
    copied = copy.deepcopy(model)
    Graph(copied, example).remove(removed)
    output = _output_shape(copied, example)
    if output != shape:
        raise ValueError(f"the output would be {tuple(output)}, not {tuple(shape)}")
    return copied


def _output_shape(model: nn.Module, example: Tensor) -> torch.Size:
    with inference_context(model):
        out = model(example)
    return out.shape if isinstance(out, Tensor) else out[0].shape


def take_over(model: nn.Module, smaller: nn.Module) -> None:
    """Give the model's modules the parameters and sizes of a pruned copy's; the modules stay the same objects."""
    for name, source in smaller.named_modules():
        target = model.get_submodule(name)
        hooks = {key: value for key, value in target.__dict__.items() if "hooks" in key}
        children, training = target.__dict__["_modules"], target.training
        target.__dict__.update(source.__dict__)
        target.__dict__.update(hooks)
        target.__dict__["_modules"] = children
        target.training = training


def layer_macs(model: nn.Module, example: Tensor) -> dict[str, int]:
    """Multiply-adds of each linear layer and convolution on one sample."""
    macs: dict[str, int] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(layer: Any, args: Any, y: Tensor) -> None:
            outputs = sizes_of(layer)[0]  # type: ignore[index]
            macs[name] = macs.get(name, 0) + macs_of(layer) * y.numel() // max(1, outputs * len(y))

        return hook

    hooks = [m.register_forward_hook(keep(name)) for name, m in model.named_modules() if has_units(m)]
    with inference_context(model, hooks):
        model(example)
    return macs


class _LayerPruner:
    """How torch-pruning takes outputs and inputs out of a layer of ours, which does it: a `BasePruningFunc`."""

    def prune_out_channels(self, layer: nn.Module, idxs: list[int]) -> nn.Module:
        module: Any = layer
        module.keep_outputs_(without(module.out_features, torch.tensor(idxs)))
        return layer

    def prune_in_channels(self, layer: nn.Module, idxs: list[int]) -> nn.Module:
        module: Any = layer
        module.keep_inputs_(without(module.in_features, torch.tensor(idxs)))
        return layer

    def get_out_channels(self, layer: Any) -> int:
        return layer.out_features

    def get_in_channels(self, layer: Any) -> int:
        return layer.in_features
