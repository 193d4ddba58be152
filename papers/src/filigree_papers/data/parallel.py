"""Sentences in two languages: a user's own copy of Europarl, or any other, in files of one sentence a line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from filigree.data.readers import read_text
from filigree_papers.data.sentences import PADDING, encode, frequent_words, own_files

SentencePair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Parallel:
    """Pairs of sentences, int64 indices into `source` and `target`. Both end with END; a target begins with BEGIN.

    Both vocabularies start with `<pad>`, `<s>` (BEGIN), `</s>` (END) and `<unk>`, indices 0 to 3.
    """

    train: tuple[SentencePair, ...]
    validation: tuple[SentencePair, ...]
    test: tuple[SentencePair, ...]
    source: tuple[str, ...]
    target: tuple[str, ...]


def parallel(
    root: str | Path | None = None,
    folder: str = "europarl",
    languages: tuple[str, str] = ("en", "fr"),
    vocabulary: int = 30_000,
    longest: int = 50,
) -> Parallel:
    """A user's own sentences and translations (Moczulski 2019, 4.3.6.4), tokenised: blanks between words.

    Args:
        root: where the folder is; by default `FILIGREE_DATA`.
        folder: holds `train`, `valid` and `test`, `.en` and `.fr` each: lines of the same number are translations.
        languages: the endings, source first.
        vocabulary: words of each language that are kept, the most frequent of its training part (of all its lines).
        longest: words of a sentence of the training part: pairs with a longer one, or with an empty one, are left out.

    Raises:
        FileNotFoundError, ValueError: files absent, no text, or not of the same number of lines, in one line.
    """
    if vocabulary < 1 or longest < 1:
        raise ValueError(f"parallel: vocabulary and longest must be at least 1. Got {vocabulary} and {longest}.")
    names = [f"{part}.{language}" for part in ("train", "valid", "test") for language in languages]
    texts = [_lines(file) for file in own_files(root, folder, names, "parallel")]
    for i in range(0, len(names), 2):
        if len(texts[i]) != len(texts[i + 1]):
            raise ValueError(
                f"parallel: {names[i]} and {names[i + 1]} must have as many lines. "
                f"Got {len(texts[i]):,} and {len(texts[i + 1]):,}."
            )
    source, target = (frequent_words(text, vocabulary) for text in texts[:2])

    def pairs(first: list[str], second: list[str]) -> tuple[SentencePair, ...]:
        return tuple(zip(encode(first, source, begin=False), encode(second, target, begin=True), strict=True))

    kept = [pair for pair in zip(*texts[:2], strict=True) if all(1 <= len(text.split()) <= longest for text in pair)]
    if not kept:
        raise ValueError(
            f"parallel: a pair of 1 to {longest} words is expected in {names[0]} and {names[1]}. "
            f"Got none in {len(texts[0]):,} lines."
        )
    train = pairs([first for first, _ in kept], [second for _, second in kept])
    return Parallel(train, pairs(*texts[2:4]), pairs(*texts[4:]), source, target)


def parallel_batches(pairs: Sequence[SentencePair], size: int, seed: int) -> Iterator[SentencePair]:
    """All pairs once, in batches of similar lengths: the targets', then the sources'; batches come in random order.

    Returns:
        pairs of ints `(batch, S)` and `(batch, T)`, with padding (0) behind; the last of the sorted batches is smaller.
    """
    if size < 1:
        raise ValueError(f"parallel_batches: size must be at least 1. Got {size}.")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(pairs), generator=generator).tolist()  # of equal lengths in random order
    order.sort(key=lambda i: (len(pairs[i][1]), len(pairs[i][0])))
    starts = range(0, len(order), size)
    for batch in torch.randperm(len(starts), generator=generator).tolist():
        chosen = [pairs[i] for i in order[starts[batch] : starts[batch] + size]]
        source, target = (pad_sequence(list(side), True, PADDING) for side in zip(*chosen, strict=True))
        yield source, target


def _lines(file: Path) -> list[str]:
    return read_text(file).removesuffix("\n").split("\n")
