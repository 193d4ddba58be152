"""The config `OnlinePaths`: each training step runs on freshly sampled paths."""

from __future__ import annotations

from typing import Annotated, Any, Self

import pydantic
import torch
from torch import Tensor, nn

from filigree.config import config
from filigree.convert import Change, Conversion, replace_module
from filigree.modes import outside_graphs
from filigree.nn.drop_in import DropIn
from filigree.ops.pattern import Pattern
from filigree.ops.sparse import linear
from filigree.topology.flat_indices import pattern_from_flat_indices
from filigree.topology.weighted_paths import Steps, check_chain, weighted_paths


class PathSampler:
    """Draws the paths of a step for all its layers."""

    def __init__(self, paths: int, how: Steps, rescale: bool) -> None:
        self.paths, self.how, self.rescale = paths, how, rescale
        self.layers: list[PathLinear] = []
        self.drawn: list[tuple[Tensor, Pattern]] = []
        self._ran: set[int] = set()  # since they were drawn

    @outside_graphs
    def of_step(self, position: int) -> tuple[Tensor, Pattern]:
        """The flat indices and the pattern of a layer's paths; a layer's second call begins the next step."""
        if not self._ran or position in self._ran:
            self._draw()
            self._ran.clear()
        self._ran.add(position)
        return self.drawn[position]

    @torch.no_grad()
    def _draw(self) -> None:
        """New paths, from torch's global generator."""
        drawn = weighted_paths(self.layers, self.paths, self.how, None)
        self.drawn = [
            (flat_indices, pattern_from_flat_indices(flat_indices, layer.out_features, layer.in_features))
            for layer, flat_indices in zip(self.layers, drawn, strict=True)
        ]


class PathLinear(DropIn, nn.Linear):
    """A linear layer that in training uses, in each step, only the weights on sampled paths.

    `y = x (m * W)^T + b`, m zero off the paths; on them 1, or with `rescale` the factor of each unit that keeps the sum
    of its magnitudes (a constant for gradients). In eval mode the whole layer. Gradients of weights off the paths are
    zero.
    """

    sampler: PathSampler
    position: int  # in its chain

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        flat_indices, pattern = self.sampler.of_step(self.position)
        values = _Gather.apply(self.weight, flat_indices)
        if self.sampler.rescale:
            row = torch.repeat_interleave(pattern.indptr.diff().long(), output_size=len(values))
            with torch.no_grad():
                left = values.new_zeros(self.out_features).index_add_(0, row, values.abs())
                factor = self.weight.abs().sum(1) / left.clamp(min=torch.finfo(values.dtype).tiny)
            values = values * factor[row]
        y = linear(pattern, values, self.bias, x.reshape(-1, self.in_features))
        return y.reshape(*x.shape[:-1], self.out_features)

    @property
    def macs(self) -> int:
        """Multiply-adds of one sample in training."""
        return min(self.sampler.paths, self.weight.numel())

    def label(self) -> str:
        return f"PathLinear({self.sampler.paths} paths)"

    @property
    def step_places(self) -> Tensor:
        """Where the weights of the last training step are, row by row."""
        return self.sampler.drawn[self.position][0]


class _Gather(torch.autograd.Function):
    """Weights at distinct flat indices, and their gradient put back there: no sorting, as indexing would."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, flat_indices: Tensor) -> Tensor:
        ctx.save_for_backward(flat_indices)
        ctx.shape = weight.shape
        return weight.flatten()[flat_indices]

    @staticmethod
    def backward(ctx: Any, dvalues: Tensor) -> tuple[Tensor, None]:
        (flat_indices,) = ctx.saved_tensors
        return dvalues.new_zeros(ctx.shape.numel()).index_copy_(0, flat_indices, dvalues).view(ctx.shape), None


@config
class OnlinePaths(Conversion):
    """Train on the paths of one step at a time, "instead of drop connect and drop out" (Keller et al.).

    Before each training step paths are drawn through the network by the magnitudes of its weights, from the outputs
    back (`filigree.topology.weighted_paths`); the step's products cost O(paths) a layer. The linear layers must be a
    chain.

    Args:
        paths: of a step, >= 1. sampling: "jittered" or "independent". rescale: keep each unit's sum of magnitudes.
    """

    keeps_ties, takes_chains = True, True

    paths: Annotated[int, pydantic.Field(ge=1)]
    sampling: Steps = "jittered"
    rescale: bool = True

    @classmethod
    def examples(cls) -> dict[str, Self]:
        return {"OnlinePaths": cls(64)}

    def accepts(self, module: nn.Module) -> bool:
        return type(module) is nn.Linear

    def apply(self, model: nn.Module, names: list[str]) -> list[Change]:
        layers: list[Any] = [model.get_submodule(name) for name in names]
        check_chain(layers, names, "OnlinePaths")
        sampler, changes = PathSampler(self.paths, self.sampling, self.rescale), []
        for name, layer in zip(names, layers, strict=True):
            path_linear = PathLinear.like(layer)
            path_linear.sampler, path_linear.position = sampler, len(sampler.layers)
            sampler.layers.append(path_linear)
            replace_module(model, name, path_linear)
            changes.append(Change.of(name, layer, path_linear))
        return changes
