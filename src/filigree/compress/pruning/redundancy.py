"""What the kept units of a group can restore of those that go: from covariances that are made once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from filigree.compress.pruning.graph import Units
from filigree.compress.pruning.matrices import SPATIAL, matrix_of, taps_of, write_matrix_
from filigree.nn.resizing import TRANSPOSED
from filigree.ties import why_tied

PRECISE = 1_024  # units up to which products are taken in float64

RIDGE = 1e-6  # of the mean variance: for numbers, not against noise


class Redundancy:
    """Second moments of a group's units, shared by the choice of units, the search and the refit of candidates.

    Args:
        features: `(units, numbers)`, what the units' first reader reads of them on the data.
        held: the same on data that nothing is fitted to; None: errors are those on the fitted data.
    """

    def __init__(self, group: Units, model: nn.Module, features: Tensor, held: Tensor | None = None) -> None:
        self.group, self._model, self.features, self._held = group, model, features, held

    @cached_property
    def mean(self) -> Tensor:
        return self.features.mean(1, dtype=torch.float64)

    @cached_property
    def covariance(self) -> Tensor:
        """S, `(units, units)`, float64."""
        return product(self.features, self.mean)

    @cached_property
    def outgoing(self) -> Tensor:
        """G: the products of the units' outgoing weights, summed over all that read them."""
        return outgoing_gram(self.group, self._model)

    @cached_property
    def _tested(self) -> Tensor:
        """The second moments, about the same mean, of the data that errors are measured on."""
        return self.covariance if self._held is None else product(self._held, self.mean)

    def feeds(self, kept: Tensor, centre: bool = True, ridge: float = RIDGE) -> Tensor:
        """A `(units, kept)`: what stands for each unit, by least squares, on the kept ones; about the means or zero."""
        s = self.covariance if centre else torch.addr(self.covariance, self.mean, self.mean)
        own, right = s[kept][:, kept], s[kept]
        added = ridge * float(own.diagonal().mean().clamp(min=1e-30))
        own.diagonal().add_(added)
        right[torch.arange(len(kept)), kept] += added
        return torch.linalg.solve(own, right).T

    def lost(self, kept: Tensor) -> tuple[float, float]:
        """`tr(G R)` and `tr(G S)`: R the second moments of what the kept units do not restore, S those of all units.

        Exact for linear readers; of convolutions taps are taken alone.
        """
        feeds, s = self.feeds(kept), self._tested
        cross = feeds @ s[kept]
        residual = s - cross - cross.T + feeds @ s[kept][:, kept] @ feeds.T
        if self._held is None:
            spread = s
        else:
            away = self._held.mean(1, dtype=torch.float64) - self.mean
            spread = torch.addr(s, away, away, alpha=-1)
        return max(0.0, float((self.outgoing * residual).sum())), float((self.outgoing * spread).sum())

    def own_error(self, kept: Tensor) -> float:
        """The share (root) of the readers' output variance that least squares on the kept units does not restore."""
        lost, total = self.lost(kept)
        return (lost / total) ** 0.5 if total > 0 else 0.0


def product(features: Tensor, mean: Tensor) -> Tensor:
    """Mean products of the units' numbers about these means."""
    f = features.double() if len(features) <= PRECISE else features.float()
    f = f - mean[:, None].to(f.dtype)
    return (f @ f.T).double() / f.shape[1]


def outgoing_gram(group: Units, model: nn.Module) -> Tensor:
    """`G_uv`, the products of the outgoing weights of units u and v, summed over all that read them, float64."""
    gram = torch.zeros(group.count, group.count, dtype=torch.float64)
    for reader in group.readers:
        layer: Any = model.get_submodule(reader.name)
        if not _is_dense(layer):
            gram += torch.eye(group.count, dtype=torch.float64)
            continue
        fed = matrix_of(layer).unflatten(1, (-1, taps_of(layer)))
        fed = fed[:, reader.columns[reader.units.argsort(stable=True)]]  # (outs, units (x block), taps)
        fed = fed.reshape(fed.shape[0], group.count, -1).transpose(0, 1).flatten(1)
        gram += (fed.double() @ fed.double().T) if group.count <= PRECISE else (fed @ fed.T).double()
    return gram


def _is_dense(layer: Any) -> bool:
    """Whether each of its outputs reads all of its inputs."""
    return isinstance(layer, (nn.Linear, *SPATIAL)) and getattr(layer, "groups", 1) == 1


def fold(
    model: nn.Module, redundancies: Sequence[Redundancy], kept: Mapping[str, Tensor], damping: float, biases: bool
) -> None:
    """Let the kept units feed, in all layers that read them, what those that go have fed, before these are taken out.

    Dense layers only, and without a look at what has changed before them: this is how candidates of a search are
    compensated, in no pass over data.
    """
    tied = why_tied(model)
    for redundancy in redundancies:
        group = redundancy.group
        stay = kept[group.name]
        if len(stay) == group.count:
            continue
        for reader in group.readers:
            layer: Any = model.get_submodule(reader.name)
            if not _is_dense(layer) or reader.name in tied:
                continue
            # where zeros are padded a shift would be wrong: then the kept units stand for the mean as well
            padded = isinstance(layer, TRANSPOSED) or any(getattr(layer, "_reversed_padding_repeated_twice", ()))
            centre = not padded and (biases or layer.bias is not None)
            feeds = redundancy.feeds(stay, centre, damping).to(layer.weight.dtype)
            columns = reader.columns[reader.units.argsort(stable=True)].view(group.count, -1)
            weight = matrix_of(layer).unflatten(1, (-1, taps_of(layer)))
            old = weight[:, columns.flatten()].view(len(weight), group.count, -1)  # (out, units, block x taps)
            new = weight.clone()
            new[:, columns[stay].flatten()] = torch.einsum("out,uk->okt", old, feeds).reshape(
                len(weight), -1, weight.shape[2]
            )
            layer.weight = nn.Parameter(torch.empty_like(layer.weight))
            write_matrix_(layer, new.flatten(1))
            if centre:
                means = redundancy.mean - feeds.double() @ redundancy.mean[stay]
                shift = torch.einsum("out,u->o", old.double(), means).to(new.dtype)
                layer.bias = nn.Parameter(shift if layer.bias is None else layer.bias.detach() + shift)
