"""Files: any nested state of tensors and plain values in one safetensors file, JSON, both whole or not at all.

A state file is ordinary safetensors: every tensor under a readable name, and the state's skeleton as JSON in the
header's metadata. Nothing is pickled, so reading a file never runs code.
"""

from __future__ import annotations

import json
import math
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import safetensors
import torch
from torch import Tensor

from filigree.config import one_line
from filigree.topology.shards import Streamed, mapped

_METADATA = "filigree"
_FORMAT = "filigree-state/1"
_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.bool: "BOOL",
    torch.uint64: "U64", torch.uint32: "U32", torch.uint16: "U16", torch.uint8: "U8", torch.complex64: "C64",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip


def write_state(path: str | Path, state: Any, writes: bool = True) -> None:
    """Write a nested state to one safetensors file, atomically.

    Args:
        path: the file; it is replaced only once the new one is complete on disk.
        state: dicts, lists and tuples of tensors, numbers (nan, inf and big integers too), str, bool and None. The keys
            of a dict may be of any of these plain types (an optimizer's are integers).
        writes: whether this process writes. Where there are tensors that several processes hold parts of (`Streamed`),
            all of them call this with the same state, and those that do not write send theirs.

    Tensors may be on any device, of any stride; views of the same elements are written once and are the same tensor
    again when read. Subclasses (`OrderedDict`, named tuples, `Parameter`) come back as the plain type.

    Raises:
        TypeError: a value that has no place in the file, by its place in the state.
        OSError: the file cannot be written (a full disk); what was there before is intact.
    """
    tensors: dict[str, Tensor | Streamed] = {}
    skeleton = _Packer(tensors).pack(state, ())
    tensors = dict(sorted(tensors.items(), key=lambda item: -item[1].element_size()))  # keeps every tensor aligned
    pieces = _pieces(tensors.values())
    try:
        if writes:
            metadata = {_METADATA: json.dumps({"format": _FORMAT, "state": skeleton}, allow_nan=False)}
            _write_safetensors(path, tensors, pieces, metadata)
    finally:
        for _ in pieces:  # those of others; on a full disk, too, they are waited for
            pass


class Stored:
    """A tensor in a file of `read_state(lazily=True)`, read when it is asked for: a range of rows, or `read()` all."""

    def __init__(self, file: Any, name: str) -> None:
        self._file, self._name = file, name

    def __getitem__(self, rows: slice) -> Tensor:
        part: Tensor = self._file.get_slice(self._name)[rows]
        return part.clone()

    def read(self) -> Tensor:
        # A tensor of `safe_open` is a view of the mapped file: a clone outlives whatever happens to the file.
        tensor: Tensor = self._file.get_tensor(self._name)
        return tensor.clone()


def read(state: Any) -> Any:
    """A state with tensors in place of those that are still in their file; one in several places is one again."""
    tensors: dict[int, Tensor] = {}

    def tensor(stored: Stored) -> Tensor:
        if id(stored) not in tensors:
            tensors[id(stored)] = stored.read()
        return tensors[id(stored)]

    return mapped(state, Stored, tensor)


def read_state(path: str | Path, lazily: bool = False) -> Any:
    """Read what `write_state` wrote; tensors come back on the CPU, or `lazily`, as `Stored`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a file of `write_state`, or a damaged one, in one line that names it.
    """
    if not Path(path).is_file():
        is_folder = Path(path).is_dir()
        raise FileNotFoundError(f"{path}: {'a folder, and no file' if is_folder else 'there is no such file'}.")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            head = json.loads((file.metadata() or {}).get(_METADATA, "{}"))
            if head.get("format") != _FORMAT:
                raise ValueError(f"its header does not say {_FORMAT}")
            stored = {name: Stored(file, name) for name in file.keys()}  # noqa: SIM118 - not a dict
            if not lazily:
                return _unpack(head["state"], {name: tensor.read() for name, tensor in stored.items()})
        file = safetensors.safe_open(path, framework="pt")  # open for as long as its tensors are
        return _unpack(head["state"], {name: Stored(file, name) for name in stored})
    except OSError:
        raise
    except Exception as error:  # a hostile file can fail in any way; whoever reads it needs one kind of error
        reason = one_line(error) or type(error).__name__
        raise ValueError(f"{path}: not a filigree file, or a damaged one ({reason}).") from None


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as JSON, atomically; nan and infinities become null. Items of top-level lists get a line each."""
    plain = _plain(value, ())
    if isinstance(plain, dict):
        lines = [f"{json.dumps(key)}: {_lines(item)}" for key, item in plain.items()]
        text = "{\n" + ",\n".join(lines) + "\n}\n"
    else:
        text = _lines(plain) + "\n"
    with replacing(path) as file:
        file.write(text.encode())


@contextmanager
def replacing(path: str | Path) -> Iterator[BinaryIO]:
    """A file to write that takes the place of `path` once it is whole and on disk; on any error it vanishes instead."""
    target = Path(os.path.realpath(path))  # a link stays a link
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {target.parent}.")
    if target.exists() and not target.is_file():
        raise ValueError(f"{path}: a file was expected, or nothing yet; this is a folder or a device.")
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException as error:  # Ctrl-C too leaves nothing half-written
        with suppress(OSError):  # on a disk that turned read-only even this fails, and would hide the first error
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from None
        raise
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name, too, survives a power cut
    finally:
        os.close(folder)


def remove_leftovers(path: str | Path) -> None:
    """Remove the temporary files that a process killed while it wrote `path` left beside it.

    Only for the owner of the folder: another process that is writing `path` at this moment would lose its file.
    """
    target = Path(os.path.realpath(path))
    pattern = re.compile(re.escape(f".{target.name}.") + r"[0-9a-f]{8}\.tmp")
    for file in target.parent.iterdir() if target.parent.is_dir() else ():
        if pattern.fullmatch(file.name):
            file.unlink(missing_ok=True)


def _pieces(tensors: Iterable[Tensor | Streamed]) -> Iterator[Tensor]:
    """The numbers of tensors, one after another."""
    for tensor in tensors:
        if isinstance(tensor, Streamed):
            yield from tensor.pieces()
        elif tensor.numel():
            yield tensor.resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)


def _write_safetensors(
    path: str | Path, tensors: Mapping[str, Tensor | Streamed], pieces: Iterable[Tensor], metadata: dict[str, str]
) -> None:
    """The safetensors container: header length (u64), JSON header, the tensors' bytes.

    Written here, not by `safetensors.torch.save_file`, so that the bytes go from each tensor to the file without a
    second copy of everything, a full disk is a plain `OSError`, and the file is synced before it gets its name.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"} | metadata}
    offset = 0
    for name, tensor in tensors.items():
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for piece in pieces:
            file.write(piece.view(torch.uint8).numpy().data)


Place = tuple[Any, ...]  # the keys that lead to a value, for names and errors


class _Packer:
    """Takes the tensors out of a state and leaves its skeleton as JSON.

    A JSON object is a dict of the state, unless its only key starts with `$`: `$tensor`, `$complex` (a complex128
    tensor stored as pairs), `$tuple`, `$float`, `$int`, or `$items` for a dict whose keys are not all plain strings.
    """

    def __init__(self, tensors: dict[str, Tensor | Streamed]) -> None:
        self.tensors = tensors
        self.names: dict[Any, str] = {}  # what a tensor views -> its name in the file

    def pack(self, value: Any, place: Place) -> Any:
        if isinstance(value, np.generic):
            value = value.item()
        if value is None or isinstance(value, bool | str):
            return value
        if isinstance(value, Tensor):
            return self.tensor(value.detach(), place)
        if isinstance(value, Streamed):
            name = self.free_name(place)
            self.tensors[name] = value
            return {"$tensor": name}
        if isinstance(value, int):
            return int(value) if -(2**63) <= value < 2**64 else {"$int": hex(value)}
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else {"$float": str(float(value))}
        if isinstance(value, tuple):
            return {"$tuple": [self.pack(item, (*place, i)) for i, item in enumerate(value)]}
        if isinstance(value, list):
            return [self.pack(item, (*place, i)) for i, item in enumerate(value)]
        if isinstance(value, Mapping):
            if all(isinstance(key, str) and not key.startswith("$") for key in value):
                return {str(key): self.pack(item, (*place, key)) for key, item in value.items()}
            pairs = [[self.key(key, place), self.pack(item, (*place, key))] for key, item in value.items()]
            return {"$items": pairs}
        raise TypeError(f"write_state: {_at(place)} must be a tensor or a plain value. Got {type(value).__name__}.")

    def key(self, key: Any, place: Place) -> Any:
        if not (key is None or isinstance(key, bool | str | int | float | tuple)):
            raise TypeError(f"write_state: a key of {_at(place)} must be a plain value. Got {type(key).__name__}.")
        return self.pack(key, place)

    def tensor(self, tensor: Tensor, place: Place) -> dict[str, str]:
        if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
            raise TypeError(f"write_state: {_at(place)} must be an ordinary strided tensor. Got {tensor.layout}.")
        if tensor.dtype == torch.complex128:
            return {"$complex": self.tensor(torch.view_as_real(tensor.resolve_conj()), place)["$tensor"]}
        if tensor.dtype not in _DTYPES:
            raise TypeError(f"write_state: {_at(place)} has dtype {tensor.dtype}, which safetensors does not hold.")
        view: Any = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if not tensor.numel() or tensor.is_conj() or tensor.is_neg():
            view = object()  # shares nothing
        if view not in self.names:
            self.names[view] = self.free_name(place)
            self.tensors[self.names[view]] = tensor
        return {"$tensor": self.names[view]}

    def free_name(self, place: Place) -> str:
        name = stem = re.sub(r"[^\w.\-]", "_", ".".join(map(str, place))) or "tensor"
        count = 1
        while name in self.tensors or name == "__metadata__":
            count += 1
            name = f"{stem}~{count}"
        return name


def _unpack(node: Any, tensors: Mapping[str, Tensor | Stored]) -> Any:
    if isinstance(node, list):
        return [_unpack(item, tensors) for item in node]
    if not isinstance(node, dict):
        return node
    tag: str = next(iter(node), "")
    inner: Any = node.get(tag)
    if not tag.startswith("$"):
        return {key: _unpack(item, tensors) for key, item in node.items()}
    if tag == "$tensor":
        return tensors[inner]
    if tag == "$complex":
        pairs = tensors[inner]
        return torch.view_as_complex(pairs.read() if isinstance(pairs, Stored) else pairs)
    if tag == "$tuple":
        return tuple(_unpack(item, tensors) for item in inner)
    if tag == "$float":
        return float(inner)
    if tag == "$int":
        return int(inner, 16)
    if tag == "$items":
        return {_unpack(key, tensors): _unpack(item, tensors) for key, item in inner}
    raise ValueError(f"unknown tag {tag!r}")


def _plain(value: Any, place: Place) -> Any:
    """`value` in JSON's own types."""
    if isinstance(value, np.generic) or (isinstance(value, Tensor) and value.dim() == 0):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item, (*place, key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, (*place, i)) for i, item in enumerate(value)]
    raise TypeError(f"write_json: {_at(place)} must be a plain value. Got {type(value).__name__}.")


def _lines(plain: Any) -> str:
    if isinstance(plain, list) and plain and isinstance(plain[0], dict | list):
        return "[\n " + ",\n ".join(json.dumps(item) for item in plain) + "\n]"
    return json.dumps(plain)


def _at(place: Place) -> str:
    return "state" + "".join(f"[{key!r}]" for key in place)
