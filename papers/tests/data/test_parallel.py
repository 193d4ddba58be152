from itertools import pairwise

import numpy as np
import pytest
import torch

from filigree_papers import data as own_data
from written_data import write_europarl, write_flickr8k, write_lines


def decoded(tokens, vocabulary):
    return " ".join(vocabulary[number] for number in tokens.tolist())


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("FILIGREE_DATA", str(tmp_path))
    return tmp_path


# Sentences in two languages


def test_pairs_and_vocabularies(root):
    english = ["b a b a c b", "a  d\u2028e", "", "a <unk> <unk>\r", "a b c d e f g h"]
    french = ["B A", "É\u0085D", "X", "A </s> </s> B C", "D"]
    write_europarl(root, train_en=english, train_fr=french, test_en=["a zz", ""], test_fr=["A", "q " * 60])
    text = own_data.parallel(vocabulary=4, longest=6)
    marks = ("<pad>", "<s>", "</s>", "<unk>")
    assert text.source == (*marks, "a", "b", "c", "d")  # 5, 4 and 2, 2; e as often as d comes behind it
    assert text.target == (*marks, "A", "B", "D", "C")
    train = [(decoded(x, text.source), decoded(y, text.target)) for x, y in text.train]
    assert train == [
        ("b a b a c b </s>", "<s> B A </s>"),
        ("a d <unk> </s>", "<s> <unk> D </s>"),
        ("a <unk> <unk> </s>", "<s> A <unk> <unk> B C </s>"),  # marks in a text are words like others
    ]  # neither the empty one nor the long one
    (x, _), (empty, y) = text.test
    assert decoded(x, text.source) == "a <unk> </s>"
    assert (decoded(empty, text.source), len(y)) == ("</s>", 62)  # nothing is left out
    assert x.dtype == y.dtype == torch.int64
    assert len(text.validation) == 10


def test_other_folders_and_languages(root):
    write_europarl(root)
    (root / "europarl").rename(root / "mine")
    forth = own_data.parallel(folder="mine")
    back = own_data.parallel(root, "mine", ("fr", "en"))
    assert (back.source, back.target) == (forth.target, forth.source)
    assert [len(x) + 1 for x, _ in back.train] == [len(y) for _, y in forth.train]


def test_batches_of_similar_lengths(root):
    write_europarl(root, sentences=57)
    pairs = own_data.parallel().train
    batches = list(own_data.parallel_batches(pairs, 8, seed=3))
    assert sorted(len(x) for x, _ in batches) == [1, *[8] * 7]

    def rows(batch):
        return [(tuple(x[x > 0].tolist()), tuple(y[y > 0].tolist())) for x, y in zip(*batch, strict=True)]

    seen = [row for batch in batches for row in rows(batch)]
    assert sorted(seen) == sorted((tuple(x.tolist()), tuple(y.tolist())) for x, y in pairs)
    for x, y in batches:
        assert x.shape[1] == (x > 0).sum(1).max()
        assert y.shape[1] == (y > 0).sum(1).max()
        assert bool((x.diff() != 0).any())
    spans = sorted(((y > 0).sum(1).min().item(), (y > 0).sum(1).max().item()) for _, y in batches)
    assert all(before[1] <= after[0] for before, after in pairwise(spans))
    again, other = (list(own_data.parallel_batches(pairs, 8, seed)) for seed in (3, 4))
    assert all(
        torch.equal(a, b) for one, two in zip(batches, again, strict=True) for a, b in zip(one, two, strict=True)
    )
    assert [rows(batch) for batch in batches] != [rows(batch) for batch in other]
    assert [x.shape[1] for x, _ in batches] != sorted(x.shape[1] for x, _ in batches)


def message(error, call):
    with pytest.raises(error) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_mistakes_with_two_languages_get_one_line(root):
    text = message(FileNotFoundError, own_data.parallel)
    assert text.startswith(f"parallel: {root / 'europarl' / 'train.en'} is absent. Put the file there; it cannot be")
    assert text.endswith("must hold train.en, train.fr, valid.en, valid.fr, test.en, test.fr.")
    write_europarl(root, valid_en=["one", "two"], valid_fr=["un"])
    assert "valid.en and valid.fr must have as many lines. Got 2 and 1" in message(ValueError, own_data.parallel)
    write_europarl(root)
    assert "a pair of 1 to 3 words is expected in train.en and train.fr" in message(
        ValueError,
        lambda: write_europarl(root, train_en=["a b c d"], train_fr=["a"]) or own_data.parallel(longest=3),
    )
    assert "must be at least 1. Got 0 and 50" in message(ValueError, lambda: own_data.parallel(vocabulary=0))
    assert "size must be at least 1. Got 0" in message(ValueError, lambda: next(own_data.parallel_batches([], 0, 0)))
    (root / "europarl" / "test.fr").write_bytes(b"\xff\xfe")
    assert "test.fr is no text in UTF-8" in message(ValueError, own_data.parallel)


# Captions


def test_captions_and_features(root):
    write_flickr8k(root)
    shown = own_data.captions(least=4)
    assert shown.vocabulary[4:] == (".", "dog", "a", "runs", "blue", "green", "red")
    assert [len(part) for part in (shown.train, shown.validation, shown.test)] == [12, 3, 3]
    image, (first, second) = shown.train[1]
    assert image == "1.jpg"
    assert decoded(first, shown.vocabulary) == "<s> blue dog . </s>"
    assert decoded(second, shown.vocabulary) == "<s> a blue dog runs . </s>"
    assert first.dtype == torch.int64
    rare = own_data.captions(root, least=9)
    assert decoded(rare.train[1][1][0], rare.vocabulary) == "<s> <unk> dog . </s>"
    features = shown.features(["2.jpg", "0.jpg"])
    with np.load(root / "flickr8k" / "features.npz") as file:
        assert np.array_equal(features, np.stack([file["2.jpg"], file["0.jpg"]]))
    assert features.dtype == torch.float32


def test_features_are_read_when_asked_for(root):
    write_flickr8k(root, arrays={"3.jpg": np.array([{}], dtype=object)})  # it would need pickle
    shown = own_data.captions()
    shown.features(["4.jpg"])
    assert "features.npz is no .npz file that can be read (Object" in message(
        ValueError, lambda: shown.features(["3.jpg"])
    )
    assert "must hold an array for each image. nowhere" in message(ValueError, lambda: shown.features(["nowhere"]))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"tokens": ["0.jpg#0 no tab"]}, "must be image.jpg#0<tab>caption. Got '0.jpg#0 no tab', line 1."),
        ({"tokens": ["0.jpg\tno number"]}, "must be image.jpg#0<tab>caption"),
        ({"dev": ["0.jpg", "77.jpg"]}, "devImages.txt must be in Flickr8k.token.txt. Got 77.jpg"),
        ({"test": ["9.jpg.1"]}, "testImages.txt must be in features.npz. Got 9.jpg.1"),
        ({"train": []}, "trainImages.txt must name an image. Got none"),
    ],
)
def test_mistakes_with_captions_get_one_line(root, changes, text):
    write_flickr8k(root, **changes)
    assert text in message(ValueError, own_data.captions)


def test_features_that_do_not_fit(root):
    text = message(FileNotFoundError, own_data.captions)
    assert text.startswith(f"captions: {root / 'flickr8k' / 'Flickr8k.token.txt'} is absent.")
    assert text.endswith("Flickr_8k.devImages.txt, Flickr_8k.testImages.txt, features.npz.")
    write_flickr8k(root, arrays={"1.jpg": np.zeros((5, 3)), "2.jpg": np.zeros(3), "4.jpg": np.zeros((4, 4))})
    shown = own_data.captions()
    for images in (["0.jpg", "1.jpg"], ["0.jpg", "4.jpg"], ["2.jpg"], ["0.jpg", "2.jpg"]):
        assert "must be (regions, dims), all alike. Got (" in message(
            ValueError, lambda names=images: shown.features(names)
        )
    np.save(root / "flickr8k" / "features.npy", np.zeros(3))
    for content in (b"no archive", b"", (root / "flickr8k" / "features.npy").read_bytes()):
        (root / "flickr8k" / "features.npz").write_bytes(content)
        assert "features.npz is no .npz file that can be read" in message(ValueError, own_data.captions)
    write_lines(root / "flickr8k" / "Flickr8k.token.txt", [])
    assert "no .npz file" in message(ValueError, own_data.captions)
