"""Layers whose connections are the edges of paths from inputs to outputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

import numpy as np
import pydantic
import scipy
import torch
from torch import Tensor

from filigree.config import config
from filigree.topology.topology import Drawn, Size, Topology

CHUNK = 1 << 20  # paths drawn at once


@config
class Paths(Topology):
    """A network made of paths (Keller et al.; Keller and Van Keirsbilck 2021).

    The number of weights grows with the paths, not with the network.

    Path i visits unit `floor(width x_l(i))` of layer l, x a point of a sequence with a dimension for each layer of
    units: consecutive dimensions link consecutive layers. With Sobol points, a power of two of paths and widths that
    are powers of two up to it, every unit is visited by the same number of paths (progressive permutations): constant
    fan-in and fan-out, counted with multiplicity; with other widths the numbers differ by one or two. An edge that
    several paths share is one connection. Of a convolution the units are channels, and an edge has all of the kernel's
    weights.

    Layers are taken in order, so the network must be a chain (an MLP, a plain CNN). Work and memory are O(paths) for
    each layer.

    Args:
        paths: how many, >= 1.
        sequence: "sobol", or "random" for independent uniform points.
        scramble: Owen scrambling of the Sobol points, by the seed of `fg.Sparse`.
        weights: initial values: "random" (the layer's own), "constant" (all positive), "sign" (the same magnitude; a
            path is positive or negative along all its edges, by one more dimension). A connection is proportional to
            the number of its paths, and the squares of a unit's sum to 2, as He's in expectation.
    """

    paths: Annotated[int, pydantic.Field(ge=1)]
    sequence: Literal["sobol", "random"] = "sobol"
    scramble: bool = False
    weights: Literal["random", "constant", "sign"] = "random"

    def draw(self, sizes: Sequence[Size], generator: torch.Generator) -> list[Tensor | None]:
        return [drawn.flat_indices for drawn in self.draw_weighted(sizes, generator)]

    def draw_weighted(self, sizes: Sequence[Size], generator: torch.Generator) -> list[Drawn]:
        visits: list[tuple[list[np.ndarray], list[np.ndarray]]] = [([], []) for _ in sizes]
        signs = []
        for points in self._points(len(sizes) + 2, generator):
            signs.append(np.where(points[:, -1].numpy() < 0.5, 1, -1).astype(np.int8))
            for (rows, cols), size, before, after in zip(visits, sizes, points.T, points.T[1:], strict=False):
                rows.append(_units(after, size.out_features))
                cols.append(_units(before, size.in_units))
        sign = np.concatenate(signs)
        return [
            self._merged(size, np.concatenate(rows), np.concatenate(cols), sign)
            for size, (rows, cols) in zip(sizes, visits, strict=True)
        ]

    def _points(self, dimensions: int, generator: torch.Generator) -> Iterator[Tensor]:
        """The points in [0, 1), `(paths, dimensions)`, a chunk at a time."""
        engine = None
        if self.sequence == "sobol":
            seed = int(torch.randint(2**31, (), generator=generator)) if self.scramble else None
            engine = torch.quasirandom.SobolEngine(dimensions, self.scramble, seed)
        for first in range(0, self.paths, CHUNK):
            count = min(CHUNK, self.paths - first)
            if engine is None:
                yield torch.rand(count, dimensions, generator=generator, dtype=torch.float64)
            else:
                yield engine.draw(count, dtype=torch.float64)

    def _merged(self, size: Size, rows: np.ndarray, cols: np.ndarray, sign: np.ndarray) -> Drawn:
        """The distinct edges of a layer in order, their values and a note on them."""
        shape = (size.out_features, size.in_units)
        edges = scipy.sparse.coo_array((np.ones(len(rows), np.int32), (rows, cols)), shape).tocsr()
        edges.sort_indices()
        edges.sum_duplicates()
        taps = size.in_features // size.in_units
        row = np.repeat(np.arange(shape[0], dtype=np.int64), np.diff(edges.indptr))
        flat_indices = row * size.in_features + edges.indices.astype(np.int64) * taps
        if taps > 1:
            flat_indices = (flat_indices[:, None] + np.arange(taps)).reshape(-1)
        values = None
        if self.weights != "random":
            factor = edges.data.astype(np.float64)
            if self.weights == "sign":
                signed = scipy.sparse.coo_array((sign.astype(np.int32), (rows, cols)), shape).tocsr()
                signed.sort_indices()
                signed.sum_duplicates()
                factor = np.where(signed.data != 0, signed.data, 1).astype(np.float64)
            squares = np.bincount(row, factor**2, shape[0])[row] * taps
            values = torch.from_numpy(np.repeat(factor * np.sqrt(2 / squares), taps))
        notes = []
        if len(edges.data) < self.paths:
            notes.append(f"{self.paths:,} paths on {len(edges.data):,} edges")
        if any(side & (side - 1) for side in shape):
            notes.append("not powers of two: valence nearly constant")
        if values is None and len(flat_indices) == size.numel:
            return Drawn(None)
        return Drawn(torch.from_numpy(flat_indices), values, "; ".join(notes))


def _units(points: Tensor, width: int) -> np.ndarray:
    return (points * width).to(torch.int32).numpy()
