"""Columns of words and dates, values that are missing, frames: from the file to the prediction."""

import datetime

import numpy as np
import pytest
import torch

import filigree as fg
from filigree.data.encodings import Encoding, columns_of


def pets(rows=60, missing=()):
    """Lines of a table whose label follows from words, dates and numbers."""
    lines = ["colour,born,weight,kind"]
    for i in range(rows):
        colour, born = ("red", "green", "blue")[i % 3], datetime.date(2020, 1, 1) + datetime.timedelta(days=i)
        weight = "" if i in missing else f"{i % 7 + 0.5}"
        lines.append(f"{colour},{born},{weight},{'dog' if i % 3 else 'cat'}")
    return "\n".join(lines) + "\n"


def test_words_and_dates_become_features_that_the_model_file_knows(tmp_path):
    file = tmp_path / "pets.csv"
    file.write_text(pets())
    read = fg.data.load(file, standardize=None, test_size=0.5)
    assert read.feature_names == ("colour=blue", "colour=green", "colour=red", "born", "weight")
    assert "column 'colour' holds 3 categories, a feature of 0 or 1 for each: blue, green, red" in read.notes
    assert "column 'born' holds dates, read as days since 1970-01-01" in read.notes
    x = torch.cat([read.train.x, read.test.x])
    assert set(x[:, :3].flatten().tolist()) == {0.0, 1.0}
    assert x[:, 3].min() == (datetime.date(2020, 1, 1) - datetime.date(1970, 1, 1)).days

    read = fg.data.load(file)
    model = fg.models.mlp([5, 8, 2])
    model.preprocessing = read.preprocessing
    fg.save(model, tmp_path / "m.safetensors")
    own = fg.load(tmp_path / "m.safetensors").preprocessing
    assert own.encodings == read.preprocessing.encodings
    (tmp_path / "new.csv").write_text(
        "weight,other,born,colour\n1.5,x,2020-01-04,green\n2.5,y,2020-02-01 12:00,pink\n3,z,2020-01-01,red\n"
    )
    rows = fg.data.read_rows(tmp_path / "new.csv", own)
    assert rows.x[:, :3].tolist() == [[0, 1, 0], [0, 0, 0], [0, 0, 1]]
    assert rows.x[1, 3] - rows.x[0, 3] == 28.5
    assert rows.notes == ("column 'colour' holds categories that were not in the training, all 0: pink 1",)
    assert own(rows.x).isfinite().all()
    (tmp_path / "bad.csv").write_text("weight,born,colour\n1.5,yesterday,green\n")
    with pytest.raises(ValueError, match=r"bad\.csv: born must hold dates\. Got 'yesterday' in row 1\.$"):
        fg.data.read_rows(tmp_path / "bad.csv", own)


def test_what_is_no_category():
    assert Encoding.of("id", [f"p{i}" for i in range(30)]) is None  # names of rows
    assert Encoding.of("age", [*map(str, range(5)), "old"] * 9) is None  # numbers with a word
    assert Encoding.of("x", [""] * 9) is None
    assert Encoding.of("when", ["2024-01-31", "", "2024-02-01T06:00:00+00:00"]).kind == "days"
    both = Encoding.of("a", ["u", "v", "?"] * 4)
    assert both.categories == ("u", "v")
    assert np.isnan(both(["?"])).all()
    assert columns_of(("a=u", "a=v", "b"), (both,)) == ("a", "b")
    with pytest.raises(ValueError, match="kind one of categories, days"):
        Encoding("a", "words")


def test_missing_values_get_the_mean_of_the_training_part(tmp_path):
    file = tmp_path / "pets.csv"
    file.write_text(pets(missing=(3, 10, 40)))
    with pytest.raises(ValueError, match=r"values are missing in 3 of 60 rows: weight 3 \(empty\).*--missing mean"):
        fg.data.load(file)
    read = fg.data.load(file, missing="mean", test_size=0.5)
    x = torch.cat([read.train.x, read.test.x])
    assert (x[:, 4] == 0).sum() == 3  # standardised, the mean is 0
    assert read.train.x[:, 4].mean().abs() < 1e-6
    kept = fg.data.load(file, missing="drop")
    assert len(kept.train.x) + len(kept.test.x) == 57
    own = read.preprocessing
    rows = fg.data.read_rows(file, own)  # as the training did, without being told
    assert rows.x.isfinite().all()
    assert rows.x[3, 4] == own.mean[4]
    with pytest.raises(ValueError, match="values are missing in 3 of 60 rows"):
        fg.data.read_rows(file, own, missing="refuse")
    with pytest.raises(ValueError, match=r"missing='mean' needs standardize='feature'. Got None"):
        fg.data.load(file, missing="mean", standardize=None)


def test_a_category_that_is_missing_is_named_by_its_column(tmp_path):
    file = tmp_path / "pets.csv"
    file.write_text(pets().replace("red,2020-01-01", ",2020-01-01"))
    with pytest.raises(ValueError, match=r"values are missing in 1 of 60 rows: colour 1\. Fill"):
        fg.data.load(file)
    assert fg.data.load(file, missing="mean").train.x.isfinite().all()


@pytest.mark.parametrize("kind", ["pandas", "polars", "pyarrow", ".parquet", ".feather"])
def test_frames_are_read_as_their_csv(kind, tmp_path):
    file = tmp_path / "pets.csv"
    file.write_text(pets())
    expected = fg.data.load(file)
    if kind == "pandas":
        source = pytest.importorskip("pandas").read_csv(file)
    elif kind == "polars":
        source = pytest.importorskip("polars").read_csv(file, try_parse_dates=True)
    else:
        source = pytest.importorskip("pyarrow.csv").read_csv(file)
        if kind != "pyarrow":
            writer = pytest.importorskip(f"pyarrow.{kind[1:]}")
            (writer.write_table if kind == ".parquet" else writer.write_feather)(source, tmp_path / f"pets{kind}")
            source = tmp_path / f"pets{kind}"
    read = fg.data.load(source)
    assert read.feature_names == expected.feature_names
    assert torch.equal(read.train.x, expected.train.x)
    assert torch.equal(read.test.y, expected.test.y)
    rows = fg.data.read_rows(source, expected.preprocessing)
    assert torch.equal(rows.x, fg.data.read_rows(file, expected.preprocessing).x)


def test_frames_have_names_even_where_they_are_numbers():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(np.random.default_rng(0).normal(size=(30, 3)).astype("float32"))
    frame["y"] = [0, 1] * 15
    read = fg.data.load(frame, target="y")
    assert read.feature_names == ("0", "1", "2")
    assert fg.data.describe(frame, target="y").samples == 30
    raw = read.preprocessing.raw(torch.cat([read.train.x, read.test.x])).sort(0).values
    assert torch.allclose(raw, torch.tensor(frame[[0, 1, 2]].to_numpy()).sort(0).values, atol=1e-6)
    with pytest.raises(ValueError, match=r"^data: the frame: it holds no rows\.$"):
        fg.data.load(frame[:0])


def test_a_column_of_lists_is_refused_in_a_line():
    table = pytest.importorskip("pyarrow").table({"a": [[1, 2], [3]], "kind": [0, 1]})
    with pytest.raises(ValueError, match=r"^data: the frame cannot be read \(.*list.*\)\.$"):
        fg.data.load(table)
