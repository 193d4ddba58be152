"""Captions of images by a decoder with soft attention over their regions."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from filigree.models.networks import builder, made_by
from filigree_papers.models.packing import PADDING, greedy


class RegionAttention(nn.Module):
    """Soft attention with a gate: `z = beta sum_i alpha_i a_i`, `alpha = softmax_i(v tanh(W h + U a_i))`,
    `beta = sigmoid(w h)`, with biases (Xu et al. 2015, 4.2.1)."""

    def __init__(self, state: int, features: int, hidden: int) -> None:
        super().__init__()
        self.of_state = nn.Linear(state, hidden, bias=False)
        self.of_region = nn.Linear(features, hidden)
        self.tanh = nn.Tanh()
        self.score = nn.Linear(hidden, 1, bias=False)
        self.gate = nn.Sequential(OrderedDict(fc=nn.Linear(state, 1), sigmoid=nn.Sigmoid()))

    def forward(
        self,
        state: Tensor,  # h: (batch, state)
        regions: Tensor,  # a: (batch, regions, features)
        keys: Tensor,  # U a, the same at every step: (batch, regions, hidden)
    ) -> tuple[Tensor, Tensor]:
        energies = self.score(self.tanh(self.of_state(state).unsqueeze(1) + keys)).squeeze(-1)
        weights = energies.softmax(-1)
        return self.gate(state) * (weights.unsqueeze(1) @ regions).squeeze(1), weights


class Readout(nn.Module):
    """Logits `W tanh(E y + L h + K z)` with biases, `h` and `z` with dropout (Xu et al. 2015, equation 7)."""

    def __init__(self, embedding: int, hidden: int, features: int, tokens: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.of_context = nn.Linear(features, embedding, bias=False)
        self.of_state = nn.Linear(hidden, embedding)
        self.tanh = nn.Tanh()
        self.fc = nn.Linear(embedding, tokens)

    def forward(self, y: Tensor, state: Tensor, context: Tensor) -> Tensor:
        return self.fc(self.tanh(y + self.of_state(self.dropout(state)) + self.of_context(self.dropout(context))))


class Captioner(nn.Module):
    """The module that `captioner` builds."""

    def __init__(self, tokens: int, features: int, embedding: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, embedding, padding_idx=PADDING)
        self.first_state = nn.Sequential(OrderedDict(fc=nn.Linear(features, hidden), tanh=nn.Tanh()))
        self.first_memory = nn.Sequential(OrderedDict(fc=nn.Linear(features, hidden), tanh=nn.Tanh()))
        self.attention = RegionAttention(hidden, features, hidden)
        self.decoder = nn.LSTMCell(embedding + features, hidden)
        self.readout = Readout(embedding, hidden, features, tokens, dropout)

    def _start(self, features: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """The decoder's first states, and what its attention reads at every step."""
        mean = features.mean(1)
        return (self.first_state(mean), self.first_memory(mean)), (features, self.attention.of_region(features))

    def attend(self, features: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The logits, and with them alpha, where each token looked: `(batch, T - 1, regions)`, rows that sum to 1."""
        state, read = self._start(features)
        y = self.embedding(tokens[:, :-1])
        states, contexts, looks = [], [], []
        for each in y.unbind(1):
            context, weights = self.attention(state[0], *read)
            state = self.decoder(torch.cat([each, context], -1), state)
            states.append(state[0])
            contexts.append(context)
            looks.append(weights)
        return self.readout(y, torch.stack(states, 1), torch.stack(contexts, 1)), torch.stack(looks, 1)

    def forward(self, features: Tensor, tokens: Tensor) -> Tensor:
        return self.attend(features, tokens)[0]

    def describe(self, features: Tensor, most: int = 20) -> Tensor:
        """The likeliest token at each step: `(batch, at most most)` with END behind each caption, then padding.

        A caption that reaches `most` tokens is cut there, without END. Call `.eval()` before.
        """
        if most < 1:
            raise ValueError(f"describe: most must be at least 1. Got {most}.")
        with torch.no_grad():
            first, read = self._start(features)

        def step(token: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            y = self.embedding(token)
            context, _ = self.attention(state[0], *read)
            state = self.decoder(torch.cat([y, context], -1), state)
            return self.readout(y, state[0], context), state

        return greedy(step, first, len(features), features.device, most)


@builder
def captioner(tokens: int, features: int, embedding: int, hidden: int, dropout: float = 0.5) -> nn.Module:
    """Captions by soft attention over regions (Xu et al. 2015; Moczulski 2019, 4.3.6.5).

    From the mean region m, `h_0 = tanh(W m)` and `c_0 = tanh(V m)`, the decoder is
    `h_t, c_t = LSTM([E y_(t-1), z_t], h_(t-1), c_(t-1))` with the gated context `z_t` of `h_(t-1)`
    (`RegionAttention`); logits are `W tanh(E y_(t-1) + L h_t + K z_t)`, with the tanh of the code the document names.

    Args:
        tokens: size of the vocabulary, with padding (0), begin (1) and end (2). features: width of a region.
        embedding, hidden: widths; hidden of the decoder and the attention.
        dropout: of `h_t` and `z_t` where the logits are made, never from step to step; in [0, 1).

    Shape: `model(features, tokens)` with floats `(batch, regions, features)` and ints `(batch, T)`, padding behind, to
    logits of `tokens[:, 1:]` given the true tokens before: `(batch, T - 1, tokens)`. Leave padding out of the loss
    (`ignore_index=0`). `model.describe(features)` gives tokens.
    """
    if tokens < 3 or min(features, embedding, hidden) < 1:
        raise ValueError(
            "captioner: tokens must be at least 3, features, embedding and hidden at least 1. "
            f"Got {tokens}, {features}, {embedding} and {hidden}."
        )
    if not 0 <= dropout < 1:
        raise ValueError(f"captioner: dropout must be in [0, 1). Got {dropout}.")
    model = Captioner(tokens, features, embedding, hidden, dropout)
    return made_by(
        model, "captioner", tokens=tokens, features=features, embedding=embedding, hidden=hidden, dropout=dropout
    )
