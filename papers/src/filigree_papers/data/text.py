"""Texts as sequences of words or characters, and the pieces that a language model is trained on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from filigree.data.files import FILES, Source, locate
from filigree.data.readers import read_text

_SHAKESPEARE = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
FILES |= {
    # the text is the LDC's: it has to be brought
    "ptb": {
        part: Source(f"ptb/ptb.{part}.txt", (f"sha256:{checksum}",))
        for part, checksum in {
            "train": "fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf",
            "valid": "c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2",
            "test": "dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0",
        }.items()
    },
    "tiny-shakespeare": {"": Source("tiny-shakespeare/input.txt", (
        "sha256:86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",), _SHAKESPEARE)},
}  # fmt: skip


@dataclass(frozen=True)
class Text:
    """Parts of a text, int64 indices into `vocabulary`, the sorted tokens."""

    train: Tensor
    validation: Tensor
    test: Tensor
    vocabulary: tuple[str, ...]


def words(name: str = "ptb", root: str | Path | None = None) -> Text:
    """Penn Treebank in Mikolov's preprocessing: 929,589, 73,760 and 82,430 words, 10,000 different ones.

    The ends of lines are words, `<eos>`; rare words are `<unk>`, as they are in the files.

    Args:
        root: the folder of the files; by default `FILIGREE_DATA`. They have to be brought: the text is the LDC's.

    Raises:
        FileNotFoundError, ValueError: files absent or damaged, in one line.
    """
    parts = (part.replace("\n", " <eos> ").split() for part in _parts(name, ("ptb",), "words", root))
    return _encode(*parts)


def characters(name: str = "ptb", root: str | Path | None = None) -> Text:
    """The characters of Penn Treebank or of `tiny-shakespeare`.

    "ptb": 5,017,482, 393,042 and 442,423 characters, 50 different ones; lines without the blanks around them.
    "tiny-shakespeare": 1,115,394 characters, 65 different ones, split 90, 5, 5 in their order.

    Args, Raises: as `words`; `tiny-shakespeare` is downloaded where no folder is named.
    """
    return _encode(*_parts(name, ("ptb", "tiny-shakespeare"), "characters", root))


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


def _parts(name: str, known: tuple[str, ...], who: str, root: str | Path | None) -> tuple[str, str, str]:
    if name not in known:
        raise ValueError(f"{who}: name must be one of {', '.join(known)}. Got {name!r}.")
    texts = {part: read_text(locate(source, root)) for part, source in FILES[name].items()}
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
