"""Tables in every dialect: what is read equals what was written, or one line says what to do."""

import csv
import gzip
import io
import re

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import filigree as fg
from filigree.data.readers import read_csv
from filigree.data.samples import Reading

CLASSES = ("setosa", "versicolor", "a class, with; signs")


@st.composite
def written(draw):
    """A table as bytes, the suffix of its file, what it holds, and how to read it."""
    rows, features = draw(st.integers(6, 25)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x = rng.normal(size=(rows, features)).round(draw(st.integers(1, 6))) * 10.0 ** draw(st.integers(-3, 5))
    labels = [CLASSES[i % 3] for i in range(rows)] if draw(st.booleans()) else [i % 3 for i in range(rows)]
    delimiter, decimal = draw(
        st.sampled_from([(",", "."), (";", "."), (";", ","), ("\t", "."), ("\t", ","), ("|", ".")])
    )
    cells = [[repr(value).replace(".", decimal) for value in row] for row in x.tolist()]
    header = draw(st.sampled_from(["names", "numbers", "none"]))
    place = draw(st.integers(0, features)) if header == "names" else features  # of the label
    index = draw(st.sampled_from(["none", "unnamed", "shuffled", "text", "running"])) if header != "none" else "none"
    names = [str(i) for i in range(features + 1)] if header == "numbers" else [f"f{i}" for i in range(features)]
    if header == "names":
        names.insert(place, "kind")
    for row, label in zip(cells, labels, strict=True):
        row.insert(place, str(label))
    if index != "none" and (index != "running" or features > 1 or header == "names"):
        numbers = rng.permutation(rows) if index == "shuffled" else np.arange(rows)
        names.insert(0, "id" if index == "running" and header == "names" else "")
        for i, row in zip(numbers, cells, strict=True):
            row.insert(0, f"s{i}" if index == "text" else str(i))
    gaps = {}
    if draw(st.booleans()):
        marker = draw(st.sampled_from(["", "NA", "N/A", "?", "nan", "NaN", "null"]))
        column = draw(st.integers(len(cells[0]) - features - 1, len(cells[0]) - 1))
        gaps = {int(i): marker for i in rng.choice(rows, 2, replace=False)}
        for i in gaps:
            cells[i][column] = marker
    quoting = draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
    text = io.StringIO()
    writer = csv.writer(
        text, delimiter=delimiter, quoting=quoting, lineterminator=draw(st.sampled_from(["\n", "\r\n"]))
    )
    writer.writerows([*([names] if header != "none" else []), *cells])
    content = ("\ufeff" if draw(st.booleans()) else "").encode() + text.getvalue().encode()
    packed = draw(st.booleans())
    kept = [i for i in range(rows) if i not in gaps]
    reading = Reading(target="kind" if header == "names" else None, missing="drop")
    return gzip.compress(content) if packed else content, ".csv.gz" if packed else ".csv", (x, labels, kept), reading


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(written())
def test_what_is_read_is_what_was_written(tmp_path, table):
    content, suffix, (x, labels, kept), reading = table
    file = tmp_path / f"own{suffix}"
    file.write_bytes(content)
    samples = read_csv(file, reading)
    assert samples.x.tolist() == x[kept].tolist()
    assert list(map(str, samples.labels.tolist())) == [str(labels[i]) for i in kept]
    if len(kept) < len(x):
        with pytest.raises(ValueError, match=f"values are missing in {len(x) - len(kept)} of {len(x)} rows") as raised:
            read_csv(file, Reading(target=reading.target))
        assert "\n" not in str(raised.value)


def table(tmp_path, header, *columns):
    """A file of these columns with a header."""
    file = tmp_path / "own.csv"
    rows = [header.split(","), *zip(*columns, strict=True)]
    file.write_text("".join(",".join(map(str, row)) + "\n" for row in rows))
    return file


def test_numbers_as_names_are_no_sample(tmp_path):
    """As pandas writes a frame without names: two features and classes 0 to 2 below 0,1,2."""
    x = np.random.default_rng(0).normal(size=(30, 2)).round(3)
    file = table(tmp_path, "0,1,2", *x.T, np.arange(30) % 3)
    samples = read_csv(file)
    assert samples.x.tolist() == x.tolist()
    assert samples.features == ("0", "1")
    assert "its first line is taken for the columns' names, 0, 1, 2" in samples.notes
    file.write_text("0,1\n" + "".join(f"{i % 5},{i % 2}\n" for i in range(30)))  # feature 0, class 1
    assert len(read_csv(file).x) == 31
    file.write_text(",0\n0.3,1\n-0.3,0\n-0.9,1\n")  # a row that lacks its feature is no header either
    with pytest.raises(ValueError, match="values are missing in 1 of 4 rows"):
        read_csv(file)
    file.write_text("-1.6,0.3,a\n-0.3,-0.6,b\n0.8,2.7,c\n0.5,0.3,b\n-1.3,1.1,c\n")  # nor the only one of its class
    assert len(read_csv(file).x) == 5
    file.write_text("2001,2002,kind\n" + "".join(f"{i % 5},{i % 3},{'ab'[i % 2]}\n" for i in range(30)))  # years
    assert len(read_csv(file).x) == 30
    file.write_text("0.3,0.4,\n0.5,0.2,1\n0.1,0.7,1\n")  # nor one that lacks its label
    with pytest.raises(ValueError, match="values are missing in 1 of 3 rows"):
        read_csv(file)


def test_an_index_is_no_feature(tmp_path):
    """Noise below an index, sorted by class, is not to be learned from."""
    noise, labels = np.random.default_rng(0).normal(size=(3, 60)).round(3), np.repeat(["a", "b"], 30)
    for name in ("", "Unnamed: 0", "id"):
        file = table(tmp_path, f"{name},f,g,h,kind", range(60), *noise, labels)
        loaded = fg.data.load(file)
        assert loaded.train.x.shape[1] == 3
        assert loaded.feature_names == ("f", "g", "h")
        assert loaded.notes[0] == "own.csv: 60 rows, 3 features, label 'kind': a 30, b 30"
        assert "only numbers the rows and is left out; index_column='keep' (--index-column)" in loaded.notes[1]
        assert fg.data.load(file, index_column="keep").train.x.shape[1] == 4
    file = table(tmp_path, "time,kind", range(60), labels)
    assert fg.data.load(file).feature_names == ("time",)  # what else is there to learn from?


def test_the_label_is_chosen_by_name(tmp_path):
    rng = np.random.default_rng(0)
    age, sex, sick = rng.integers(20, 80, 40), np.arange(40) % 2, np.arange(40) // 20
    file = table(tmp_path, "target,age,sex", sick, age, sex)
    with pytest.raises(ValueError, match="unclear which column is the label: the last one, sex, or target"):
        fg.data.load(file)
    for name, label in (("target", sick), ("sex", sex)):
        loaded = fg.data.load(file, target=name)
        assert torch.cat([loaded.train.y, loaded.test.y]).bincount().tolist() == np.bincount(label).tolist()
        assert loaded.class_names == ("0", "1")
    with pytest.raises(ValueError, match=r"there is no column 'agee'. Did you mean age"):
        fg.data.load(file, target="agee")
    file.write_text("".join(f"{'ab'[i % 2]},{i * i % 7}.5,{i % 5}\n" for i in range(40)))
    assert fg.data.load(file, target="1").class_names == ("a", "b")
    with pytest.raises(ValueError, match="must be the number of one of its 3 columns, from 1"):
        fg.data.load(file, target="kind")
    with pytest.raises(ValueError, match="are for files of your own"):
        fg.data.load("digits", target="y")


def test_missing_values_are_listed(tmp_path):
    a, b, kind = [f"{i}.5" for i in range(20)], [f"{i * i % 9}" for i in range(20)], list("xy" * 10)
    a[3], a[4], b[3], kind[7] = "NA", "", "?", "nan"
    file = table(tmp_path, "a,b,kind", a, b, kind)
    line = r"values are missing in 3 of 20 rows: a 2 \(NA, empty\), b 1 \(\?\), label kind 1 \(nan\)\. Fill them in, or"
    with pytest.raises(ValueError, match=line + r" leave these rows out: missing='drop', .* --missing drop\.$"):
        fg.data.load(file)
    loaded = fg.data.load(file, missing="drop")
    assert len(loaded.train.x) + len(loaded.test.x) == 17
    assert loaded.class_names == ("x", "y")
    assert any(note.startswith("3 of 20 rows are left out") for note in loaded.notes)
    with pytest.raises(ValueError, match="missing must be one of 'refuse', 'drop', 'mean'"):
        fg.data.load(file, missing="median")


def test_text_is_named_with_its_column(tmp_path):
    dates, names, x = [f"on day {i}" for i in range(20)], [f"p{i}" for i in range(20)], [i * i % 7 for i in range(20)]
    file = table(tmp_path, "date,name,x,kind", dates, names, x, list("ab" * 10))
    line = r"2 columns hold text, dates or the like: date \('on day 0' in row 1\), name \('p0' in row 1\).* --drop d"
    with pytest.raises(ValueError, match=line):
        fg.data.load(file)
    assert fg.data.load(file, drop=["date", "name"]).feature_names == ("x",)
    file = table(tmp_path, "kind,x", list("ab" * 10), x)
    notes = " ".join(fg.data.load(file).notes)
    assert "column 'kind' holds 2 categories" in notes
    assert "if it is the label: target='kind' (--target)" in notes


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("1,2,a\n3,4\n5,6,a\n", "row 2 has 2 columns where 3 were expected"),
        ("a,b\n1,2,x\n2,3,y\n4,5,x\n", "its header has 2 columns, its rows have 3"),
        ("7.5;2;a\n1,5;2;b\n", "numbers are written with points and with commas, 7.5 and 1,5"),
        ("a;b\n", "it holds no rows below its header"),
        ("a,a,k\n1,2,x\n", "target: 2 columns are called 'a'"),
        ('1,2,a\n1,"2"3,b\n', "',' expected after '\"'"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path, text, line):
    (tmp_path / "own.csv").write_text(text)
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the whole line is compared below
        read_csv(tmp_path / "own.csv", Reading(target="a" if "a,a" in text else None))
    assert line in str(raised.value)
    assert "\n" not in str(raised.value)


def test_columns_of_one_name_are_told_apart(tmp_path):
    """As pandas does, so that a model finds them again, words among them, in any order."""
    text = "x,x,x,kind\n" + "".join(f"{i * i % 7},{'red' if i % 3 else 'blue'},{i % 5},{i % 2}\n" for i in range(20))
    (tmp_path / "own.csv").write_text(text)
    data = fg.data.load(tmp_path / "own.csv")
    assert data.feature_names == ("x", "x.1=blue", "x.1=red", "x.2")
    (tmp_path / "again.csv").write_text("x.2,x,x.1\n3,6,red\n")
    rows = fg.data.read_rows(tmp_path / "again.csv", data.preprocessing)
    assert rows.x.tolist() == [[6, 0, 1, 3]]
    assert fg.data.read_rows(tmp_path / "own.csv", data.preprocessing).x[1].tolist() == [1, 0, 1, 1]
    assert fg.data.load(tmp_path / "own.csv", drop=["x.2"]).feature_names == ("x", "x.1=blue", "x.1=red")


@pytest.mark.parametrize("header", ["a\n", ""])
def test_rows_of_one_feature_without_a_label(tmp_path, header):
    (tmp_path / "own.csv").write_text("a,kind\n" + "1.5,x\n2.5,y\n" * 5)
    (tmp_path / "rows.csv").write_text(f"{header}7.5\n8.5\n")
    rows = fg.data.read_rows(tmp_path / "rows.csv", fg.data.load(tmp_path / "own.csv").preprocessing)
    assert (rows.x.tolist(), rows.labels) == ([[7.5], [8.5]], None)


def test_a_quantity_with_decimal_commas_is_no_class(tmp_path):
    (tmp_path / "own.csv").write_text("a;price\n" + "".join(f"{i % 4};{i},5\n" for i in range(12)))
    with pytest.raises(ValueError, match="the label 'price' looks like a quantity, with 12 different numbers"):
        fg.data.load(tmp_path / "own.csv")


def test_lines_that_end_with_a_delimiter(tmp_path):
    (tmp_path / "own.csv").write_text("a,b,kind,\n" + "1.5,2,x,\n2.5,3,y,\n" * 5)
    samples = read_csv(tmp_path / "own.csv")
    assert (samples.features, samples.labels[:2].tolist()) == (("a", "b"), ["x", "y"])


def test_a_packed_table_costs_what_its_file_does(tmp_path):
    (tmp_path / "own.csv.gz").write_bytes(gzip.compress(b"1" * (80 << 20)))
    with pytest.raises(ValueError, match="a line of more than"):
        read_csv(tmp_path / "own.csv.gz")


# -- rows for a model --------------------------------------------------------------------------------------------------

KNOWN = fg.data.Preprocessing([3.0, 5.0], [2.0, 1.0], ("age", "weight"), ("cat", "dog"), "kind")


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("age,kind,weight\n1,cat,2.5\n3,dog,4\n", ["cat", "dog"]),
        ("weight;id;age\n2,5;a;1\n4;b;3\n", None),  # another order, a column more, decimal commas, no label
        ("1,2.5\n3,4\n", None),
        ("1\t2.5\tcat\n3\t4\t\n", ["cat", ""]),
    ],
    ids=["as trained", "another order", "no names", "no names, labels"],
)
def test_rows_for_a_model(tmp_path, text, labels):
    (tmp_path / "new.csv").write_text(text)
    rows = fg.data.read_rows(tmp_path / "new.csv", KNOWN)
    assert rows.x.tolist() == [[1, 2.5], [3, 4]]
    assert (rows.labels, rows.numbers) == (labels, [1, 2])
    assert KNOWN(rows.x).tolist() == [[-1, -2.5], [0, -1]]


def test_rows_for_a_model_of_arrays(tmp_path):
    x = np.array([[1, 2.5], [3, 4]])
    np.savez(tmp_path / "x.npz", x=x)
    np.savez(tmp_path / "xy.npz", X=x, Y=["dog", "cat"])
    assert fg.data.read_rows(tmp_path / "x.npz", KNOWN).labels is None
    assert fg.data.read_rows(tmp_path / "xy.npz", KNOWN).labels == ["dog", "cat"]
    assert fg.data.read_rows(tmp_path / "xy.npz", KNOWN).x.tolist() == x.tolist()


def test_rows_that_lack_values(tmp_path):
    (tmp_path / "new.csv").write_text("age,weight\n1,\n3,4\n")
    rows = fg.data.read_rows(tmp_path / "new.csv", KNOWN, missing="drop")
    assert (rows.x.tolist(), rows.numbers) == ([[3, 4]], [2])
    assert rows.notes == ("1 of 2 rows are left out, as values are missing there: weight 1",)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("age,wight\n1,2\n", {}, "the model reads columns that it lacks: weight. Did you mean that wight is weight?"),
        ("1,2,3,4\n", {}, "the model reads 2 columns, age, weight. It has 4"),
        ("age,weight\n1,heavy\n", {}, "a column holds text, dates or the like where the model reads numbers: weight"),
        ("age,weight\n1,\n3,4\n", {}, "values are missing in 1 of 2 rows: weight 1"),
        ("age,weight\n1,\n", {"missing": "drop"}, "values are missing in all 1 rows"),
        ("age,weight\n1,2\n", {"target": "knd"}, "target: there is no column 'knd'"),
        ("age,weight\n1,2\n", {"missing": "median"}, "missing must be one of 'refuse', 'drop', 'mean'"),
        ("age,weight\n", {}, "it holds no rows below its header"),
    ],
)
def test_rows_that_no_model_reads(tmp_path, text, options, message):
    (tmp_path / "new.csv").write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        fg.data.read_rows(tmp_path / "new.csv", KNOWN, **options)
    assert "\n" not in str(error.value)
