"""Torch's transformer encoders as graphs: the same in plain calls of their layers, which the tracer can follow."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn import functional as F

from filigree.nn.layered_attention import LayeredAttention
from filigree.preserved import has_hooks


def with_layered_attention(model: nn.Module) -> nn.Module:
    """The model with layers in place of packed projections; parameters are shared, and the model stays as it is.

    A model without `nn.MultiheadAttention` is returned itself.
    """
    if not any(type(module) is nn.MultiheadAttention for module in model.modules()):
        return model
    if type(model) is nn.MultiheadAttention:
        return LayeredAttention(model) if _can_be_taken_apart(model) else model
    duplicate = copy.copy(model)
    duplicate._modules = {
        name: None if child is None else with_layered_attention(child) for name, child in model._modules.items()
    }
    return duplicate


def _can_be_taken_apart(attention: nn.MultiheadAttention) -> bool:
    return LayeredAttention.why_not(attention) is None and not has_hooks(attention)


def plain_call(module: Any, args: tuple[Any, ...], named: dict[str, Any]) -> Callable[[], Any] | None:
    """What calls an encoder, or a layer of one, in plain calls; None: it is none, or has masks or other settings."""
    given = [value for value in (*args[1:], *named.values()) if value is not None and value is not False]
    if type(module) not in _CALLS or given or len(args) < 1 or has_hooks(module):
        return None
    layers = module.layers if isinstance(module, nn.TransformerEncoder) else [module]
    return (lambda: _CALLS[type(module)](module, args[0])) if all(map(_is_plain, layers)) else None


def _is_plain(layer: Any) -> bool:
    attention = getattr(layer, "self_attn", None)
    return (
        type(layer) is nn.TransformerEncoderLayer
        and isinstance(attention, LayeredAttention)
        and attention.batch_first
        and not has_hooks(attention)
    )


def _encoder(module: Any, x: Any) -> Any:
    for layer in module.layers:
        x = layer(x)
    return x if module.norm is None else module.norm(x)


def _encoder_layer(module: Any, x: Any) -> Any:
    attention = module.self_attn

    def attended(y: Any) -> Any:
        q, k, v = (
            layer(y).unflatten(-1, (attention.num_heads, attention.head_dim)).transpose(1, 2)
            for layer in (attention.q, attention.k, attention.v)
        )
        z = F.scaled_dot_product_attention(q, k, v)
        return module.dropout1(attention.out(z.transpose(1, 2).flatten(2)))

    def fed(y: Any) -> Any:
        return module.dropout2(module.linear2(module.dropout(module.activation(module.linear1(y)))))

    if module.norm_first:
        x = x + attended(module.norm1(x))
        return x + fed(module.norm2(x))
    x = module.norm1(x + attended(x))
    return module.norm2(x + fed(x))


_CALLS: dict[type, Callable[[Any, Any], Any]] = {
    nn.TransformerEncoder: _encoder, nn.TransformerEncoderLayer: _encoder_layer,
}  # fmt: skip
