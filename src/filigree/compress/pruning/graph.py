"""Which units of a network can go, and what goes with them: torch-pruning's dependency graph in plain numbers."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from filigree.calibration import Calibration
from filigree.computed_weights import why_computed
from filigree.config import one_line
from filigree.convert import inference_context, run_on
from filigree.modes import evaluating
from filigree.nn.resizing import has_units, sizes_of
from filigree.optional import needed
from filigree.outputs import tensors_in
from filigree.summary import macs_of


@dataclass(frozen=True)
class Member:
    """A module or a bare parameter that becomes smaller with the units.

    Attributes:
        name: of the module, or of the parameter. side: which of its channels become fewer: "out" or "in".
        columns: these channels. units: the unit of each. dim: of a bare parameter, the side that has them.
    """

    name: str
    side: str
    columns: Tensor
    units: Tensor
    dim: int | None = None


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
        members: all that becomes smaller with them, the makers and readers among it.
        tie: grouped convolutions or norms among them want the same units of each of so many equal blocks.
        problem: why they cannot be taken out, "" where nothing is known against it.
    """

    name: str
    count: int
    makers: dict[str, Tensor]
    readers: list[Reader]
    members: list[Member]
    tie: int = 1
    problem: str = ""


class Graph:
    """The units of a model that these layers make, found by running it on an example.

    Raises:
        ValueError: a model that cannot be traced, in one line.
    """

    def __init__(self, model: nn.Module, example: Tensor | Calibration, makers: Collection[str]) -> None:
        self.model = model
        data = example if isinstance(example, Calibration) else Calibration(example)
        inputs = data.chunks()[0]
        self.names = {module: name for name, module in model.named_modules()}
        self._pruners = pruners_of(model)
        try:
            with evaluating(model), trainable(model), torch.enable_grad():  # it is traced by its graph of gradients
                self._input = _offset(inputs)  # that the input has channels, too, which layers may join
                self._pruners.build_dependency(
                    model,
                    inputs if self._input is None else inputs + self._input,
                    forward_fn=data.call,
                    output_transform=_traced,
                    verbose=False,
                    unwrapped_parameters=_unwrapped(self._input),
                )
        except Exception as error:  # torch-pruning says what it does not know in many ways
            raise ValueError(
                f"pruning: this model cannot be traced: {one_line(error) or type(error).__name__}"
            ) from None
        self.units: list[Units] = []
        seen: set[str] = set()
        for module in list(self._pruners.module2node):
            name = self.names.get(module) if isinstance(module, nn.Module) else None
            if name in makers and name not in seen and has_units(module):
                units = self._units(module)
                seen.update([units.name] if units.problem else units.makers)
                if units.readers or units.problem:  # or they are outputs of the model
                    self.units.append(units)

    def _units(self, root: Any) -> Units:
        members, alike, odd = self._members(root)
        count, unit_of = _classes(alike)
        if any(target is self._input for target, _ in members):
            return Units(self.names[root], count, {self.names[root]: unit_of}, [], [], problem="are those of the input")
        makers: dict[str, Tensor] = {}
        readers, sides = [], []
        for (target, side), unit_by_column in members.items():
            columns = torch.tensor(sorted(unit_by_column))
            units = unit_of[torch.tensor([unit_by_column[column] for column in columns.tolist()])]
            is_parameter = isinstance(target, nn.Parameter)
            name = self._pruners._param_to_name[target] if is_parameter else self.names.get(target)
            if name is None:
                continue  # an operation without numbers of its own
            node, pruner = self._pruners.module2node[target], self._pruners.get_pruner_of_module(target)
            sides.append(Member(name, side, columns, units, node.pruning_dim if is_parameter else None))
            if not is_parameter:
                width = pruner.get_out_channels(target) if side == "out" else pruner.get_in_channels(target)
                odd = odd or (width is not None and int(columns[-1]) >= width)
            if is_parameter or not has_units(target):
                continue
            if side == "in":
                readers.append(Reader(name, columns, units))
            else:
                makers[name] = units
                odd = odd or len(units) != width
        name = self.names[root]
        modules = {member.name: self.model.get_submodule(member.name) for member in sides if member.dim is None}
        tie = math.lcm(*map(_blocks, modules.values()))
        problem = next(
            (f"meet {at!r}, which {why}" for at, module in modules.items() if (why := why_computed(module))), ""
        )
        if problem:
            return Units(name, count, makers, readers, sides, tie, problem)
        if odd or any(not _even(reader, count) for reader in readers):
            problem = "are split, repeated or mixed before they are read"
        elif count % tie:
            problem = f"are read in {tie} blocks"
        elif count == 1 < len(alike):
            problem = "hang together, all of them"
        return Units(name, count, makers, readers, sides, tie, problem)

    def _members(self, root: Any) -> tuple[dict[tuple[Any, str], dict[int, int]], list[int], bool]:
        """All that loses channels when the root's outputs go: the output that stands for each of their channels.

        A search that visits each channel of each operation once. A channel that two outputs reach couples these: they
        go together. Returned are also the first output to which each one is coupled, and whether a channel was found
        that no output is known of, or that no operation of this model can have (numbers grow in circles where a tensor
        is cut and put together in another order): such a channel is not followed.
        """
        pruner = self._pruners.get_pruner_of_module(root)
        alike = list(range(pruner.get_out_channels(root)))
        members: dict[tuple[Any, str], dict[int, int]] = {}
        reached: dict[tuple[Any, Any], dict[int, int]] = {}
        odd, most = False, 4 * max(side for parameter in self.model.parameters() for side in (*parameter.shape, 1))
        waiting = [(self._pruners.module2node[root], pruner.prune_out_channels, [_Index(i, i) for i in alike])]
        while waiting:
            node, prune, indices = waiting.pop()
            known, new = reached.setdefault((node, prune), {}), []
            for i in indices:
                if i.root_idx is None or not 0 <= i.idx < most:
                    odd = True
                elif i.idx not in known:
                    known[i.idx] = i.root_idx
                    new.append(i)
                else:
                    _couple(alike, known[i.idx], i.root_idx)
            if not new:
                continue
            side = "in" if prune.__name__ == "prune_in_channels" else "out"
            members.setdefault((node.module, side), {}).update({i.idx: known[i.idx] for i in new})
            for edge in node.dependencies:
                if edge.is_triggered_by(prune):
                    mapped = new
                    try:
                        for mapping in edge.index_mapping:
                            mapped = mapping(mapped) if mapping is not None else mapped
                    except IndexError:  # of a tensor whose parts the graph has not understood
                        odd = True
                        continue
                    waiting.append((edge.target, edge.handler, mapped))
        return members, alike, odd


def pruners_of(model: nn.Module) -> Any:
    """torch-pruning's graph for the model, not yet traced: it knows how to take channels out of each kind of module."""
    torch_pruning = needed("torch_pruning", "pruning", "pruning")
    logging.getLogger("torch_pruning").setLevel(logging.ERROR)
    graph = torch_pruning.DependencyGraph()
    pruner = type("LayerPruner", (_LayerPruner, torch_pruning.BasePruningFunc), {})
    for kind in {type(module) for module in model.modules() if has_units(module)}:
        if not issubclass(kind, nn.Linear | nn.Conv2d):
            graph.register_customized_layer(kind, pruner())
    return graph


class _Index(NamedTuple):
    """A channel, and the output of the root that stands for it: what torch-pruning's mappings map."""

    idx: int
    root_idx: int | None


def _offset(example: Any) -> nn.Parameter | None:
    """Zeros to add to the input, one for each of its channels: torch-pruning knows parameters, but not inputs."""
    if not isinstance(example, Tensor) or not example.is_floating_point() or example.dim() < 2:
        return None
    if example.dim() < 4:
        return nn.Parameter(example.new_zeros(example.shape[-1]))
    return nn.Parameter(example.new_zeros(1, example.shape[1], *[1] * (example.dim() - 2)))


def _unwrapped(offset: nn.Parameter | None) -> list[tuple[nn.Parameter, int]]:
    return [] if offset is None else [(offset, 0 if offset.dim() == 1 else 1)]


def _traced(output: Any) -> list[Tensor]:
    return [tensor for tensor in tensors_in(output) if tensor.grad_fn is not None]


@contextmanager
def trainable(model: nn.Module) -> Iterator[None]:
    """Let gradients flow through frozen parameters as well."""
    frozen = [p for p in model.parameters() if not p.requires_grad and (p.is_floating_point() or p.is_complex())]
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def _first(alike: list[int], unit: int) -> int:
    while alike[unit] != unit:
        alike[unit] = alike[alike[unit]]
        unit = alike[unit]
    return unit


def _couple(alike: list[int], one: int, other: int) -> None:
    one, other = sorted((_first(alike, one), _first(alike, other)))
    alike[other] = one


def _classes(alike: list[int]) -> tuple[int, Tensor]:
    """How many classes of coupled outputs there are, and the class of each."""
    firsts, classes = torch.tensor([_first(alike, unit) for unit in range(len(alike))]).unique(return_inverse=True)
    return len(firsts), classes


def _even(reader: Reader, count: int) -> bool:
    """Whether it reads equally many numbers of each unit."""
    return len(set(torch.bincount(reader.units, minlength=count).tolist())) == 1


def _blocks(module: Any) -> int:
    """In how many equal blocks it reads its channels: of a grouped convolution, or of a norm over groups of them."""
    if isinstance(module, nn.GroupNorm):
        return module.num_groups if module.num_groups < module.num_channels else 1
    return module.groups if isinstance(module, nn.Conv2d) and not is_depthwise(module) else 1


def is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.groups > 1 and module.groups == module.in_channels


def layer_macs(model: nn.Module, example: Tensor | Calibration) -> dict[str, int]:
    """Multiply-adds of each linear layer and convolution on one sample."""
    macs: dict[str, int] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(layer: Any, args: Any, y: Tensor) -> None:
            outputs = sizes_of(layer)[0]  # type: ignore[index]
            macs[name] = macs.get(name, 0) + macs_of(layer) * y.numel() // max(1, outputs * len(y))

        return hook

    hooks = [m.register_forward_hook(keep(name)) for name, m in model.named_modules() if has_units(m)]
    with inference_context(model, hooks):
        run_on(model, example, "pruning")
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


def without(count: int, units: Tensor) -> Tensor:
    """All but these of so many units, sorted."""
    others = torch.ones(count, dtype=torch.bool)
    others[units] = False
    return others.nonzero().squeeze(1)
