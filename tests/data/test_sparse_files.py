"""Sparse rows out of files: archives of scipy and svmlight's text, which are never made dense."""

import gzip
import io

import numpy as np
import pytest
import scipy.sparse
import torch
from sklearn.datasets import dump_svmlight_file
from torch import nn

import filigree as fg
from command_line import call

MATRIX = scipy.sparse.random(90, 400, 0.02, "csr", random_state=0)
WORDS = np.where(np.asarray(MATRIX[:, :200].sum(1) > MATRIX[:, 200:].sum(1)).ravel(), "spam", "ham")
NUMBERS = (WORDS == "spam").astype(float)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scipy.sparse.save_npz("rows.npz", MATRIX)
    np.save("y.npy", WORDS)
    return tmp_path


def dense_of(data):
    """The raw rows of a data set's parts, and the classes, as a dictionary from row to class."""
    assert data.train.x.layout == data.test.x.layout == torch.sparse_csr
    raw = torch.cat([data.preprocessing.raw(part.x).to_dense() for part in (data.train, data.test)])
    names = [data.class_names[i] for part in (data.train, data.test) for i in part.y.tolist()]
    return {row.numpy().round(4).tobytes(): name for row, name in zip(raw, names, strict=True)}


EXPECTED = {
    row.astype(np.float32).round(4).tobytes(): str(name) for row, name in zip(MATRIX.toarray(), WORDS, strict=True)
}


@pytest.mark.parametrize("kind", ["csr", "csc", "coo", "bsr", "array", "turned", "column", "text", "inside"])
def test_matrices_of_scipy(kind, folder):
    options, matrix = {"target": "y.npy"}, MATRIX
    if kind in ("csc", "coo", "bsr"):
        matrix = MATRIX.asformat(kind)
    elif kind == "array":
        matrix = scipy.sparse.coo_array(MATRIX)
    elif kind == "turned":
        matrix, options = MATRIX.T, {"target": "y.npy", "transpose": True}
    elif kind == "column":
        own = scipy.sparse.csr_matrix(NUMBERS[:, None])
        matrix, options = scipy.sparse.hstack([MATRIX[:, :7], own, MATRIX[:, 7:]]).tocsr(), {"target": "8"}
    elif kind == "text":
        (folder / "labels.txt").write_text("\n".join(WORDS) + "\n\n", encoding="utf-8-sig")
        options = {"target": "labels.txt"}
    scipy.sparse.save_npz("m.npz", matrix)
    if kind == "inside":
        options = {}
        with np.load("m.npz") as archive:
            np.savez("m.npz", **archive, y=WORDS)
    data = fg.data.load("m.npz", **options)
    names = {"1.0": "spam", "0.0": "ham"}
    assert {row: names.get(name, name) for row, name in dense_of(data).items()} == EXPECTED
    assert "they stay sparse" in data.notes[1]
    assert data.train.x.shape[1] == 400


def test_scales_are_the_deviations_of_the_training_part(folder):
    data = fg.data.load("rows.npz", target="y.npy")
    dense = data.preprocessing.raw(data.train.x).to_dense().double().numpy()
    deviation = dense.std(0)
    expected = dense / np.where(deviation > 0, deviation, 1)
    np.testing.assert_allclose(data.train.x.to_dense().numpy(), expected, rtol=1e-5, atol=1e-6)
    assert not data.preprocessing.mean.any()
    whole = fg.data.load("rows.npz", target="y.npy", standardize="global")
    raw = whole.preprocessing.raw(whole.train.x).to_dense().double().numpy()
    assert float(whole.preprocessing.deviation) == pytest.approx(raw.std(), rel=1e-5)
    folds = list(fg.data.cross_validation("rows.npz", target="y.npy", folds=3))
    assert sum(fold.test.x.shape[0] for fold in folds) == 90


@pytest.mark.parametrize("first", [0, 1])
def test_text_of_svmlight(first, folder):
    dump_svmlight_file(MATRIX, NUMBERS, "m.svm", zero_based=first == 0, comment="made here", query_id=np.arange(90))
    with gzip.open("m.svmlight.gz", "wb") as packed:
        packed.write((folder / "m.svm").read_bytes())
    for name in ("m.svm", "m.svmlight.gz"):
        data = fg.data.load(name)
        assert data.preprocessing.first == first
        shown = {"1": "spam", "0": "ham"}
        mine = {row: shown[name] for row, name in dense_of(data).items()}
        assert mine == {row[: 4 * data.train.x.shape[1]]: name for row, name in EXPECTED.items()}
    few = folder / "few.svm"  # rows for the model: numbered as in its training, as wide as it reads
    few.write_text("0 3:1.5\n1\n", encoding="utf-8-sig")
    rows = fg.data.read_rows(few, data.preprocessing)
    assert rows.x.to_dense()[:, 3 - first].tolist() == [1.5, 0]
    assert rows.x.shape == (2, data.train.x.shape[1])
    quantity = fg.data.load("m.svm", task="regression")
    assert quantity.train.y.shape[1] == 1


def test_a_hundred_thousand_features_are_never_dense(folder, monkeypatch):
    wide = scipy.sparse.random(200, 100_000, 1e-3, "csr", random_state=1)
    scipy.sparse.save_npz("wide.npz", wide)
    np.save("labels.npy", np.arange(200) % 2)

    def refuse(self, *arguments, **options):
        raise AssertionError("made dense")

    monkeypatch.setattr(torch.Tensor, "to_dense", refuse)
    monkeypatch.setattr(scipy.sparse.csr_matrix, "toarray", refuse)
    data = fg.data.load("wide.npz", target="labels.npy", validation=20)
    network = nn.Sequential(nn.Linear(100_000, 8), nn.ReLU(), nn.Linear(8, 2))
    fg.convert_(network, fg.Sparse(fg.ErdosRenyi(density=0.01)))
    history = fg.fit(
        network, data.train, optimizer=torch.optim.SGD(network.parameters(), 0.1), epochs=2, batch_size=32,
        validation=data.validation, progress=False,
    )  # fmt: skip
    assert np.isfinite(history.rows[-1]["train_loss"])
    rows = fg.data.read_rows("wide.npz", data.preprocessing)
    assert rows.labels is None
    assert network(data.preprocessing(rows.x)).shape == (200, 2)
    assert network(data.preprocessing(wide)).shape == (200, 2)


def test_errors_are_one_line(folder):
    np.savez("half.npz", format=np.array(b"csr"), shape=np.array([3, 3]), data=np.ones(2), indices=np.array([0, 7]),
             indptr=np.array([0, 1, 2, 2]))  # fmt: skip
    gaps = MATRIX.copy()
    gaps.data[:3] = np.nan
    scipy.sparse.save_npz("gaps.npz", gaps)
    (folder / "short.txt").write_text("a\nb\n")
    (folder / "bytes.txt").write_bytes(b"\xff\xfe")
    np.save("objects.npy", WORDS.astype(object), allow_pickle=True)
    for text, name in (
        ("0 1:2\nspam 3:4\n", "word"),
        ("1 3\n", "pair"),
        ("1 a:2\n", "letter"),
        ("1 -3:2\n", "minus"),
        ("1 99999999999:2\n", "far"),
        (f"1 {10**30}:2\n", "farther"),
        ("", "no"),
    ):
        (folder / f"{name}.svm").write_text(text)
    for name, options, message in (
        ("rows.npz", {}, "has no labels of its own. Name them by target"),
        ("rows.npz", {"target": "none.npy"}, "no number of a column, and no file with labels"),
        ("rows.npz", {"target": "401"}, "target must be a column from 1 to 400. Got 401"),
        ("rows.npz", {"target": "short.txt"}, r"samples \(90, 400\) and 2 labels"),
        ("rows.npz", {"target": "bytes.txt"}, "target 'bytes.txt' cannot be read"),
        ("rows.npz", {"target": "objects.npy"}, "target 'objects.npy' cannot be read"),
        ("rows.npz", {"target": "y.npy", "drop": ["a"]}, "^data: drop names a column of a table"),
        ("half.npz", {"target": "y.npy"}, "is no .npz file that can be read"),
        ("gaps.npz", {"target": "y.npy"}, "^data: gaps.npz: values are missing in .* or --missing drop"),
        ("gaps.npz", {"target": "y.npy", "missing": "mean"}, "missing='mean' is for dense samples"),
        ("rows.npz", {"target": "y.npy", "images": True}, "images are dense samples"),
        ("word.svm", {}, "line 2 must begin with a label, a number. Got 'spam'"),
        ("pair.svm", {}, "line 1 must hold index:value. Got '3'"),
        ("letter.svm", {}, "an index or a value is no number"),
        ("minus.svm", {}, "an index is -3, below 0"),
        ("far.svm", {}, "an index is 99999999999, above"),
        ("farther.svm", {}, "an index or a value is no number"),
        ("no.svm", {}, "it holds no line with a label"),
        ("word.svm", {"target": "y"}, "target is for tables"),
    ):
        with pytest.raises(ValueError, match=message) as raised:
            fg.data.load(name, **options)
        assert "\n" not in str(raised.value)
    assert len(fg.data.load("gaps.npz", target="y.npy", missing="drop").train.x) < 60


@pytest.mark.long("trains, predicts and exports on the command line")
def test_on_the_command_line(folder, monkeypatch, capsys):
    def filigree(*words, code=0):
        ended, out, err = call(monkeypatch, capsys, *words)
        assert ended == code, out + err
        return out + err

    options = ["--data", "rows.npz", "--target", "y.npy"]
    few = ["--set", "training.epochs=2", "--set", "model.hidden=[30]", "--set", "data.folds=null", "--seed", "0"]
    shown = filigree("train", "demo", *options, "--method", "SET", "--method", "dense", "--no-report", *few)
    assert "90 rows, 400 features" in shown
    assert "accuracy" in filigree("predict", "runs/demo/SET-0", "rows.npz", "--target", "y.npy", "-o", "out.csv")
    assert len((folder / "out.csv").read_text().splitlines()) == 91
    dump_svmlight_file(MATRIX, NUMBERS, "m.svm", zero_based=False)
    assert "p(spam)" in filigree("predict", "runs/demo/dense-0", "m.svm")
    assert "SparseLinear" in filigree("export", "runs/demo/SET-0", "-o", "m.onnx", "--data", "rows.npz")
    assert "compared with torch" in filigree("export", "runs/demo/SET-0", "-o", "m.c")
    filigree("compress", "runs/demo/SET-0", "MagnitudePruning", "-o", "small.safetensors", *options)
    refused = filigree("train", "demo", *options, "--method", "SET", "--no-report", *few, code=2)
    assert "holds earlier runs" in refused
    assert "of training ahead" not in refused  # the folder is refused first


def test_an_archive_is_what_scipy_reads():
    """The reader of `save_npz` agrees with scipy's own on all formats, also empty ones."""
    from filigree.data.sparse_files import matrix_of

    for matrix in (
        MATRIX,
        scipy.sparse.csr_matrix((3, 5)),
        scipy.sparse.coo_matrix(([1, 2], ([0, 0], [1, 1])), (2, 3)),
    ):
        file = io.BytesIO()
        scipy.sparse.save_npz(file, matrix)
        file.seek(0)
        with np.load(file) as archive:
            mine = matrix_of(archive.__getitem__, set(archive))
        assert (mine != matrix.tocsr()).nnz == 0
