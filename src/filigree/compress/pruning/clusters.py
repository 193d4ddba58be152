"""Grouping units that do the same, and choosing one of each group."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import numpy as np
import scipy
import torch
from torch import Tensor

from filigree.optional import needed

Method = Literal["kmeans", "ward", "single", "complete", "average", "centroid", "spectral", "gmm", "dbscan"]
Select = Literal["weight_norm", "bias", "bias_magnitude", "centroid", "random"]
LINKAGES = ("ward", "single", "complete", "average", "centroid")


def cluster(features: Tensor, count: int | None, method: Method, seed: int, eps: float | None = None) -> np.ndarray:
    """Labels from 0 of the units `(units, numbers)`, in at most `count` clusters.

    k-means and Gaussian mixtures (diagonal covariances, on at most 20 principal components) and spectral clustering are
    scikit-learn's, the linkages scipy's. DBSCAN takes a radius, no number: by default the median distance of a unit to
    its nearest neighbour; noise points are clusters of their own.
    """
    f = _turned(features.double()).numpy()
    units = len(f)
    distinct = len(np.unique(f.round(9), axis=0))
    count = units if count is None else max(1, min(count, units, distinct))
    if method == "dbscan":
        return _dbscan(f, eps)
    if count == units:
        return np.arange(units)
    if count == 1:
        return np.zeros(units, dtype=int)
    if method in LINKAGES:
        return np.asarray(scipy.cluster.hierarchy.fcluster(linkage(f, method), count, "maxclust")) - 1
    if method == "kmeans":
        starts = 4 if units * count <= 20_000 else 1
        return _sklearn("cluster").KMeans(count, n_init=starts, random_state=seed).fit_predict(f)
    if method == "spectral":
        near = min(10, units - 1)
        clustering = _sklearn("cluster").SpectralClustering(
            count, affinity="nearest_neighbors", n_neighbors=near, random_state=seed, assign_labels="cluster_qr"
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a graph in parts is no mistake here
            return clustering.fit_predict(f)
    reduced = _sklearn("decomposition").PCA(min(20, units, f.shape[1]), random_state=seed).fit_transform(f)
    mixture = _sklearn("mixture").GaussianMixture(count, covariance_type="diag", random_state=seed, reg_covar=1e-4)
    return mixture.fit_predict(reduced)


def _turned(f: Tensor) -> Tensor:
    """The same points in as many coordinates as there are points: distances stay, clustering is faster."""
    if f.shape[1] <= len(f):
        return f
    centred = f - f.mean(0)
    values, vectors = torch.linalg.eigh(centred @ centred.T)
    return vectors * values.clamp(min=0).sqrt()


def linkage(f: np.ndarray, method: str = "ward") -> np.ndarray:
    """The tree of merges (scipy's linkage matrix)."""
    return scipy.cluster.hierarchy.linkage(f, method)


def _dbscan(f: np.ndarray, eps: float | None) -> np.ndarray:
    distances = np.sqrt(np.maximum(((f[:, None] - f[None]) ** 2).sum(2), 0)) if len(f) <= 300 else None
    if eps is None:
        if distances is None:
            nearest = _sklearn("neighbors").NearestNeighbors(n_neighbors=2).fit(f).kneighbors(f)[0][:, 1]
        else:
            nearest = np.where(np.eye(len(f), dtype=bool), np.inf, distances).min(1)
        eps = float(np.median(nearest))
    labels = _sklearn("cluster").DBSCAN(eps=max(eps, 1e-12), min_samples=2).fit_predict(f)
    noise = labels < 0
    labels[noise] = labels.max(initial=-1) + 1 + np.arange(int(noise.sum()))
    return labels


def representatives(
    labels: np.ndarray, features: Tensor, norms: Tensor, biases: Tensor | None, select: Select, seed: int
) -> tuple[Tensor, Tensor]:
    """The unit kept of each cluster, and of each unit the one that inherits from it.

    Args:
        norms: incoming + outgoing L1 norms of the units (John 2019, 4.12). biases: of the units, or None.
        select: "weight_norm" the largest norm, "bias" the largest bias (4.13), "bias_magnitude" (4.4.1), "centroid" the
            nearest to the mean, "random".
    """
    generator = np.random.default_rng(seed)
    if select in ("bias", "bias_magnitude") and biases is None:
        select = "weight_norm"
    replacement = torch.empty(len(labels), dtype=torch.long)
    kept = []
    for label in np.unique(labels):
        members = torch.from_numpy((labels == label).nonzero()[0])
        if select == "random":
            best = int(members[generator.integers(len(members))])
        elif select == "centroid":
            f = features[members].double()
            best = int(members[int((f - f.mean(0)).square().sum(1).argmin())])
        else:
            score = norms if select == "weight_norm" or biases is None else biases.abs() if "mag" in select else biases
            best = int(members[int(score[members].argmax())])
        replacement[members] = best
        kept.append(best)
    return torch.tensor(sorted(kept)), replacement


def replacements_of(kept: Tensor, features: Tensor) -> Tensor:
    """Of each unit the kept one whose activations correlate with its own most; itself where it is kept."""
    f = features.double() - features.double().mean(1, keepdim=True)
    f = f / f.norm(dim=1, keepdim=True).clamp(min=1e-30)
    replacement = kept[(f @ f[kept].T).abs().argmax(1)]
    replacement[kept] = kept
    return replacement


def dead(features: Tensor) -> Tensor:
    """Units that are constant on the data: `(units,)` booleans."""
    spread = features.amax(1) - features.amin(1)
    return spread <= 1e-6 * features.abs().amax().clamp(min=1e-30)


def _sklearn(part: str) -> Any:
    return needed(f"sklearn.{part}", "pruning", "pruning")
