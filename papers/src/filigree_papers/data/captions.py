"""Images with captions: a user's own copy of Flickr8k, with features of its images that the user has computed."""

from __future__ import annotations

import weakref
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from filigree.config import one_line
from filigree.data.readers import npz_array, read_text
from filigree_papers.data.sentences import encode, frequent_words, own_files

Captioned = tuple[str, tuple[Tensor, ...]]

TOKENS, FEATURES = "Flickr8k.token.txt", "features.npz"
SPLITS = tuple(f"Flickr_8k.{part}Images.txt" for part in ("train", "dev", "test"))


class Features:
    """Arrays `(regions, dims)` of a .npz file, by the names of images: each is read when it is needed.

    Raises:
        ValueError: no such file, an image that it does not hold, arrays that do not fit each other; in one line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = zipfile.ZipFile(path)
            self.images = frozenset(name.removesuffix(".npy") for name in self._file.namelist())
        except (OSError, ValueError, EOFError, NotImplementedError, zipfile.BadZipFile) as error:
            raise self._unreadable(error) from None
        weakref.finalize(self, self._file.close)

    def __call__(self, images: Sequence[str]) -> Tensor:
        """Floats `(len(images), regions, dims)`."""
        try:
            arrays = [np.asarray(npz_array(self._file, image), np.float32) for image in images]
        except KeyError as error:
            raise ValueError(f"captions: {self.path} must hold an array for each image. {error.args[0]}.") from None
        except Exception as error:  # zipfile's reader fails in many ways on a damaged file
            raise self._unreadable(error) from None
        shapes = {array.shape for array in arrays}
        if len(shapes) > 1 or len(min(shapes)) != 2:
            raise ValueError(f"captions: arrays of {self.path} must be (regions, dims), all alike. Got {min(shapes)}, "
                             f"{max(shapes)}.")  # fmt: skip
        return torch.from_numpy(np.stack(arrays))

    def _unreadable(self, error: Exception) -> ValueError:
        reason = one_line(error, 100)
        return ValueError(f"captions: {self.path} is no .npz file that can be read ({reason}).")


@dataclass(frozen=True)
class Captions:
    """Images, each with its captions: BEGIN, int64 indices into `vocabulary`, END.

    The vocabulary starts with `<pad>`, `<s>` (BEGIN), `</s>` (END) and `<unk>`, indices 0 to 3. `features` of names
    are floats `(images, regions, dims)`, read from the file.
    """

    train: tuple[Captioned, ...]
    validation: tuple[Captioned, ...]
    test: tuple[Captioned, ...]
    vocabulary: tuple[str, ...]
    features: Features


def captions(root: str | Path | None = None, folder: str = "flickr8k", least: int = 5) -> Captions:
    """A user's own Flickr8k (Moczulski 2019, 4.3.6.5), in lower case, with blanks between words as in the file.

    Args:
        root: where the folder is; by default `FILIGREE_DATA`.
        folder: holds `Flickr8k.token.txt`, of lines `image.jpg#0<tab>caption`; `Flickr_8k.trainImages.txt`, `.dev...`
            and `.test...`, a name of an image a line; and `features.npz`, an array `(regions, dims)` under each
            image's name: in the document 196 x 512, of a VGG network. What `np.savez` writes is read faster than what
            `np.savez_compressed` writes.
        least: how often a word must be in the captions of the training part to be in the vocabulary.

    Raises:
        FileNotFoundError, ValueError: files absent or not as above, in one line.
    """
    tokens, *splits, arrays = own_files(root, folder, (TOKENS, *SPLITS, FEATURES), "captions")
    captions_of: dict[str, list[str]] = {}
    for number, line in enumerate(_lines(tokens), 1):
        name, tab, caption = line.partition("\t")
        image, mark, _ = name.rpartition("#")
        if not tab or not mark:
            raise ValueError(f"captions: lines of {tokens} must be image.jpg#0<tab>caption. Got {line[:60]!r}, line "
                             f"{number}.")  # fmt: skip
        captions_of.setdefault(image, []).append(caption.lower())
    features = Features(arrays)
    parts = [_lines(split) for split in splits]
    for split, part in zip(splits, parts, strict=True):
        for known, what in ((captions_of.keys(), TOKENS), (features.images, FEATURES)):
            if unknown := [image for image in part if image not in known]:
                raise ValueError(f"captions: images of {split} must be in {what}. Got {unknown[0]}, which is not.")
        if not part:
            raise ValueError(f"captions: {split} must name an image. Got none.")
    vocabulary = frequent_words((caption for image in parts[0] for caption in captions_of[image]), least=least)
    train, validation, test = (
        tuple((image, tuple(encode(captions_of[image], vocabulary, begin=True))) for image in part) for part in parts
    )
    return Captions(train, validation, test, vocabulary, features)


def _lines(file: Path) -> list[str]:
    return [line.strip() for line in read_text(file).split("\n") if line.strip()]
