"""Multi-head attention whose projections are layers of their own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from filigree.nn.capabilities import Capabilities
from filigree.nn.dense_weight import CopiedWeight
from filigree.nn.torch_attributes import ReadsAttributes


class LayeredAttention(ReadsAttributes, Capabilities, nn.Module):
    """An `nn.MultiheadAttention` whose four projections are layers, `q`, `k`, `v` and `out`, which may be sparse.

    Arguments and results of a call are the same. `torch.nn.TransformerEncoderLayer` and `TransformerDecoderLayer` take
    it as `self_attn` and `multihead_attn`.
    """

    in_proj_bias, _qkv_same_embed_dim = None, False  # so torch's layers take no shortcut past the projections
    instead: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("q_proj_weight", "k_proj_weight", "v_proj_weight"), "read its q, k, v and out"
    )

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        for name in ("num_heads", "batch_first", "dropout"):
            setattr(self, name, getattr(attention, name))
        for name, (weight, bias) in _projections(attention).items():
            layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
            layer.weight, layer.bias = weight, bias  # type: ignore[assignment]
            setattr(self, name, layer)
        self.train(attention.training)

    @property
    def embed_dim(self) -> int:
        return int(self.out.out_features)

    @property
    def kdim(self) -> int:
        return int(self.k.in_features)

    @property
    def vdim(self) -> int:
        return int(self.v.in_features)

    @property
    def head_dim(self) -> int:
        return int(self.q.out_features) // self.num_heads

    @property
    def in_proj_weight(self) -> Tensor | None:
        """A copy of the weights of q, k and v, None where they read other widths; see `CopiedWeight`.

        `torch.nn.TransformerEncoder` reads it in eval mode, where it would go past layers of plain weights.
        """
        weights = [_linear(layer).weight.detach() for layer in (self.q, self.k, self.v)]
        if len({weight.shape[1] for weight in weights}) > 1:
            return None
        return torch.cat(weights).as_subclass(CopiedWeight)

    @property
    def out_proj(self) -> nn.Module:
        """`out`, by the name that it has in `nn.MultiheadAttention`."""
        return self.out

    @property
    def has_one_width(self) -> bool:
        """Whether there is an `nn.MultiheadAttention` of these sizes; pruned ones may have fewer heads than width."""
        return bool(self.q.in_features == self.q.out_features == self.embed_dim)

    @staticmethod
    def why_not(attention: nn.MultiheadAttention) -> str | None:
        """Why an attention cannot be taken apart, to be put behind its name; None: it can."""
        if attention.bias_k is not None or attention.add_zero_attn:
            return "attends to a key of its own (add_bias_kv, add_zero_attn)"
        return None

    def dense(self) -> nn.MultiheadAttention:
        """The equivalent `nn.MultiheadAttention`. `ValueError`: pruned to widths that it cannot have."""
        if not self.has_one_width:
            raise ValueError(
                "LayeredAttention: nn.MultiheadAttention reads queries, makes heads and writes outputs of one width. "
                f"Got {self.q.in_features}, {self.q.out_features} and {self.embed_dim}."
            )
        bias, parts = self.q.bias is not None, [_linear(getattr(self, name)) for name in ("q", "k", "v", "out")]
        whole = nn.MultiheadAttention(
            self.embed_dim, self.num_heads, self.dropout, bias, kdim=self.kdim, vdim=self.vdim,
            batch_first=self.batch_first, dtype=parts[0].weight.dtype, device=parts[0].weight.device,
        )  # fmt: skip
        with torch.no_grad():
            for (weight, own), part in zip(_projections(whole).values(), parts, strict=True):
                weight.copy_(part.weight)
                if own is not None and part.bias is not None:
                    own.copy_(part.bias)
        return whole.train(self.training)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None,
        need_weights: bool = True, attn_mask: Tensor | None = None, average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """As `nn.MultiheadAttention`; `is_causal` needs the mask that it stands for."""
        if is_causal and attn_mask is None:
            raise ValueError("LayeredAttention: is_causal says what attn_mask holds. Got no attn_mask.")
        batched = query.dim() == 3
        swap = batched and not self.batch_first
        parts = self.q(query), self.k(key), self.v(value)
        if not batched:
            parts = tuple(part.unsqueeze(0) for part in parts)
        elif swap:
            parts = tuple(part.transpose(0, 1) for part in parts)
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in parts)
        mask = _mask(attn_mask, key_padding_mask, q, k)
        rate = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = q @ k.transpose(-2, -1) / math.sqrt(self.head_dim)
            weights = (scores if mask is None else scores + mask).softmax(-1)
            weights = F.dropout(weights, rate) if rate else weights
            y = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights if batched else weights[0]
        else:
            y = F.scaled_dot_product_attention(q, k, v, mask, rate)
        y = self.out(y.transpose(1, 2).flatten(2))
        y = y.transpose(0, 1) if swap else y
        return (y if batched else y[0]), weights


def _projections(attention: nn.MultiheadAttention) -> dict[str, tuple[nn.Parameter, nn.Parameter | None]]:
    """Weight and bias of each projection; parts of packed ones share their numbers, as parameters of their own."""
    if attention.in_proj_weight is not None:
        weights: Any = _parts(attention.in_proj_weight)
    else:
        weights = [attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight]
    biases: Any = [None] * 3
    if attention.in_proj_bias is not None:
        biases = _parts(attention.in_proj_bias)
    out = attention.out_proj
    return dict(zip(("q", "k", "v", "out"), [*zip(weights, biases, strict=True), (out.weight, out.bias)], strict=True))


def _parts(packed: nn.Parameter) -> list[nn.Parameter]:
    return [nn.Parameter(part, packed.requires_grad) for part in packed.detach().chunk(3)]


def _linear(layer: Any) -> Any:
    return layer.dense() if isinstance(layer, Capabilities) else layer


def _mask(attn_mask: Tensor | None, padding: Tensor | None, q: Tensor, k: Tensor) -> Tensor | None:
    """Both masks as one that is added to the scores `(batch, heads, targets, sources)`: True is -infinity."""
    batch, heads, targets, _ = q.shape
    total = None
    if attn_mask is not None:
        total = _added(attn_mask, q)
        total = total.view(-1, heads, targets, k.shape[2]) if total.dim() == 3 else total
    if padding is not None:
        keys = _added(padding, q).view(batch, 1, 1, k.shape[2])
        total = keys if total is None else total + keys
    return total


def _added(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype is not torch.bool:
        return mask.to(like.dtype)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill_(mask, -math.inf)
