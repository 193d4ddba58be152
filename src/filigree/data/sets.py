"""The data sets: digits (embedded), MNIST, Fashion-MNIST, CIFAR-10, the ASU sets, and a user's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from filigree.config import clipped
from filigree.data.augment import Augment
from filigree.data.cells import is_number
from filigree.data.columns import SIDEWAYS
from filigree.data.dataset import DataSet, Split, Standardize, assemble
from filigree.data.dialects import as_point
from filigree.data.encodings import Encoding
from filigree.data.files import FILES, IMAGENET, is_present, locate, path
from filigree.data.frames import is_frame
from filigree.data.readers import SUFFIXES, read_cifar, read_file, read_idx, read_mapped, read_mat
from filigree.data.samples import Reading, Samples
from filigree.optional import needed


@dataclass(frozen=True)
class Facts:
    """What is known of a data set before it is read."""

    samples: int
    features: int
    classes: int
    shape: tuple[int, ...]
    standardize: Standardize
    source: str
    counts: tuple[int, ...] | None = None  # samples a class, where the file has no other mark
    present: bool = False
    notes: tuple[str, ...] = ()  # of a file of your own: what was read, in a line, and what was left out


_ASU = "ASU feature selection repository; licence not stated"
_FACTS = {
    "digits": Facts(1797, 64, 10, (1, 8, 8), "global", "embedded in scikit-learn"),
    "mnist": Facts(70_000, 784, 10, (1, 28, 28), "global", "LeCun, Cortes, Burges; licence not stated"),
    "fashion-mnist": Facts(70_000, 784, 10, (1, 28, 28), "global", "Zalando Research; MIT"),
    "cifar-10": Facts(60_000, 3072, 10, (3, 32, 32), "global", "Krizhevsky; licence not stated"),
    "imagenet": Facts(1_331_167, 154_587, 1000, (3, 227, 227), None, "your own copy: imagenet/*.npy, see fg.data.load"),
    "orl": Facts(400, 1024, 40, (1, 32, 32), "feature", _ASU),
    "prostate-ge": Facts(102, 5966, 2, (5966,), "feature", _ASU),
    "glioma": Facts(50, 4434, 4, (4434,), "feature", _ASU),
    "tox-171": Facts(171, 5748, 4, (5748,), "feature", _ASU),
    "lung": Facts(203, 3312, 5, (3312,), "feature", "your own copy: asu/lung.mat of the " + _ASU, (139, 21, 20, 6, 17)),
}  # fmt: skip


def names() -> list[str]:
    """The data sets that `load` knows."""
    return list(_FACTS)


def describe(
    name: Any,
    root: str | Path | None = None,
    *,
    target: str | None = None,
    missing: str = "refuse",
    index_column: str = "drop",
    drop: Sequence[str] = (),
    task: str | None = None,
    transpose: bool = False,
) -> Facts:
    """Sizes, source and licence of a data set, and whether its files are present; of a file of your own, what `load`
    reads from it with these arguments."""
    if is_frame(name) or Path(name).suffix:
        content = _read(name, root, Reading(target, missing, index_column, tuple(drop), task, transpose))
        return dataclasses.replace(content.facts, present=True, notes=content.notes)
    name = str(name)
    return dataclasses.replace(_FACTS[_known(name)], present=is_present(name, root))


def load(
    name: Any,
    *,
    root: str | Path | None = None,
    seed: int = 0,
    validation: float | int = 0,
    test_size: float = 1 / 3,
    stratify: bool = True,
    standardize: Any = "default",
    augment: bool = False,
    images: bool = False,
    target: str | None = None,
    missing: str = "refuse",
    index_column: str = "drop",
    drop: Sequence[str] = (),
    task: str | None = None,
    transpose: bool = False,
) -> DataSet:
    """A data set in tensors, split and standardised.

    Args:
        name: of `names()`, or a file of your own: a table (.csv, .tsv, .csv.gz, .tsv.gz, .parquet, .feather,
            .arrow, with a label in the last column), .npz with x and y, .mat with X and Y, .npz of
            `scipy.sparse.save_npz`, .svmlight, .libsvm or .svm (also with .gz), whose rows stay sparse: CSR tensors;
            or a frame of pandas or polars, or a table of Arrow.
        root: the folder of the files; by default `FILIGREE_DATA`, else they are downloaded into the user's cache.
        seed: of the split.
        validation: samples, or the share of the training part, held out. Of sets with a test set of their own the first
            ones (as the papers do with 5,000), of the others stratified, by seed.
        test_size: the share tested, of sets without a test set of their own.
        stratify: keep the classes' shares in that split (the base code of Chouliaras 2021 does not).
        standardize: "feature" (z-scores a feature), "global" (one mean and deviation) or None; by default "global" for
            images, "feature" for ORL, the gene sets and files. Statistics are those of the training part.
        augment: rotate, shift and flip training images.
        images: shape samples as `(channels, height, width)`.
        target: of a table, the column that holds the label: its name, or its number from 1 where columns have no names;
            of a matrix of scipy the number of a column, or a file with a label for each row (.npy, or text lines).
        missing: of a file, "refuse" values that are missing (empty, NA, N/A, ?, nan, null), with their counts, or
            "drop" the rows that lack one, or take the "mean" of the feature in the training part.
        index_column: of a table, "drop" a column that only numbers or names the rows: one without a name, as pandas
            writes its index, or one of whole numbers that grow by 1 from row to row. Else "keep" it as a feature.
        drop: of a table, other columns to leave out, named as `target` is.
        task: of a file, "classification", or "regression": the label is a quantity, `y` float32 `(n, 1)`, standardised
            by the training part, and nothing is stratified. By default classes; a label with a different number in
            most rows is refused.
        transpose: of a file, samples stand in columns, as in matrices of gene expression: the first column names the
            features (and the label's row), the first row the samples, where its cells are such names.

    Of a file, `notes` begins with what was read, in a line. A column of words with at most 32 different ones
    becomes a feature of 0 or 1 for each, one of dates (ISO 8601) the days since 1970-01-01, which a line says; other
    text is refused.

    ILSVRC12 (`imagenet`) is a user's own copy: `imagenet/train_x.npy` and `test_x.npy`, bytes `(n, 3, 227, 227)`, and
    `train_y.npy`, `test_y.npy`, labels from 0. The images stay on disk, memory-mapped, and are not standardised:
    `fg.models.caffenet` reads bytes.

    Raises:
        FileNotFoundError, ValueError: files absent, damaged or not finite, in one line.
    """
    if isinstance(name, str) and name == "imagenet":
        return _imagenet(root, validation)
    content = _read(name, root, Reading(target, missing, index_column, tuple(drop), task, transpose))
    x, y, tested, facts, label, read_notes = content[:6]
    notes, stratify = [*read_notes], stratify and task != "regression"
    if tested:
        train, test = np.arange(len(y) - tested), np.arange(len(y) - tested, len(y))
        held = _amount(validation, len(train), label)
        train, valid = train[held:], train[:held]
        notes.append(
            f"the set's own test part; the first {held:,} training samples validate" if held else "own test part"
        )
    else:
        train, test = _split(np.arange(len(y)), y, test_size, seed, stratify, label)
        held = _amount(validation, len(train), label)
        train, valid = _split(train, y, held, seed, stratify, label) if held else (train, train[:0])
        notes.append(f"split by seed {seed}: {len(train)} train, {held} validate, {len(test)} test")
    dataset = assemble(
        label, x, y, train, valid, test, classes=facts.classes, input_shape=facts.shape, images=images, notes=notes,
        standardize=facts.standardize if standardize == "default" else standardize,
        feature_names=content.feature_names, class_names=content.class_names,
        target_name=content.target_name, encodings=content.encodings, impute=missing == "mean",
        task=task or "classification", transpose=transpose, first=content.first,
    )  # fmt: skip
    return _with_augment(dataset, facts) if augment else dataset


def cross_validation(
    name: Any,
    *,
    folds: int = 5,
    repeats: int = 1,
    seed: int = 0,
    root: str | Path | None = None,
    validation: float | int = 0,
    standardize: Any = "default",
    augment: bool = False,
    images: bool = False,
    target: str | None = None,
    missing: str = "refuse",
    index_column: str = "drop",
    drop: Sequence[str] = (),
    task: str | None = None,
    transpose: bool = False,
) -> Iterator[DataSet]:
    """The folds of a repeated cross-validation, stratified by class, each standardised by its own training part.

    Each sample is tested once a repeat. Refused where a class has fewer samples than folds. Arguments as of `load`.
    """
    content = _read(name, root, Reading(target, missing, index_column, tuple(drop), task, transpose))
    x, y, tested, facts, label, read_notes = content[:6]
    regression = task == "regression"
    if tested:
        raise ValueError(f"data {label}: it has a test set of its own; cross-validation is for the small sets.")
    fewest = len(y) if regression else int(np.bincount(y).min())
    if fewest < folds:
        what = "its samples" if regression else "the samples of its smallest class"
        raise ValueError(f"data {label}: folds must be at most {fewest}, {what}. Got {folds}.")
    model_selection = _sklearn("model_selection", label)
    kind = model_selection.RepeatedKFold if regression else model_selection.RepeatedStratifiedKFold
    splitter = kind(n_splits=folds, n_repeats=repeats, random_state=seed)
    for number, (train, test) in enumerate(splitter.split(x, y)):
        held = _amount(validation, len(train), label)
        kept, valid = _split(train, y, held, seed, not regression, label) if held else (train, train[:0])
        dataset = assemble(
            label, x, y, kept, valid, test, classes=facts.classes, input_shape=facts.shape, images=images,
            standardize=facts.standardize if standardize == "default" else standardize,
            feature_names=content.feature_names, class_names=content.class_names,
            target_name=content.target_name, encodings=content.encodings, impute=missing == "mean",
            task=task or "classification", transpose=transpose, first=content.first,
            notes=[
                *read_notes,
                f"fold {number % folds + 1} of {folds}, repeat {number // folds + 1} of {repeats}"
                + ", stratified" * (not regression),
            ],
        )  # fmt: skip
        yield _with_augment(dataset, facts) if augment else dataset


def _known(name: str) -> str:
    if name not in _FACTS:
        raise ValueError(
            f"data: name must be one of {', '.join(_FACTS)}, or a file ({', '.join(SUFFIXES)}). Got {name!r}."
        )
    return name


class _Content(NamedTuple):
    """What a set or a file holds: samples, labels from 0, how many at the end are the set's own test part."""

    x: Any
    y: np.ndarray
    tested: int
    facts: Facts
    label: str
    notes: tuple[str, ...] = ()
    feature_names: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    target_name: str = ""
    encodings: tuple[Encoding, ...] = ()
    first: int | None = None


def _read_own(source: Any, how: Reading) -> _Content:
    """A file of the user's own; its first note says what was read."""
    file = Path("the frame") if is_frame(source) else Path(source)
    samples = read_file(source, how)
    if how.task == "regression":
        return _quantity(file, samples)
    kinds, y = np.unique(samples.labels, return_inverse=True)
    if len(kinds) < 2:
        raise ValueError(f"data: {file} must hold two classes at least. All {len(y)} labels are {kinds[0]}.")
    if how.task is None and 2 * len(kinds) > len(y) > 2 and all(is_number(as_point(str(k), ";")) for k in kinds):
        raise ValueError(
            f"data: {file}: the label {samples.label!r} looks like a quantity, with {len(kinds)} different numbers in "
            f"{len(y)} rows. To learn it: task='regression' (--task regression); to take them for classes: "
            "task='classification'. If another column is the label, name it: target= (--target)."
            + f" {SIDEWAYS}"
            * samples.sideways
        )
    sizes = samples.x.shape[1:]
    classes = tuple(map(str, kinds.tolist()))
    notes = f"{file.name}: {samples.summary(classes, y)}", *samples.notes
    facts = Facts(len(y), int(np.prod(sizes)), len(kinds), sizes, "feature", str(file))
    return _Content(
        samples.x, y, 0, facts, file.name.partition(".")[0], notes, samples.features, classes, samples.label,
        samples.encodings, samples.first,
    )  # fmt: skip


def _quantity(file: Path, samples: Samples) -> _Content:
    """A file whose label is a number to be predicted."""
    y, sizes = samples.labels, samples.x.shape[1:]
    if y.dtype.kind not in "iuf":
        word = next((str(cell) for cell in y.tolist() if not is_number(str(cell))), str(y[0]))
        raise ValueError(
            f"data: {file}: task='regression' needs numbers as label {samples.label!r}. Got {clipped(word)}."
        )
    y = y.astype(np.float64)
    if not np.isfinite(y).all() or len(np.unique(y)) < 2:
        what = "finite" if not np.isfinite(y).all() else "two different ones at least"
        raise ValueError(f"data: {file}: the numbers of the label {samples.label!r} must be {what}.")
    notes = f"{file.name}: {samples.summary_of_quantity(y)}", *samples.notes
    facts = Facts(len(y), int(np.prod(sizes)), 1, sizes, "feature", str(file))
    return _Content(
        samples.x, y, 0, facts, file.name.partition(".")[0], notes, samples.features, (), samples.label,
        samples.encodings, samples.first,
    )  # fmt: skip


def _read(name: Any, root: str | Path | None, how: Reading) -> _Content:
    if not isinstance(name, str | Path) and not is_frame(name):
        raise TypeError(
            "data: name must be that of a data set or a file, or a frame of pandas, polars or Arrow. "
            f"Got a {type(name).__name__}; fg.fit takes arrays as tensors, (x, y)."
        )
    if is_frame(name) or Path(name).suffix:
        return _read_own(name, how)
    label = _known(str(name))
    if given := [field.name for field in dataclasses.fields(how) if getattr(how, field.name) != field.default]:
        raise ValueError(
            f"data {label}: target, missing, index_column, drop, task and transpose are for files of your own. "
            f"Got {', '.join(f'{name}={clipped(getattr(how, name))}' for name in given)}."
        )
    facts, files = _FACTS[label], FILES.get(label, {})
    paths = {key: locate(source, root) for key, source in files.items()}
    if label == "digits":
        x, y = _sklearn("datasets", label).load_digits(return_X_y=True)
        return _Content(np.asarray(x, np.float32), y, 0, facts, label)
    if "" in paths:
        samples = read_mat(paths[""])
        x, y = samples.x.astype(np.float32), samples.labels.astype(np.int64) - 1  # 1-based
        _check_counts(x, y, facts, paths[""])
        return _Content(x, y, 0, facts, label)
    if label == "cifar-10":
        parts = [read_cifar(paths[key]) for key in paths]
        x, y = np.concatenate([a for a, _ in parts]), np.concatenate([b for _, b in parts])
        return _Content(x.astype(np.float32) / 255, y, len(parts[-1][1]), facts, label)
    train_x, train_y, test_x, test_y = (read_idx(paths[key]) for key in paths)
    x, y = np.concatenate([train_x, test_x]), np.concatenate([train_y, test_y])
    return _Content(x.astype(np.float32) / 255, y, len(test_y), facts, label)


def _imagenet(root: str | Path | None, validation: float | int) -> DataSet:
    parts = {name: read_mapped(path(root, f"imagenet/{name}.npy")) for name in IMAGENET}
    facts = _FACTS["imagenet"]
    for name, array in parts.items():
        right = array.shape[1:] == facts.shape and array.dtype == np.uint8 if name.endswith("x") else array.ndim == 1
        if not right:
            raise ValueError(f"data imagenet: {name}.npy must hold bytes (n, 3, 227, 227), or labels (n,). "
                             f"Got {array.dtype} {array.shape}.")  # fmt: skip
    for part in ("train", "test"):
        if len(parts[f"{part}_x"]) != len(parts[f"{part}_y"]):
            raise ValueError(f"data imagenet: {part}_x.npy and {part}_y.npy must have as many samples.")
        labels = parts[f"{part}_y"]
        if labels.dtype.kind not in "iu" or (len(labels) and not 0 <= labels.min() <= labels.max() < facts.classes):
            raise ValueError(f"data imagenet: {part}_y.npy must hold whole numbers in [0, {facts.classes}).")
    x, y, test_x, test_y = (torch.from_numpy(parts[name]) for name in IMAGENET)
    held = _amount(validation, len(x), "imagenet")
    first, rest = Split(x[:held], y[:held].long()), Split(x[held:], y[held:].long())
    return DataSet(
        "imagenet", rest, first if held else None, Split(test_x, test_y.long()), facts.classes, facts.shape, None,
        ["a user's own copy of ILSVRC12, as bytes from disk"],
    )  # fmt: skip


def _check_counts(x: np.ndarray, y: np.ndarray, facts: Facts, path: Path) -> None:
    if x.shape != (facts.samples, facts.features):
        raise ValueError(f"data: {path} must hold {facts.samples} x {facts.features} numbers. Got {x.shape}.")
    if facts.counts is not None and tuple(np.bincount(y, minlength=facts.classes)) != facts.counts:
        raise ValueError(f"data: {path} must hold classes of {facts.counts} samples. Got {tuple(np.bincount(y))}.")


def _amount(given: float | int, total: int, label: str) -> int:
    if not isinstance(given, Real):
        raise TypeError(f"data {label}: validation must be a share or a number of samples. Got {given!r}.")
    number = round(given * total) if isinstance(given, float) and given < 1 else int(given)
    if not 0 <= number < total:
        raise ValueError(
            f"data {label}: validation must be a share below 1 or fewer than {total} samples. Got {given}."
        )
    return number


def _split(
    numbers: np.ndarray, y: np.ndarray, size: float | int, seed: int, stratify: bool, label: str
) -> tuple[np.ndarray, np.ndarray]:
    labels = y[numbers]
    if not isinstance(seed, Integral) or not 0 <= seed < 2**32:
        raise ValueError(f"data {label}: seed must be a whole number of at least 0 and below 2**32. Got {seed}.")
    if stratify and (alone := int((np.bincount(labels) == 1).sum())):
        raise ValueError(
            f"data {label}: it cannot be split so: {alone} of its {len(np.unique(labels))} classes have one sample to "
            "be split, two are needed."
        )
    try:
        kept, held = _sklearn("model_selection", label).train_test_split(
            numbers, test_size=size, random_state=seed, stratify=labels if stratify else None
        )
    except ValueError as error:
        raise ValueError(f"data {label}: it cannot be split so: {error}") from None
    return np.sort(kept), np.sort(held)


def _with_augment(dataset: DataSet, facts: Facts) -> DataSet:
    if len(facts.shape) != 3:
        raise ValueError(f"data {dataset.name}: augment is for images; its samples are of shape {facts.shape}.")
    background = float(dataset.train.x.min())  # the standardised value of black
    return dataclasses.replace(
        dataset,
        augment=Augment(facts.shape, background),
        notes=[*dataset.notes, "augmented: rotation 10 degrees, shift 0.1, flip"],
    )


def _sklearn(part: str, name: str) -> Any:
    """A part of scikit-learn, which brings an OpenMP pool of its own, whose threads would compete with ours."""
    return needed(f"sklearn.{part}", f"data {name}", "data")
