import gzip
import hashlib

import numpy as np
import pooch
import pytest
import scipy.io
import torch

import filigree as fg
from filigree.data import Augment, check, cross_validation, paired_interval
from filigree.data.files import Source, locate
from filigree.data.readers import read_csv, read_idx


def test_digits_split_by_seed():
    one, again, other = (fg.data.load("digits", seed=seed, validation=0.2) for seed in (1, 1, 2))
    assert torch.equal(one.train.x, again.train.x)
    assert not torch.equal(one.test.y, other.test.y)
    assert [len(part.x) for part in (one.train, one.validation, one.test)] == [958, 240, 599]
    assert one.train.x.dtype == torch.float32
    assert one.train.y.dtype == torch.int64
    shares = one.test.y.bincount() / len(one.test.y)
    assert float((shares - 0.1).abs().max()) < 0.01  # stratified
    assert fg.data.load("digits", images=True).train.x.shape[1:] == (1, 8, 8)


def test_statistics_are_those_of_the_training_part(tmp_path):
    x, y = np.random.default_rng(0).normal(3, 2, (90, 5)), np.arange(90) % 3
    np.savez(tmp_path / "own.npz", x=x, y=y)
    plain = fg.data.load(tmp_path / "own.npz", seed=3)
    assert plain.train.x.mean(0).abs().max() < 1e-5
    assert (plain.train.x.std(0, correction=0) - 1).abs().max() < 1e-5
    raw = fg.data.load(tmp_path / "own.npz", seed=3, standardize=None)
    place = int((raw.test.x[0, 0] == torch.from_numpy(x[:, 0]).float()).nonzero())
    x[place, 0] = 1e6  # an outlier in the test part changes nothing else
    np.savez(tmp_path / "own.npz", x=x, y=y)
    assert torch.equal(fg.data.load(tmp_path / "own.npz", seed=3).train.x, plain.train.x)


def test_own_files(tmp_path):
    x, y = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32), np.array(["cat", "dog"] * 20)
    with open(tmp_path / "own.csv", "w") as file:
        file.write("a,b,c,label\n")
        file.writelines(",".join(map(repr, map(float, row))) + f",{label}\n" for row, label in zip(x, y, strict=True))
    np.savez(tmp_path / "own.npz", x=x, y=y == "dog")
    scipy.io.savemat(tmp_path / "own.mat", {"X": x, "Y": (y == "dog") + 1})
    sets = [fg.data.load(tmp_path / f"own.{suffix}") for suffix in ("csv", "npz", "mat")]
    for loaded in sets:
        assert loaded.classes == 2
        torch.testing.assert_close(loaded.train.x, sets[0].train.x)
        assert torch.equal(loaded.test.y, sets[0].test.y)


def test_cross_validation_tests_each_sample_once_a_repeat(tmp_path):
    x = np.arange(60.0).reshape(30, 2)
    np.savez(tmp_path / "own.npz", x=x, y=np.arange(30) % 3)
    folds = list(cross_validation(tmp_path / "own.npz", folds=5, repeats=2, standardize=None))
    assert len(folds) == 10
    for repeat in (folds[:5], folds[5:]):
        assert sorted(torch.cat([fold.test.x[:, 0] for fold in repeat]).tolist()) == x[:, 0].tolist()
    assert all(fold.test.y.bincount().tolist() == [2, 2, 2] for fold in folds)
    with pytest.raises(ValueError, match="folds must be at most 10"):
        next(cross_validation(tmp_path / "own.npz", folds=11))


def test_paired_interval_by_hand():
    # differences 1, 2, 3: mean 2, variance 1; (1/3 + 1/2) -> spread 0.9129; t(0.975, 2) = 4.3027
    mean, low, high = paired_interval([2, 4, 6], [1, 2, 3], test_share=0.5)
    assert (mean, round(low, 3), round(high, 3)) == (2, -1.928, 5.928)
    with pytest.raises(ValueError, match="at least two paired scores"):
        paired_interval([1], [2])


def test_augmentation():
    x = torch.rand(16, 784) + 1
    none = Augment((1, 28, 28), background=1.0, rotation=0, shift=0, flip=False)
    torch.testing.assert_close(none(x), x)
    flip = Augment((1, 28, 28), background=1.0, rotation=0, shift=0)
    flipped = flip(x, torch.Generator().manual_seed(0)).view(16, 28, 28)
    mirrored = [torch.allclose(flipped[i], x.view(16, 28, 28)[i].flip(1), atol=1e-4) for i in range(16)]
    same = [torch.allclose(flipped[i], x.view(16, 28, 28)[i], atol=1e-4) for i in range(16)]
    assert all(a != b for a, b in zip(mirrored, same, strict=True))
    assert any(mirrored)
    assert any(same)
    full = Augment((1, 28, 28), background=1.0)
    one, two = (full(x, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(one, two)
    assert one.shape == x.shape
    assert float(full(torch.ones(4, 784)).sub(1).abs().max()) < 1e-5  # the background fills the corners


def test_augmentation_moves_by_the_stated_amounts():
    image = torch.zeros(1, 1, 21, 21)
    image[0, 0, 10, 10] = 1
    shifts = []
    for seed in range(60):
        moved = Augment((1, 21, 21), rotation=0, shift=0.1, flip=False)(image, torch.Generator().manual_seed(seed))
        rows, cols = torch.meshgrid(torch.arange(21.0), torch.arange(21.0), indexing="ij")
        shifts.append([float((moved[0, 0] * axis).sum() / moved.sum()) - 10 for axis in (rows, cols)])
    assert 1.5 < torch.tensor(shifts).abs().max() <= 2.1


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ([[1.0, float("nan")]], [0], "x must be finite. Got NaN or Inf in 1 of 1 samples"),
        ([[1.0], [float("inf")]], [0, 1], "first in row 2"),
        ([[1.0]], [3], r"labels must lie in \[0, 2\). Got 3 to 3"),
        ([[1.0]], [0, 1], "as many samples. Got 1 and 2"),
        ([], [], "at least one sample"),
    ],
)
def test_bad_values_are_named(x, y, message):
    with pytest.raises(ValueError, match=message):
        check(np.array(x), np.array(y), 2, "own")


def test_bad_files_are_named(tmp_path):
    whole = gzip.compress(b"\0\0\x08\x02" + (2).to_bytes(4, "big") * 2 + bytes(4))
    (tmp_path / "whole.gz").write_bytes(whole)
    assert read_idx(tmp_path / "whole.gz").shape == (2, 2)
    for content in (whole[:-6], b"junk", gzip.compress(b"\0\0\x08\x01" + (9).to_bytes(4, "big") + bytes(3)), b"",
                    gzip.compress(b"\0\0\x08\x03" + b"\x7f\xff\xff\xff" * 3)):  # fmt: skip
        (tmp_path / "bad.gz").write_bytes(content)
        with pytest.raises(ValueError, match=r"bad\.gz cannot be read") as caught:
            read_idx(tmp_path / "bad.gz")
        assert "\n" not in str(caught.value)
    for name, content in (("bad.npz", b"PK junk"), ("bad.mat", b"junk" * 50), ("bad.csv", b"a,b\n1,x,2\nq,2,3\n")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=name):
            fg.data.load(tmp_path / name)
    np.savez(tmp_path / "other.npz", a=np.ones(3))
    with pytest.raises(ValueError, match="must hold arrays x and y"):
        fg.data.load(tmp_path / "other.npz")
    np.savez(tmp_path / "upper.npz", X=np.eye(6), Y=np.arange(6) % 2)
    assert fg.data.load(tmp_path / "upper.npz").classes == 2
    with pytest.raises(FileNotFoundError, match="there is no file"):
        fg.data.load(tmp_path / "absent.csv")
    with pytest.raises(ValueError, match="name must be one of digits"):
        fg.data.load("svhn")


def test_checksums(tmp_path):
    (tmp_path / "a").write_bytes(b"hello")
    sha = "sha256:" + hashlib.sha256(b"hello").hexdigest()
    assert locate(Source("a", ("sha1:0", sha)), tmp_path) == tmp_path / "a"
    assert locate(Source("a", ("git:b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0",)), tmp_path)  # of `git hash-object`
    with pytest.raises(ValueError, match="a is damaged or another file: expected sha256:00, got sha256:2cf2"):
        locate(Source("a", ("sha256:00",)), tmp_path)
    with pytest.raises(FileNotFoundError, match="Put the file there; it cannot be downloaded"):
        locate(Source("b", (sha,)), tmp_path)


def test_lung_has_to_be_brought(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"lung.mat is absent. Put the file there; it cannot be downloaded"):
        fg.data.load("lung", root=tmp_path)
    assert not fg.data.describe("lung", tmp_path).present


def test_without_network(tmp_path, monkeypatch):
    monkeypatch.delenv("FILIGREE_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(pooch, "retrieve", lambda *a, **k: (_ for _ in ()).throw(OSError("no route")))
    with pytest.raises(FileNotFoundError, match=r"could not be downloaded \(no route\). Put it at .*ORL.mat"):
        fg.data.load("orl")


@pytest.mark.data
@pytest.mark.parametrize(
    "name",
    [
        "mnist", "fashion-mnist", pytest.param("cifar-10", marks=pytest.mark.long("reads 60,000 images")), "orl",
        "prostate-ge", "glioma", "tox-171",
    ],
)  # fmt: skip
def test_real_data(name, data_root):
    facts = fg.data.describe(name, data_root)
    assert facts.present
    loaded = fg.data.load(name, root=data_root, validation=5000 if facts.samples > 10_000 else 0)
    parts = [part for part in (loaded.train, loaded.validation, loaded.test) if part is not None]
    assert sum(len(part.x) for part in parts) == facts.samples
    assert loaded.train.x.shape[1] == facts.features
    assert len(torch.cat([part.y for part in parts]).unique()) == facts.classes == loaded.classes
    if loaded.validation is not None:
        assert len(loaded.validation.x) == 5000
        with pytest.raises(ValueError, match="test set of its own"):
            next(cross_validation(name, root=data_root))


def test_a_users_own_imagenet_stays_on_disk(tmp_path):
    folder = tmp_path / "imagenet"
    folder.mkdir()
    with pytest.raises(FileNotFoundError, match=r"train_x\.npy is absent"):
        fg.data.load("imagenet", root=tmp_path)
    for part, n in (("train", 6), ("test", 2)):
        np.save(folder / f"{part}_x.npy", np.full((n, 3, 227, 227), 128, np.uint8))
        np.save(folder / f"{part}_y.npy", np.arange(n))
    loaded = fg.data.load("imagenet", root=tmp_path, validation=2)
    assert (len(loaded.train.x), len(loaded.validation.x), len(loaded.test.x)) == (4, 2, 2)
    assert loaded.train.x.dtype == torch.uint8
    assert loaded.train.y.tolist() == [2, 3, 4, 5]
    assert fg.data.describe("imagenet", tmp_path).present
    np.save(folder / "test_y.npy", np.arange(3))
    with pytest.raises(ValueError, match="as many samples"):
        fg.data.load("imagenet", root=tmp_path)
    (folder / "test_y.npy").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"not a \.npy file"):
        fg.data.load("imagenet", root=tmp_path)


def test_tables_as_spreadsheets_write_them(tmp_path):
    file = tmp_path / "own.csv"
    rows = "1,2, cat\n3,4,cat \n5,6,dog\n7,8,dog\n"
    for text in ("\ufeff" + rows, "a,b,label\n" + rows):
        file.write_text(text, encoding="utf-8")
        samples = read_csv(file)
        assert samples.x.tolist() == [[1, 2], [3, 4], [5, 6], [7, 8]]
        assert samples.labels.tolist() == ["cat", "cat", "dog", "dog"]
    file.write_text("NA,2,cat\n" + rows)  # no header: a number is missing
    with pytest.raises(ValueError, match=r"values are missing in 1 of 5 rows: column 1 1 \(NA\)"):
        read_csv(file)


def test_missing_labels_are_no_class(tmp_path):
    (tmp_path / "own.csv").write_text("1,2,a\n3,4,\n5,6,b\n7,8,\n")
    np.savez(tmp_path / "own.npz", x=np.eye(4), y=np.array([0, 1, np.nan, 1]))
    for name, missing in (("own.csv", 2), ("own.npz", 1)):
        with pytest.raises(ValueError, match=f"values are missing in {missing} of 4 rows: label .* {missing}"):
            fg.data.load(tmp_path / name)


def test_labels_are_classes(tmp_path):
    """Numbers are compared as numbers; one class, and quantities, are refused."""

    def load(labels):
        file = tmp_path / "table.csv"
        file.write_text("".join(f"{i * 0.5},{i % 3},{label}\n" for i, label in enumerate(labels)))
        return fg.data.load(file)

    loaded = load(["2", "10", "1", "1.0", "10.00"] * 12)
    assert loaded.classes == 3
    assert torch.bincount(torch.cat([loaded.train.y, loaded.test.y])).tolist() == [24, 12, 24]  # 1, 2, 10
    assert load(["1", "1.0", "one"] * 12).classes == 3  # words are not
    with pytest.raises(ValueError, match=r"must hold two classes at least\. All 30 labels are a"):
        load(["a"] * 30)
    with pytest.raises(
        ValueError, match=r"looks like a quantity, with 30 different numbers in 30 rows. To learn it: task='regression'"
    ):
        load([f"{i}.5" for i in range(30)])


@pytest.mark.parametrize("suffix", [".csv", ".npz", ".mat"])
def test_a_large_offset_costs_no_digits(tmp_path, suffix):
    """Seconds since 1970, a tenth apart: float32 would hold steps of 128."""
    x, y = np.stack([1.6e9 + 0.1 * np.arange(40), np.arange(40) % 3], 1), np.arange(40) % 2
    file = tmp_path / f"own{suffix}"
    if suffix == ".csv":
        file.write_text("".join(f"{a!r},{b},{label}\n" for (a, b), label in zip(x.tolist(), y, strict=True)))
    elif suffix == ".npz":
        np.savez(file, x=x, y=y)
    else:
        scipy.io.savemat(file, {"X": x, "Y": y})
    loaded = fg.data.load(file)
    assert loaded.train.x.dtype == torch.float32
    gaps = torch.cat([loaded.train.x, loaded.test.x])[:, 0].sort().values.diff()
    torch.testing.assert_close(gaps, gaps.mean().expand_as(gaps), rtol=0.01, atol=0)
    file = tmp_path / "large.csv"
    file.write_text("".join(f"{i}e300,{i % 2}\n" for i in range(1, 21)))
    with pytest.raises(ValueError, match="x must be finite"):
        fg.data.load(file)


def test_a_constant_feature_is_none_of_the_test_samples_either(tmp_path):
    x = np.random.default_rng(0).normal(size=(300, 3))
    x[:, 1] = 0.1
    x[-50:, 1] = 0.2
    np.savez(tmp_path / "own.npz", x=x, y=np.arange(300) % 2)
    split = fg.data.load(tmp_path / "own.npz", standardize="feature")
    assert split.train.x.abs().max() < 100
    assert split.test.x.abs().max() < 100


def test_headers_of_numbers_and_labels_with_underscores(tmp_path):
    rows = "".join(f"{i},{2 * i},{'ab'[i % 2]}\n" for i in range(20))
    (tmp_path / "own.csv").write_text("0,1,label\n" + rows)
    assert fg.data.load(tmp_path / "own.csv").classes == 2
    (tmp_path / "own.csv").write_text("".join(f"{i},{['1_1', '11'][i % 2]}\n" for i in range(20)))
    assert fg.data.load(tmp_path / "own.csv").classes == 2


def test_overlap_counts_what_is_trained_on():
    assert fg.data.overlap({"name": "digits", "test_size": 0.5, "validation": 0.5}) == 2.0
    assert fg.data.overlap({"name": "x", "folds": 5, "validation": 0.2}) == pytest.approx(0.25 / 0.8)
