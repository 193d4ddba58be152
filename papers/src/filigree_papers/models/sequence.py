"""Networks that read a whole sequence into one vector."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from filigree.models.networks import builder, made_by
from filigree_papers.models.packing import PADDING, pack


class SequenceClassifier(nn.Module):
    """The module that `sequence_classifier` builds."""

    def __init__(self, tokens: int, embedding: int, hidden: int, classes: int, mlp: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, embedding)
        self.rnn = nn.LSTM(embedding, hidden, batch_first=True)
        self.mlp = nn.Sequential(OrderedDict(fc1=nn.Linear(hidden, mlp), relu1=nn.ReLU(), fc2=nn.Linear(mlp, classes)))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.mlp(self.rnn(self.embedding(tokens))[0].mean(1))


@builder
def sequence_classifier(tokens: int, embedding: int, hidden: int, classes: int, mlp: int) -> nn.Module:
    """An LSTM, the mean of its hidden states over time, and an MLP of one hidden layer of ReLU.

    Moczulski 2019, 4.3.6.6, counts with it the unique elements among 26 integers of 0 to 10: `tokens=11`.

    Args:
        tokens: how many values an element has. embedding, hidden: widths. classes: of the answer.
        mlp: hidden units of the MLP.

    Shape: `(batch, time)` ints, of any length but all alike, to logits `(batch, classes)`.
    """
    if min(tokens, embedding, hidden, classes, mlp) < 1:
        raise ValueError(
            "sequence_classifier: tokens, embedding, hidden, classes and mlp must be at least 1. "
            f"Got {tokens}, {embedding}, {hidden}, {classes} and {mlp}."
        )
    model = SequenceClassifier(tokens, embedding, hidden, classes, mlp)
    arguments = {"tokens": tokens, "embedding": embedding, "hidden": hidden, "classes": classes, "mlp": mlp}
    return made_by(model, "sequence_classifier", **arguments)


class CharacterEncoder(nn.Module):
    """The module that `character_encoder` builds."""

    def __init__(self, tokens: int, embedding: int, hidden: int, outputs: int, layers: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, embedding, padding_idx=PADDING)
        self.rnn = nn.LSTM(embedding, hidden, batch_first=True, bidirectional=True)
        sizes = [2 * hidden, *[width] * (layers - 1), outputs]
        mlp: OrderedDict[str, nn.Module] = OrderedDict()
        for i in range(1, len(sizes)):
            mlp[f"fc{i}"] = nn.Linear(sizes[i - 1], sizes[i])
            if i < layers:
                mlp[f"tanh{i}"] = nn.Tanh()
        self.mlp = nn.Sequential(mlp)

    def forward(self, tokens: Tensor) -> Tensor:
        _, (h, _) = self.rnn(pack(self.embedding(tokens), tokens, "character_encoder"))
        return self.mlp(torch.cat([h[0], h[1]], -1))


@builder
def character_encoder(
    tokens: int, embedding: int, hidden: int, outputs: int, layers: int = 5, width: int = 500
) -> nn.Module:
    """Word vectors from characters (Moczulski 2019, 4.4.4.2, Fig. 4.19): a bidirectional LSTM and an MLP with tanh.

    Args:
        tokens: how many characters there are, padding (0) included. embedding, hidden: widths; hidden for each
            direction. outputs: width of the word vectors, 500 in the document.
        layers: linear layers of the MLP, with tanh between them and none at the end: word vectors are not bounded.
        width: of the MLP's hidden layers (the document gives none).

    Shape: `(batch, time)` ints, each word followed by padding, to `(batch, outputs)`. Padding changes nothing.

    Raises:
        ValueError: a word of padding alone.
    """
    if min(tokens, embedding, hidden, outputs, layers, width) < 1:
        raise ValueError(
            "character_encoder: tokens, embedding, hidden, outputs, layers and width must be at least 1. "
            f"Got {tokens}, {embedding}, {hidden}, {outputs}, {layers} and {width}."
        )
    model = CharacterEncoder(tokens, embedding, hidden, outputs, layers, width)
    return made_by(
        model, "character_encoder", tokens=tokens, embedding=embedding, hidden=hidden, outputs=outputs, layers=layers,
        width=width,
    )  # fmt: skip
