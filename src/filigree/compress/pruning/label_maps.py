"""The labels of a tensor's elements, and what happens to them where tensors meet."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from filigree.compress.pruning.labels import Labels


class LabelMaps:
    """Label maps of tensors: a map has the label of each element, and side 1 where labels do not vary.

    A tensor has several maps where several of its dimensions are channels, as a weight has. Where a dimension was
    split, as into heads and their sizes, one map varies over both. As soon as an operation treats these differently,
    whole slices along the first of them (whole heads) are units, or along the last where it has labels in `last`.
    """

    def __init__(self) -> None:
        self.labels = Labels()
        self.last = torch.zeros(0, dtype=torch.long)
        self._maps: dict[int, tuple[Tensor, list[Tensor]]] = {}  # by the identity of a tensor, which is kept alive
        self._uniform: dict[int, Tensor] = {}

    def of(self, tensor: Tensor) -> list[Tensor]:
        return self._maps[id(tensor)][1] if id(tensor) in self._maps else []

    def put(self, tensor: Tensor, maps: Iterable[Tensor]) -> None:
        """Give a tensor label maps. A map that does not vary at all fixes its labels: there is nothing to cut."""
        kept = []
        for labels in map(self.compact, maps):
            if varying(labels):
                kept.append(labels)
            else:
                self.labels.fix(labels, "are taken one by one")
        self._maps[id(tensor)] = tensor, kept
        self._uniform.pop(id(tensor), None)

    def label_sides(self, tensor: Tensor) -> list[Tensor]:
        """Labels for each dimension of a parameter or buffer: those that it has already, or new ones."""
        if id(tensor) not in self._maps:
            sides = [_along(self.labels.new(side), dim, tensor.dim()) for dim, side in enumerate(tensor.shape)]
            self._maps[id(tensor)] = tensor, sides
        return self._maps[id(tensor)][1]

    def set_uniform(self, tensor: Tensor) -> None:
        """All its elements are one number, so it can have any size."""
        self._uniform[id(tensor)] = tensor

    def is_uniform(self, tensor: Tensor) -> bool:
        return id(tensor) in self._uniform

    def compact(self, labels: Tensor) -> Tensor:
        """The same with the labels of classes, and side 1 where these do not vary."""
        for dim in range(labels.dim()):
            if labels.shape[dim] > 1 and labels.stride(dim) == 0:
                labels = labels.narrow(dim, 0, 1)
        labels = self.labels.classes(labels)
        for dim in varying(labels):
            if bool((labels == (first := labels.narrow(dim, 0, 1))).all()):
                labels = first
        return labels

    def settle(self, labels: Tensor) -> Tensor:
        """A map that varies over one dimension only: whole slices along it are units from now on."""
        dims = varying(labels := self.compact(labels))
        return self.slices(labels, self.preferred(dims, labels)) if len(dims) > 1 else labels

    def preferred(self, dims: Iterable[int], *maps: Tensor) -> int:
        """Of which of these dimensions slices are units."""
        last = self.labels.classes(self.last)
        return max(dims) if len(last) and any(bool(torch.isin(labels, last).any()) for labels in maps) else min(dims)

    def slices(self, labels: Tensor, dim: int) -> Tensor:
        """Make one class of each slice along a dimension: the map that varies over it alone."""
        flat = labels.movedim(dim, 0).flatten(1)
        self.labels.unite(flat[:, :1].expand_as(flat), flat)
        return _along(flat[:, 0], dim, labels.dim())

    def meet(self, operands: Sequence[tuple[Tensor, Sequence[Tensor]]], dims: int) -> list[Tensor]:
        """Unite the labels of tensors that are met element by element, broadcast: the maps of the result.

        A tensor of full size in a dimension over which another's labels vary, and without labels there, fixes these.
        """
        shapes = [[1] * (dims - tensor.dim()) + list(tensor.shape) for tensor, _ in operands]
        waiting = [
            (number, aligned(labels, dims))
            for number, (_, maps) in enumerate(operands)
            for labels in map(self.compact, maps)
        ]
        results = []
        while waiting:
            group = [waiting.pop(0)]
            over = set(varying(group[0][1]))
            while more := [item for item in waiting if over & set(varying(item[1]))]:
                group += more
                over |= {dim for _, labels in more for dim in varying(labels)}
                waiting = [item for item in waiting if all(item is not other for other in more)]
            if any(set(varying(labels)) != over for _, labels in group):
                dim = self.preferred(over, *(labels for _, labels in group))
                for _, labels in group:
                    if dim not in varying(labels):
                        self.labels.fix(labels, "meet numbers of another dimension")
                group = [(number, self.slices(labels, dim)) for number, labels in group if dim in varying(labels)]
                over = {dim}
            first = group[0][1]
            for _, labels in group[1:]:
                self.labels.unite(first, labels)
            labelled = {number for number, _ in group}
            for number, (tensor, _) in enumerate(operands):
                if number not in labelled and not self.is_uniform(tensor) and any(shapes[number][d] > 1 for d in over):
                    self.labels.fix(first, "meet numbers that are no units")
            results.append(first)
        return results


def varying(labels: Tensor) -> list[int]:
    """The dimensions over which a map varies."""
    return [dim for dim, side in enumerate(labels.shape) if side > 1]


def aligned(labels: Tensor, dims: int) -> Tensor:
    """With sides of 1 in front, as broadcasting adds them."""
    return labels.reshape([1] * (dims - labels.dim()) + list(labels.shape))


def _along(labels: Tensor, dim: int, dims: int) -> Tensor:
    return labels.view([-1 if side == dim else 1 for side in range(dims)])
