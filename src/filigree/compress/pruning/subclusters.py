"""Sub-clustering: how many units a layer needs, found by splitting clusters (John 2019, chapter 5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor

from filigree.compress.pruning.clusters import cluster, linkage

Scalar = Literal["trace", "mean", "max"]


@dataclass(frozen=True)
class ClusterSplit:
    """What came of a layer: labels of its units, the threshold, and how many splits were made."""

    labels: np.ndarray
    threshold: float
    splits: int


def hoh_threshold(clusters: list[Tensor], energy: float, bins: int, edge: bool, scatter: bool) -> float:
    """The threshold of Algorithm 3, "histogram of histograms".

    1. V_c, the covariance of each cluster's units (with `scatter`: of its samples about its centre, a number each).
    2. t_c, the bin of the histogram of V_c's entries up to which their cumulative count reaches `energy` of all.
    3. The mode of the histogram of all t_c, ties to the lowest.

    Args:
        edge: a bin stands for its upper edge, else for its centre.
    """
    values = []
    for features in clusters:
        entries = covariance(features, scatter).flatten().numpy()
        counts, edges = _histogram(entries, bins)
        at = int(np.searchsorted(np.cumsum(counts), energy * len(entries) - 1e-9))
        values.append(_value(edges, min(at, bins - 1), edge))
    counts, edges = _histogram(np.array(values), bins)
    return _value(edges, int(counts.argmax()), edge)


def _histogram(values: np.ndarray, bins: int) -> tuple[np.ndarray, np.ndarray]:
    low, high = float(values.min()), float(values.max())
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # all the same: no bins between them
        return np.array([len(values)] + [0] * (bins - 1)), np.full(bins + 1, high)
    return np.histogram(values, bins)


def _value(edges: np.ndarray, at: int, edge: bool) -> float:
    return float(edges[at + 1] if edge else (edges[at] + edges[at + 1]) / 2)


def covariance(features: Tensor, scatter: bool) -> Tensor:
    """Units x units, or each unit's mean squared distance to the cluster's centre."""
    f = features.double()
    if scatter:
        return (f - f.mean(0)).square().mean(1)
    f = f - f.mean(1, keepdim=True)
    return f @ f.T / max(1, f.shape[1] - 1)


def scalar(v: Tensor, kind: Scalar) -> float:
    """One number of a covariance: trace / m, the mean or the largest of its entries."""
    if v.dim() == 1:
        return float(v.mean() if kind != "max" else v.max())
    return float(v.diagonal().mean() if kind == "trace" else v.mean() if kind == "mean" else v.max())


def by_hoh(
    features: Tensor, initial: int, energy: float, seed: int, *, bins: int = 10, edge: bool = True,
    scatter: bool = False, kind: Scalar = "trace", max_splits: int | None = None,
) -> ClusterSplit:  # fmt: skip
    """Algorithm 2, looped: while a cluster of more than one unit has `var` above the threshold, it is split in two.

    Redundant units have a *high* covariance, so it is their clusters that are split; and `energy` is not monotone in
    the result (see `by_quantile`).

    Args:
        max_splits: splits of the layer at most; None: as many as it takes.
    """
    labels = cluster(features, initial, "kmeans", seed)
    parts = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    threshold = hoh_threshold([features[part] for part in parts], energy, bins, edge, scatter)
    waiting, splits = parts[::-1], 0
    done: list[np.ndarray] = []
    while waiting:
        part = waiting.pop()
        if len(part) > 1 and (max_splits is None or splits < max_splits) and (
            scalar(covariance(features[part], scatter), kind) > threshold
        ):  # fmt: skip
            halves = cluster(features[part], 2, "kmeans", seed)
            if len(np.unique(halves)) == 2:  # identical units make 2-means stall
                waiting += [part[halves == 1], part[halves == 0]]
                splits += 1
                continue
        done.append(part)
    return ClusterSplit(_labels(done, len(features)), threshold, splits)


def by_quantile(features: Tensor, initial: int, energy: float, normalize: bool = True) -> ClusterSplit:
    """Ours: a cut of the Ward tree, deterministic and monotone in `energy`.

    From `initial` clusters on, a cluster is split into its two branches while the mean squared distance of its units to
    their centre exceeds the threshold: the `energy`-quantile of that statistic over all nodes of the tree. A larger
    `energy` keeps fewer units.

    Args:
        normalize: scale the activations of each unit to length one, so that scaled copies merge.
    """
    f = features.double()
    if normalize:
        f = f / f.norm(dim=1, keepdim=True).clamp(min=1e-30)
    units = len(f)
    if units == 1:
        return ClusterSplit(np.zeros(1, dtype=int), 0.0, 0)
    tree = linkage(f.numpy())
    members: list[list[int]] = [[i] for i in range(units)]
    centres, spreads = [f[i] for i in range(units)], [0.0] * units
    for left, right, *_ in tree:
        a, b = int(left), int(right)
        n, m = len(members[a]), len(members[b])
        centre = (n * centres[a] + m * centres[b]) / (n + m)
        between = n * m / (n + m) ** 2 * float((centres[a] - centres[b]).square().sum())
        members.append(members[a] + members[b])
        centres.append(centre)
        spreads.append((n * spreads[a] + m * spreads[b]) / (n + m) + between)
    threshold = float(np.quantile(np.array(spreads[units:]), energy)) + 1e-12 * max(spreads)  # above rounding
    waiting, splits = [len(members) - 1], 0
    done: list[int] = []
    while waiting:  # the nodes in the order of their heights: the last merges first
        waiting.sort()
        node = waiting.pop()
        first = len(waiting) + len(done) + 1 < initial
        if node >= units and (first or spreads[node] > threshold):
            waiting += [int(tree[node - units][0]), int(tree[node - units][1])]
            splits += not first
        else:
            done.append(node)
    return ClusterSplit(_labels([np.array(members[node]) for node in done], units), threshold, splits)


def _labels(parts: list[np.ndarray], units: int) -> np.ndarray:
    labels = np.empty(units, dtype=int)
    for number, part in enumerate(sorted(parts, key=lambda part: int(part.min()))):
        labels[part] = number
    return labels


def as_count(value: float | int, units: int) -> int:
    """An absolute count, or a fraction of the units; at least one."""
    wanted = round(value * units) if isinstance(value, float) else value
    return max(1, min(units, wanted))


__all__ = ["ClusterSplit", "as_count", "by_hoh", "by_quantile", "covariance", "hoh_threshold", "scalar"]
