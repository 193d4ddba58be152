"""What every sparse layer holds and offers: values, bias, pattern, rewiring, files."""

from __future__ import annotations

import math
from typing import Any, Self

import scipy
import torch
from torch import Tensor, nn

from filigree.modes import is_autocast
from filigree.nn.capabilities import Capabilities
from filigree.nn.dense_weight import DenseWeight
from filigree.nn.resizing import resize_
from filigree.nn.sparse.copies import TracksCopies, fingerprint, is_plain, version
from filigree.ops.c_steps import csr, floats
from filigree.ops.pattern import Pattern, csr_pattern
from filigree.ops.transforms import innermost, outside_transforms
from filigree.topology.flat_indices import check_csr, flat_indices_of, moved, pattern_from_flat_indices
from filigree.topology.shards import WHOLE, Whole


class SparseLayer(Capabilities, DenseWeight, TracksCopies):
    """Base of `SparseLinear` and `SparseConv2d`: the nonzeros of a weight matrix `(out_features, in_features)`."""

    values: nn.Parameter
    bias: nn.Parameter | None
    indptr: Tensor
    indices: Tensor
    index_names = ("indptr", "indices")
    part: Whole = WHOLE
    """Which rows of a layer these are; see `ShardedLinear`."""
    _pattern: Pattern
    _seen: tuple[int, int] | None = None  # versions of the index for which the pattern is right
    _fingerprints: tuple[int, int] | None = None  # of the index, and of what is derived from it

    def __init__(
        self,
        out_features: int,
        in_features: int,
        flat_indices: Tensor,
        bias: bool,
        generator: torch.Generator,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        part: Whole = WHOLE,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        if part is not WHOLE:
            self.part = part
        pattern = pattern_from_flat_indices(flat_indices, out_features, in_features)
        self._set_pattern(Pattern(*(part.to(device) for part in pattern)))
        fan_in = pattern.indptr.diff()
        scale = fan_in.clamp(min=1).to(torch.float64).rsqrt().repeat_interleave(fan_in.long()) * math.sqrt(2)
        values = part.numbers(lambda count: torch.randn(count, generator=generator), pattern.nnz) * scale
        dtype = dtype or torch.get_default_dtype()
        self.values = nn.Parameter(values.to(device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype)) if bias else None

    @property
    def pattern(self) -> Pattern:
        """Where the connections are, with the index of the transpose that the backward pass reads.

        It is derived anew where the buffers `indptr` and `indices` were changed in place or are others, as after an
        average over buffers or in `torch.func.functional_call`.

        Raises:
            ValueError: they are no index, or the layer is an average that was not told of a rewiring.
        """
        if torch.compiler.is_compiling() or self._is_seen():
            return self._pattern
        return self._follow_buffers()

    @property
    def nnz(self) -> int:
        """The number of connections."""
        return self.indices.numel()

    @property
    def density(self) -> float:
        """The share of the possible connections that there are."""
        return self.nnz / (self.in_features * self.out_features)

    def _cast(self, x: Tensor) -> Tensor:
        """An input of another dtype in the values', under autocast; an error elsewhere."""
        if not is_autocast(x):
            name = type(self).__name__
            raise TypeError(f"{name}: the input must be {self.values.dtype}, as the values are. Got {x.dtype}.")
        return x.to(self.values.dtype)

    def _fill(self, module: Any) -> Self:
        """Take over the weights and biases of the dense layer at the connections."""
        self.values.copy_(module.weight.flatten()[self.flat_indices().to(module.weight.device)])
        if self.bias is not None:
            self.bias.copy_(module.bias)
        return self

    # -- what it says of itself; see `Capabilities` --------------------------------------------------------------------

    has_integer_form = True

    @property
    def macs(self) -> int:
        return self.nnz

    def label(self) -> str:
        relu = " + ReLU" if getattr(self, "relu", False) else ""
        activations = f", {kind}" if (kind := getattr(self, "activations", None)) else ""
        return f"{type(self).__name__}({self.density:.2%}{activations}){relu}"

    def why_not_prunable(self) -> str | None:
        return None

    # -- what evolution needs ------------------------------------------------------------------------------------

    @property
    def connections(self) -> nn.Parameter:
        """The parameter that holds the connections' weights."""
        return self.values

    def flat_indices(self) -> Tensor:
        """The sorted flat indices `out * in_features + in` of the connections, int64, on the CPU."""
        return flat_indices_of(Pattern(*(part.cpu() for part in self.pattern)))

    def weights(self) -> Tensor:
        """The connections' weights in the order of `flat_indices`, detached, on the CPU."""
        return self.values.detach().cpu()

    @torch.no_grad()
    def rewire_(self, flat_indices: Tensor, weights: Tensor) -> None:
        """Have connections at these sorted flat indices, with these weights; the parameter stays the same object."""
        pattern = pattern_from_flat_indices(flat_indices, self.out_features, self.in_features)
        self._set_pattern(Pattern(*(part.to(self.values.device) for part in pattern)))
        weights = weights.to(self.values)
        if weights.shape == self.values.shape:
            self.values.copy_(weights)
        else:
            resize_(self.values, weights)
        self._copies.rewired(self)

    def permute_optimizer_state_(self, state: Tensor, source: Tensor, new: float = 0.0) -> None:
        """Let an optimizer's state follow a rewiring: `source` `(nnz,)` is each connection's old number, or -1."""
        follows = moved(state, source.to(state.device), new)
        if follows.shape == state.shape:
            state.copy_(follows)
        else:
            state.data = follows

    # -- export --------------------------------------------------------------------------------------------------

    def _c_matrix(self) -> Any:
        stored = floats(self.values), self.indices.cpu().numpy(), self.indptr.cpu().numpy()
        return csr(scipy.sparse.csr_array(stored, shape=(self.out_features, self.in_features)))

    # -- keeping the pattern, its cache and files in step ----------------------------------------------------------

    def _set_pattern(self, pattern: Pattern) -> None:
        self.register_buffer("indptr", pattern.indptr)
        self.register_buffer("indices", pattern.indices)
        for name in Pattern._fields[2:]:
            self.register_buffer(name, getattr(pattern, name), persistent=False)
        self._fingerprints = fingerprint(*pattern[:2]), fingerprint(*pattern[2:])
        self._copies.known.add(self._fingerprints[0])
        self._take_buffers()

    def _take_buffers(self) -> None:
        self._pattern = Pattern(*(self._buffers[name] for name in Pattern._fields))  # type: ignore[arg-type]
        self._seen = version(self._pattern.indptr), version(self._pattern.indices)

    def _is_seen(self) -> bool:
        """Whether the pattern is that of the buffers, as far as torch counts writing; content is not looked at."""
        indptr, indices, buffers = self._pattern.indptr, self._pattern.indices, self._buffers
        same = buffers["indptr"] is indptr and buffers["indices"] is indices
        return same and self._seen == (version(indptr), version(indices)) and not self._copies.waiting

    def _follow_buffers(self) -> Pattern:
        """The pattern that the buffers hold now; what is derived from the index is made anew if that is another."""
        if not all(is_plain(part) and not part.is_meta for part in self.index_buffers()):
            self._check_mapped()
            return self._pattern
        with outside_transforms():
            return self._follow_plain_buffers()

    def _follow_plain_buffers(self) -> Pattern:
        self._check_copies()
        derived = [part for name in Pattern._fields[2:] if (part := self._buffers[name]) is not None]
        now = fingerprint(self.indptr, self.indices), fingerprint(*derived)
        if now == self._fingerprints:
            self._take_buffers()
            return self._pattern
        if self._fingerprints is None or now[0] != self._fingerprints[0]:
            name = f"{type(self).__name__}: indptr and indices were changed in place"
            if self._copies.has_relatives and now[0] not in self._copies.known:
                raise ValueError(
                    f"{name} to no topology that the layer or a copy of it has had: an average of weights must leave "
                    "integer buffers alone, as fg.EMA does."
                )
            check_csr(self.indptr, self.indices, self.out_features, self.in_features, name)
        with torch.inference_mode(False):  # it is kept, and training will read it too
            parts = csr_pattern(self.indptr.cpu().numpy().copy(), self.indices.cpu().numpy().copy(), self.in_features)
            self._set_pattern(Pattern(*(part.to(self.values.device) for part in parts)))
        return self._pattern

    def _check_mapped(self) -> None:
        """`ValueError` where `torch.vmap` runs over layers of several topologies: there is one pattern for all."""
        for name in self.index_names:
            part, own = innermost(getattr(self, name)), getattr(self._pattern, name)
            if not is_plain(part) or part.is_meta:
                continue
            if part.shape[-1:] != own.shape or not bool((part == own).all()):
                raise ValueError(
                    f"{type(self).__name__}: layers that torch.vmap runs together must have the same connections."
                )

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._seen = None  # a copy looks at what it holds before it computes
        if self._fingerprints is not None:
            self._copies.known.add(self._fingerprints[0])

    def train(self, mode: bool = True) -> Self:
        if mode != self.training:
            self._seen = None  # buffers may have been written through `.data`, which nothing counts
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        seen = self._seen is not None and self._is_seen()
        super()._apply(fn, recurse)
        self._take_buffers()
        if not seen:
            self._seen = None
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        indptr, indices, values = parts = [state_dict.get(prefix + name) for name in ("indptr", "indices", "values")]
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
                resize_(self.values, self.values.new_empty(values.shape))
        elif indptr is not None or indices is not None:  # torch would copy the index, unchecked
            lacking = [name for name, t in zip(("indptr", "indices", "values"), parts, strict=True)
                       if not isinstance(t, Tensor)]  # fmt: skip
            args[-1].append(f"{prefix}indptr, indices and values belong together: {', '.join(lacking)} is missing.")
            return
        super()._load_from_state_dict(state_dict, prefix, *args)


def masked_flat_indices(weight: Tensor, mask: Tensor | None) -> Tensor:
    """The flat indices where `mask` is true, by default those where `weight` is not zero."""
    mask = weight != 0 if mask is None else mask.bool()
    if mask.shape != weight.shape:
        raise ValueError(
            f"from_dense: mask must have the weight's shape {tuple(weight.shape)}. Got {tuple(mask.shape)}."
        )
    return mask.flatten().nonzero().squeeze(1).cpu()
