"""The configs that prune units: by clusters, by sub-clusters, by magnitude, at random."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

import pydantic
import torch
from torch import Tensor, nn

from filigree.calibration import Calibration
from filigree.compress.pruning.budget import Budget, MaxError
from filigree.compress.pruning.clusters import Method, Select, cluster, representatives
from filigree.compress.pruning.connections import Compressed, prune_connections
from filigree.compress.pruning.graph import Units
from filigree.compress.pruning.redundancy import Redundancy
from filigree.compress.pruning.subclusters import Scalar, as_count, by_hoh, by_quantile
from filigree.compress.pruning.subset import subset_order
from filigree.compress.pruning.unit_pruning import Share, UnitPruning, by_layer, unit_biases, unit_norms, whole_of
from filigree.config import config
from filigree.nn.resizing import has_units


class _ByCluster:
    """Keeping one unit of each cluster."""

    def _represent(self, config: Any, group: Units, labels: Any, f: Tensor, model: nn.Module) -> tuple[Tensor, Tensor]:
        whole, units = whole_of(group)
        norms, biases = unit_norms(whole, model)[units], unit_biases(whole, model)
        select = config.select
        if select is None:  # the rules of thumb of 5.3.5
            select = "bias" if isinstance(model.get_submodule(whole.name), nn.Conv2d) else "weight_norm"
        return representatives(labels, f, norms, None if biases is None else biases[units], select, config.seed)


def _refuse_search(config: UnitPruning, by: str) -> None:
    if isinstance(config.keep, MaxError | Budget):
        raise ValueError(f"{by} finds the number of units itself: keep cannot be {config.keep!r}.")


@config
class ClusterPruning(UnitPruning, _ByCluster):
    """Cluster the units by what they do on data, and keep one of each cluster (John 2019, chapter 4).

        fg.compress_(model, fg.ClusterPruning(keep=0.25), data)

    Args:
        keep: clusters of each layer: a share of its units, a number, a mapping of layer names (globs) to these (others
            stay whole), `fg.MaxError(error)`, or `fg.Budget(macs=0.3)` for the whole network.
        compensate: "least_squares" refits every layer on what the kept units compute; "correlation" folds each removed
            unit into the one that stands for it (5.8-5.12); None.
        method: "kmeans", a linkage ("ward", "single", "complete", "average", or "centroid", whose tree is not monotone
            and may give fewer clusters than asked for), "spectral", "gmm" or "dbscan", which finds the number of
            clusters itself, by the radius `eps` (`keep` is then not read).
        select: the unit of a cluster that stays: "weight_norm", "bias", "bias_magnitude", "centroid", "random"; None:
            by weight norm in linear layers, by bias in convolutions (5.3.5).
        features: of filters, "flattened" maps or "pooled" ones. normalize: activations to length one (cosine).
        round_to: counts become multiples of it. samples: of the data, at most. damping: of the refit.
        exact: convolutions (and linear layers that read flattened filters) of up to so many columns are refitted column
            by column, wider ones by units, then taps in steps (docs/pruning.md): it takes `columns^2` time and memory.
        measure: the report's last line tells how long the network takes before and after, and whether it is faster.
    """

    method: Method = "kmeans"
    select: Select | None = None
    eps: Annotated[float, pydantic.Field(gt=0)] | None = None

    def __post_init__(self) -> None:
        if self.method == "dbscan":
            _refuse_search(self, 'method="dbscan"')

    def choose(self, group: Units, features: Tensor, count: int | None, model: nn.Module) -> tuple[Tensor, Tensor, str]:
        labels = cluster(features, count, self.method, self.seed, self.eps)
        kept, replacements = self._represent(self, group, labels, features, model)
        return kept, replacements, f"{len(kept)} clusters"


@config
class SubClustering(UnitPruning, _ByCluster):
    """Sub-clustering neurogenetic pruning: few clusters first, split while they are loose (John 2019, chapter 5).

    Args:
        initial: clusters to begin with: a share of the units, a number, or a mapping of layer names (globs) to these.
            None: 5% of a linear layer's units, 35% of a convolution's filters (5.3.4).
        energy: p; a number in (0, 1), or a mapping of layer names.
        criterion: "hoh", the printed rule (Algorithms 2 and 3; not monotone in p), or "quantile", ours
            (`by_quantile`: a cut of the Ward tree).
        max_splits: splits of a layer at most ("hoh").
        bins, bin_edge, scatter, scalar: what the text leaves open of "hoh": bins of the histograms; a bin stands for
            its upper edge or its centre; the covariance of units or their scatter about the centre; the number of a
            cluster that is compared ("trace" / m, "mean", "max").
        select, compensate, features, round_to, samples, damping: as in `ClusterPruning`. keep is not read.
    """

    initial: Share | dict[str, Share] | None = None
    energy: Annotated[float, pydantic.Field(gt=0, lt=1)] | dict[str, float] = 0.4
    criterion: Literal["hoh", "quantile"] = "quantile"
    max_splits: Annotated[int, pydantic.Field(ge=0)] | None = None
    select: Select | None = None
    bins: Annotated[int, pydantic.Field(ge=2)] = 10
    bin_edge: bool = True
    scatter: bool = False
    scalar: Scalar = "trace"

    @classmethod
    def examples(cls) -> dict[str, Self]:
        return {"SubClustering": cls(initial=0.3)}

    def __post_init__(self) -> None:
        _refuse_search(self, "energy")

    def choose(self, group: Units, features: Tensor, count: int | None, model: nn.Module) -> tuple[Tensor, Tensor, str]:
        whole, _ = whole_of(group)
        is_conv = isinstance(model.get_submodule(whole.name), nn.Conv2d)
        share = by_layer(self.initial, whole, "SubClustering")
        initial = as_count(share if share is not None else 0.35 if is_conv else 0.05, whole.count)
        initial = min(initial, len(features))
        energy = by_layer(self.energy, whole, "SubClustering")
        energy = 0.4 if energy is None else energy
        if self.criterion == "quantile":
            split = by_quantile(features, initial, energy)
        else:
            split = by_hoh(
                features, initial, energy, self.seed, bins=self.bins, edge=self.bin_edge, scatter=self.scatter,
                kind=self.scalar, max_splits=self.max_splits,
            )  # fmt: skip
        kept, replacements = self._represent(self, group, split.labels, features, model)
        note = f"{initial} clusters, {len(kept)} after {split.splits} splits, threshold {split.threshold:.3g}"
        return kept, replacements, note

    def _count(self, group: Units) -> int | None:
        return None


class _OrConnections:
    """Pruning units, or connections, which takes no module apart and folds nothing."""

    def accepts(self: Any, module: nn.Module) -> bool:
        accepted: bool = UnitPruning.accepts(self, module) if self.of == "units" else has_units(module)
        return accepted

    def keeps_computed_weights(self: Any, module: nn.Module) -> bool:
        return self.of == "units" and UnitPruning.keeps_computed_weights(self, module)


@config
class RandomPruning(_OrConnections, UnitPruning):
    """Units taken out at random: the baseline. Arguments as of `ClusterPruning`.

    Args:
        of: "units", or "connections": the layers become sparse ones with `keep` of their weights, drawn at random.
    """

    of: Literal["units", "connections"] = "units"

    def compress(self, model: nn.Module, names: list[str], data: Calibration | None) -> Compressed:
        if self.of == "units":
            return super().compress(model, names, data)
        generator = torch.Generator().manual_seed(self.seed)
        return prune_connections(self, model, names, data, lambda w: torch.rand(w.shape, generator=generator))

    def ranking(self, group: Units, redundancy: Redundancy, covariance: Tensor, count: int, model: nn.Module) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed + sum(group.name.encode()))
        return torch.randperm(len(covariance), generator=generator)


@config
class MagnitudePruning(_OrConnections, UnitPruning):
    """Units of small weights go: incoming + outgoing L1 norms (John 2019, 4.12). Arguments as of `ClusterPruning`.

    Args:
        of: "units", or "connections": the layers become sparse ones with the largest of their weights, `keep` of each.
    """

    of: Literal["units", "connections"] = "units"

    def compress(self, model: nn.Module, names: list[str], data: Calibration | None) -> Compressed:
        if self.of == "units":
            return super().compress(model, names, data)
        return prune_connections(self, model, names, data, torch.abs)

    def ranking(self, group: Units, redundancy: Redundancy, covariance: Tensor, count: int, model: nn.Module) -> Tensor:
        whole, units = whole_of(group)
        return unit_norms(whole, model)[units].argsort(descending=True, stable=True)


@config
class SubsetPruning(UnitPruning):
    """Ours: the units from which least squares can best restore what the next layer computes, one after the other.

    Greedy column subset selection: the unit is taken that lowers the most `tr(G R)`, the variance of the readers'
    outputs that is not yet explained, R the covariance of the units' residuals after regression on those already taken,
    G the Gram matrix of their outgoing weights (`subset.py`). Arguments as of `ClusterPruning`.
    """

    def ranking(self, group: Units, redundancy: Redundancy, covariance: Tensor, count: int, model: nn.Module) -> Tensor:
        _, units = whole_of(group)
        return subset_order(covariance, redundancy.outgoing[units][:, units], count)
