"""The tokens of a text, and their numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from filigree.config import check_choice, clipped

Unit = Literal["characters", "words"]
UNITS = ("characters", "words")
_ATTRIBUTE, _END, _UNKNOWN = "vocabulary", "<eos>", "<unk>"


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a text: characters, or words with `<eos>` at the ends of lines.

    A language model trained by a recipe has one as its attribute `vocabulary`, which `fg.save` writes and `fg.load`
    gives back. Set it on a model of your own: `model.vocabulary = data.vocabulary`.

    Attributes:
        tokens: by their numbers. unit: "characters" or "words".

    Raises:
        ValueError: another unit, tokens that are not text, or two alike.
    """

    tokens: tuple[str, ...]
    unit: Unit = "characters"

    def __post_init__(self) -> None:
        check_choice("Vocabulary", "unit", self.unit, UNITS)
        object.__setattr__(self, "tokens", tuple(self.tokens))
        if not all(isinstance(token, str) for token in self.tokens) or len(set(self.tokens)) < len(self.tokens):
            raise ValueError(f"Vocabulary: tokens must be text, each another. Got {clipped(self.tokens)}.")

    def __len__(self) -> int:
        return len(self.tokens)

    def encode(self, text: str) -> Tensor:
        """The numbers of a text's tokens `(n,)`, int64. Unknown words are `<unk>`, where the vocabulary has it.

        Raises:
            ValueError: a token that it lacks.
        """
        numbers = {token: number for number, token in enumerate(self.tokens)}
        split = tokens_of(text, self.unit)
        if unknown := [token for token in split if token not in numbers and _UNKNOWN not in numbers]:
            raise ValueError(f"Vocabulary: it lacks {clipped(unknown[0])}. It has {len(self)} {self.unit}.")
        return torch.tensor([numbers.get(token, numbers.get(_UNKNOWN, 0)) for token in split], dtype=torch.int64)

    def decode(self, numbers: Tensor | Sequence[int]) -> str:
        """The text of tokens `(n,)`."""
        listed = numbers.tolist() if isinstance(numbers, Tensor) else numbers
        tokens = [self.tokens[number] for number in listed]
        if self.unit == "characters":
            return "".join(tokens)
        return " ".join("\n" if token == _END else token for token in tokens).replace(" \n", "\n").replace("\n ", "\n")

    def to_dict(self) -> dict[str, Any]:
        return {"tokens": list(self.tokens), "unit": self.unit}


def vocabulary_of(model: nn.Module) -> Vocabulary | None:
    """The tokens of a language model, if they have been set on it."""
    own = getattr(model, _ATTRIBUTE, None)
    return own if isinstance(own, Vocabulary) else None


def set_vocabulary(model: nn.Module, vocabulary: Vocabulary | None) -> None:
    """Set it as the model's attribute `vocabulary`; None leaves the model as it is."""
    if vocabulary is not None:
        setattr(model, _ATTRIBUTE, vocabulary)


def tokens_of(text: str, unit: Unit) -> list[str]:
    """A text's characters, or its words, with `<eos>` at the ends of lines."""
    return list(text) if unit == "characters" else text.replace("\n", f" {_END} ").split()
