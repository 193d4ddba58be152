"""A recurrent language model that reads a long text piece by piece."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from filigree.models.networks import builder, made_by


class LanguageModel(nn.Module):
    """The network that `language_model` builds. `.reset()` forgets the carried state, which no `state_dict` holds."""

    def __init__(
        self, tokens: int, embedding: int, hidden: int, layers: int, kind: str, dropout: float, tied: bool, carry: bool
    ) -> None:
        super().__init__()
        self.carry = carry
        self._state: Any = None
        self.embedding = nn.Embedding(tokens, embedding)
        self.dropout = nn.Dropout(dropout)
        rnn = {"lstm": nn.LSTM, "gru": nn.GRU}[kind]
        between = dropout if layers > 1 else 0.0  # torch warns of dropout between layers where there is one
        self.rnn = rnn(embedding, hidden, layers, batch_first=True, dropout=between)
        # One parameter under two names would come back from a file as two.
        self.decoder = None if tied else nn.Linear(hidden, tokens)
        self.bias = nn.Parameter(torch.zeros(tokens)) if tied else None

    def reset(self) -> None:
        self._state = None

    def train(self, mode: bool = True) -> Self:
        if mode != self.training:
            self.reset()
        return super().train(mode)

    def _given(self, x: Tensor) -> Any:
        """The carried state in x's type, unless it is of another batch size or device, or knows no gradients."""
        state = self._state
        h = state[0] if isinstance(state, tuple) else state
        if h is None or h.shape[1] != len(x) or h.device != x.device or (h.is_inference() and torch.is_grad_enabled()):
            return None
        return tuple(part.to(x.dtype) for part in state) if isinstance(state, tuple) else state.to(x.dtype)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.dropout(self.embedding(tokens))
        y, state = self.rnn(x, self._given(x))
        if self.carry:
            self._state = tuple(part.detach() for part in state) if isinstance(state, tuple) else state.detach()
        y = self.dropout(y)
        return nn.functional.linear(y, self.embedding.weight, self.bias) if self.decoder is None else self.decoder(y)


@builder
def language_model(
    tokens: int,
    embedding: int,
    hidden: int,
    layers: int = 2,
    kind: str = "lstm",
    dropout: float = 0.0,
    tied: bool = False,
    init: float = 0.1,
    carry: bool = True,
) -> nn.Module:
    """A recurrent language model (Zaremba et al. 2014; Moczulski 2019, 4.3.6.3): embedding, LSTM or GRU, decoder.

    Args:
        tokens: size of the vocabulary. embedding, hidden: widths. layers: of the recurrent network.
        kind: "lstm" or "gru".
        dropout: of the embedding, between the layers and before the decoder, never from step to step; in [0, 1).
        tied: the decoder's weights are the embedding's; their widths must be the same.
        init: every parameter is drawn uniformly from [-init, init].
        carry: each call starts from the last state of the call before, without gradient through it, until `.reset()`,
            a change between training and eval mode, or another batch size.

    Shape: `(batch, time)` ints to logits of the next token `(batch, time, tokens)`. With `carry`, row i of a batch
    goes on where row i of the batch before ended.
    """
    if min(tokens, embedding, hidden, layers) < 1:
        raise ValueError(
            "language_model: tokens, embedding, hidden and layers must be at least 1. "
            f"Got {tokens}, {embedding}, {hidden} and {layers}."
        )
    if kind not in ("lstm", "gru"):
        raise ValueError(f'language_model: kind must be "lstm" or "gru". Got {kind!r}.')
    if not 0 <= dropout < 1:
        raise ValueError(f"language_model: dropout must be in [0, 1). Got {dropout}.")
    if tied and embedding != hidden:
        raise ValueError(f"language_model: tied needs embedding equal to hidden. Got {embedding} and {hidden}.")
    if init <= 0:
        raise ValueError(f"language_model: init must be above 0. Got {init}.")
    model = LanguageModel(tokens, embedding, hidden, layers, kind, dropout, tied, carry)
    for parameter in model.parameters():
        nn.init.uniform_(parameter, -init, init)
    return made_by(
        model, "language_model", tokens=tokens, embedding=embedding, hidden=hidden, layers=layers, kind=kind,
        dropout=dropout, tied=tied, init=init, carry=carry,
    )  # fmt: skip
