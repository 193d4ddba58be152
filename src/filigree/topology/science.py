"""Network science of sparse layers: is a trained topology still random?

A layer is a bipartite graph, a `scipy.sparse.csr_array` `(outputs, inputs)`; a network is a list of them in order.
Every figure is compared with its Erdos-Renyi null: graphs of the same size and number of connections (Chouliaras 2021,
3.3.3, 3.5).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy  # its parts load at their first use

from filigree.text_table import Tabular

if TYPE_CHECKING:
    from scipy.sparse import csr_array as SparseMatrix


def degrees(pattern: SparseMatrix) -> tuple[np.ndarray, np.ndarray]:
    """Fan-in of each output and fan-out of each input."""
    return np.diff(pattern.indptr), np.bincount(pattern.indices, minlength=pattern.shape[1])


def coarse(pattern: SparseMatrix, most: tuple[int, int]) -> np.ndarray:
    """A picture of a pattern of at most so many rows and columns: in each cell the share that is connected."""
    sides = tuple(map(min, most, pattern.shape))
    outputs, inputs = (at.astype(np.int64) for at in pattern.nonzero())
    cells = outputs * sides[0] // pattern.shape[0] * sides[1] + inputs * sides[1] // pattern.shape[1]
    counts = np.bincount(cells, minlength=sides[0] * sides[1]).reshape(sides)
    sizes = [
        np.bincount(np.arange(whole) * side // whole, minlength=side)
        for side, whole in zip(sides, pattern.shape, strict=True)
    ]
    return np.asarray(counts / np.outer(*sizes))


@dataclass(frozen=True)
class PowerLaw:
    """A discrete power law p(k) ~ k^-alpha, k >= xmin, fitted to degrees.

    `ks` is the Kolmogorov-Smirnov distance. `against_null` is the log-likelihood ratio to a Poisson distribution cut at
    xmin, the distribution of degrees in an Erdos-Renyi graph (positive: the power law fits better), `p` its two-sided
    p-value (Vuong 1989).
    """

    alpha: float
    xmin: int
    ks: float
    tail: int
    against_null: float
    p: float


def power_law_fit(numbers: Sequence[int] | np.ndarray, xmin: int | None = None, least: int = 10) -> PowerLaw:
    """Maximum likelihood with the zeta function, xmin by the smallest KS distance (Clauset, Shalizi, Newman 2009).

    Args:
        numbers: degrees; zeros are left out. xmin: fixed, or searched over the values that leave `least` of them.

    Returns:
        nan throughout where fewer than `least` numbers, or only one value, remain.
    """
    k = np.asarray(numbers)
    k = np.sort(k[k > 0])
    nothing = PowerLaw(math.nan, 0, math.nan, len(k), math.nan, math.nan)
    candidates = [xmin] if xmin is not None else [int(v) for v in np.unique(k) if (k >= v).sum() >= least]
    fits = [fit for start in candidates if (fit := _fit(k[k >= start], start)) is not None]
    if not fits:
        return nothing
    alpha, start, ks = min(fits, key=lambda fit: fit[2])
    tail = k[k >= start]
    mean = _cut_poisson_mean(tail.mean(), start)
    difference = -alpha * np.log(tail) - math.log(scipy.special.zeta(alpha, start))
    difference -= scipy.stats.poisson.logpmf(tail, mean) - scipy.stats.poisson.logsf(start - 1, mean)
    ratio, spread = float(difference.sum()), float(difference.std()) * math.sqrt(len(tail))
    p = float(2 * scipy.stats.norm.sf(abs(ratio) / spread)) if spread > 0 else math.nan
    return PowerLaw(alpha, start, ks, len(tail), ratio, p)


def _fit(tail: np.ndarray, start: int) -> tuple[float, int, float] | None:
    if len(tail) < 2 or tail[0] == tail[-1]:
        return None
    logs = float(np.log(tail).mean())
    fit = scipy.optimize.minimize_scalar(
        lambda a: a * logs + math.log(scipy.special.zeta(a, start)), bounds=(1.01, 30), method="bounded"
    )
    values, counts = np.unique(tail, return_counts=True)
    empirical = np.cumsum(counts) / len(tail)
    fitted = 1 - scipy.special.zeta(fit.x, values + 1) / scipy.special.zeta(fit.x, start)
    return float(fit.x), start, float(np.abs(empirical - fitted).max())


def _cut_poisson_mean(target: float, start: int) -> float:
    """The parameter of a Poisson distribution whose mean above `start` - 1 is `target`."""

    def mean(rate: float) -> float:
        above = scipy.stats.poisson.sf(start - 1, rate)
        return rate * scipy.stats.poisson.sf(start - 2, rate) / above - target if above > 0 else start - target

    return float(scipy.optimize.brentq(mean, 1e-9, 2 * target + 10)) if mean(1e-9) < 0 else 1e-9


def clustering(pattern: SparseMatrix, block: int = 512) -> float:
    """Bipartite clustering: 4 (cycles of four) / (paths of three edges) (Robins and Alexander 2004).

    Triangles do not exist in layered graphs; squares do. Computed from A A^T by blocks of rows, in O(block x rows).
    nan where there is no path of three edges.
    """
    a = scipy.sparse.csr_array((np.ones(pattern.nnz), pattern.indices, pattern.indptr), shape=pattern.shape)
    fan_in, fan_out = (d.astype(float) for d in degrees(a))
    transposed, squares = a.T.tocsr(), 0.0
    for start in range(0, a.shape[0], block):
        shared = (a[start : start + block] @ transposed).tocoo()
        off = shared.col != shared.row + start
        squares += float((shared.data[off] * (shared.data[off] - 1)).sum())
    squares /= 4  # each pair of rows was met twice, n (n - 1) is twice the number of pairs of shared inputs
    rows = np.repeat(fan_in, np.diff(a.indptr))
    paths = float(((rows - 1) * (fan_out[a.indices] - 1)).sum())
    return 4 * squares / paths if paths else math.nan


def graph(patterns: Sequence[SparseMatrix]) -> SparseMatrix:
    """The undirected layered graph of a network: inputs first, then each layer's outputs."""
    sizes = [patterns[0].shape[1], *(p.shape[0] for p in patterns)]
    starts = np.cumsum([0, *sizes])
    rows = np.concatenate([p.tocoo().row + starts[i + 1] for i, p in enumerate(patterns)])
    cols = np.concatenate([p.tocoo().col + starts[i] for i, p in enumerate(patterns)])
    upper = scipy.sparse.csr_array((np.ones(len(rows), np.int8), (rows, cols)), shape=(starts[-1], starts[-1]))
    return (upper + upper.T).tocsr()


def mean_path_length(patterns: Sequence[SparseMatrix], sources: int = 64, seed: int = 0) -> tuple[float, float]:
    """The mean distance between connected nodes of the (layered, undirected) graph, and the share of pairs apart.

    Breadth-first from `sources` nodes drawn at random; exact where there are no more nodes than that.
    """
    whole = graph(patterns)
    n = whole.shape[0]
    chosen = np.arange(n) if n <= sources else np.random.default_rng(seed).choice(n, sources, replace=False)
    distances = scipy.sparse.csgraph.dijkstra(whole, directed=False, indices=chosen, unweighted=True)
    pairs = distances[(distances > 0)]
    reached = pairs[np.isfinite(pairs)]
    return (float(reached.mean()) if len(reached) else math.nan), float(1 - len(reached) / max(len(pairs), 1))


def small_world_index(cluster: float, null_cluster: float, length: float, null_length: float) -> float:
    """sigma = (C / C_null) / (L / L_null), C the bipartite clustering; above 1: a small world (Humphries 2008)."""
    bottom = null_cluster * length
    return cluster * null_length / bottom if bottom else math.nan


def survival_curve(births: np.ndarray, deaths: np.ndarray, now: int) -> tuple[np.ndarray, np.ndarray]:
    """The share of connections that live longer than an age (Kaplan and Meier 1958).

    Args:
        births: when each connection was grown. deaths: when it was removed, -1 for those alive.
        now: the time, at which the living are censored.

    Returns:
        ages at which connections died, ascending, and the share that outlives each.
    """
    ages = np.where(deaths < 0, now, deaths) - births
    died = np.unique(ages[deaths >= 0])
    at_risk = len(ages) - np.searchsorted(np.sort(ages), died)
    gone = np.array([((ages == age) & (deaths >= 0)).sum() for age in died])
    return died, np.cumprod(1 - gone / at_risk) if len(died) else np.empty(0)


def input_strength(pattern: SparseMatrix) -> np.ndarray:
    """The sum of |w| over each input's connections: a ranking of features (Atashgahi et al. 2022, QuickSelection)."""
    return np.bincount(pattern.indices, np.abs(pattern.data), minlength=pattern.shape[1])


def rank_features(pattern: SparseMatrix) -> np.ndarray:
    """The inputs, strongest first."""
    return np.argsort(-input_strength(pattern), kind="stable")


@dataclass(frozen=True)
class Against:
    """A figure beside its Erdos-Renyi null: mean and standard deviation over the draws, and the z-score."""

    value: float
    null: float
    deviation: float

    @property
    def z(self) -> float:
        return (self.value - self.null) / self.deviation if self.deviation > 0 else math.nan


@dataclass(frozen=True)
class GraphReport:
    """Figures of one layer, or of the whole network (no degrees then)."""

    name: str
    nodes: int
    connections: int
    clustering: Against
    path_length: Against
    small_world: float
    fan_in_deviation: Against | None = None
    fan_out_deviation: Against | None = None
    fan_in_law: PowerLaw | None = None
    fan_out_law: PowerLaw | None = None


@dataclass(frozen=True)
class NetworkReport(Tabular):
    """The figures of `analyze`; prints as a table."""

    layers: list[GraphReport]
    network: GraphReport

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def table_rows(self) -> list[Sequence[str]]:
        head = ("layer", "connections", "clustering (null, z)", "path length (null, z)", "small world",
                "fan-out sd (null, z)", "power law of fan-out")  # fmt: skip
        return [head, *(_cells(row) for row in [*self.layers, self.network])]


def analyze(
    patterns: Sequence[SparseMatrix], names: Sequence[str] | None = None, seed: int = 0, nulls: int = 10
) -> NetworkReport:
    """Every figure of every layer and of the whole network against `nulls` Erdos-Renyi draws.

    A network of 3 x 1000 at epsilon 20 takes some seconds, one of 4 x 4000 about a minute.
    """
    names = list(names) if names is not None else [str(i) for i in range(len(patterns))]
    generator = np.random.default_rng(seed)
    draws = [[_null(pattern, generator) for pattern in patterns] for _ in range(nulls)]
    layers = []
    for i, (name, pattern) in enumerate(zip(names, patterns, strict=True)):
        same = [draw[i] for draw in draws]
        fan_in, fan_out = degrees(pattern)
        report = _compare(name, [pattern], [[null] for null in same], clustering, seed)
        layers.append(
            GraphReport(
                **report,
                fan_in_deviation=_against(fan_in.std(), [degrees(null)[0].std() for null in same]),
                fan_out_deviation=_against(fan_out.std(), [degrees(null)[1].std() for null in same]),
                fan_in_law=power_law_fit(fan_in),
                fan_out_law=power_law_fit(fan_out),
            )
        )
    chained = all(a.shape[0] == b.shape[1] for a, b in pairwise(patterns))
    if not chained:
        raise ValueError("analyze: each layer must have as many inputs as the one before has outputs.")
    return NetworkReport(layers, GraphReport(**_compare("network", patterns, draws, _mean_clustering, seed)))


def _mean_clustering(patterns: Sequence[SparseMatrix] | SparseMatrix) -> float:
    values = [clustering(p) for p in patterns] if isinstance(patterns, list | tuple) else [clustering(patterns)]
    known = [v for v in values if not math.isnan(v)]
    return float(np.mean(known)) if known else math.nan


def _compare(
    name: str,
    patterns: Sequence[SparseMatrix],
    nulls: Sequence[Sequence[SparseMatrix]],
    cluster: Callable[..., float],
    seed: int,
) -> dict[str, Any]:
    def figure(graph_: Sequence[SparseMatrix]) -> tuple[float, float]:
        return cluster(graph_[0] if len(graph_) == 1 else list(graph_)), mean_path_length(graph_, seed=seed)[0]

    (cluster_value, length), others = figure(patterns), [figure(null) for null in nulls]
    c, path = _against(cluster_value, [o[0] for o in others]), _against(length, [o[1] for o in others])
    return {
        "name": name,
        "nodes": patterns[0].shape[1] + sum(p.shape[0] for p in patterns),
        "connections": sum(p.nnz for p in patterns),
        "clustering": c,
        "path_length": path,
        "small_world": small_world_index(c.value, c.null, path.value, path.null),
    }


def _null(pattern: SparseMatrix, generator: np.random.Generator) -> SparseMatrix:
    rows, cols = pattern.shape
    flat_indices = generator.choice(rows * cols, pattern.nnz, replace=False, shuffle=False)
    return scipy.sparse.csr_array(
        (np.ones(pattern.nnz), (flat_indices // cols, flat_indices % cols)), shape=pattern.shape
    )


def _against(value: float, nulls: Sequence[float]) -> Against:
    known = [v for v in nulls if not math.isnan(v)]
    mean = float(np.mean(known)) if known else math.nan
    return Against(float(value), mean, float(np.std(known, ddof=1)) if len(known) > 1 else math.nan)


def _cells(row: GraphReport) -> tuple[str, ...]:
    def beside(figure: Against | None) -> str:
        return "" if figure is None else f"{figure.value:.4g} ({figure.null:.4g}, {figure.z:+.1f})"

    law = row.fan_out_law
    better = (
        "" if law is None or math.isnan(law.p) else " better" if law.against_null > 0 and law.p < 0.05 else " no better"
    )
    text = "" if law is None else f"alpha {law.alpha:.2f}, KS {law.ks:.2f}, {better} than Poisson" if better else "-"
    return (row.name, f"{row.connections:,}", beside(row.clustering), beside(row.path_length), f"{row.small_world:.3f}",
            beside(row.fan_out_deviation), text)  # fmt: skip
