"""What is fuzzed: for each loader a function of bytes. An error that the loader documents is part of the job.

A harness returns whether the bytes were taken for a file; whatever else it raises is a finding. `edited_state` reads
the bytes as a list of edits of a whole file, so that damage gets behind what a container's checks would stop.
"""

from __future__ import annotations

import functools
import gzip
import io
import os
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
import torch

import filigree as fg
from filigree import recipes
from filigree.data.readers import read_csv, read_idx, read_mat, read_npz
from filigree.data.samples import Samples
from filigree.dynamics import Evolution
from filigree.io.storage import read_state, write_state
from filigree.train import EarlyStopping, FitState, History, Record
from filigree.train.checkpoints import Checkpoint
from filigree.train.engine import Engine
from filigree.train.stepping import Callbacks

warnings.simplefilter("ignore")
torch.set_num_threads(1)
ROOM = Path(tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))


class Finding(Exception):
    """An error that its loader does not document."""


@contextmanager
def documented(*kinds: type[Exception]) -> Iterator[None]:
    """An error of these kinds is as documented if it is one line."""
    try:
        yield
    except kinds as error:
        if type(error) not in kinds or "\n" in str(error) or len(str(error)) > 3000:
            raise Finding(f"{type(error).__name__} of {len(str(error))} characters: {str(error)[:500]}") from error


def model(data: bytes) -> None:
    path = as_file(data, "model.safetensors", model_state)
    with documented(ValueError):
        network = fg.load(path)
        with suppress(ValueError, RuntimeError, TypeError, IndexError):  # what kernels read has been checked
            network(torch.zeros(3, 6)).sum().backward()


def checkpoint(data: bytes) -> None:
    path = as_file(data, "checkpoint.safetensors", run_state)
    resumed = untouched_run()
    with documented(ValueError):
        if resumed.load():
            resumed.settle()
            state = resumed.state
            state.optimizer.zero_grad()
            with suppress(ValueError, RuntimeError, TypeError, IndexError):
                state.model(torch.ones(3, 6)).sum().backward()
                state.optimizer.step()
            np.random.rand()  # noqa: NPY002 - its state was the file's
        else:
            raise Finding(f"{path} is not seen")


def recipe(data: bytes) -> None:
    path = ROOM / "recipe.yaml"
    path.write_bytes(data)
    with documented(recipes.RecipeError):
        network = recipes.load(path)
        for method in network.methods:
            folder = (ROOM / "out" / network.name / f"{method}-0").resolve()
            assert folder.parent.parent == (ROOM / "out").resolve(), folder  # what `run` removes and writes
            network.plain(method)
            for key, candidates in network.search.items():
                for candidate in candidates:
                    tried = folder.parent / "search" / f"{method}-0-{recipes.recipe.searched_folder(key, candidate)}"
                    assert tried.resolve().parent == folder.parent / "search", tried


def record(data: bytes) -> None:
    path = ROOM / "record.json"
    path.write_bytes(data)
    with documented(ValueError):
        Record.load(path).model_dump()


def npz(data: bytes) -> None:
    if data[:1] == b"E":  # two arrays in a whole archive
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED if data[1:2] == b"D" else zipfile.ZIP_STORED) as archive:
            for name, content in zip(("x.npy", "y.npy"), data[2:].split(b"|", 1), strict=False):
                archive.writestr(name, content)
        data = file.getvalue()
    array_file(read_npz, data, "own.npz")


def csv(data: bytes) -> None:
    array_file(read_csv, data, "own.csv")


def mat(data: bytes) -> None:
    array_file(read_mat, data, "own.mat")


def idx(data: bytes) -> None:
    path = ROOM / "own.gz"
    if data[:1] == b"E":  # what a whole file has inside
        data = gzip.compress(data[1:], 1)
    path.write_bytes(data)
    with documented(ValueError):
        assert read_idx(path).nbytes <= 1040 * len(data)


TARGETS: dict[str, Callable[[bytes], None]] = {
    function.__name__: function for function in (model, checkpoint, recipe, record, npz, csv, mat, idx)
}


def array_file(read: Callable[[Path], Samples], data: bytes, name: str) -> None:
    path = ROOM / name
    path.write_bytes(data)
    with documented(ValueError):
        samples = read(path)
        x, y = samples.x, samples.labels
        assert len(x) == len(y)
        assert x.dtype in (np.float32, np.float64)
        assert x.nbytes <= max(2080 * len(data), 1 << 20)


# -- whole files, and edits of them --------------------------------------------------------------------------------


def as_file(data: bytes, name: str, whole: Callable[[], Any]) -> Path:
    """Bytes as they are, or (first byte E) edits of what `whole` gives, as a file."""
    path = ROOM / name
    if data[:1] == b"E":
        write_state(path, edited_state(_mutable(whole()), data[1:]))
    else:
        path.write_bytes(data)
    return path


def edited_state(state: Any, data: bytes) -> Any:
    """A nested state with edits, each of which is a few bytes: where, what, and which value."""
    stream = io.BytesIO(data)

    def number(most: int) -> int:
        return int.from_bytes(stream.read(2), "little") % max(most, 1)

    for _ in range(4):
        if not (head := stream.read(1)):
            break
        places = list(_places(state))
        parent, key = places[number(len(places))]
        old, kind = parent[key], head[0] % 6
        if kind == 0 and isinstance(old, torch.Tensor) and old.numel():
            flat = old.clone().reshape(-1)
            flat[number(len(flat))] = torch.tensor(VALUES[number(len(VALUES))]).to(flat.dtype)
            parent[key] = flat.reshape(old.shape)
        elif kind == 1 and isinstance(old, torch.Tensor):
            parent[key] = old.to(TYPES[number(len(TYPES))])
        elif kind == 2 and isinstance(old, torch.Tensor):
            parent[key] = old.reshape(-1)[: number(old.numel() + 1)] if number(2) else torch.cat([old, old])
        elif kind == 3:
            parent[key] = [None, [], {}, "../x", True, old, [old], {"kind": old}, float("nan"), (old, old)][number(10)]
        elif kind == 4 and isinstance(parent, dict):
            parent[stream.read(number(8)).decode(errors="replace")] = parent.pop(key)
        else:
            parent[key] = VALUES[number(len(VALUES))]
    return state


VALUES = (0, 1, -1, 2, 7, 100, 127, -128, 2**15, 2**24, 2**31 - 1, -(2**31), 0.5, 1e30)
TYPES = (torch.float64, torch.float32, torch.float16, torch.int64, torch.int32, torch.int8, torch.uint8, torch.bool)


def _places(state: Any) -> Iterator[tuple[Any, Any]]:
    items = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list) else ()
    for key, value in list(items):
        yield state, key
        yield from _places(value)


@functools.cache
def model_state() -> dict[str, Any]:
    """What `fg.save` writes of a small network with a sparse, a structured and a quantised layer."""
    torch.manual_seed(0)
    network = fg.models.mlp([6, 8, 8, 8, 3], dropout=0.5)
    fg.convert_(network, fg.Sparse(fg.ErdosRenyi(epsilon=2)), where=["fc1", "fc4"])
    fg.convert_(network, fg.Fastfood(), where=["fc2"])
    fg.compress_(network, fg.MonteCarlo(samples=0.5), where=["fc3"])
    return fg.io.saving.description(network)


class Run(Checkpoint):
    """The checkpoint of a run with an evolution, momentum and early stopping, that knows whether a file changed it."""

    touched = False

    def __init__(self, folder: Path) -> None:
        torch.default_generator.manual_seed(0)  # torch.manual_seed takes a tenth of an execution
        network = fg.models.mlp([6, 8, 3])
        fg.convert_(network, fg.Sparse(fg.ErdosRenyi(epsilon=2)))
        optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, fused=True)
        network(torch.ones(3, 6)).sum().backward()
        optimizer.step()
        state = FitState(network, optimizer, 3, History([{"epoch": 0, "train_loss": 1.0, "elapsed": 0.1}]))
        callbacks = Callbacks(Evolution(network, optimizer, 0.3), state)
        super().__init__(folder, Engine(network, optimizer), callbacks, EarlyStopping(), [torch.Generator()], seed=0)

    def _take(self, saved: dict[str, Any]) -> None:
        self.touched = True
        super()._take(saved)


_runs: list[Run] = []


def untouched_run() -> Run:
    """A run as it began: the last one, where the file that it was given was refused before it was taken up."""
    if not _runs or _runs[0].touched:
        _runs[:] = [Run(ROOM)]
    return _runs[0]


@functools.cache
def run_state() -> Any:
    begun = Run(ROOM / "whole")
    begun.open()
    begun.save()
    return read_state(begun.path)


def _mutable(state: Any) -> Any:
    """The same with dicts and lists that can be edited, and copies of tensors."""
    if isinstance(state, dict):
        return {key: _mutable(value) for key, value in state.items()}
    if isinstance(state, list):
        return [_mutable(value) for value in state]
    return state.clone() if isinstance(state, torch.Tensor) else state


def seeds() -> dict[str, dict[str, bytes]]:
    """A few whole files for each target, to begin with."""
    x, y = np.arange(12.0, dtype=np.float32).reshape(4, 3), np.array([0, 1, 0, 1])
    files: dict[str, dict[str, bytes]] = {name: {} for name in TARGETS}

    def keep(name: str, label: str, write: Callable[[Path], Any]) -> None:
        write(path := ROOM / f"seed-{label}")
        files[name][label] = path.read_bytes()

    keep("model", "whole", lambda path: write_state(path, model_state()))
    keep("checkpoint", "whole", lambda path: write_state(path, run_state()))
    for name in ("model", "checkpoint"):
        for number in range(6):
            files[name][f"edit-{number}"] = b"E" + bytes([number, 9 * number, 0, number, 0, 2 * number, 0])
    files["recipe"] = {
        "small": b"about: x\ndata: {name: digits}\nmethods:\n  a: {}\n",
        "methods": b"about: x\nname: n\ndata: {name: digits, validation: 0.1}\nmodel: {hidden: [3]}\nmethods:\n"
        b"  SET:\n    convert: [{config: {kind: Sparse, topology: {kind: ErdosRenyi, epsilon: 2}}}]\n"
        b"    evolution: {schedule: {kind: Constant, zeta: 0.3}}\n  q: {after: SET, compress: [{config: {kind: "
        b"MonteCarlo, samples: 0.5}}]}\n",
        "alias": b"about: &a x\nexpect: *a\ndata: {name: digits}\nsearch: {lr: [0.1, 1]}\nmethods: {a: {}}\n",
        "extends": b"extends: _base\nmethods: {a: {}}\n",
    }
    whole = Record(recipe="r", method="m", seed=1, history=[{"epoch": 0, "train_loss": 0.5, "val_loss": None}],
                   metrics={"test_accuracy": 0.9}, config={"a": [1]}, cost={"bytes": 3},
                   topology=[{"epoch": 0, "layer": "fc", "in_features": 2, "out_features": 2, "nnz": 1,
                              "fan_in": [[1, 1]], "fan_out": [[1, 1]]}])  # fmt: skip
    files["record"] = {"whole": whole.model_dump_json().encode(), "least": b'{"history": [{"epoch": 0}]}'}
    inner = [io.BytesIO(), io.BytesIO()]
    for file, array in zip(inner, (x, y), strict=True):
        np.save(file, array)
    files["npz"]["arrays"] = b"ES" + b"|".join(file.getvalue() for file in inner)
    keep("npz", "stored", lambda path: _savez(path, np.savez, x, y))
    keep("npz", "deflated", lambda path: _savez(path, np.savez_compressed, x, np.array(["a", "b", "a", "b"])))
    files["csv"] = {"plain": b"1,2,0\n3,4,1\n", "header": b"a,b,label\n# c\n1e3,nan,cat\n\n.5,-inf,dog\n"}
    for label, compressed in (("plain", False), ("deflated", True)):
        file = io.BytesIO()
        scipy.io.savemat(file, {"X": x, "Y": y, "c": [1]}, do_compression=compressed)
        files["mat"][label] = file.getvalue()
    files["idx"] = {
        "images": gzip.compress(b"\0\0\x08\x03" + b"\0\0\0\2" * 3 + bytes(8)),
        "labels": gzip.compress(b"\0\0\x08\x01" + b"\0\0\0\5" + bytes(range(5))),
        "inside": b"E\0\0\x08\x02" + b"\0\0\0\2" * 2 + bytes(4),
        "huge": gzip.compress(b"\0\0\x08\x03" + b"\x7f\xff\xff\xff" * 3),
    }
    return files


def _savez(path: Path, save: Any, x: np.ndarray, y: np.ndarray) -> None:
    with open(path, "wb") as file:
        save(file, x=x, y=y)


def write_seeds(folder: Path) -> None:
    """`folder/NAME/LABEL` for each seed that is not there yet."""
    for name, files in seeds().items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for label, content in files.items():
            if not (folder / name / label).exists():
                (folder / name / label).write_bytes(content)
