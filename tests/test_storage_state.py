"""State files and JSON: exact round trips, atomic writes, one-line errors for whatever is not ours."""

from __future__ import annotations

import errno
import json
import math
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from filigree.io import storage
from filigree.io.storage import read_state, remove_leftovers, write_json, write_state

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.bool, torch.complex64, torch.complex128,
    torch.float8_e4m3fn, torch.float8_e5m2,
]  # fmt: skip


def same(a: Any, b: Any) -> bool:
    """Equal in value and in type; nan equals nan."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and a.shape == b.shape and raw(a) == raw(b)
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return [(type(k), k) for k in a] == [(type(k), k) for k in b] and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return (
        a == b and math.copysign(1, a) == math.copysign(1, b) if isinstance(a, float) and a == a else a == b or a != a
    )


def raw(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


plain = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(2**62, 2**70), st.floats(), st.text(max_size=5)
)  # fmt: skip
keys = st.one_of(st.text(max_size=4), st.integers(-3, 3), st.just("$tensor"), st.just("$items"), st.booleans())
tensors = st.builds(
    lambda shape, dtype: torch.randint(0, 2, shape).to(dtype), st.lists(st.integers(0, 3), max_size=3),
    st.sampled_from(DTYPES),
)  # fmt: skip
states = st.recursive(
    plain | tensors,
    lambda inner: st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple)
    | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(states)
def test_any_state_comes_back(tmp_path_factory: pytest.TempPathFactory, state: Any) -> None:
    path = tmp_path_factory.mktemp("state") / "x"
    write_state(path, state)
    assert same(read_state(path), state)


def test_numbers_tensors_and_keys_come_back_exactly(tmp_path: Path) -> None:
    state = {
        "nan": float("nan"), "inf": [float("inf"), -float("inf")], "big": 10**5000, "negative": -(2**80), "zero": -0.0,
        "tuple": (1, (2.5, None)), 0: {"step": torch.tensor(3.0)}, True: "yes", None: 1, (1, "a"): 2,
        "empty": torch.zeros(0, 3), "bf": torch.tensor([1.5, float("nan")], dtype=torch.bfloat16), "dicts": [{}, ()],
        "__metadata__": torch.ones(2), "a.b": torch.zeros(1), "a": {"b": torch.ones(1)}, "\ud800": "\ud800",
    }  # fmt: skip
    state = {k: v for k, v in state.items() if k is not True} | {"flags": {True: 1, 2: 0}}
    write_state(tmp_path / "x", state)
    assert same(read_state(tmp_path / "x"), state)


def test_subclasses_come_back_plain(tmp_path: Path) -> None:
    state = {"o": OrderedDict(w=torch.nn.Parameter(torch.ones(2))), "n": np.float64(0.5), "i": np.int64(3)}
    write_state(tmp_path / "x", state)
    back = read_state(tmp_path / "x")
    assert same(back, {"o": {"w": torch.ones(2)}, "n": 0.5, "i": 3})
    assert not back["o"]["w"].requires_grad


def test_shared_tensors_are_written_once_and_overlapping_ones_apart(tmp_path: Path) -> None:
    big = torch.randn(1000, 100)
    write_state(tmp_path / "x", {"a": big, "b": big, "t": big.t(), "row": big[3], "strided": big[:, ::7]})
    assert (tmp_path / "x").stat().st_size < 2 * big.numel() * 4 + big.numel() + 2000
    back = read_state(tmp_path / "x")
    assert back["a"].data_ptr() == back["b"].data_ptr()
    assert torch.equal(back["t"], big.t())
    assert torch.equal(back["row"], big[3])
    assert torch.equal(back["strided"], big[:, ::7])


def test_the_file_is_ordinary_safetensors(tmp_path: Path) -> None:
    x = torch.randn(3, 4).t()
    write_state(tmp_path / "x", {"model": {"fc.weight": x, "flag": torch.tensor(True)}, "epochs": 3})
    loaded = safetensors.torch.load_file(tmp_path / "x")
    assert set(loaded) == {"model.fc.weight", "model.flag"}
    assert torch.equal(loaded["model.fc.weight"], x)


def test_tensors_survive_the_file_being_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "x"
    write_state(path, torch.ones(1000))
    back = read_state(path)
    path.write_bytes(b"")
    assert back.sum() == 1000


@pytest.mark.parametrize(
    ("state", "place"),
    [({"a": [object()]}, r"state\['a'\]\[0\] must be .* Got object"), ({"a": {1, 2}}, "Got set"),
     ({"a": torch.eye(2).to_sparse()}, "strided"), ({"m": torch.zeros(1, device="meta")}, "strided"),
     ({"k": {frozenset(): 1}}, r"a key of state\['k'\]"), ({"n": np.zeros(2)}, "Got ndarray")],
)  # fmt: skip
def test_what_has_no_place_in_a_file_is_refused_by_place(tmp_path: Path, state: Any, place: str) -> None:
    with pytest.raises(TypeError, match=place):
        write_state(tmp_path / "x", state)
    assert not list(tmp_path.iterdir())


def crafted(skeleton: str, **tensors: Tensor) -> bytes:
    return safetensors.torch.save(tensors, metadata={"filigree": skeleton})


def whole(tmp_path: Path) -> bytes:
    write_state(tmp_path / "whole", {"w": torch.randn(50), "n": 3})
    return (tmp_path / "whole").read_bytes()


@pytest.mark.parametrize(
    "damage",
    [lambda b: b"", lambda b: b[:4], lambda b: b[:20], lambda b: b[:-1], lambda b: b + b"x",
     lambda b: b"PK\x03\x04" + b,
     lambda b: os.urandom(200), lambda b: b"\xff" * 8 + b, lambda b: b.replace(b"F32", b"F99", 1),
     lambda b: b.replace(b"[50]", b"[51]", 1), lambda b: b.replace(b"filigree-state/1", b"filigree-state/9"),
     lambda b: safetensors.torch.save({"w": torch.ones(2)}), lambda b: crafted("[1"), lambda b: crafted("[1]"),
     lambda b: crafted('{"format": "filigree-state/1"}'), lambda b: crafted("[" * 5000 + "]" * 5000),
     lambda b: crafted('{"format": "filigree-state/1", "state": {"$tensor": "gone"}}'),
     lambda b: crafted('{"format": "filigree-state/1", "state": {"$tensor": [1]}}'),
     lambda b: crafted('{"format": "filigree-state/1", "state": {"$evil": 1}}'),
     lambda b: crafted('{"format": "filigree-state/1", "state": {"$items": [[{}, 1]]}}'),
     lambda b: crafted('{"format": "filigree-state/1", "state": {"$items": 3}}'),
     lambda b: crafted('{"format": "filigree-state/1", "state": {"$complex": "w"}}', w=torch.ones(3))],
)  # fmt: skip
def test_a_damaged_or_foreign_file_is_one_line(tmp_path: Path, damage: Any) -> None:
    path = tmp_path / "broken"
    path.write_bytes(damage(whole(tmp_path)))
    with pytest.raises(ValueError, match="broken: not a filigree file, or a damaged one") as raised:
        read_state(path)
    assert type(raised.value) is ValueError
    assert "\n" not in str(raised.value)


def test_every_cut_of_a_file_is_noticed(tmp_path: Path) -> None:
    data = whole(tmp_path)
    for length in range(0, len(data), 13):
        (tmp_path / "cut").write_bytes(data[:length])
        with pytest.raises(ValueError, match="cut"):
            read_state(tmp_path / "cut")


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing"):
        read_state(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="a folder, and no file"):
        read_state(tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder"):
        write_state(tmp_path / "no" / "x", 1)
    with pytest.raises(ValueError, match="folder or a device"):
        write_state(tmp_path, 1)
    with pytest.raises(ValueError, match="folder or a device"):
        write_json("/dev/null", 1)


@pytest.mark.parametrize("write", [write_state, write_json])
@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("at", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Any, failure: BaseException, at: str
) -> None:
    path = tmp_path / "x"
    write(path, {"n": 1})
    before = path.read_bytes()

    def fail(*_: Any) -> None:
        assert len(list(tmp_path.iterdir())) == 2  # the temporary file is beside the old one
        raise failure

    monkeypatch.setattr(os, at, fail)
    with pytest.raises(type(failure)) as raised:
        write(path, {"n": 2})
    if isinstance(raised.value, OSError):
        assert raised.value.errno == errno.ENOSPC
        assert str(path) in str(raised.value)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_link_stays_a_link_and_modes_follow_the_umask(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_json(tmp_path / "link", [1])
    assert (tmp_path / "link").is_symlink()
    assert json.loads((tmp_path / "real").read_text()) == [1]
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "real").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_leftovers_of_a_killed_writer_are_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in (".x.0123abcd.tmp", ".x.tmp", ".y.0123abcd.tmp", "x"):
        (tmp_path / name).write_text("")
    remove_leftovers(tmp_path / "x")
    assert {p.name for p in tmp_path.iterdir()} == {".x.tmp", ".y.0123abcd.tmp", "x"}
    remove_leftovers(tmp_path / "nowhere" / "x")


def test_json_has_no_nan_and_refuses_what_is_not_plain(tmp_path: Path) -> None:
    value = {
        "a": float("nan"),
        "b": [{"x": float("inf")}, {"x": 1}],
        3: np.float32(0.5),
        "t": torch.tensor(2),
        "p": Path("q"),
    }
    write_json(tmp_path / "x", value)
    back = json.loads((tmp_path / "x").read_text(), parse_constant=pytest.fail)
    assert back == {"a": None, "b": [{"x": None}, {"x": 1}], "3": 0.5, "t": 2, "p": "q"}
    with pytest.raises(TypeError, match=r"state\['a'\] .*Got set"):
        write_json(tmp_path / "x", {"a": {1}})
    assert json.loads((tmp_path / "x").read_text()) == back


def test_writing_takes_no_second_copy_of_the_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(1000)
    written: list[Any] = []

    class Sink:
        def write(self, data: Any) -> None:
            written.append(data)

    class Replacing:
        def __enter__(self) -> Sink:
            return Sink()

        def __exit__(self, *_: Any) -> None: ...

    monkeypatch.setattr(storage, "replacing", lambda path: Replacing())
    write_state(tmp_path / "x", x)
    assert np.shares_memory(np.asarray(written[1]), x.numpy())
