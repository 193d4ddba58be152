"""Texts as sequences of words or characters, and the pieces that language models are trained on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from filigree.config import check_choice, clipped
from filigree.data.dataset import DataSet, Split
from filigree.data.files import FILES, locate
from filigree.data.readers import read_text
from filigree.data.vocabulary import UNITS, Unit, Vocabulary, tokens_of

TEXTS = ("ptb", "tiny-shakespeare")


@dataclass(frozen=True)
class Text:
    """Parts of a text, int64 indices into `vocabulary`, the sorted tokens."""

    train: Tensor
    validation: Tensor
    test: Tensor
    vocabulary: tuple[str, ...]


def words(name: str | Path = "ptb", root: str | Path | None = None) -> Text:
    """The words of a text; the ends of lines are words, `<eos>`.

    "ptb": Penn Treebank in Mikolov's preprocessing: 929,589, 73,760 and 82,430 words, 10,000 different ones; rare words
    are `<unk>`, as they are in the files. They have to be brought: the text is the LDC's.

    Args:
        name: of a text, or a file `.txt` of your own, in UTF-8, split 90, 5, 5 in its order.
        root: the folder of the files; by default `FILIGREE_DATA`.

    Raises:
        FileNotFoundError, ValueError: files absent or damaged, in one line.
    """
    return _encode(*(tokens_of(part, "words") for part in _parts(name, root)))


def characters(name: str | Path = "ptb", root: str | Path | None = None) -> Text:
    """The characters of a text.

    "ptb": 5,017,482, 393,042 and 442,423 characters, 50 different ones; lines without the blanks around them.
    "tiny-shakespeare": 1,115,394 characters, 65 different ones, split 90, 5, 5 in their order.

    Args, Raises: as `words`; `tiny-shakespeare` is downloaded where no folder is named.
    """
    return _encode(*(tokens_of(part, "characters") for part in _parts(name, root)))


def load_text(
    name: str | Path, *, unit: Unit = "characters", length: int = 128, root: str | Path | None = None
) -> DataSet:
    """A text as a data set for language models: pieces of `length` tokens, and for each token the one that follows.

    Args:
        name: "ptb", "tiny-shakespeare", or a file `.txt` of your own, split 90, 5, 5 in its order.
        unit: "characters" or "words".
        length: of a piece; pieces do not overlap, and what does not fill one at the end is left out.

    Returns:
        Parts with x and y `(pieces, length)`, int64; `classes` is the size of the `vocabulary`.

    Raises:
        FileNotFoundError, ValueError: as `words`; a part that does not fill one piece.
    """
    check_choice("load_text", "unit", unit, UNITS)
    if length < 1:
        raise ValueError(f"load_text: length must be at least 1. Got {length}.")
    text = characters(name, root) if unit == "characters" else words(name, root)
    parts = []
    for part in ("train", "validation", "test"):
        tokens = getattr(text, part)
        pieces = (len(tokens) - 1) // length
        if not pieces:
            raise ValueError(f"data {name}: its {part} part must hold {length + 1} {unit} at least. Got {len(tokens)}.")
        parts.append(Split(*(tokens[i : i + pieces * length].view(pieces, length) for i in (0, 1))))
    sizes = ", ".join(f"{len(getattr(text, part)):,} {what}" for part, what in
                      (("train", "train"), ("validation", "validate"), ("test", "test")))  # fmt: skip
    label = Path(name).stem if Path(name).suffix else str(name)
    return DataSet(
        label, parts[0], parts[1], parts[2], len(text.vocabulary), (length,),
        notes=[f"{label}: {unit}, {len(text.vocabulary):,} different ones; {sizes}; in pieces of {length}"],
        vocabulary=Vocabulary(text.vocabulary, unit),
    )  # fmt: skip


def language_model_batches(tokens: Tensor, batch_size: int, steps: int) -> tuple[Tensor, Tensor]:
    """A text as `batch_size` contiguous streams, cut into pieces: x, and y, the token after each of x.

    Piece k + 1 goes on where piece k stopped, stream by stream, so that states can be carried over. What does not fill
    a piece at the end of the streams is left out.

    Args:
        tokens: `(n,)`.

    Returns:
        x, y `(pieces, batch_size, steps)`.
    """
    if tokens.ndim != 1:
        raise ValueError(f"language_model_batches: tokens must be of one dimension. Got {tuple(tokens.shape)}.")
    if batch_size < 1 or steps < 1:
        raise ValueError(
            f"language_model_batches: batch_size and steps must be at least 1. Got {batch_size} and {steps}."
        )
    stream = (len(tokens) - 1) // batch_size
    pieces = stream // steps
    if not pieces:
        raise ValueError(
            f"language_model_batches: at least {batch_size * steps + 1} tokens are expected, for {batch_size} streams "
            f"of {steps}. Got {len(tokens)}."
        )

    def cut(shifted: Tensor) -> Tensor:
        streams = shifted[: batch_size * stream].view(batch_size, stream)[:, : pieces * steps]
        return streams.reshape(batch_size, pieces, steps).transpose(0, 1).contiguous()

    return cut(tokens), cut(tokens[1:])


def _parts(name: str | Path, root: str | Path | None) -> tuple[str, str, str]:
    """The parts of a text by its name, or of a file of a user's own."""
    if Path(name).suffix == ".txt":
        if not Path(name).is_file():
            raise FileNotFoundError(f"data: there is no file {name}.")
        whole = read_text(Path(name))
    elif name not in TEXTS:
        raise ValueError(f"data: a text must be one of {', '.join(TEXTS)}, or a file .txt. Got {clipped(str(name))}.")
    else:
        texts = {part: read_text(locate(source, root)) for part, source in FILES[str(name)].items()}
        if name == "ptb":
            train, valid, test = ("\n".join(line.strip() for line in text.split("\n")) for text in texts.values())
            return train, valid, test
        whole = texts[""]
    first, second = len(whole) * 90 // 100, len(whole) * 95 // 100
    return whole[:first], whole[first:second], whole[second:]


def _encode(*parts: Iterable[str]) -> Text:
    """Three parts, encoded by the tokens of them all."""
    listed = [list(part) for part in parts]
    vocabulary = tuple(sorted(set().union(*listed)))
    index = {token: number for number, token in enumerate(vocabulary)}
    train, validation, test = (torch.tensor([index[token] for token in part]) for part in listed)
    return Text(train, validation, test, vocabulary)
