"""The config `Sparse`: linear layers and convolutions become sparse ones."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any, Literal, Self

import pydantic
import torch
from torch import Tensor, nn

from filigree.computed_weights import computed_tensors
from filigree.config import config
from filigree.convert import Change, Conversion, replace_module
from filigree.measure.timing import time_interleaved
from filigree.nn.fuse import fuse_relu
from filigree.nn.layered_attention import LayeredAttention
from filigree.nn.sparse.channel_major_batch_norm import ChannelMajorBatchNorm2d
from filigree.nn.sparse.channel_major_conv2d import ChannelMajorConv2d
from filigree.nn.sparse.feature_major_linear import FeatureMajorLinear
from filigree.nn.sparse.masked import MaskedConv2d, MaskedLayer, MaskedLinear
from filigree.nn.sparse.sharded_linear import ShardedLinear
from filigree.nn.sparse.sharding import FEW
from filigree.nn.sparse.sparse_conv2d import SparseConv2d, conv_size
from filigree.nn.sparse.sparse_layer import SparseLayer
from filigree.nn.sparse.sparse_linear import SparseLinear
from filigree.nn.sparse.sparse_sequential import SparseSequential
from filigree.nn.structured.structured_rnn import StructuredRNN
from filigree.ties import shared_parameters
from filigree.topology import Drawn, Empty, ErdosRenyi, Paths, Size, Topology
from filigree.topology.shards import WHOLE, Whole, shards_of


@config
class Sparse(Conversion):
    """Make linear layers, 2-D convolutions, LSTMs, GRUs and attention sparse from scratch, before training.

    Args:
        topology: which connections exist, for instance `ErdosRenyi(epsilon=20)` or, for a whole network,
            `ErdosRenyiKernel(density=0.05)`. A linear layer that it leaves dense (p = 1) keeps its parameters and reads
            the sparse layers' memory order (`filigree.nn.FeatureMajorLinear`, an `nn.Linear`); so do the batch norms
            and dense convolutions of a network with sparse ones (`filigree.nn.ChannelMajorBatchNorm2d`, `...Conv2d`).
            An `nn.LSTM` or `nn.GRU` becomes a `filigree.nn.StructuredRNN`, a loop over sparse products, an
            `nn.MultiheadAttention` a `filigree.nn.LayeredAttention`, whose four projections are sparse.
        masked: keep the weights dense and multiply them by a mask, as the papers' Keras code does: for comparison, and
            for devices without kernels; saves nothing.
        init: "he" draws values from N(0, 2 / k), k the real fan-in; a number s from N(0, s^2) (the public code of SET's
            authors: 0.1); "keep" keeps the dense layer's weights at the connections, which the topology draws
            whatever the weights are; "largest" puts as many connections as it draws at each layer's largest weights,
            and keeps these: for a network that is trained already (with data, `fg.OneShot` does better there).
        fuse: in an `nn.Sequential`, fold an `nn.ReLU` that directly follows into the sparse layer's kernel; an
            `nn.Identity` stays in its place.
        seed: of topology and values.
        activations: "bfloat16" or "float16": linear layers of float32 values read their inputs and write their outputs
            rounded to these 16 bits, sums stay float32; see `filigree.nn.SparseLinear`. Convolutions do not.
        sharded: divide the rows of linear layers over the processes of `torch.distributed`: each draws and holds its
            own, as `filigree.nn.ShardedLinear`, and no process ever a whole layer (of a model on the meta device). They
            are the layers that `sharded=False` makes. `ErdosRenyi` and `ErdosRenyiKernel` are drawn row by row; other
            topologies, and weights that are kept, are whole for a moment. Files say nothing of it.

    A model made under `torch.device("meta")` has no weights yet: its layers are made here, on the CPU: a network whose
    dense form would not fit in memory can be built.
    """

    keeps_ties = True

    topology: Topology
    masked: bool = False
    init: Literal["he", "keep", "largest"] | Annotated[float, pydantic.Field(gt=0)] = "he"
    fuse: bool = True
    seed: int = 0
    activations: Literal["bfloat16", "float16"] | None = None
    sharded: bool = False

    def __post_init__(self) -> None:
        if self.masked and self.sharded:
            raise ValueError("Sparse: sharded=True divides sparse layers, not those of masked=True.")
        if self.masked and self.activations:
            raise ValueError(f"Sparse: activations={self.activations!r} is for sparse kernels, not for masked=True.")

    @classmethod
    def examples(cls) -> dict[str, Self]:
        return {
            "Sparse": cls(ErdosRenyi(density=0.3)),
            "Sparse, masked": cls(ErdosRenyi(density=0.3), masked=True),
            "Paths": cls(Paths(64)),
        }

    def accepts(self, module: nn.Module) -> bool:
        # a subclass may be read by its owner (as out_proj of nn.MultiheadAttention)
        if type(module) is nn.MultiheadAttention:
            return LayeredAttention.why_not(module) is None
        return type(module) in (nn.Linear, nn.Conv2d, nn.LSTM, nn.GRU)

    def stored(self) -> Conversion:
        return replace(self, sharded=False)

    def apply(self, model: nn.Module, names: list[str]) -> list[Change]:
        return self._apply(model, names, None)

    def apply_if_faster(
        self, model: nn.Module, names: list[str], inputs: dict[str, Tensor]
    ) -> tuple[list[Change], list[tuple[Conversion, list[str]]]]:
        if self.sharded:
            raise ValueError("Sparse: layers with sharded=True cannot be chosen by measurement. Leave out measure=.")
        whole = [name for name in names if isinstance(model.get_submodule(name), nn.MultiheadAttention)]
        names = [name for name in names if name not in whole]
        changes = self._apply(model, names, inputs) if names else []
        for name in whole:
            attention = model.get_submodule(name)
            changes.append(_stays(name, attention, "measure cannot judge its projections"))
        kinds: tuple[tuple[Topology, Any], ...] = (  # drawn for fewer layers the topology may leave others dense
            (ErdosRenyi(density=1.0), FeatureMajorLinear | ChannelMajorConv2d),
            (Empty(), SparseLayer | MaskedLayer),  # connections come from the file
        )
        steps: list[tuple[Conversion, list[str]]] = []
        for topology, kind in kinds:
            if converted := [name for name in names if isinstance(model.get_submodule(name), kind)]:
                steps.append((replace(self, topology=topology), converted))
        return changes, steps

    def _apply(self, model: nn.Module, names: list[str], inputs: dict[str, Tensor] | None) -> list[Change]:
        shared = shared_parameters(model)  # a layer that loses one would break the weight tying
        tied = [name for name in names if isinstance(part := model.get_submodule(name), nn.MultiheadAttention)
                and any(id(parameter) in shared for parameter in part.parameters())]  # fmt: skip
        changes = [_stays(name, model.get_submodule(name), "its weight is shared") for name in tied]
        names = [name for name in names if name not in tied]
        unfolded = {name: _unfolded(model.get_submodule(name), name, inputs) for name in names}
        products_by_name = {
            f"{name}.{path}".removesuffix("."): layer
            for name, (_, products) in unfolded.items()
            for path, layer in products.items()
        }
        names, layers = list(products_by_name), list(products_by_name.values())
        generator = torch.Generator().manual_seed(self.seed)
        weighted = [layer for layer in layers if layer.weight.numel()]  # others have nothing to draw
        parts = [self._part(layer) for layer in weighted]
        drawn = deque(self.topology.draw_rows([_size(layer) for layer in weighted], generator, parts))
        for name, (looped, _) in unfolded.items():  # only now, when nothing can be refused any more
            if looped is not model.get_submodule(name):
                replace_module(model, name, looped)
        for number, (name, layer) in enumerate(zip(names, layers, strict=True)):
            # They are let go one by one, while layers take memory.
            flat_indices, values, note = drawn.popleft() if layer.weight.numel() else Drawn(None)
            if flat_indices is None or id(layer.weight) in shared:
                _materialise(layer)
                if not self.masked:
                    like = FeatureMajorLinear if isinstance(layer, nn.Linear) else ChannelMajorConv2d
                    replace_module(model, name, like.like(layer))
                note = "stays dense: its weight is shared"
                if flat_indices is None:
                    note = f"stays dense{' (p = 1)' if layer.weight.numel() else ': it has no weights'}"
                changes.append(Change.of(name, layer, layer, note))
                continue
            sparse = self._sparse(layer, flat_indices, number, values)
            if self.sharded and isinstance(sparse, SparseLinear):
                note = FEW
            if inputs is not None:
                faster, note = _is_faster(_masked(sparse) if self.masked else sparse, layer, inputs[name])
                if not faster:
                    changes.append(Change.of(name, layer, layer, note))
                    continue
            if isinstance(layer, nn.Linear):
                _rows(sparse).relu = self.fuse and fuse_relu(model, layer)
            converted = _masked(sparse) if self.masked else sparse
            replace_module(model, name, converted)
            changes.append(Change.of(name, layer, converted, note))
        return [*changes, *(change for change in around_sparse_(model) if change.name not in names)]

    def _divides(self, layer: nn.Linear | nn.Conv2d) -> bool:
        """Whether the layer's rows are divided over the processes."""
        if not self.sharded or isinstance(layer, nn.Conv2d):
            return False
        return shards_of(None, "Sparse: sharded=True").processes <= layer.out_features

    def _part(self, layer: nn.Linear | nn.Conv2d) -> Whole:
        """Which rows of a layer are drawn here. Weights that are kept are there in every process, and divided later."""
        return shards_of(None, "Sparse") if self._divides(layer) and not self._keeps(layer) else WHOLE

    def _keeps(self, layer: nn.Linear | nn.Conv2d) -> bool:
        """Whether the layer's own weights are kept; on the meta device a file brings them, or nothing does."""
        return self.init in ("keep", "largest") and not layer.weight.is_meta

    def _sparse(
        self, layer: nn.Linear | nn.Conv2d, flat_indices: Tensor, number: int, values: Tensor | None
    ) -> SparseLinear | SparseConv2d | ShardedLinear:
        """The sparse layer with these connections, and the topology's initial values if it has them."""
        seed, device, keeps = _mix(self.seed, number), _device(layer), self._keeps(layer)
        if self.init == "largest" and keeps:
            flat_indices = layer.weight.detach().abs().flatten().topk(len(flat_indices)).indices.sort().values.cpu()
        replacement: SparseLinear | SparseConv2d | ShardedLinear
        divides = self._divides(layer)
        if isinstance(layer, nn.Conv2d):
            replacement = SparseConv2d(layer, flat_indices, seed, device=device)
        else:
            replacement = (ShardedLinear if divides and not keeps else SparseLinear)(
                layer.in_features, layer.out_features, None, layer.bias is not None, flat_indices=flat_indices,
                seed=seed, device=device, dtype=layer.weight.dtype, activations=self.activations,
            )  # fmt: skip
        sparse = _rows(replacement)
        if keeps:
            with torch.no_grad():
                sparse._fill(layer)
        elif not isinstance(self.init, str):
            fan_in = sparse.indptr.diff().repeat_interleave(sparse.indptr.diff().long())
            sparse.values.data.mul_(self.init * (fan_in / 2).sqrt().to(sparse.values.dtype))
        elif values is not None:
            sparse.values.data.copy_(values)
        sparse.values.requires_grad_(layer.weight.requires_grad)
        if sparse.bias is not None and layer.bias is not None:
            sparse.bias.requires_grad_(layer.bias.requires_grad)
        return ShardedLinear.of(sparse) if divides and keeps else replacement


def _rows(layer: Any) -> Any:
    """The sparse layer with the rows in this process."""
    return layer.own if isinstance(layer, ShardedLinear) else layer


def _stays(name: str, module: nn.Module, reason: str) -> Change:
    return Change.of(name, module, module, f"stays dense: {reason}")


def _unfolded(module: nn.Module, name: str, inputs: dict[str, Tensor] | None) -> tuple[nn.Module, dict[str, Any]]:
    """What is to be sparse in a module, by its path there: itself, the products of a recurrent network, or the
    projections of an attention."""
    if isinstance(module, nn.MultiheadAttention):
        layered = LayeredAttention(module)
        return layered, dict(layered.named_children())
    if not isinstance(module, nn.RNNBase):
        return module, {"": module}
    if inputs is not None:
        raise ValueError(f"Sparse: measure cannot judge {name!r}, a {type(module).__name__}. Leave it out by where=.")
    looped = StructuredRNN.unfolded(module)
    return looped, {f"products.{key}": layer for key, layer in looped.products.items()}


def _size(layer: nn.Linear | nn.Conv2d) -> Size:
    return conv_size(layer) if isinstance(layer, nn.Conv2d) else Size(layer.out_features, layer.in_features)


def _masked(layer: Any) -> MaskedLinear | MaskedConv2d:
    return MaskedLinear(layer) if isinstance(layer, SparseLinear) else MaskedConv2d(layer)


def around_sparse_(model: nn.Module) -> list[Change]:
    """Let what stands around sparse layers go with them: rows of layers as one call, dense ones in their memory order.

    Whatever makes layers sparse ends with this, so that loading, which makes them by `Sparse`, gives the same network.
    """
    for module in list(model.modules()):
        if type(module) is nn.Sequential and any(type(part) is SparseLinear for part in module):
            module.__class__ = SparseSequential
    return _channel_major_(model)


def _channel_major_(model: nn.Module) -> list[Change]:
    """Let what stays dense beside sparse convolutions read and write in their memory order."""
    duplicates: dict[type[nn.Module], Any] = {nn.BatchNorm2d: ChannelMajorBatchNorm2d, nn.Conv2d: ChannelMajorConv2d}
    changes: list[Change] = []
    if not any(isinstance(module, SparseConv2d) for module in model.modules()):
        return changes
    for name, module in list(model.named_modules()):
        duplicate = None if computed_tensors(module) else duplicates.get(type(module))
        if duplicate is not None:
            replace_module(model, name, replacement := duplicate.like(module))
            changes.append(Change.of(name, module, replacement))
    return changes


def _is_faster(sparse: nn.Module, layer: nn.Module, x: Tensor) -> tuple[bool, str]:
    """Whether forward and backward of the sparse layer take less time than the dense one's, and a note that says so.

    Both read `x` as it is in memory, and the output's gradient in the order of the dense layer's output.
    """
    weight: Any = layer.weight
    if weight.is_meta:
        raise ValueError("Sparse: measure needs real weights to time. Got a model on the meta device.")
    x = x.detach().to(weight)
    with torch.no_grad():
        dy = torch.randn_like(layer(x))

    def work(module: nn.Module) -> Callable[[], Any]:
        duplicate, mine = copy.deepcopy(module).requires_grad_(), x.detach().requires_grad_()
        return lambda: torch.autograd.grad(duplicate(mine), [mine, *duplicate.parameters()], dy)

    ours, dense = (timing.median for timing in time_interleaved([work(sparse), work(layer)], seconds=0.1))
    samples = x.shape[: -3 if isinstance(layer, nn.Conv2d) else -1].numel()
    verdict = "" if ours < dense else "stays dense: "
    return ours < dense, f"{verdict}{ours:.3g} ms sparse, {dense:.3g} ms dense at batch {samples}"


def _device(layer: nn.Linear | nn.Conv2d) -> torch.device:
    return torch.device("cpu") if layer.weight.is_meta else layer.weight.device


def _materialise(layer: nn.Linear | nn.Conv2d) -> None:
    if layer.weight.is_meta:
        layer.to_empty(device="cpu")
        layer.reset_parameters()


def _mix(seed: int, number: int) -> int:
    """A seed of its own for each layer's values, so that they do not repeat one another."""
    return (seed * 1_000_003 + number + 1) % 2**63
