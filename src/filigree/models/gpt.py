"""A plain decoder: a transformer that predicts the next token (Radford et al. 2019), with a cache for generation."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from filigree.models.networks import builder, made_by
from filigree.modes import evaluating
from filigree.nn.sparse.feature_major_linear import FeatureMajorLinear
from filigree.ops.linear_cross_entropy import TiedRows, linear_cross_entropy
from filigree.ops.transforms import transforming
from filigree.preserved import has_hooks


class Cache:
    """The keys and values of the tokens that a decoder has read, block by block; `length` of them."""

    def __init__(self, blocks: int) -> None:
        self.length = 0
        self.pairs: list[tuple[Tensor, Tensor] | None] = [None] * blocks

    def add(self, block: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values of a block `(batch, heads, length, width)`, with those of new tokens at the end."""
        earlier = self.pairs[block]
        if earlier is not None:
            k, v = torch.cat([earlier[0], k], dim=2), torch.cat([earlier[1], v], dim=2)
        self.pairs[block] = k, v
        return k, v


class CausalAttention(nn.Module):
    """Attention of each position to itself and those before it; `qkv` are the projections of one layer."""

    def __init__(self, width: int, heads: int, dropout: float, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.out = nn.Linear(width, width, bias=bias)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, rotation: Tensor | None, cache: Cache | None, block: int) -> Tensor:
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        if rotation is not None:
            q, k = rotated(q, rotation), rotated(k, rotation)
        before = 0
        if cache is not None:
            before = cache.length
            k, v = cache.add(block, k, v)
        mask = None
        if before:  # new tokens see all earlier ones, and one another as before
            mask = torch.ones(x.shape[1], k.shape[2], dtype=torch.bool, device=x.device).tril(before)
        rate = self.dropout.p if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=rate, is_causal=mask is None)
        return self.dropout(self.out(y.transpose(1, 2).flatten(2)))


class DecoderBlock(nn.Module):
    """`x + attention(norm(x))`, then `x + feed_forward(norm(x))`."""

    def __init__(self, width: int, inner: int, heads: int, dropout: float, bias: bool) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width, bias=bias), CausalAttention(width, heads, dropout, bias)
        self.norm2 = nn.LayerNorm(width, bias=bias)
        layers = [nn.Linear(width, inner, bias=bias), nn.GELU(), nn.Linear(inner, width, bias=bias)]
        self.feed_forward = nn.Sequential(*layers, *([nn.Dropout(dropout)] if dropout else []))

    def forward(self, x: Tensor, rotation: Tensor | None, cache: Cache | None, block: int) -> Tensor:
        x = x + self.attention(self.norm1(x), rotation, cache, block)
        return x + self.feed_forward(self.norm2(x))


class GPT(nn.Module):
    """The network that `gpt` builds."""

    def __init__(
        self, tokens: int, context: int, width: int, inner: int, blocks: int, heads: int, dropout: float, rotary: bool,
        tied: bool, bias: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        self.context, self.head_width = context, width // heads
        self.tokens = _embedding(tokens, width)
        self.positions = None if rotary else _embedding(context, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(DecoderBlock(width, inner, heads, dropout, bias) for _ in range(blocks))
        self.norm = nn.LayerNorm(width, bias=bias)
        # One parameter under two names would come back from a file as two.
        self.head = None if tied else nn.Linear(width, tokens, bias=False)

    def forward(self, tokens: Tensor, cache: Cache | None = None) -> Tensor:
        """Logits of the next token. With a `cache`, `tokens` go on where those that it holds ended."""
        x = self.hidden(tokens, cache)
        return F.linear(x, self.tokens.weight) if self.head is None else self.head(x)

    def loss(self, tokens: Tensor, targets: Tensor, chunk: int | None = None) -> Tensor:
        """The mean cross-entropy to the tokens that follow, `(batch, length)`, without ever holding all logits.

        Equal to `F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())`, with exact gradients; see
        `filigree.ops.linear_cross_entropy`. A head that is more than a product with its weight, such as one with a bias
        or hooks, or one that a conversion replaced, computes all logits.
        """
        tied = TiedRows(self.tokens.weight, tokens) if self._takes_rows() else None
        x = self.hidden(tokens, tied=tied)
        if self.head is None or _is_product(self.head):
            weight = self.tokens.weight if self.head is None else self.head.weight
            return linear_cross_entropy(x, weight, targets, chunk=chunk, tied=tied)
        return F.cross_entropy(self.head(x).flatten(0, 1), targets.flatten())

    def _takes_rows(self) -> bool:
        """Whether the embedding is plain, and the head's, so that its rows may be read without calling it."""
        rows = self.tokens
        plain = type(rows) is nn.Embedding and rows.padding_idx is None and rows.max_norm is None
        plain = plain and not (rows.scale_grad_by_freq or rows.sparse)
        eager = torch.is_grad_enabled() and not torch.compiler.is_compiling() and not transforming()
        return self.head is None and plain and not has_hooks(rows) and eager and rows.weight.requires_grad

    def hidden(self, tokens: Tensor, cache: Cache | None = None, tied: TiedRows | None = None) -> Tensor:
        """What the head reads, `(batch, length, width)`."""
        begin, length = 0 if cache is None else cache.length, tokens.shape[-1]
        if tokens.dim() != 2 or begin + length > self.context:
            raise ValueError(
                f"GPT: tokens must be (batch, length), with at most {self.context} of them in a row. "
                f"Got {tuple(tokens.shape)}{f' after {begin}' if begin else ''}."
            )
        x = self.tokens(tokens) if tied is None else tied.rows
        rotation = None
        if self.positions is None:
            rotation = rotations(begin, length, self.head_width, x)
        else:
            x = x + self.positions.weight[begin : begin + length]
        x = self.dropout(x)
        for number, block in enumerate(self.blocks):
            x = block(x, rotation, cache, number)
        if cache is not None:
            cache.length += length
        return self.norm(x)

    @torch.no_grad()
    def generate(
        self, tokens: Tensor, steps: int, *, temperature: float = 1.0, top: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:  # fmt: skip
        """Draw `steps` tokens one after another, each from the model's distribution given those before it.

        Keys and values of earlier tokens are kept, so that a step costs one token's pass. What lies further back than
        `context` tokens is forgotten: when the context is full, its later half is read again and generation goes on
        from there.

        Args:
            tokens: `(batch, length)` to begin with, at least one.
            steps: how many to draw.
            temperature: divides the logits; 0 takes the likeliest token.
            top: draw only from so many of the likeliest tokens.
            generator: of the draws; torch's own by default.

        Returns:
            `(batch, length + steps)`: `tokens` with the drawn ones behind them.

        Raises:
            ValueError: nothing to begin with; a negative number of steps or temperature; `top` below 1.
        """
        if tokens.dim() != 2 or not tokens.shape[1]:
            shape = tuple(tokens.shape)
            raise ValueError(f"generate: tokens must be (batch, length) with a length of 1 at least. Got {shape}.")
        if steps < 0 or not temperature >= 0 or (top is not None and top < 1):
            raise ValueError(
                "generate: steps and temperature must be at least 0, top at least 1. "
                f"Got steps={steps}, temperature={temperature}, top={top}."
            )
        with evaluating(self):
            cache, unread = Cache(len(self.blocks)), tokens[:, -self.context :]
            for _ in range(steps):
                if cache.length + unread.shape[1] > self.context:
                    cache, unread = Cache(len(self.blocks)), tokens[:, -max(1, self.context // 2) :]
                logits = self(unread, cache)[:, -1]
                unread = _drawn(logits, temperature, top, generator)
                tokens = torch.cat([tokens, unread], dim=1)
        return tokens


def _is_product(head: nn.Module) -> bool:
    """Whether a head computes the product with its weight and nothing else."""
    plain = type(head) in (nn.Linear, FeatureMajorLinear) and head.bias is None
    return plain and not has_hooks(head) and "forward" not in vars(head)


def rotations(begin: int, length: int, width: int, like: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021): cosines and sines `(2, length, width / 2)` of position times frequency."""
    exact: Any = {"device": like.device, "dtype": torch.promote_types(like.dtype, torch.float32)}
    frequencies = 10_000.0 ** (-torch.arange(0, width, 2, **exact) / width)
    angles = torch.arange(begin, begin + length, **exact)[:, None] * frequencies
    return torch.stack([angles.cos(), angles.sin()]).to(like.dtype)


def rotated(x: Tensor, rotation: Tensor) -> Tensor:
    """x `(..., length, width)` with its pairs, a number of the first half and one of the second, turned."""
    (cos, sin), (a, b) = rotation, x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


def _drawn(logits: Tensor, temperature: float, top: int | None, generator: torch.Generator | None) -> Tensor:
    """A token for each row of logits, `(batch, 1)`."""
    if temperature == 0:
        return logits.argmax(1, keepdim=True)
    logits = logits.float() / temperature
    if top is not None and top < logits.shape[1]:
        likeliest = logits.topk(top, dim=1)  # no more than these, where others are as likely as the last
        logits = torch.full_like(logits, -math.inf).scatter_(1, likeliest.indices, likeliest.values)
    return torch.multinomial(logits.softmax(1), 1, generator=generator)


def _embedding(count: int, width: int) -> nn.Embedding:
    weight = torch.empty(count, width)
    # To draw numbers without memory torch loads its compiler, 150 MiB.
    return nn.Embedding(count, width, _weight=weight if weight.is_meta else None)


@builder
def gpt(
    tokens: int,
    context: int = 128,
    width: int = 256,
    blocks: int = 4,
    heads: int = 4,
    inner: int | None = None,
    dropout: float = 0.0,
    rotary: bool = False,
    tied: bool = True,
    bias: bool = False,
) -> nn.Module:
    """A decoder of transformer blocks, each `x + attention(norm(x))`, then `x + feed_forward(norm(x))`.

    Args:
        tokens: size of the vocabulary.
        context: the most tokens in a row.
        width: of the residual stream. heads: of attention, each `width / heads` wide.
        blocks: how many. inner: units of the feed-forward layers, by default 4 times `width`, with GELU.
        dropout: of the embedding, of attention and of both residual branches, in [0, 1).
        rotary: turn queries and keys by their positions (Su et al. 2021) in place of adding learned vectors.
        tied: the head's weights are the embedding's.
        bias: whether linear layers and norms add one.

    Shape: `(batch, length)` ints to logits of the next token `(batch, length, tokens)`. `model.generate(tokens, steps)`
    draws what follows. Weights are drawn as GPT-2's: normal with deviation 0.02, that of each layer which ends a
    residual branch divided by `sqrt(2 * blocks)`; 12 blocks of 768 with 12 heads, 50,257 tokens, a context of 1,024
    and biases are GPT-2 small.
    """
    inner = 4 * width if inner is None else inner
    if min(tokens, context, width, blocks, heads, inner) < 1:
        raise ValueError(
            "gpt: tokens, context, width, blocks, heads and inner must be at least 1. "
            f"Got {tokens}, {context}, {width}, {blocks}, {heads} and {inner}."
        )
    if width % heads or (rotary and width // heads % 2):
        even = " and, with rotary, each even" if rotary else ""
        raise ValueError(f"gpt: heads must divide width{even}. Got {heads} heads of {width}.")
    if not 0 <= dropout < 1:
        raise ValueError(f"gpt: dropout must be in [0, 1). Got {dropout}.")
    model = GPT(tokens, context, width, inner, blocks, heads, dropout, rotary, tied, bias)
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            continue
        if parameter.dim() > 1:
            ends = name.endswith(("attention.out.weight", "feed_forward.2.weight"))
            nn.init.normal_(parameter, 0.0, 0.02 / (math.sqrt(2 * blocks) if ends else 1))
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
    return made_by(
        model, "gpt", tokens=tokens, context=context, width=width, blocks=blocks, heads=heads, inner=inner,
        dropout=dropout, rotary=rotary, tied=tied, bias=bias,
    )  # fmt: skip
