"""Dropout layers give way to others, but not where the code around them only reads their probability."""

from __future__ import annotations

import dis
from collections.abc import Callable, Iterator
from types import CodeType

from torch import nn

from filigree.convert import Change, replace_module


def replace_dropouts(
    model: nn.Module, names: list[str], who: str, make: Callable[[str, nn.Module], nn.Module]
) -> list[Change]:
    """Replace these dropout layers by what `make(name, layer)` returns.

    Attention of other libraries hands `self.dropout.p` to a function that drops by itself. Another layer in that place
    would never be called: there it stays, and a note says so.

    Raises:
        ValueError: by the name of `who`: all of them are such.
    """
    changes = []
    readers = {name: _reader_of_probability(model, name) for name in names}
    if all(readers.values()):
        name, reader = next(iter(readers.items()))
        raise ValueError(f"{who}: {name!r} stays nn.Dropout, since {reader}. None of the selected modules is called.")
    for name in names:
        old = model.get_submodule(name)
        if readers[name]:
            changes.append(Change.of(name, old, old, f"stays: {readers[name]}"))
            continue
        replace_module(model, name, new := make(name, old))
        changes.append(Change.of(name, old, new))
    return changes


def _reader_of_probability(model: nn.Module, name: str) -> str:
    """Say which module reads `p` of the module called `name`, as its code tells; "" where none does."""
    dropout = model.get_submodule(name)
    for owner_name, owner in model.named_modules():
        for path, module in owner.named_modules(remove_duplicate=False):
            if module is dropout and path and _reads(type(owner), (*path.split("."), "p")):
                return f"{type(owner).__name__} ({owner_name or 'the model'}) hands its p to a function"
    return ""


def _reads(kind: type, path: tuple[str, ...]) -> bool:
    """Whether a method of the class reads the attributes of this path one after another."""
    own = kind.__mro__[: kind.__mro__.index(nn.Module)]
    functions = [member for base in own for member in vars(base).values() if hasattr(member, "__code__")]
    return any(_has_path(code, path) for function in functions for code in _codes(function.__code__))


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _has_path(code: CodeType, path: tuple[str, ...]) -> bool:
    read = [step.argval if step.opname.startswith("LOAD_ATTR") else None for step in dis.get_instructions(code)]
    return any(tuple(read[i : i + len(path)]) == path for i in range(len(read)))
