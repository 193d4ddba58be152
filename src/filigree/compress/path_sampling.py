"""The config `PathSampling`: a trained network reduced to the edges of sampled paths."""

from __future__ import annotations

from typing import Annotated, Any, Self

import pydantic
import torch
from torch import nn

from filigree.calibration import Calibration
from filigree.compress.compression import Compression
from filigree.config import config
from filigree.convert import Change, Conversion, replace_module
from filigree.nn.sparse.sparse import Sparse, channel_major_
from filigree.nn.sparse.sparse_conv2d import SparseConv2d
from filigree.nn.sparse.sparse_linear import SparseLinear
from filigree.topology import Empty
from filigree.topology.weighted_paths import Steps, check_chain, weighted_paths


@config
class PathSampling(Compression):
    """Keep the edges of paths drawn through a trained network; the rest goes (Keller et al.).

    At most paths x depth edges are kept.

    Paths run from the outputs back to the inputs, at each unit to an input by |w_ij| / sum_j |w_ij|
    (`filigree.topology.weighted_paths`). The layers become sparse ones with the weights that they had.

    Args:
        paths: how many, >= 1; more than edges is allowed.
        sampling: "jittered": equidistant points at each unit; "independent".
        rescale: multiply each unit's kept weights so that their magnitudes add up to what all did.
        seed: of the paths.

    Raises:
        ValueError: layers that are no chain, by name; a layer whose weights are all zero or not finite.
    """

    takes_chains = True

    paths: Annotated[int, pydantic.Field(ge=1)]
    sampling: Steps = "jittered"
    rescale: bool = True
    seed: int = 0

    @classmethod
    def examples(cls) -> dict[str, Self]:
        return {"PathSampling": cls(64)}

    def accepts(self, module: nn.Module) -> bool:
        return type(module) in (nn.Linear, nn.Conv2d)

    @torch.no_grad()
    def compress(
        self, model: nn.Module, names: list[str], data: Calibration | None
    ) -> tuple[list[Change], list[tuple[Conversion, list[str]]]]:
        layers: list[Any] = [model.get_submodule(name) for name in names]
        check_chain(layers, names, "PathSampling")
        for name, layer in zip(names, layers, strict=True):
            if not bool(layer.weight.isfinite().all()) or not bool(layer.weight.any()):
                raise ValueError(f"PathSampling: the weights of {name!r} are all zero or not finite.")
        kept = weighted_paths(layers, self.paths, self.sampling, torch.Generator().manual_seed(self.seed))
        changes = []
        for name, layer, flat_indices in zip(names, layers, kept, strict=True):
            weight = layer.weight
            mask = torch.zeros(weight.numel(), dtype=torch.bool)
            mask[flat_indices] = True
            mask = mask.view_as(weight)
            sparse = (SparseConv2d if isinstance(layer, nn.Conv2d) else SparseLinear).from_dense(layer, mask)
            if self.rescale:
                sums, left = weight.abs().flatten(1).sum(1), (weight.abs() * mask).flatten(1).sum(1)
                factor = torch.where(left > 0, sums / left.clamp(min=torch.finfo(left.dtype).tiny), 1)
                sparse.values.mul_(factor.repeat_interleave(sparse.indptr.diff().long()))
            replace_module(model, name, sparse)
            merged = " (merged)" if self.paths > weight.numel() else ""
            changes.append(Change.of(name, layer, sparse, f"{self.paths:,} paths on {sparse.nnz:,} weights{merged}"))
        # what rebuilds the layers on loading: their connections come from the file
        return [*changes, *channel_major_(model)], [(Sparse(Empty(), fuse=False), names)]
