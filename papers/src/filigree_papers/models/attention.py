"""Translation by an encoder and a decoder with additive attention."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_packed_sequence

from filigree.models.networks import builder, made_by
from filigree_papers.models.packing import PADDING, greedy, pack


class Attention(nn.Module):
    """Additive attention (Bahdanau et al. 2014): `c = sum_j a_j h_j`, `a = softmax_j(v tanh(W s + U h_j))`."""

    def __init__(self, state: int, encoded: int, hidden: int) -> None:
        super().__init__()
        self.of_state = nn.Linear(state, hidden, bias=False)
        self.of_encoded = nn.Linear(encoded, hidden)
        self.tanh = nn.Tanh()
        self.score = nn.Linear(hidden, 1, bias=False)

    def forward(
        self,
        state: Tensor,  # s: (batch, state)
        encoded: Tensor,  # h: (batch, time, encoded)
        keys: Tensor,  # U h, the same at every step: (batch, time, hidden)
        padding: Tensor,  # (batch, time), True where nothing is read
    ) -> Tensor:
        energies = self.score(self.tanh(self.of_state(state).unsqueeze(1) + keys)).squeeze(-1)
        weights = energies.masked_fill(padding, -torch.inf).softmax(-1)
        return (weights.unsqueeze(1) @ encoded).squeeze(1)


class Translator(nn.Module):
    """The module that `translator` builds."""

    def __init__(self, source_tokens: int, target_tokens: int, embedding: int, hidden: int) -> None:
        super().__init__()
        self.source_embedding = nn.Embedding(source_tokens, embedding, padding_idx=PADDING)
        self.target_embedding = nn.Embedding(target_tokens, embedding, padding_idx=PADDING)
        self.encoder = nn.GRU(embedding, hidden, batch_first=True, bidirectional=True)
        self.first = nn.Sequential(OrderedDict(fc=nn.Linear(hidden, hidden), tanh=nn.Tanh()))
        self.attention = Attention(hidden, 2 * hidden, hidden)
        self.decoder = nn.GRUCell(embedding + 2 * hidden, hidden)
        self.readout = nn.Sequential(
            OrderedDict(
                fc1=nn.Linear(embedding + 3 * hidden, embedding),
                tanh=nn.Tanh(),
                fc2=nn.Linear(embedding, target_tokens),
            )
        )

    def _encode(self, source: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """The decoder's first state, and what its attention reads at every step."""
        packed, h = self.encoder(pack(self.source_embedding(source), source, "translator"))
        encoded, _ = pad_packed_sequence(packed, batch_first=True, total_length=source.shape[1])
        return self.first(h[1]), (encoded, self.attention.of_encoded(encoded), source == PADDING)

    def _step(self, y: Tensor, state: Tensor, read: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """The next state, and what the readout sees, from the embedded token before: y `(batch, embedding)`."""
        context = self.attention(state, *read)
        state = self.decoder(torch.cat([y, context], -1), state)
        return state, torch.cat([y, context, state], -1)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        state, read = self._encode(source)
        seen = []
        for y in self.target_embedding(target[:, :-1]).unbind(1):
            state, features = self._step(y, state, read)
            seen.append(features)
        return self.readout(torch.stack(seen, 1))

    def translate(self, source: Tensor, most: int = 50) -> Tensor:
        """The likeliest token at each step: `(batch, at most most)` with END behind each sentence, then padding.

        A sentence that reaches `most` tokens is cut there, without END. Call `.eval()` before.
        """
        if most < 1:
            raise ValueError(f"translate: most must be at least 1. Got {most}.")
        with torch.no_grad():
            first, read = self._encode(source)

        def step(token: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
            state, features = self._step(self.target_embedding(token), state, read)
            return self.readout(features), state

        return greedy(step, first, len(source), source.device, most)


@builder
def translator(source_tokens: int, target_tokens: int, embedding: int, hidden: int) -> nn.Module:
    """A translator with additive attention (Bahdanau et al. 2014; Moczulski 2019, 4.3.6.4).

    A bidirectional GRU reads the source: h_j. The decoder, from `s_0 = tanh(W h_1)` of the way back, is
    `s_i = GRU([E y_(i-1), c_i], s_(i-1))` with the attention's `c_i` of `s_(i-1)`; logits are
    `W tanh(V [E y_(i-1), c_i, s_i])` with biases, of `embedding` units, as in the code the document names.

    Args:
        source_tokens, target_tokens: sizes of the vocabularies, with padding (0), begin (1) and end (2).
        embedding, hidden: widths; hidden for each direction, the attention and the decoder.

    Shape: `model(source, target)` with ints `(batch, S)`, `(batch, T)`, each followed by padding, to logits of
    `target[:, 1:]` given the true tokens before: `(batch, T - 1, target_tokens)`. Padding of the source changes
    nothing; leave that of the target out of the loss (`ignore_index=0`). `model.translate(source)` gives tokens.

    Raises:
        ValueError: a source of padding alone.
    """
    if min(source_tokens, target_tokens) < 3 or min(embedding, hidden) < 1:
        raise ValueError(
            "translator: source_tokens and target_tokens must be at least 3, embedding and hidden at least 1. "
            f"Got {source_tokens}, {target_tokens}, {embedding} and {hidden}."
        )
    model = Translator(source_tokens, target_tokens, embedding, hidden)
    return made_by(
        model, "translator", source_tokens=source_tokens, target_tokens=target_tokens, embedding=embedding,
        hidden=hidden,
    )  # fmt: skip
