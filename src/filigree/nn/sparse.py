"""The config `Sparse`: linear layers become sparse ones."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Annotated, Any, Literal

import pydantic
import torch
from torch import Tensor, nn

from filigree.config import config
from filigree.convert import Change, Conversion, replace_module
from filigree.nn.feature_major_linear import FeatureMajorLinear
from filigree.nn.masked_linear import MaskedLinear
from filigree.nn.sparse_linear import SparseLinear
from filigree.timing import race
from filigree.topology import Size, Topology


@config
class Sparse(Conversion):
    """Make linear layers sparse from scratch, before training.

    Args:
        topology: which connections exist, for instance `ErdosRenyi(epsilon=20)`. A layer that it leaves dense
            (Erdos-Renyi at p = 1) keeps its parameters and reads the sparse layers' memory order
            (`filigree.nn.FeatureMajorLinear`, an `nn.Linear`).
        masked: keep the weights dense and multiply them by a mask, as the papers' Keras code does: for comparison, and
            for devices without kernels; saves nothing.
        init: "he" draws values from N(0, 2 / k), k the real fan-in; a number s from N(0, s^2) (the public code of SET's
            authors: 0.1); "keep" keeps the dense layer's weights at the connections.
        fuse: in an `nn.Sequential`, fold an `nn.ReLU` that directly follows into the sparse layer's kernel; an
            `nn.Identity` stays in its place.
        seed: of topology and values.

    A model made under `torch.device("meta")` has no weights yet: its layers are made here, on the CPU: a network whose
    dense form would not fit in memory can be built.
    """

    topology: Topology
    masked: bool = False
    init: Literal["he", "keep"] | Annotated[float, pydantic.Field(gt=0)] = "he"
    fuse: bool = True
    seed: int = 0

    def accepts(self, module: nn.Module) -> bool:
        return type(module) is nn.Linear  # a subclass may be read by its owner (as in nn.MultiheadAttention)

    def apply(self, model: nn.Module, names: list[str]) -> list[Change]:
        return self._apply(model, names, None)

    def apply_if_faster(self, model: nn.Module, names: list[str], batch: int) -> list[Change]:
        if batch < 1:
            raise ValueError(f"convert_: measure must be a batch size of at least 1, or True. Got {batch}.")
        return self._apply(model, names, batch)

    def _apply(self, model: nn.Module, names: list[str], batch: int | None) -> list[Change]:
        layers = [model.get_submodule(name) for name in names]
        generator = torch.Generator().manual_seed(self.seed)
        drawn = self.topology.draw([Size(layer.out_features, layer.in_features) for layer in layers], generator)  # type: ignore[arg-type]
        shared = _shared_parameters(model)
        changes = []
        for number, (name, layer, places) in enumerate(zip(names, layers, drawn, strict=True)):
            assert isinstance(layer, nn.Linear)
            weights = layer.weight.numel()
            parameters = sum(p.numel() for p in layer.parameters())
            before = f"Linear({layer.in_features}, {layer.out_features})"
            if places is None or id(layer.weight) in shared:
                _materialise(layer)
                if not self.masked:
                    replace_module(model, name, FeatureMajorLinear.like(layer))
                note = "stays dense (p = 1)" if places is None else "stays dense: its weight is shared"
                changes.append(Change(name, before, before, (parameters, parameters), (weights, weights), note))
                continue
            sparse = SparseLinear(
                layer.in_features, layer.out_features, None, layer.bias is not None, places=places,
                seed=_mix(self.seed, number), device=_device(layer), dtype=layer.weight.dtype,
            )  # fmt: skip
            if self.init == "keep":
                with torch.no_grad():
                    sparse.values.copy_(layer.weight.flatten()[places.to(layer.weight.device)])
                    if sparse.bias is not None:
                        sparse.bias.copy_(layer.bias)
            elif self.init != "he":
                fan_in = sparse.indptr.diff().repeat_interleave(sparse.indptr.diff().long())
                sparse.values.data.mul_(self.init * (fan_in / 2).sqrt().to(sparse.values.dtype))
            note = ""
            if batch is not None:
                faster, note = _is_faster(MaskedLinear(sparse) if self.masked else sparse, layer, batch)
                if not faster:
                    changes.append(Change(name, before, before, (parameters, parameters), (weights, weights), note))
                    continue
            sparse.relu = self.fuse and _fuse_relu(model, layer)
            made = MaskedLinear(sparse) if self.masked else sparse
            made.requires_grad_(layer.weight.requires_grad)
            replace_module(model, name, made)
            stored = sum(p.numel() for p in made.parameters())
            after = f"{type(made).__name__}({sparse.density:.2%})" + (" + ReLU" if sparse.relu else "")
            macs = (weights, weights if self.masked else sparse.nnz)
            changes.append(Change(name, before, after, (parameters, stored), macs, note))
        return changes


def _is_faster(sparse: nn.Module, layer: nn.Linear, batch: int) -> tuple[bool, str]:
    """Whether forward and backward of the sparse layer take less time than the dense one's, and a note that says so."""
    if layer.weight.is_meta:
        raise ValueError("Sparse: measure needs real weights to time. Got a model on the meta device.")
    x = torch.randn(layer.in_features, batch, device=layer.weight.device, dtype=layer.weight.dtype)
    dy = torch.randn(layer.out_features, batch).to(x)

    def work(module: nn.Module, x: Tensor, dy: Tensor) -> Callable[[], Any]:
        twin = copy.deepcopy(module).requires_grad_()
        return lambda: torch.autograd.grad(twin(x), [x, *twin.parameters()], dy)

    mine = work(sparse, x.t().requires_grad_(), dy.t())  # each in the memory order that it likes
    its = work(layer, x.t().contiguous().requires_grad_(), dy.t().contiguous())
    ours, dense = (timing.median for timing in race([mine, its], seconds=0.1))
    verdict = "" if ours < dense else "stays dense: "
    return ours < dense, f"{verdict}{ours:.3g} ms sparse, {dense:.3g} ms dense at batch {batch}"


def _device(layer: nn.Linear) -> torch.device:
    return torch.device("cpu") if layer.weight.is_meta else layer.weight.device


def _materialise(layer: nn.Linear) -> None:
    if layer.weight.is_meta:
        layer.to_empty(device="cpu")
        layer.reset_parameters()


def _mix(seed: int, number: int) -> int:
    """A seed of its own for each layer's values, so that they do not repeat one another."""
    return (seed * 1_000_003 + number + 1) % 2**63


def _shared_parameters(model: nn.Module) -> set[int]:
    """Parameters that several modules hold: a converted layer would silently let go of its tie."""
    owners: dict[int, int] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    return {key for key, count in owners.items() if count > 1}


def _fuse_relu(model: nn.Module, layer: nn.Module) -> bool:
    """Take out the ReLU behind `layer`, if the layer stands in one nn.Sequential with a plain ReLU behind it."""
    uses = [(parent, key) for parent in model.modules() for key, child in parent._modules.items() if child is layer]
    if len(uses) != 1 or type(uses[0][0]) is not nn.Sequential:
        return False
    parent, key = uses[0]
    keys = list(parent._modules)
    behind = keys[keys.index(key) + 1 : keys.index(key) + 2]
    if not behind or type(parent._modules[behind[0]]) is not nn.ReLU:
        return False
    if parent._modules[behind[0]]._forward_hooks or layer._forward_hooks:  # type: ignore[union-attr]
        return False  # somebody is watching the values in between
    parent._modules[behind[0]] = nn.Identity()
    return True
