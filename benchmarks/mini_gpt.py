"""The 40-million-parameter GPT of sparselab's demonstrations (`demo_16`, milestones 11 and 14 of its repository).

39,508,480 parameters: 8 blocks of 640 / 2560 units, 10 heads, 65 characters, no biases but those of the norms; batches
of 8 x 128. Attention's projections (q, k and v as one) are 70% sparse, the feed-forward layers 90%.
"""

import copy

import torch
from torch import nn
from torch.nn import functional as F

import filigree as fg

TOKENS, LENGTH, BATCH, WIDTH, INNER, HEADS, BLOCKS = 65, 128, 8, 640, 2560, 10, 8
SPARSITIES = {"*.attention.*": 0.7, "*.feed_forward.*": 0.9}


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x):
        batch, length, _ = x.shape
        q, k, v = (part.view(batch, length, HEADS, -1).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # (batch, heads, length, width of a head)
        return self.out(y.transpose(1, 2).reshape(batch, length, WIDTH))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(WIDTH), Attention()
        self.norm2 = nn.LayerNorm(WIDTH)
        self.feed_forward = nn.Sequential(
            nn.Linear(WIDTH, INNER, bias=False), nn.GELU(), nn.Linear(INNER, WIDTH, bias=False)
        )

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.feed_forward(self.norm2(x))


class MiniGPT(nn.Module):
    """Tokens `(batch, length)` to logits of the next ones, `(batch * length, 65)`."""

    def __init__(self):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(TOKENS, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, TOKENS, bias=False)

    def forward(self, tokens):
        x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)).flatten(0, 1)


def ours(sparsities=SPARSITIES):
    model = MiniGPT()
    for where, sparsity in sparsities.items():
        fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=1 - sparsity)), where=where)
    return model


def replaced(model, build):
    """A copy of the model in which `build(layer)` stands for each sparse layer."""
    model = copy.deepcopy(model)
    for name, layer in list(model.named_modules()):
        if isinstance(layer, fg.nn.SparseLinear):
            owner, _, key = name.rpartition(".")
            setattr(model.get_submodule(owner), key, build(layer))
    return model


def batch():
    """Random characters and the ones that follow them, flat."""
    text = torch.randint(TOKENS, (BATCH, LENGTH + 1))
    return text[:, :-1].contiguous(), text[:, 1:].flatten()
