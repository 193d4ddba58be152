"""Files are untrusted: what no loader may do with a hostile one, and the corpus that fuzzing has left."""

from __future__ import annotations

import contextlib
import gzip
import importlib.util
import io
import json
import os
import sys
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import torch
from rich.console import Console
from torch import Tensor

import filigree as fg
from filigree import recipes
from filigree.config import visible
from filigree.data.readers import read_csv, read_idx, read_mapped, read_mat, read_npz
from filigree.io import load_limits
from filigree.io.saving import description
from filigree.io.storage import read_state, write_state
from filigree.ops import reference, sell, sparse
from filigree.recipes.plain_yaml import plain_yaml
from filigree.report import console_table, write_report
from filigree.train import EarlyStopping, Record, fit, rng

FUZZ = Path(__file__).parents[1] / "fuzz"


@pytest.fixture
def little_memory() -> Iterator[None]:
    """What Python and numpy take while a file is refused stays below 64 MiB."""
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 20, f"{peak >> 20} MiB"


# -- models -----------------------------------------------------------------------------------------------------------


def small() -> torch.nn.Module:
    model = fg.models.mlp([6, 8, 3])
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(epsilon=2)), where=["fc1"])
    return model


def swap(name: str, change: Callable[[Tensor], Any]) -> Callable[[dict[str, Any]], None]:
    def edit(state: dict[str, Any]) -> None:
        state["state_dict"][name] = change(state["state_dict"][name])

    return edit


def item(place: int, number: float) -> Callable[[Tensor], Tensor]:
    def change(tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        tensor[place] = number
        return tensor

    return change


def put(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def edit(state: dict[str, Any]) -> None:
        state[key] = value

    return edit


def converted(config: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    return put("conversions", [[config, ["fc1"]]])


EDITS: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "indptr falls": (swap("fc1.indptr", item(3, 0)), "indptr must rise from 0"),
    "indptr negative": (swap("fc1.indptr", item(0, -1)), "indptr must rise from 0"),
    "indptr beyond": (swap("fc1.indptr", item(-1, 2**31 - 1)), "indptr must rise from 0"),
    "indptr short": (swap("fc1.indptr", lambda t: t[:-1]), r"expected shapes \(9,\)"),
    "indices beyond": (swap("fc1.indices", item(0, 6)), r"indices must lie in \[0, 6\)"),
    "indices negative": (swap("fc1.indices", item(0, -1)), r"indices must lie in \[0, 6\)"),
    "indices unsorted": (swap("fc1.indices", lambda t: t.flip(0)), "sorted and distinct"),
    "indices double": (swap("fc1.indices", lambda t: torch.zeros_like(t)), "sorted and distinct"),
    "indices missing": (swap("fc1.indices", lambda t: t[:-1]), "indptr must rise from 0 to nnz"),
    "indices of floats": (swap("fc1.indices", Tensor.float), "should be a tensor like torch.int32"),
    "indices of two widths": (swap("fc1.indices", Tensor.long), "both must be int32 or both int64"),
    "values too few": (swap("fc1.values", lambda t: t[:-1]), "one number a connection"),
    "values of integers": (swap("fc1.values", Tensor.int), "should be a tensor like torch.float32"),
    "a bias of another type": (swap("fc1.bias", Tensor.double), "of 'fc1' should be of one type"),
    "a bias too short": (swap("fc1.bias", lambda t: t[:-1]), "size mismatch"),
    "a bias that is no tensor": (swap("fc1.bias", lambda t: 3), "should be a tensor"),
    "sizes negative": (put("model", {"name": "mlp", "sizes": [6, -8, 3]}), "each at least 1"),
    "sizes huge": (put("model", {"name": "mlp", "sizes": [6, 2**40, 3]}), "add up to 16,777,216"),
    "sizes overflow": (put("model", {"name": "mlp", "sizes": [2**70, 2**70, 3]}), "add up to"),
    "endless depth": (put("model", {"name": "resnet", "blocks": [10**6, 1, 1]}), "far larger than the file"),
    "no such model": (put("model", {"name": "os.system"}), "name must be one of"),
    "many connections": (
        converted({"kind": "Sparse", "topology": {"kind": "ErdosRenyi", "epsilon": 1e9, "replace": True}}),
        "far larger than the file",
    ),
    "NaN in a config": (
        converted({"kind": "Sparse", "topology": {"kind": "ErdosRenyi", "epsilon": float("nan")}}),
        "finite number",
    ),
    "no such config": (converted({"kind": "Popen"}), "kind must be one of"),
    "a field that is none": (converted({"kind": "Sparse", "self": 1}), "unknown field 'self'"),
    "converted twice": (put("conversions", [[fg.Sparse(fg.ErdosRenyi(epsilon=2)).to_dict(), ["fc1", "fc1"]]]), "twice"),
    "conversions of another sort": (put("conversions", 7), "not iterable"),
    "a state of another sort": (put("state_dict", [1]), "does not fit"),
}  # fmt: skip


@pytest.mark.parametrize("name", EDITS)
def test_a_hostile_model_is_refused_in_one_line(tmp_path: Path, name: str, little_memory: None) -> None:
    edit, message = EDITS[name]
    state = description(small())
    edit(state)
    write_state(tmp_path / "m", state)
    with pytest.raises(ValueError, match=message) as raised:
        fg.load(tmp_path / "m")
    assert "\n" not in str(raised.value)
    assert str(raised.value).startswith(f"load: {tmp_path / 'm'}")


def test_a_hostile_permutation_never_reaches_a_kernel(tmp_path: Path) -> None:
    model = fg.models.mlp([8, 8, 3])
    fg.convert_(model, fg.Fastfood(), where=["fc1"])
    (name,) = (name for name in model.state_dict() if "permute" in name)
    for number in (-1, 8, 2**62):
        state = description(model)
        state["state_dict"][name] = item(0, number)(state["state_dict"][name])
        write_state(tmp_path / "m", state)
        with pytest.raises(ValueError, match=r"sell: a permutation must name places in \[0, 8\). Got"):
            fg.load(tmp_path / "m")(torch.ones(2, 8))
    x, places = torch.ones(2, 8, requires_grad=True), torch.arange(8)
    y = sell.sell(x, [("permute", 0)], 8, 8, [places])
    places.numpy()[3] = 8  # between the two passes, unseen by autograd
    with pytest.raises(ValueError, match="Got 8"):
        y.sum().backward()


@pytest.mark.long("decodes counts of billions")
def test_counts_that_stand_for_billions_of_entries_are_refused(tmp_path: Path) -> None:
    """A count above 127 is split into several: a few bytes would become gigabytes."""
    model = fg.models.mlp([6, 8, 3])
    fg.compress_(model, fg.MonteCarlo(samples=0.5), where=["fc1"])
    state = description(model)
    state["state_dict"]["fc1.code"] = torch.full((8, 6), 2**31 - 200, dtype=torch.int32)
    write_state(tmp_path / "m", state)
    with pytest.raises(ValueError, match="far larger than the file"):
        fg.load(tmp_path / "m")


def test_a_file_may_ask_for_what_its_size_explains_only(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(bytes(1000))
    allowed = load_limits.LoadLimits(path, 1)
    with allowed, pytest.raises(ValueError, match="far larger than the file"):
        torch.zeros(2**40)
    with load_limits.LoadLimits(path, 1) as allowed:
        before = allowed.bytes
        torch.zeros(1000).view(10, 100)[0].mul_(2)
        torch.empty(10**12, device="meta")
    assert before - allowed.bytes == 4000
    with pytest.raises(ValueError, match="far larger"), load_limits.LoadLimits(path, 1):
        torch.randperm(10**11)
    with pytest.raises(ValueError, match="add up to 16,777,216"):
        load_limits.check_numbers([{"sizes": [2**23, 2**23], "seed": 2**62}, 1], path)


def test_headers_that_lie_about_tensors(tmp_path: Path, little_memory: None) -> None:
    write_state(tmp_path / "m", {"w": torch.zeros(4)})
    whole = (tmp_path / "m").read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    for change in ({"shape": [2**62, 2**62]}, {"shape": [-4]}, {"data_offsets": [0, 2**60]}, {"data_offsets": [8, 4]},
                   {"dtype": "F64"}, {"shape": [5]}):  # fmt: skip
        text = json.dumps(header | {"w": header["w"] | change}).encode()
        (tmp_path / "m").write_bytes(len(text).to_bytes(8, "little") + text + whole[8 + length :])
        with pytest.raises(ValueError, match="not a filigree file, or a damaged one"):
            read_state(tmp_path / "m")
    (tmp_path / "m").write_bytes((2**62).to_bytes(8, "little") + whole[8:])
    with pytest.raises(ValueError, match="damaged"):
        read_state(tmp_path / "m")


# -- checkpoints ------------------------------------------------------------------------------------------------------


def train(folder: Path, epochs: int, resume: bool) -> Any:
    rng.seed_everything(0)
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, fused=True)
    data = torch.randn(20, 6), torch.arange(20) % 3
    return fit(
        model, data, optimizer=optimizer, epochs=epochs, batch_size=10, callbacks=fg.Evolution(model, optimizer, 0.3),
        early_stopping=EarlyStopping("train_loss"), checkpoint=folder, resume=resume, progress=False,
    )  # fmt: skip


def shorter(momentum: dict[Any, Any]) -> None:
    momentum[0]["momentum_buffer"] = momentum[0]["momentum_buffer"][:1]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c.update(history=[{"epoch": "0"}]), "rows with an epoch"),
        (lambda c: c.update(history=3), "rows with an epoch"),
        (lambda c: c.update(step=-1), "after how many steps"),
        (lambda c: c.update(stopped=[1]), "after how many steps"),
        (lambda c: c.pop("model"), "'model'"),
        (lambda c: c.update(model=7), "refuses this checkpoint"),
        (lambda c: c["model"].update({"fc1.indices": c["model"]["fc1.indices"] + 5}), r"indices must lie in \[0, 6\)"),
        (lambda c: shorter(c["optimizer"]["state"]), "momentum_buffer must be"),
        (lambda c: c["optimizer"]["state"][0].update(momentum_buffer=[1]), "as its parameter. Got list"),
        (lambda c: c["optimizer"].update(param_groups=[]), "refuses this checkpoint"),
        (lambda c: c["optimizer"]["param_groups"][0].pop("dampening"), "dampening must be like 0. Got None"),
        (lambda c: c["optimizer"]["param_groups"][0].update(lr=float("nan")), "lr must be like"),
        (lambda c: c["callbacks"].update(states=[]), "shorter"),
        (lambda c: c["callbacks"].update(due=[7]), "which callbacks are to step"),
        (lambda c: c.update(random=[]), "out of range"),
        (lambda c: c["random"][0].update(generators=[torch.zeros(3)] * 9), "refuses this checkpoint"),
        (lambda c: c["random"][0]["global"].update(torch=torch.zeros(7)), "refuses this checkpoint"),
        (lambda c: c["random"][0]["global"]["numpy"]["state"].update(pos=10**6), "624 words and a place in them"),
        (lambda c: c["random"][0]["global"]["numpy"]["state"].update(key=torch.zeros(3)), "624 words"),
        (lambda c: c["random"][0]["global"].update(python=(3, torch.zeros(9), None)), "refuses this checkpoint"),
    ],
)  # fmt: skip
def test_a_hostile_checkpoint_is_refused_in_one_line(tmp_path: Path, edit: Callable[[Any], Any], message: str) -> None:
    train(tmp_path, 1, resume=False)
    file = tmp_path / "checkpoint.safetensors"
    state = read_state(file)
    edit(state["content"])
    write_state(file, state)
    before = np.random.get_state()[2]  # noqa: NPY002
    with pytest.raises(ValueError, match=message) as raised:
        train(tmp_path, 2, resume=True)
    assert "\n" not in str(raised.value)
    assert str(raised.value).startswith(str(file))
    assert 0 <= np.random.get_state()[2] <= 624 >= before  # noqa: NPY002


def test_a_checkpoint_without_its_fingerprint_is_refused(tmp_path: Path) -> None:
    for content in ({"format": "filigree-checkpoint/1"}, {"format": "filigree-checkpoint/1", "fingerprint": [1]}):
        write_state(tmp_path / "checkpoint.safetensors", content)
        with pytest.raises(ValueError, match="checkpoint"):
            train(tmp_path, 2, resume=True)


@pytest.mark.parametrize("key", ["E\n", "e" * 10_000])
def test_another_run_s_fingerprint_is_named_in_one_short_line(tmp_path: Path, key: str) -> None:
    train(tmp_path, 1, resume=False)
    file = tmp_path / "checkpoint.safetensors"
    state = read_state(file)
    state["fingerprint"] |= {key: []}
    write_state(file, state)
    with pytest.raises(ValueError, match=r"is of another run: its [eE]") as raised:
        train(tmp_path, 2, resume=True)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 600


# -- recipes ----------------------------------------------------------------------------------------------------------

BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a: &a {k: 1}\n" + "".join(
    f"{b}: &{b} {{<<: [{', '.join([f'*{a}'] * 10)}]}}\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
GOOD = {"about": "x", "data": {"name": "digits"}, "methods": {"a": {}}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "at most 20,000 values"),
        (MERGES, "at most 20,000 values"),
        ("a: &a [*a]", "stands for nothing that is whole"),
        ("[" * 200_000, "at most 32 levels"),
        ("- " * 100_000, "not YAML"),
        ("{a: " * 40 + "1" + "}" * 40, "at most 32 levels"),
        ("x" * 300_000, "at most 262,144 characters"),
        ("a: 0x" + "f" * 2000, "at most 64 bits"),
        ("a: " + "9" * 5000, "not YAML"),
        ("1: 2", "keys must be text"),
        ("a: 2001-01-01", "values must be text"),
        ("a: 2001-99-99", "not YAML"),
        ("a: !!int ''", "not YAML"),
        ("a: !!bool 7", "not YAML"),
        ("!!python/object/apply:os.system ['true']", "not YAML"),
        ("? [a]\n: b", "not YAML"),
        ("a: \x00", "not YAML"),
    ],
    ids=range(17),
)  # fmt: skip
def test_hostile_yaml_is_refused(tmp_path: Path, text: str, message: str, little_memory: None) -> None:
    with pytest.raises(ValueError, match=message):
        plain_yaml(text)
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(recipes.RecipeError, match=message) as raised:
        recipes.load(tmp_path / "r.yaml")
    assert "\n" not in str(raised.value)


def test_an_alias_is_a_copy() -> None:
    tree = plain_yaml("a: &a {k: [1]}\nb: *a\nc: {<<: *a, d: 2}")
    tree["a"]["k"].append(2)
    assert tree == {"a": {"k": [1, 2]}, "b": {"k": [1]}, "c": {"k": [1], "d": 2}}


@pytest.mark.parametrize("name", ["../up", "/etc", "a/b", "a\\b", "..", ".hidden", "", "x" * 200, "a\nb", "a\0"])
@pytest.mark.parametrize("of", ["recipe", "method"])
def test_no_name_leads_out_of_the_output_folder(name: str, of: str) -> None:
    tree = GOOD | {"name": name} if of == "recipe" else GOOD | {"name": "r", "methods": {name: {}}}
    with pytest.raises(ValueError, match="it names a folder"):
        recipes.Recipe(**tree)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"training": {"weight_decay": float("nan")}}, "weight_decay.*finite"),
        ({"data": {"name": "digits", "validation": float("inf")}}, "validation"),
        ({"published": {"a": float("nan")}}, "published.a.*finite"),
        ({"data": {"name": "digits", "folds": 10**12}}, "folds"),
        ({"seeds": [-1]}, "seeds"),
        ({"seeds": [2**63]}, "seeds"),
        ({"methods": {str(i): {} for i in range(201)}}, "at most 200"),
        ({"search": {"lr": [0.1] * 201}}, "at most 200"),
        ({"extends": ["demo"]}, "extends must be a recipe's name"),
        ({"extends": "_/../../../x"}, "there is no recipe"),
        ({"extends": "../demo"}, "there is no recipe"),
        ({"notes": 3}, "notes"),
        ({"convert": [{"config": {"kind": "FuseLinears", "by": 1, "features": 2}}]}, "by must be"),
        ({"convert": [{"config": {"kind": "Sparse", "self": 1}}]}, "unknown field 'self'"),
        ({"convert": [{"config": {"kind": "Sparse", "topology": {"kind": "ErdosRenyi", "epsilon": "1e9x" * 999}}}]},
         "epsilon"),
    ],
)  # fmt: skip
def test_hostile_values_in_a_recipe_are_named(tmp_path: Path, tree: dict[str, Any], message: str) -> None:
    (tmp_path / "r.yaml").write_text(json.dumps(GOOD | tree).replace("NaN", ".nan").replace("Infinity", ".inf"))
    with pytest.raises(recipes.RecipeError, match=message) as raised:
        recipes.load(tmp_path / "r.yaml")
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 1500


# -- records ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [b"", b"[]", b"[" * 10**5, b'{"history": [{"epoch": 0.5}]}', b'{"history": [{}]}', b'{"seed": "1"}', b"\xff{}",
     b'{"metrics": {"a": "b"}}', b'{"folder": "/etc", "x": 1}', b'{"seed": ' + b"9" * 5000 + b"}", b'{"dirty": 1}'],
)  # fmt: skip
def test_a_hostile_record_is_refused_in_one_line(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "record.json").write_bytes(text)
    with pytest.raises(ValueError, match="not a filigree record") as raised:
        Record.load(tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "edit",
    [{"cost": {"train_step_ms": {}}}, {"cost": {"bytes_disk": [1]}}, {"cost": {"bytes_disk": 10**400}},
     {"config": {"data": 3}}, {"config": {"data": None}}, {"config": {"data": {"folds": "x"}}},
     {"config": {"data": {"input_shape": "abc"}}}, {"config": {"published": {"dense_parameters": "a"}}},
     {"config": {"sweep": 3}}, {"config": {"about": 3}}],
)  # fmt: skip
def test_a_record_is_what_its_readers_rely_on(tmp_path: Path, edit: dict[str, Any]) -> None:
    (tmp_path / "record.json").write_text(json.dumps({"method": "dense"} | edit))
    with pytest.raises(ValueError, match="not a filigree record") as raised:
        write_report([tmp_path], tmp_path / "page.html")
    assert str(raised.value).startswith(f"report: {tmp_path}")
    assert "\n" not in str(raised.value)


def test_a_report_of_odd_records_is_written(tmp_path: Path) -> None:
    odd = {"method": "dense", "config": {"published": {"dense_parameters": 0}, "data": {}}, "cost": {"parameters": 3}}
    (tmp_path / "record.json").write_text(json.dumps(odd))
    assert write_report([tmp_path], tmp_path / "page.html").exists()
    (tmp_path / "record.json").write_text('{"config": {"x": ' + "[" * 900 + "]" * 900 + "}}")
    with pytest.raises(ValueError, match="not a filigree record"):
        write_report([tmp_path], tmp_path / "page.html")


def test_what_is_not_printable_does_not_reach_the_terminal() -> None:
    assert visible("a\x1b[2J\x9b1m\u202e b\n") == "a\\x1b[2J\\x9b1m\\u202e b\n"
    run = {"recipe": "r", "method": "\x1b]0;PWN\x07", "seed": 0, "config": {}, "metrics": {}, "cost": {}, "history": []}
    shown = io.StringIO()
    Console(file=shown, width=200).print(console_table([run]))
    assert "\x1b" not in shown.getvalue()
    assert "PWN" in shown.getvalue()


def test_a_record_does_not_say_where_it_is_written_to(tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text('{"folder": "/nowhere"}')
    assert Record.load(tmp_path).folder == tmp_path


def test_a_huge_record_is_not_read(tmp_path: Path, little_memory: None) -> None:
    with open(tmp_path / "record.json", "wb") as file:
        file.truncate(2 << 30)  # a hole: no disk is used
    with pytest.raises(ValueError, match="larger than 256 MiB"):
        Record.load(tmp_path)


# -- data -------------------------------------------------------------------------------------------------------------


def npy(shape: tuple[int, ...], dtype: str = "<f4", content: bytes = b"", version: bytes = b"\1\0") -> bytes:
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    size = len(header).to_bytes(2 if version == b"\1\0" else 4, "little")
    return b"\x93NUMPY" + version + size + header + content


Y = npy((2,), "<i8", bytes(16))


def archive(x: bytes, y: bytes = Y, how: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", how) as made:
        made.writestr("x.npy", x)
        made.writestr("y.npy", y)
    return file.getvalue()


NPZ = {
    "huge shape": (archive(npy((2**40, 2**20))), "header of x says"),
    "product overflows": (archive(npy((2**32, 2**32))), "header of x says"),
    "negative": (archive(npy((-1, -4), content=bytes(16))), "numbers or labels"),
    "truncated": (archive(npy((2, 3), content=bytes(20))), "says 24 bytes, 20 are there"),
    "objects": (archive(npy((2,), "|O", b"cos\nsystem\n(S'true'\ntR.")), "Object arrays are pickled"),
    "no width": (archive(npy((10**15,), "|V0")), "numbers or labels"),
    "structured": (archive(npy((2,), "<f4", bytes(8), b"\2\0")), "version"),
    "dates": (archive(npy((2,), "<M8[s]", bytes(16))), "numbers or labels"),
    "text for numbers": (archive(npy((2,), "<U1", bytes(8))), "samples of <U1"),
    "other lengths": (archive(npy((3, 1), content=bytes(12))), r"samples \(3, 1\) and 2 labels"),
    "no numbers": (archive(npy((2, 0))), r"samples \(2, 0\)"),
    "lzma": (archive(npy((2, 1), content=bytes(8)), how=zipfile.ZIP_LZMA), "another way"),
    "not even a zip": (b"\x80\x04cos\nsystem\n.", "no .npz file"),
}


@pytest.mark.parametrize("name", NPZ)
def test_a_hostile_npz_is_refused(tmp_path: Path, name: str, little_memory: None) -> None:
    content, message = NPZ[name]
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(ValueError, match=message) as raised:
        read_npz(tmp_path / "x.npz")
    assert "\n" not in str(raised.value)


def test_a_zip_bomb_is_not_unpacked(tmp_path: Path, little_memory: None) -> None:
    """Two gigabytes of zeros, well-formed, in two megabytes."""
    size, path = 2 << 30, tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("x.npy", npy((1, 4), content=bytes(16)))
        made.writestr("y.npy", Y)
    whole = bytearray(path.read_bytes())
    for at in (whole.index(b"PK\1\2") + 24, whole.index(b"PK\3\4") + 22):  # what the entry claims to unpack to
        whole[at : at + 4] = size.to_bytes(4, "little")
    path.write_bytes(whole)
    with pytest.raises(ValueError, match="claim to hold 2,147,483,648"):
        read_npz(path)


def test_a_gzip_bomb_is_not_unpacked(tmp_path: Path, little_memory: None) -> None:
    path = tmp_path / "x.gz"
    for sides in ((2**31 - 1,), (60_000, 28, 28), (2**31 - 1, 2**31 - 1, 2**31 - 1, 2**31 - 1)):
        head = b"\0\0\x08" + bytes([len(sides)]) + b"".join(side.to_bytes(4, "big") for side in sides)
        path.write_bytes(gzip.compress(head))
        with pytest.raises(ValueError, match="claim to hold"):
            read_idx(path)
    path.write_bytes(gzip.compress(b"\0\0\x08\2" + b"\0\0\0\4" * 2 + bytes(12)))
    with pytest.raises(ValueError, match="its header says 16 bytes, 12 are there"):
        read_idx(path)


def test_a_bomb_in_a_matlab_file_is_not_unpacked(tmp_path: Path, little_memory: None) -> None:
    head = b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1IM"
    flags, sides, name = (b"\6\0\0\0\x08\0\0\0\6\0\0\0\0\0\0\0", b"\5\0\0\0\x08\0\0\0\0\0\1\0\0\x20\0\0",
                          b"\1\0\1\0X\0\0\0")  # fmt: skip
    size = 2**16 * 2**13 * 4
    matrix = b"\x0e\0\0\0" + (size + 48).to_bytes(4, "little") + flags + sides + name + b"\7\0\0\0"
    pressed = zlib.compress(matrix + size.to_bytes(4, "little") + bytes(8 << 20))
    (tmp_path / "x.mat").write_bytes(head + (15).to_bytes(4, "little") + len(pressed).to_bytes(4, "little") + pressed)
    with pytest.raises(ValueError, match="claim to hold 2,147,483,696"):
        read_mat(tmp_path / "x.mat")


def saved(content: dict[str, Any], compressed: bool = False, form: str = "5") -> bytes:
    file = io.BytesIO()
    scipy.io.savemat(file, content, do_compression=compressed, format=form)
    return file.getvalue()


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", ["f8", "f4", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "?"])
def test_matlab_files_are_read_as_scipy_reads_them(tmp_path: Path, dtype: str, compressed: bool) -> None:
    x, path = (np.random.default_rng(0).normal(size=(5, 3)) * 50).astype(dtype), tmp_path / "x.mat"
    path.write_bytes(saved({"before": [[1.0]], "X": x, "Y": np.arange(5) % 2, "s": {"a": [1]}}, compressed))
    samples = read_mat(path)
    mine, labels = samples.x, samples.labels
    theirs = scipy.io.loadmat(path)
    assert mine.dtype == (np.float64 if dtype in ("f8", "u4", "i4", "i8", "u8") else np.float32)
    assert mine.tolist() == theirs["X"].astype(np.float64).tolist()
    assert labels.tolist() == [0, 1, 0, 1, 0]


@pytest.mark.parametrize("compressed", [False, True])
def test_what_is_not_numbers_in_a_matlab_file_is_refused(tmp_path: Path, compressed: bool) -> None:
    nested: Any = np.ones((1, 1))
    for _ in range(40):
        outer = np.empty((1, 1), object)
        outer[0, 0], nested = nested, outer
    path = tmp_path / "x.mat"
    for x, kind in ((nested, "cell"), ({"a": 1}, "struct"), ("text", "char"), (scipy.sparse.eye_array(3), "sparse"),
                    ([[1 + 1j]], "complex")):  # fmt: skip
        path.write_bytes(saved({"X": x, "Y": [1]}, compressed))
        with pytest.raises(ValueError, match=f"X is {kind}, where real numbers were expected"):
            read_mat(path)
    path.write_bytes(saved({"X": [[1.0]], "Y": [1]}, form="4"))
    with pytest.raises(ValueError, match=r"MATLAB 5 to 7\.2"):
        read_mat(path)
    path.write_bytes(saved({"X": [[1.0]]}, compressed))
    with pytest.raises(ValueError, match=r"must hold X and Y\. 'Y' is missing"):
        read_mat(path)
    path.write_bytes(saved({"X": [[1.0]], "Y": [1], "rest": nested}, compressed))  # is left alone
    assert read_mat(path).x.tolist() == [[1.0]]


def test_a_damaged_matlab_file_is_refused_wherever_it_is_damaged(tmp_path: Path) -> None:
    whole, path, read = saved({"X": np.ones((3, 2)), "Y": [0, 1, 0]}), tmp_path / "x.mat", 0
    for place in range(128, len(whole)):
        for number in (0, 14, 0x7F, 0xFF):  # among them what crashes scipy 1.17: numbers of type 0
            path.write_bytes(whole[:place] + bytes([number]) + whole[place + 1 :])
            with contextlib.suppress(ValueError):
                samples = read_mat(path)
                assert samples.x.shape == (3, 2)
                assert len(samples.labels) == 3
                read += 1
        path.write_bytes(whole[:place])
        with pytest.raises(ValueError, match=r"MATLAB|must hold"):
            read_mat(path)
    assert 0 < read < 4 * (len(whole) - 128)


def test_a_table_costs_what_its_file_does(tmp_path: Path, little_memory: None) -> None:
    """A long label would be reserved for every row."""
    (tmp_path / "x.csv").write_text("1,a\n" * 20_000 + "1," + "b" * 100_000 + "\n")
    with pytest.raises(ValueError, match="claim to hold"):
        read_csv(tmp_path / "x.csv")


@pytest.mark.parametrize(
    "text", ["", "a,b\n", "1\n2\n", "1,2\n1,2,3\n", ",a\n", "1,a\n\0,b\n", "1,a\n1;2,b\n", "#1,2\n", "1,2\n,3\n"]
)
def test_a_hostile_table_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(ValueError, match=r"^data: .*x\.csv: ") as raised:
        read_csv(tmp_path / "x.csv")
    assert "\n" not in str(raised.value)


def test_a_mapped_array_is_as_long_as_its_header_says(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.arange(6).reshape(2, 3))
    assert read_mapped(path).tolist() == [[0, 1, 2], [3, 4, 5]]
    for content in (npy((2**40,)), npy((2**32, 2**32)), npy((4,), content=bytes(8)), npy((1,), "|O", b"cos\n"),
                    archive(b""), b"\x80\x04."):  # fmt: skip
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"not a \.npy file, or truncated"):
            read_mapped(path)


# -- arguments of operators -------------------------------------------------------------------------------------------


def test_operators_refuse_what_their_kernels_would_read_beyond() -> None:
    pattern = small().get_submodule("fc1").pattern
    values, x = torch.randn(pattern.nnz), torch.randn(6, 4)
    for short in (values[:-1], values[:, None]):
        with pytest.raises(ValueError, match="one a connection"):
            sparse.spmm(pattern, short, x)
        with pytest.raises(ValueError, match="one a connection"):
            sparse.spmm_t(pattern, short, torch.randn(8, 4))
    for bias in (torch.zeros(7), torch.zeros(8, 1), torch.zeros(8, dtype=torch.float64)):
        with pytest.raises(ValueError, match=r"linear: bias must be \(8,\) of x's type torch.float32. Got"):
            sparse.linear(pattern, values, bias, x.t())
    assert reference.dense(pattern.indptr, pattern.indices, values, 6).shape == (8, 6)


# -- what fuzzing has found ground with -------------------------------------------------------------------------------


def targets() -> Any:
    spec = importlib.util.spec_from_file_location("targets", FUZZ / "targets.py")
    assert spec is not None
    assert spec.loader is not None
    if "targets" not in sys.modules:
        module = importlib.util.module_from_spec(spec)
        sys.modules["targets"] = module
        spec.loader.exec_module(module)
    return sys.modules["targets"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(path.name for path in (FUZZ / "corpus").iterdir()))
def test_the_corpus_raises_only_what_is_documented(name: str) -> None:
    files = sorted((FUZZ / "corpus" / name).iterdir())
    assert files
    state = torch.get_rng_state(), torch.get_num_threads()
    try:
        for file in files:
            targets().TARGETS[name](file.read_bytes())
    finally:
        torch.set_rng_state(state[0])
        torch.set_num_threads(state[1])


def test_the_corpus_is_small() -> None:
    sizes = {path.name: sum(file.stat().st_size for file in path.iterdir()) for path in (FUZZ / "corpus").iterdir()}
    assert sum(sizes.values()) < 200_000, sizes


# -- torch's own load_state_dict --------------------------------------------------------------------------------------


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("beyond", [0, 2_000_000_000])
def test_a_part_of_an_index_is_refused(strict: bool, beyond: int) -> None:
    layers = [fg.nn.SparseLinear(30, 30, fg.ErdosRenyi(density=0.2), seed=seed) for seed in (1, 2)]
    state = {name: t for name, t in layers[1].state_dict().items() if name not in ("values", "bias")}
    state["indices"] += beyond
    before = {name: t.clone() for name, t in layers[0].state_dict().items()}
    with pytest.raises(RuntimeError, match="indptr, indices and values belong together: values is missing"):
        layers[0].load_state_dict(state, strict=strict)
    assert all(torch.equal(t, before[name]) for name, t in layers[0].state_dict().items())
    x = torch.randn(4, 30)
    torch.testing.assert_close(layers[0](x), layers[0].dense()(x))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_states_of_another_size_are_not_read_by_address(kind: Any, fused: bool) -> None:
    small_, large = (fg.nn.SparseLinear(60, 60, fg.ErdosRenyi(density=density)) for density in (0.05, 0.5))
    optimizer = kind(small_.parameters(), 0.01, fused=fused, **({"momentum": 0.9} if kind is torch.optim.SGD else {}))

    def step() -> None:
        optimizer.zero_grad()
        small_(torch.randn(8, 60)).sum().backward()
        optimizer.step()

    step()
    small_.load_state_dict(large.state_dict())
    with pytest.raises(ValueError, match=r"another topology was loaded. Make a new optimizer"):
        step()
    optimizer.state.clear()
    step()


@pytest.mark.parametrize("candidate", ["None/../../../victim", "..\\\\x", "a\x07", ["x" * 200]])
def test_what_is_searched_names_no_other_folder(tmp_path: Path, candidate: Any) -> None:
    text = json.dumps({
        "about": "x", "data": {"name": "digits", "validation": 0.1}, "methods": {"a": {}},
        "search": {"tracker": [candidate]},
    })  # fmt: skip
    (tmp_path / "evil.yaml").write_text(text)
    with pytest.raises(recipes.RecipeError, match="it names a folder") as raised:
        recipes.load(tmp_path / "evil.yaml")
    assert "\n" not in str(raised.value)


def test_a_recipe_is_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.yaml")
    with pytest.raises(recipes.RecipeError, match="not a file"):
        recipes.load(tmp_path / "x.yaml")


def test_large_labels_stay_apart(tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_text("".join(f"{i},{2**53 + i % 3}\n" for i in range(9)))
    labels = read_csv(tmp_path / "own.csv").labels
    assert len(np.unique(labels)) == 3
