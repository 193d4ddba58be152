"""Samples in columns, as in matrices of gene expression: the same as in rows, whatever holds them."""

import numpy as np
import pandas as pd
import pytest
import torch

import filigree as fg
from filigree.data import read_rows

GENES, SAMPLES = 130, 24
X = np.random.default_rng(0).normal(size=(SAMPLES, GENES)).round(3)
STATE = ["ill" if row[3] > 0 else "well" for row in X]


def frame():
    """Genes in rows, their state first."""
    index = ["state", *(f"G{i}" for i in range(GENES))]
    return pd.DataFrame([STATE, *X.T.tolist()], index=index, columns=[f"GSM{i}" for i in range(SAMPLES)])


def written(kind, tmp_path):
    """The matrix in a file (or frame), and the options that it needs."""
    if kind == "npz":
        np.savez(tmp_path / "own.npz", x=X.T, y=np.array(STATE))
        return tmp_path / "own.npz", {}
    if kind == "frame":
        return frame(), {"target": "state"}
    header = kind != "no header"
    separator = "," if kind == "csv" else "\t"
    frame().to_csv(tmp_path / "own.csv", sep=separator, header=header, index_label="gene" if header else None)
    return tmp_path / "own.csv", {"target": "state"}


@pytest.mark.parametrize("kind", ["csv", "tabs", "no header", "frame", "npz"])
def test_samples_in_columns_are_those_in_rows(kind, tmp_path):
    rows = frame().T
    rows.to_csv(tmp_path / "rows.csv")
    expected = fg.data.load(tmp_path / "rows.csv", target="state")
    source, options = written(kind, tmp_path)
    data = fg.data.load(source, transpose=True, **options)
    torch.testing.assert_close(data.train.x, expected.train.x, rtol=0, atol=1e-6)
    assert torch.equal(data.test.y, expected.test.y)
    assert data.class_names == ("ill", "well")
    if kind == "npz":
        return
    assert data.feature_names == expected.feature_names
    assert data.preprocessing.transpose
    if kind != "no header":
        assert "its first row names them: GSM0" in data.notes[1]
    again = read_rows(source, data.preprocessing)  # the model knows where its samples stand
    np.testing.assert_allclose(again.x.numpy(), X.astype(np.float32), rtol=1e-6)
    assert again.labels == STATE


def test_a_matrix_of_expression_is_told_from_a_table(tmp_path):
    file, options = written("tabs", tmp_path)
    for given in ({}, options | {"target": "GSM3"}):
        with pytest.raises(ValueError, match=r"If samples stand in columns.*--transpose") as raised:
            fg.data.load(file, **given)
        assert "\n" not in str(raised.value)
    unnamed = frame().iloc[1:].astype(float)  # no state: the last sample would be the label
    unnamed.to_csv(file)
    with pytest.raises(ValueError, match=r"looks like a quantity.*--transpose"):
        fg.data.load(file)
    file.write_text("gene" + ",1" * 25 + "\n" + ("G" + ",2" * 25 + "\n") + "H" + ",3" * 24 + "\n")
    with pytest.raises(ValueError, match="row 3 has 25 columns where 26 were expected"):
        fg.data.load(file, transpose=True)
