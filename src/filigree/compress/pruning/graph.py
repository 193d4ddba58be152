"""Which units of a network can go, and what goes with them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from filigree.calibration import Calibration
from filigree.compress.pruning.label_maps import varying
from filigree.compress.pruning.labels import Labels
from filigree.compress.pruning.tracing import OUTPUTS, Node, Trace
from filigree.computed_weights import why_computed
from filigree.convert import inference_context, run_on
from filigree.nn.resizing import cuts_itself, has_units, sizes_of, weight_sides
from filigree.summary import macs_of


@dataclass(frozen=True)
class Member:
    """Channels of the units: of a dimension of a parameter or buffer, or of a side of a layer of filigree.

    Attributes:
        node: the name, and the dimension or "out" or "in". columns: these channels. units: the unit of each.
    """

    node: Node
    columns: Tensor
    units: Tensor


@dataclass(frozen=True)
class Size:
    """A number of channels that a module's code may have written down in attributes.

    Attributes:
        module: its name. size: the number. columns, units: the channels among them, and the unit of each.
    """

    module: str
    size: int
    columns: Tensor
    units: Tensor


@dataclass(frozen=True)
class Reader:
    """A layer that reads the units: which of its input columns (or channels), and the unit of each."""

    name: str
    columns: Tensor
    units: Tensor


@dataclass(frozen=True)
class Units:
    """Units (filters, heads) that stay or go together: the outputs of one layer, or of several that are summed.

    Attributes:
        name: of the first layer that makes them. count: how many there are.
        makers: layers that make them, with the unit of each of their outputs. readers: layers that read them.
        members: all that becomes smaller with them, the weights of makers and readers among it.
        sizes: numbers that the code of modules may have written down. attributes: those that are to change with them:
            of a module, by its name, the attribute, and its position in it (None: it is the number).
        last: whether they are slices along the last of the dimensions into which channels are split.
        labels: of all channels of the model, whose classes are the units.
        problem: why they cannot be taken out, "" where nothing is known against it.
    """

    name: str
    count: int
    makers: dict[str, Tensor]
    readers: list[Reader]
    members: list[Member]
    sizes: list[Size] = field(default_factory=list)
    attributes: list[tuple[Size, str, int | None]] = field(default_factory=list)
    last: bool = False
    labels: Labels | None = None
    problem: str = ""


def units_of(
    model: nn.Module, example: Tensor | Calibration, makers: Collection[str], last: Collection[str] = ()
) -> list[Units]:
    """The units of a model that these layers make and others read, found by running it on an example.

    Args:
        last: layers whose units are slices along the last dimension where they are split, not along the first.

    Raises:
        ValueError: a model that does not run on the example, in one line.
    """
    every = {node: torch.arange(side) for node, side in _outputs(model).items() if node[0].rpartition(".")[0] in last}
    trace = Trace(model, last=every)
    with inference_context(model):
        trace.run(lambda: run_on(model, example, "pruning"))
    return _Units(model, trace, last).grouped(makers)


def sides_of(name: str, layer: nn.Module) -> tuple[Node, Node]:
    """The nodes of a layer's outputs and of its inputs."""
    if cuts_itself(layer):
        return (name, "out"), (name, "in")
    out, read = weight_sides(layer)
    return (f"{name}.weight".removeprefix("."), out), (f"{name}.weight".removeprefix("."), read)


def _outputs(model: nn.Module) -> dict[Node, int]:
    layers = {name: layer for name, layer in model.named_modules() if has_units(layer) and not why_computed(layer)}
    return {
        sides_of(name, layer)[0]: layer.weight.shape[weight_sides(layer)[0]]
        for name, layer in layers.items()
        if not cuts_itself(layer)
    }


class _Units:
    """Classes of channels, in plain numbers: groups of those that the same layers make."""

    def __init__(self, model: nn.Module, trace: Trace, last: Collection[str]) -> None:
        self.model, self.labels, self.last = model, trace.maps.labels, set(last)
        self.nodes = {node: self.labels.classes(labels) for node, labels in trace.nodes.items()}
        self.layers = {name: m for name, m in model.named_modules() if has_units(m) and not why_computed(m)}
        self.outputs = {name: self.nodes[sides_of(name, layer)[0]] for name, layer in self.layers.items()}
        for name, layer in self.layers.items():
            groups = getattr(layer, "groups", 1)
            if weight_sides(layer) == (1, 0) and groups > 1:
                self.outputs[name] = self.outputs[name].repeat(groups)
        self.used = {
            name: [
                labels.flatten()
                for labels in map(trace.maps.compact, maps.values())
                if len(varying(labels)) == 1 and name not in self.layers
            ]
            for name, maps in trace.used.items()
        }

    def grouped(self, names: Collection[str]) -> list[Units]:
        groups, seen = [], set[str]()
        for name in self.layers:
            if name in names and name not in seen and len(self.outputs[name]) > 1:
                units = self._units(name)
                seen.update([name] if units.problem else units.makers)
                if (units.readers or units.problem) and units.problem != OUTPUTS:
                    groups.append(units)
        return groups

    def _units(self, root: str) -> Units:
        makers, classes = self._together(root)
        count = len(classes)
        position = torch.full((int(classes.max()) + 2,), -1)
        position[classes] = torch.arange(count)

        def members(labels: Tensor) -> tuple[Tensor, Tensor]:
            units = position[labels.clamp(max=len(position) - 1)]
            columns = (units >= 0).nonzero().squeeze(1)
            return columns, units[columns]

        by_maker = {name: members(self.outputs[name])[1] for name in makers}
        by_node = {node: members(labels) for node, labels in self.nodes.items()}
        every = [Member(node, *by_node[node]) for node in by_node if len(by_node[node][0])]
        readers = []
        for name, layer in self.layers.items():
            columns, units = by_node[sides_of(name, layer)[1]]
            if len(columns):
                all_in_one = cuts_itself(layer) or weight_sides(layer) == (1, 0)  # else the side is that of a group
                groups = 1 if all_in_one else getattr(layer, "groups", 1)
                side = len(self.nodes[sides_of(name, layer)[1]])
                columns = (torch.arange(groups)[:, None] * side + columns).flatten()
                readers.append(Reader(name, columns, units.repeat(groups)))
        return Units(
            root, count, by_maker, readers, every, self._sizes(members), [], bool(self.last & set(makers)), self.labels,
            self._problem(root, makers, classes, by_maker, readers),
        )  # fmt: skip

    def _together(self, root: str) -> tuple[list[str], Tensor]:
        """All layers that make some unit together with this one, in their order, and the classes of their outputs."""
        makers, classes = {root}, self.outputs[root].unique()
        while True:
            more = {name for name, outputs in self.outputs.items() if bool(torch.isin(outputs, classes).any())} - makers
            more = {name for name in more if not self.labels.why_fixed(self.outputs[name])}
            if not more:
                ordered = torch.cat([self.outputs[name] for name in self.layers if name in makers])
                return [name for name in self.layers if name in makers], torch.tensor(
                    list(dict.fromkeys(ordered.tolist()))
                )
            makers |= more
            classes = torch.cat([classes, *(self.outputs[name] for name in more)]).unique()

    def _problem(
        self, root: str, makers: list[str], classes: Tensor, by_maker: Mapping[str, Tensor], readers: list[Reader]
    ) -> str:
        if reason := self.labels.why_fixed(classes):
            return reason
        makes = {name for name, outputs in self.outputs.items() if bool(torch.isin(outputs, classes).any())}
        if makes != set(makers) or any(len(by_maker[name]) != len(self.outputs[name]) for name in makers):
            return "are split, repeated or mixed before they are read"
        if any(not _even(reader, len(classes)) for reader in readers):
            return "are split between the layers that read them"
        if len(classes) == 1 and len(self.outputs[root]) > 1:
            return "hang together, all of them"
        return ""

    def _sizes(self, members: Callable[[Tensor], tuple[Tensor, Tensor]]) -> list[Size]:
        sizes: dict[Any, Size] = {}
        for name, maps in self.used.items():
            for labels in maps:
                columns, units = members(labels)
                if len(columns):
                    sizes.setdefault(
                        (name, len(labels), tuple(columns.tolist()), tuple(units.tolist())),
                        Size(name, len(labels), columns, units),
                    )
        return list(sizes.values())


def _even(reader: Reader, count: int) -> bool:
    """Whether it reads equally many numbers of each unit."""
    return len(set(torch.bincount(reader.units, minlength=count).tolist())) == 1


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


def without(count: int, units: Tensor) -> Tensor:
    """All but these of so many units, sorted."""
    others = torch.ones(count, dtype=torch.bool)
    others[units] = False
    return others.nonzero().squeeze(1)
