"""A sparse linear layer whose rows are divided over processes: each draws, holds and trains its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, distributed, nn

from filigree.nn.capabilities import Capabilities
from filigree.nn.sparse.sparse_linear import SparseLinear
from filigree.ops.c_steps import refuse
from filigree.topology import Topology
from filigree.topology.shards import Shards, Whole, shards_of


class ShardedLinear(Capabilities, nn.Module):
    """`y = x W^T + b` with a sparse W whose rows, the outputs, are divided over the processes of a group.

    Each process draws, holds, trains and rewires its rows only, in `own`, a `SparseLinear`: memory, optimizer and
    multiply-adds are a share of the whole layer's. Together they are the `SparseLinear` of the same arguments: the same
    connections, values, outputs and gradients. All processes must give the same input, and get the same output:
    forward, the outputs of all are gathered, backward, the gradients of the input are added up. `fg.fit` sees to it
    that all processes of a model with such layers have the same batches.

    `fg.Sparse(..., sharded=True)` makes such layers, so that no process ever holds a whole one; `fg.shard_` divides
    those that there are.

    Args:
        in_features, out_features, topology, bias, relu, seed, activations, flat_indices, device, dtype: of the whole
            layer, as in `SparseLinear`; `flat_indices` are those of the rows here, numbered from the first of them.
        group: the processes, a group of `torch.distributed`; default: all. A process without a group has all rows.

    Shape: `(..., in_features)` to `(..., out_features)`. `state_dict` holds the rows here; `fg.save` writes the whole
    layer, as a `SparseLinear`. `dense()`: that of `whole()`. The first `out_features % processes` processes have one
    row more than the others.

    Raises:
        ValueError: fewer rows than processes; several processes without a group.
    """

    own: SparseLinear

    def __init__(
        self,
        in_features: int,
        out_features: int,
        topology: Topology | None = None,
        bias: bool = True,
        relu: bool = False,
        seed: int = 0,
        *,
        group: Any = None,
        activations: str | None = None,
        flat_indices: Tensor | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.part = shards_of(group, "ShardedLinear")
        if out_features < self.part.processes:
            raise ValueError(
                f"ShardedLinear: out_features must be at least the number of processes, {self.part.processes}. "
                f"Got {out_features}."
            )
        self.own = SparseLinear(
            in_features, out_features, topology, bias, relu, seed, activations=activations, flat_indices=flat_indices,
            part=self.part, device=device, dtype=dtype,
        )  # fmt: skip

    @classmethod
    @torch.no_grad()
    def of(cls, layer: SparseLinear, group: Any = None) -> Self:
        """The rows here of a layer that every process has as a whole."""
        part = shards_of(group, "ShardedLinear")
        first, last = part.rows(layer.out_features)
        begin, end = (int(layer.indptr[row]) for row in (first, last))
        flat_indices = layer.flat_indices()[begin:end] - first * layer.in_features
        sharded = cls(
            layer.in_features, layer.out_features, None, layer.bias is not None, layer.relu, group=group,
            activations=layer.activations, flat_indices=flat_indices, device=layer.values.device,
            dtype=layer.values.dtype,
        )  # fmt: skip
        sharded.own.values.copy_(layer.values[begin:end])
        sharded.own.values.requires_grad_(layer.values.requires_grad)
        if sharded.own.bias is not None and layer.bias is not None:
            sharded.own.bias.copy_(layer.bias[first:last])
            sharded.own.bias.requires_grad_(layer.bias.requires_grad)
        return sharded

    @property
    def first(self) -> int:
        """The first of the rows here."""
        return self.part.rows(self.out_features)[0]

    def forward(self, x: Tensor) -> Tensor:
        if not isinstance(self.part, Shards):
            return self.own(x)
        if torch.is_grad_enabled() and x.requires_grad:
            x = _AddGradients.apply(x, self.part)
        return _Gather.apply(self.own(x), self.part, self.out_features)

    def extra_repr(self) -> str:
        first, last = self.part.rows(self.out_features)
        return f"in_features={self.in_features}, out_features={self.out_features}, rows={first}:{last} here"

    @torch.no_grad()
    def whole(self) -> SparseLinear:
        """All rows as one layer, in every process, which all must call this together."""
        state = {name: _together(part, self.part) for name, part in self.own.state_dict().items()}
        if isinstance(self.part, Shards):
            state["indptr"] = torch.cat([state["indptr"][:1], *_shifted(self.part, self.own.indptr)])
        layer = SparseLinear(
            self.in_features, self.out_features, None, self.own.bias is not None, self.own.relu,
            activations=self.own.activations, flat_indices=torch.empty(0, dtype=torch.int64),
            device=self.own.values.device, dtype=self.own.values.dtype,
        )  # fmt: skip
        layer.load_state_dict(state)
        return layer

    def dense(self) -> nn.Module:
        """The equivalent torch module, in every process, which all must call this together."""
        return self.whole().dense()

    # -- files: those of a `SparseLinear` ------------------------------------------------------------------------------

    def stored_state(self) -> dict[str, Any]:
        """The state of the whole layer as a `SparseLinear` has it; tensors of several processes are `Streamed`."""
        own = self.own.state_dict()
        if not isinstance(self.part, Shards):
            return own
        nnz = self.part.each(self.own.nnz)
        index = torch.int32 if max(self.in_features, self.out_features, sum(nnz)) < 2**31 else torch.int64
        indptr = self.own.indptr.long() + sum(nnz[: self.part.rank])
        own |= {"indptr": (indptr[1:] if self.part.rank else indptr).to(index), "indices": self.own.indices.to(index)}
        return {name: self.part.streamed(tensor) for name, tensor in own.items()}

    def own_state(self, whole: Mapping[str, Any]) -> dict[str, Tensor]:
        """The rows here of a whole layer's state, whose tensors may be parts of a file (`io.storage.Stored`)."""
        first, last = self.part.rows(self.out_features)
        indptr = whole["indptr"][first : last + 1]
        begin, end = int(indptr[0]), int(indptr[-1])
        state = {"indptr": indptr - begin} | {name: whole[name][begin:end] for name in ("indices", "values")}
        return state | {name: whole[name][first:last] for name in whole if name == "bias"}

    # -- what it says of itself; see `Capabilities` --------------------------------------------------------------------

    @property
    def runs_together(self) -> bool:  # type: ignore[override]
        return isinstance(self.part, Shards)

    def why_not_prunable(self) -> str | None:
        return "is divided over processes"

    def onnx_form(self) -> nn.Module:
        if self.runs_together:
            raise ValueError(f"export: a ShardedLinear {_ALONE}")
        return self.own

    def c_form(self, name: str) -> list[Any]:
        if self.runs_together:
            raise refuse(name, f"is a ShardedLinear, which {_ALONE}".rstrip("."))
        return [(name, self.own)]


_ALONE = "is divided over processes. Save the model, and load it in one."


class _AddGradients(torch.autograd.Function):
    """x as it is; backward, the sum of the gradients of all processes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shards: Shards) -> Tensor:
        ctx.shards = shards
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, dx: Tensor) -> tuple[Tensor | None, ...]:
        by_feature = _by_feature(dx)  # of one memory order in all processes
        if by_feature.data_ptr() == dx.data_ptr():
            by_feature = by_feature.clone()
        ctx.shards.sum_(by_feature)
        return by_feature.t().reshape(dx.shape), None


class _Gather(torch.autograd.Function):
    """The outputs of all processes side by side, `(..., out_features)`; backward, the own part of the gradient."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, shards: Shards, out_features: int) -> Tensor:
        ctx.shards, ctx.out_features = shards, out_features
        y = _gathered(_by_feature(own), shards, out_features)
        return y.t().reshape(*own.shape[:-1], out_features)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        first, last = ctx.shards.rows(ctx.out_features)
        return dy[..., first:last], None, None


def _by_feature(x: Tensor) -> Tensor:
    """`(..., features)` as a contiguous matrix `(features, samples)`; a view where that is the order in memory."""
    return x.reshape(-1, x.shape[-1]).t().contiguous()


def _gathered(own: Tensor, shards: Shards, rows: int) -> Tensor:
    """The rows of all processes, `(rows, samples)`. Each sends as many: those with fewer a row of zeros more."""
    most, samples = -(-rows // shards.processes), own.shape[1]
    full = rows % shards.processes or shards.processes  # processes with so many
    if len(own) < most:
        own = torch.cat([own, own.new_zeros(most - len(own), samples)])
    together = own.new_empty(shards.processes * most, samples)
    _all_gather(together, own, group=shards.group)
    if full == shards.processes:
        return together
    parts = together.view(shards.processes, most, samples)
    return torch.cat([parts[:full].flatten(0, 1), parts[full:, : most - 1].flatten(0, 1)])


_all_gather: Any = getattr(distributed, "all_gather_single", None) or distributed.all_gather_into_tensor  # by torch


def _together(own: Tensor, part: Whole) -> Tensor:
    """The tensors of all processes, of different lengths, as one, in every process."""
    return torch.cat(part.objects(own.cpu())).to(own.device) if isinstance(part, Shards) else own


def _shifted(shards: Shards, indptr: Tensor) -> list[Tensor]:
    """The ends of all rows of the whole layer."""
    parts, begin = [], 0
    for part in shards.objects(indptr.cpu()):
        parts.append(part[1:] + begin)
        begin += int(part[-1])
    return parts
