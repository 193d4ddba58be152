"""A user's own files of sentences, and sentences as numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from filigree.data.files import path

PADDING, BEGIN, END, UNKNOWN = range(4)  # the first three as in filigree_papers.models.packing
MARKS = ("<pad>", "<s>", "</s>", "<unk>")


def own_files(root: str | Path | None, folder: str, names: Sequence[str], who: str) -> list[Path]:
    """Where a user's files are, below `root` or `FILIGREE_DATA`. `FileNotFoundError` names them all, in one line."""
    try:
        return [path(root, f"{folder}/{name}") for name in names]
    except FileNotFoundError as error:
        message = str(error).removeprefix("data: ")
        raise FileNotFoundError(f"{who}: {message} Its folder must hold {', '.join(names)}.") from None


def frequent_words(sentences: Iterable[str], most: int | None = None, least: int = 1) -> tuple[str, ...]:
    """The marks, and behind them the words of sentences that come at least `least` times.

    At most `most` words, the most frequent first; of equal counts in the order of the alphabet.
    """
    counts = Counter(word for sentence in sentences for word in sentence.split())
    kept = [word for word, count in counts.items() if count >= least and word not in MARKS]
    return *MARKS, *sorted(kept, key=lambda word: (-counts[word], word))[:most]


def encode(sentences: Iterable[str], vocabulary: Sequence[str], begin: bool) -> list[Tensor]:
    """Each sentence as int64 indices into the vocabulary, with END behind it, and BEGIN before it if `begin`."""
    index = {word: number for number, word in enumerate(vocabulary) if number > UNKNOWN}
    start = [BEGIN] if begin else []
    return [
        torch.tensor([*start, *(index.get(word, UNKNOWN) for word in sentence.split()), END]) for sentence in sentences
    ]
