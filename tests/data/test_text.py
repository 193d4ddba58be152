import hashlib

import pytest
import torch

import filigree as fg
from filigree.data import files as sources
from filigree.data import text as own_data
from filigree.data.files import Source


def decoded(text, part):
    return [text.vocabulary[number] for number in getattr(text, part).tolist()]


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Texts of our own in the places of the real ones."""
    treebank = {"train": " the cat <unk> \n the dog \n", "valid": " the dog \n", "test": " the cat \n"}
    listed = {}
    for name, contents in (("ptb", treebank), ("tiny-shakespeare", {"": "abcde fghij\nklmno" * 10})):
        listed[name] = {}
        for part, content in contents.items():
            (tmp_path / f"{name}{part}").write_text(content)
            listed[name][part] = Source(
                f"{name}{part}", (f"sha256:{hashlib.sha256(content.encode()).hexdigest()}",), None
            )
        monkeypatch.setitem(sources.FILES, name, listed[name])
    return tmp_path


def test_words(small):
    text = own_data.words(root=small)
    assert text.vocabulary == ("<eos>", "<unk>", "cat", "dog", "the")
    assert decoded(text, "train") == ["the", "cat", "<unk>", "<eos>", "the", "dog", "<eos>"]
    assert decoded(text, "validation") == ["the", "dog", "<eos>"]
    assert decoded(text, "test") == ["the", "cat", "<eos>"]
    assert text.train.dtype == torch.int64


def test_characters(small):
    text = own_data.characters(root=small)
    assert "".join(decoded(text, "train")) == "the cat <unk>\nthe dog\n"
    assert "".join(decoded(text, "validation")) == "the dog\n"
    text = own_data.characters("tiny-shakespeare", root=small)
    assert text.vocabulary == tuple("\n abcdefghijklmno")
    parts = ["".join(decoded(text, part)) for part in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [153, 8, 9]
    assert "".join(parts) == "abcde fghij\nklmno" * 10


def test_texts_that_are_not_there(tmp_path, small):
    with pytest.raises(ValueError, match=r"a text must be one of ptb, tiny-shakespeare, or a file .txt. Got 'bible'"):
        own_data.characters("bible", root=small)
    with pytest.raises(FileNotFoundError, match=r"ptbtrain is absent. Put the file there; it cannot be downloaded"):
        own_data.words(root=tmp_path / "elsewhere")
    (tmp_path / "ptbtest").write_text("another")
    with pytest.raises(ValueError, match="ptbtest is damaged or another file"):
        own_data.words(root=small)


def test_a_text_that_is_no_text(small, monkeypatch):
    (small / "bytes").write_bytes(b"ab\xff")
    source = Source("bytes", ("sha256:" + hashlib.sha256(b"ab\xff").hexdigest(),))
    monkeypatch.setitem(sources.FILES, "tiny-shakespeare", {"": source})
    with pytest.raises(ValueError, match=r"bytes is no text in UTF-8 \(invalid start byte, byte 2\)"):
        own_data.characters("tiny-shakespeare", root=small)


@pytest.mark.parametrize(("length", "batch", "steps"), [(100, 4, 6), (97, 4, 6), (25, 4, 6), (7, 1, 1), (50, 7, 3)])
def test_language_model_batches(length, batch, steps):
    tokens = [(3 * number) % 101 for number in range(length)]
    x, y = own_data.language_model_batches(torch.tensor(tokens), batch, steps)
    pieces = (length - 1) // batch // steps
    assert x.shape == y.shape == (pieces, batch, steps)
    for stream in range(batch):
        start = stream * ((length - 1) // batch)
        assert x[:, stream].flatten().tolist() == tokens[start : start + pieces * steps]
        assert y[:, stream].flatten().tolist() == tokens[start + 1 : start + 1 + pieces * steps]


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_a_language_model_carries_a_state_of_another_type(kind):
    """Autocast leaves states in 16 bits, and embeddings in float32."""
    model = fg.models.language_model(9, 5, 6, kind=kind).eval()
    first, tokens = torch.randint(0, 9, (2, 4, 3))
    with torch.no_grad():
        model(first)
        expected = model(tokens)
        model.reset()
        model(first)
        state = model._state
        model._state = tuple(part.double() for part in state) if kind == "lstm" else state.double()
        assert torch.equal(model(tokens), expected)


@pytest.mark.parametrize(
    ("tokens", "batch", "steps", "message"),
    [
        (torch.zeros(24), 4, 6, "at least 25 tokens are expected, for 4 streams of 6. Got 24"),
        (torch.zeros(4, 6), 4, 6, r"tokens must be of one dimension. Got \(4, 6\)"),
        (torch.zeros(24), 0, 6, "batch_size and steps must be at least 1. Got 0 and 6"),
        (torch.zeros(24), 4, 0, "batch_size and steps must be at least 1. Got 4 and 0"),
    ],
)
def test_bad_batches_are_named(tokens, batch, steps, message):
    with pytest.raises(ValueError, match=f"language_model_batches: {message}"):
        own_data.language_model_batches(tokens, batch, steps)


@pytest.mark.data
def test_penn_treebank(data_root):
    text = own_data.words(root=data_root)
    assert [len(part) for part in (text.train, text.validation, text.test)] == [929_589, 73_760, 82_430]
    assert len(text.vocabulary) == len(text.train.unique()) == 10_000
    assert decoded(text, "validation")[:7] == ["consumers", "may", "want", "to", "move", "their", "telephones"]
    lines = (data_root / "ptb/ptb.test.txt").read_text().count("\n")
    assert int((text.test == text.vocabulary.index("<eos>")).sum()) == lines


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "sizes", "types"),
    [("ptb", [5_017_482, 393_042, 442_423], 50), ("tiny-shakespeare", [1_003_854, 55_770, 55_770], 65)],
)
def test_real_characters(name, sizes, types, data_root):
    text = own_data.characters(name, root=data_root)
    assert [len(part) for part in (text.train, text.validation, text.test)] == sizes
    assert len(text.vocabulary) == types


def test_a_text_in_pieces(small):
    data = fg.data.load_text("tiny-shakespeare", length=7, root=small)
    assert (data.classes, data.input_shape, len(data.vocabulary)) == (17, (7,), 17)
    assert data.train.x.shape == data.train.y.shape == (21, 7)
    whole = "abcde fghij\nklmno" * 10
    assert data.vocabulary.decode(data.train.x.flatten()) == whole[:147]
    assert data.vocabulary.decode(data.train.y.flatten()) == whole[1:148]
    words = fg.data.load_text("ptb", unit="words", length=2, root=small)
    assert words.vocabulary.decode(words.train.x.flatten()) == "the cat <unk>\nthe dog"
    assert words.notes == ["ptb: words, 5 different ones; 7 train, 3 validate, 3 test; in pieces of 2"]


def test_a_text_of_one_s_own(tmp_path):
    (tmp_path / "own.txt").write_text("äöü €\n" * 40, encoding="utf-8")
    data = fg.data.load_text(tmp_path / "own.txt", length=5)
    assert data.vocabulary.tokens == ("\n", " ", "ä", "ö", "ü", "€")
    assert (data.name, len(data.validation.x), len(data.test.x)) == ("own", 2, 2)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("absent.txt", {}, "there is no file absent.txt"),
        ("bible", {}, "a text must be one of ptb, tiny-shakespeare, or a file .txt. Got 'bible'"),
        ("tiny-shakespeare", {"length": 9}, "its validation part must hold 10 characters at least. Got 8"),
        ("tiny-shakespeare", {"length": 0}, "length must be at least 1. Got 0"),
        ("tiny-shakespeare", {"unit": "bytes"}, "unit must be one of 'characters', 'words'. Got 'bytes'"),
    ],
)
def test_texts_that_are_refused(small, name, options, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        fg.data.load_text(name, root=small, **options)


def test_vocabulary():
    known = fg.data.Vocabulary(("<eos>", "<unk>", "a", "b"), "words")
    assert known.encode("a zebra\nb").tolist() == [2, 1, 0, 3]
    assert known.decode([2, 0, 3, 0]) == "a\nb\n"
    assert fg.data.Vocabulary(**known.to_dict()) == known
    with pytest.raises(ValueError, match=r"it lacks 'c'. It has 2 characters"):
        fg.data.Vocabulary(("a", "b")).encode("abc")
    for tokens in (("a", "a"), ("a", 1)):
        with pytest.raises(ValueError, match="tokens must be text, each another"):
            fg.data.Vocabulary(tokens)


def test_ends_of_lines_in_a_row():
    """Empty lines come back as such, wherever they are."""
    vocabulary = fg.data.Vocabulary(("<eos>", "a", "b"), "words")
    assert [vocabulary.decode(tokens) for tokens in ([1, 0, 0, 0, 2], [0], [0, 0, 1])] == ["a\n\n\nb", "\n", "\n\na"]
