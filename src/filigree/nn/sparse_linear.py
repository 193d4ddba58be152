"""A linear layer that stores, computes and trains only its connections."""

from __future__ import annotations

import math
from typing import Any, Self

import torch
from torch import Tensor, nn

from filigree.ops import reference, sparse
from filigree.ops.sparse import Pattern
from filigree.topology import ErdosRenyi, Size, Topology
from filigree.topology.sampling import check_csr, csr_pattern, pattern_of, places_of


class SparseLinear(nn.Module):
    r"""`y = x W^T + b` with a truly sparse W: memory, forward, backward and optimizer cost O(connections).

    Args:
        in_features: width of the input.
        out_features: width of the output.
        topology: which connections exist; default `ErdosRenyi(epsilon=20)`.
        bias: add a bias, one a unit.
        relu: apply ReLU to the output, fused into the kernel.
        seed: of topology and initial values.
        places: the sorted connections `out * in_features + in` themselves, in place of a topology.

    Shape: `(..., in_features)` to `(..., out_features)`. The output is a transposed view of a feature-major matrix:
    element-wise operations keep that order and the next sparse layer reads it as it is.

    Parameters and buffers, all in `state_dict`: `values` `(nnz,)` in CSR order (rows are outputs, columns sorted),
    `bias` `(out_features,)`, `indptr` `(out_features + 1,)`, `indices` `(nnz,)`, int32 or int64.

    Initial values are drawn from N(0, 2 / k) with k the real fan-in of the unit (He et al. 2015), biases are 0.

    Equivalent to `self.dense()`, an `nn.Linear` with zeros where there is no connection.

    Raises:
        ValueError: an input whose last side is not `in_features`, by name.
    """

    values: nn.Parameter
    bias: nn.Parameter | None
    indptr: Tensor
    indices: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        topology: Topology | None = None,
        bias: bool = True,
        relu: bool = False,
        seed: int = 0,
        *,
        places: Tensor | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, side in (("in_features", in_features), ("out_features", out_features)):
            if side < 1:
                raise ValueError(f"SparseLinear: {name} must be at least 1. Got {side}.")
        self.in_features, self.out_features, self.relu = in_features, out_features, relu
        generator = torch.Generator().manual_seed(seed)
        if places is None:
            size = Size(out_features, in_features)
            places = (topology or ErdosRenyi(epsilon=20)).draw([size], generator)[0]
            if places is None:
                places = torch.arange(size.places)
        pattern = pattern_of(places, out_features, in_features)
        self._set_pattern(Pattern(*(part.to(device) for part in pattern)))
        fan_in = pattern.indptr.diff()
        scale = fan_in.clamp(min=1).to(torch.float64).rsqrt().repeat_interleave(fan_in.long()) * math.sqrt(2)
        values = torch.randn(pattern.nnz, generator=generator) * scale
        dtype = dtype or torch.get_default_dtype()
        self.values = nn.Parameter(values.to(device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.in_features:
            raise ValueError(
                f"SparseLinear: the input's last side must be in_features={self.in_features}. Got {tuple(x.shape)}."
            )
        values, bias = self.values, self.bias
        if x.dtype != values.dtype:
            if not torch.is_autocast_enabled(x.device.type):
                raise TypeError(f"SparseLinear: the input must be {values.dtype}, as the values are. Got {x.dtype}.")
            x = x.to(values.dtype)  # the kernels are float32 and float64: under autocast sparse products stay float32
        if x.dim() == 2:
            return sparse.linear(self._pattern, values, bias, x, self.relu)
        y = sparse.linear(self._pattern, values, bias, x.reshape(-1, self.in_features), self.relu)
        return y.reshape(*x.shape[:-1], self.out_features)

    @property
    def pattern(self) -> Pattern:
        """Where the connections are, with the index of the transpose that the backward pass reads."""
        return self._pattern

    @property
    def nnz(self) -> int:
        """The number of connections."""
        return self.indices.numel()

    @property
    def density(self) -> float:
        """The share of the places that are connected."""
        return self.nnz / (self.in_features * self.out_features)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, nnz={self.nnz}, "
            f"density={self.density:.4g}, bias={self.bias is not None}" + (", relu=True" if self.relu else "")
        )

    # -- dense twin ----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def dense(self) -> nn.Module:
        """The equivalent torch module: an `nn.Linear`, followed by `nn.ReLU` where that is fused in."""
        options: dict[str, Any] = {"device": self.values.device, "dtype": self.values.dtype}
        linear = nn.Linear(self.in_features, self.out_features, self.bias is not None, **options)
        linear.weight.copy_(reference.dense(self.indptr, self.indices, self.values, self.in_features))
        if self.bias is not None:
            linear.bias.copy_(self.bias)
        return nn.Sequential(linear, nn.ReLU()) if self.relu else linear

    @classmethod
    @torch.no_grad()
    def from_dense(cls, module: nn.Linear, mask: Tensor | None = None, relu: bool = False) -> Self:
        """The sparse layer with the weights of `module` where `mask` is true (default: where they are not zero)."""
        mask = module.weight != 0 if mask is None else mask.bool()
        if mask.shape != module.weight.shape:
            raise ValueError(
                f"from_dense: mask must have the weight's shape {tuple(module.weight.shape)}. Got {tuple(mask.shape)}."
            )
        has_bias = module.bias is not None
        places = mask.flatten().nonzero().squeeze(1).cpu()
        weight = module.weight
        made = cls(
            module.in_features, module.out_features, None, has_bias, relu, places=places, device=weight.device,
            dtype=weight.dtype,
        )  # fmt: skip
        made.values.copy_(weight[mask])
        if made.bias is not None:
            made.bias.copy_(module.bias)
        return made

    # -- what evolution needs ------------------------------------------------------------------------------------

    @property
    def connections(self) -> nn.Parameter:
        """The parameter that holds the connections' weights."""
        return self.values

    def places(self) -> Tensor:
        """The sorted places `out * in_features + in` of the connections, int64, on the CPU."""
        return places_of(Pattern(*(part.cpu() for part in self._pattern)))

    def weights(self) -> Tensor:
        """The connections' weights in the order of `places`, detached, on the CPU."""
        return self.values.detach().cpu()

    @torch.no_grad()
    def rewire_(self, places: Tensor, weights: Tensor) -> None:
        """Exchange the connections for these sorted places and weights; the parameter stays the same object."""
        pattern = pattern_of(places, self.out_features, self.in_features)
        self._set_pattern(Pattern(*(part.to(self.values.device) for part in pattern)))
        weights = weights.to(self.values)
        if weights.shape == self.values.shape:
            self.values.copy_(weights)
        else:
            self.values.data = weights
            self.values.grad = None

    def carry_(self, state: Tensor, source: Tensor) -> None:
        """Let an optimizer's state follow a rewiring: `source` `(nnz,)` is each connection's old number, or -1."""
        source = source.to(state.device)
        state.copy_(torch.where(source < 0, 0, state[source.clamp(min=0)]))

    # -- keeping the pattern, its cache and files in step ----------------------------------------------------------

    def _set_pattern(self, pattern: Pattern) -> None:
        self.register_buffer("indptr", pattern.indptr)
        self.register_buffer("indices", pattern.indices)
        for name in ("t_indptr", "t_indices", "t_perm"):
            self.register_buffer(name, getattr(pattern, name), persistent=False)
        self._pattern = pattern

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self._pattern = Pattern(*(self._buffers[name] for name in Pattern._fields))  # type: ignore[arg-type]
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        indptr, indices, values = (state_dict.get(prefix + name) for name in ("indptr", "indices", "values"))
        if isinstance(indptr, Tensor) and isinstance(indices, Tensor) and isinstance(values, Tensor):
            check_csr(indptr, indices, self.out_features, self.in_features, f"state_dict: {prefix}indptr, indices")
            if values.shape != indices.shape:
                raise ValueError(
                    f"state_dict: {prefix}values must have one number a connection, {tuple(indices.shape)}. "
                    f"Got {tuple(values.shape)}."
                )
            pattern = csr_pattern(indptr.cpu().numpy(), indices.cpu().numpy(), self.in_features)
            self._set_pattern(Pattern(*(part.to(self.values.device) for part in pattern)))
            if values.shape != self.values.shape:
                self.values.data = self.values.new_empty(values.shape)
                self.values.grad = None
        super()._load_from_state_dict(state_dict, prefix, *args)
