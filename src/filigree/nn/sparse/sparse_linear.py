"""A linear layer that stores, computes and trains only its connections."""

from __future__ import annotations

from numbers import Integral
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from filigree.modes import is_autocast
from filigree.nn.drop_in import dense_linear
from filigree.nn.onnx_operators import OperatorLinear, encoded
from filigree.nn.sparse.sparse_layer import SparseLayer, masked_flat_indices
from filigree.nn.sparse.sparse_onnx import DenseLinear, GatherLinear, GatherLinearByFeature
from filigree.ops import reference, sparse, sparse_rows
from filigree.ops.c_steps import TrainedLinear, floats, linear, relu
from filigree.ops.memory import SHORT
from filigree.ops.sparse import Pattern
from filigree.topology import ErdosRenyi, Size, Topology
from filigree.topology.flat_indices import pattern_from_flat_indices
from filigree.topology.shards import WHOLE, Whole

SHORT_TYPES = {str(dtype).removeprefix("torch."): dtype for dtype in SHORT}
"""The types of 16 bits by the names that `activations` may have."""


class SparseLinear(SparseLayer):
    r"""`y = x W^T + b` with a truly sparse W: memory, forward, backward and optimizer cost O(connections).

    Args:
        in_features: width of the input.
        out_features: width of the output.
        topology: which connections exist; default `ErdosRenyi(epsilon=20)`.
        bias: add a bias, one a unit.
        relu: apply ReLU to the output, fused into the kernel.
        seed: of topology and initial values.
        activations: "bfloat16" or "float16": 16 bits in which the layer reads and writes, see below.
        flat_indices: the sorted connections `out * in_features + in` themselves, in place of a topology.
        part: which rows of such a layer this one holds, as the only ones: a part of `filigree.nn.ShardedLinear`.

    Shape: `(..., in_features)` to `(..., out_features)`. The output is a transposed view of a feature-major matrix:
    element-wise operations keep that order and the next sparse layer reads it as it is.

    Parameters and buffers, all in `state_dict`: `values` `(nnz,)` in CSR order (rows are outputs, columns sorted),
    `bias` `(out_features,)`, `indptr` `(out_features + 1,)`, `indices` `(nnz,)`, int32 or int64.

    Under `torch.autocast` on the CPU, a layer with float32 values reads and writes its activations in autocast's type,
    as `nn.Linear` does; values, sums and their gradients stay float32. So do sums in a layer of bfloat16 or float16
    values.

    With `activations` a layer of float32 values does so without autocast: it rounds its input to that type, keeps it so
    for the backward pass (half the memory), sums in float32, rounds the output and returns it in the input's type:
    float32, or the 16 bits themselves. In the backward pass the gradients of output and input are rounded the same,
    not those of values and bias. So it equals `F.linear(x.to(short), w, b)` summed in float32, then
    `.to(short).to(x.dtype)`, up to the rounding of sums. Autocast's own type holds where that is on; layers of other
    values compute as without the option, and so do sparsified backward passes and partition dropout. float16 ends at
    65504 and needs a scaled loss (`torch.amp.GradScaler`); bfloat16 does not.

    The input may also be a CSR tensor of torch `(batch, in_features)`, samples that are sparse themselves: the product
    then visits the connections of the features that they have, and nothing is made dense (`ops/sparse_rows.py`).

    Initial values are drawn from N(0, 2 / k) with k the real fan-in of the unit (He et al. 2015), biases are 0.

    Equivalent to `self.dense()`, an `nn.Linear` with zeros where there is no connection.

    Raises:
        ValueError: an input whose last side is not `in_features`, by name.
    """

    activations: str | None = None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        topology: Topology | None = None,
        bias: bool = True,
        relu: bool = False,
        seed: int = 0,
        *,
        activations: str | None = None,
        flat_indices: Tensor | None = None,
        part: Whole = WHOLE,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        for name, side in (("in_features", in_features), ("out_features", out_features)):
            if not isinstance(side, Integral):
                raise TypeError(f"SparseLinear: {name} must be a whole number. Got {side!r}.")
            if side < 1:
                raise ValueError(f"SparseLinear: {name} must be at least 1. Got {side}.")
        if activations is not None and activations not in SHORT_TYPES:
            raise ValueError(
                f"SparseLinear: activations must be None, {' or '.join(SHORT_TYPES)}. Got {activations!r}."
            )
        generator = torch.Generator().manual_seed(seed)
        if flat_indices is None:
            size = Size(out_features, in_features)
            flat_indices = (topology or ErdosRenyi(epsilon=20)).draw_one(size, generator, part)
        first, last = part.rows(out_features)
        super().__init__(last - first, in_features, flat_indices, bias, generator, device, dtype, part)
        self.relu = relu
        self.activations = activations

    def forward(self, x: Tensor) -> Tensor:
        if x.layout is torch.sparse_csr:
            return self._of_sparse_rows(x)
        given, x = x, self._checked(x, lower=True)
        if self.is_full and (x.dtype == self.values.dtype or is_autocast(given)):
            y = F.linear(x, self.values.view(self.out_features, self.in_features), self.bias)
            return y.relu() if self.relu else y
        if x.dim() == 2:
            y = sparse.linear(self.pattern, self.values, self.bias, x, self.relu)
        else:
            rows = x.reshape(-1, self.in_features)
            y = sparse.linear(self.pattern, self.values, self.bias, rows, self.relu, by_feature=False)
            y = y.reshape(*x.shape[:-1], self.out_features)
        return y if self.activations is None or is_autocast(given) else y.to(given.dtype)

    def _of_sparse_rows(self, x: Tensor) -> Tensor:
        x = self._checked(x)
        if self.is_full:
            y = F.linear(x, self.values.view(self.out_features, self.in_features), self.bias)
            return y.relu() if self.relu else y
        return sparse_rows.linear(self.pattern, self.values, self.bias, x, self.relu)

    @property
    def is_full(self) -> bool:
        """Whether it has every connection and more than some thousands: it computes as `nn.Linear` does then."""
        return self.indices.numel() == self.in_features * self.out_features >= 2**14

    def short_type(self, x: Tensor) -> torch.dtype | None:
        """The 16 bits in which the layer reads and writes for this input, by autocast or `activations`; None: none."""
        if self.values.dtype is not torch.float32:
            return None
        if is_autocast(x):
            return torch.get_autocast_dtype("cpu") if x.is_cpu else None
        short = None if self.activations is None else SHORT_TYPES[self.activations]
        return short if x.dtype in (torch.float32, short) else None

    def _checked(self, x: Tensor, lower: bool = False) -> Tensor:
        """The input in a type that the layer takes: the values' or, if it can be `lower`, one of 16 bits."""
        if x.shape[-1] != self.in_features:
            raise ValueError(
                f"SparseLinear: the input's last side must be in_features={self.in_features}. Got {tuple(x.shape)}."
            )
        if lower and (short := self.short_type(x)):
            return x.to(short)
        return x if x.dtype == self.values.dtype else self._cast(x)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, nnz={self.nnz}, "
            f"density={self.density:.4g}, bias={self.bias is not None}"
            + (", relu=True" if self.relu else "")
            + (f", activations={self.activations}" if self.activations else "")
        )

    @torch.no_grad()
    def dense(self) -> nn.Module:
        """The equivalent torch module: an `nn.Linear`, followed by `nn.ReLU` where that is fused in."""
        weight = reference.dense(*self.pattern[:2], self.values, self.in_features)
        linear = dense_linear(weight, self.bias)
        return nn.Sequential(linear, nn.ReLU()) if self.relu else linear

    # -- pruning of units; see `Capabilities` ------------------------------------------------------------------------

    def sizes(self) -> list[int]:
        return [self.out_features, self.in_features, int(self.bias is not None)]

    def resized_(self) -> None:
        self._take(torch.empty(0, dtype=torch.int64), self.values.new_empty(0))  # connections come from the file

    @torch.no_grad()
    def keep_outputs_(self, kept: Tensor) -> None:
        row, column, values = self._connections_of(0, kept)
        self.out_features = len(kept)
        if self.bias is not None:
            self.bias = nn.Parameter(self.bias[kept])
        self._take(row * self.in_features + column, values)

    @torch.no_grad()
    def keep_inputs_(self, kept: Tensor) -> None:
        row, column, values = self._connections_of(1, kept)
        self.in_features = len(kept)
        self._take(row * self.in_features + column, values)

    def _connections_of(self, side: int, kept: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rows, columns and values of the connections with these outputs (side 0) or inputs, numbered anew."""
        position = torch.full(((self.out_features, self.in_features)[side],), -1)
        position[kept] = torch.arange(len(kept))
        flat_indices = self.flat_indices()
        ends = [flat_indices // self.in_features, flat_indices % self.in_features]
        ends[side] = position[ends[side]]
        stays = ends[side] >= 0
        return ends[0][stays], ends[1][stays], self.values[stays.to(self.values.device)]

    def _take(self, flat_indices: Tensor, values: Tensor) -> None:
        pattern = pattern_from_flat_indices(flat_indices, self.out_features, self.in_features)
        self.values = nn.Parameter(values)
        self._set_pattern(Pattern(*(part.to(values.device) for part in pattern)))

    @torch.no_grad()
    def ignore_inputs_(self, columns: Tensor) -> None:
        self.values[torch.isin(self.indices.long(), columns.to(self.indices.device))] = 0

    @classmethod
    @torch.no_grad()
    def from_dense(cls, module: nn.Linear, mask: Tensor | None = None, relu: bool = False) -> Self:
        """The sparse layer with the weights of `module` where `mask` is true (default: where they are not zero)."""
        layer = cls(
            module.in_features, module.out_features, None, module.bias is not None, relu,
            flat_indices=masked_flat_indices(module.weight, mask), device=module.weight.device,
            dtype=module.weight.dtype,
        )  # fmt: skip
        return layer._fill(module)

    def onnx_candidates(self) -> dict[str, nn.Module]:
        return {
            "dense": DenseLinear(self), "gather": GatherLinear(self), "gather by feature": GatherLinearByFeature(self),
        }  # fmt: skip

    def onnx_operator(self) -> nn.Module | None:
        code = encoded(self.weight_matrix())
        return None if code is None else OperatorLinear(self, code)

    def c_form(self, name: str) -> list[Any]:
        return linear(self, name, self._c_matrix())

    def c_training_form(self, name: str) -> list[Any]:
        indices, indptr = self.indices.cpu().numpy(), self.indptr.cpu().numpy()
        values, bias = floats(self.values), floats(self.bias)
        step = TrainedLinear(name, self.out_features, self.in_features, values, bias, indices, indptr)
        return [step, relu(name)] if self.relu else [step]
