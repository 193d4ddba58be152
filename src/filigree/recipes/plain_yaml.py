"""YAML from outside: plain values only, of a bounded size, aliases written out."""

from __future__ import annotations

import json
from typing import Any

import yaml

from filigree.config import clipped, one_line

LARGEST = 256 << 10  # characters
_MOST = 20_000  # values and keys, those that aliases stand for included
_DEEPEST = 32  # levels


def plain_yaml(text: str) -> Any:
    """What a YAML text says, in plain values.

    An alias (`*name`) becomes a copy of what it stands for, and counts as such: a few lines can stand for no more than
    many lines could say.

    Raises:
        ValueError: not YAML, too large or too deep; keys that are not text; values that are not text, numbers of at
            most 64 bits, true, false or null.
    """
    if len(text) > LARGEST:
        raise ValueError(f"expected at most {LARGEST:,} characters. Got more")
    try:
        tree = yaml.load(text, _Loader)
    except Exception as error:  # its constructors fail in many ways
        raise ValueError(f"not YAML: {one_line(error) or type(error).__name__}") from None
    return _plain(tree, 0)


def as_yaml(value: Any) -> str:
    """A plain value as one line of YAML: as JSON, which would write a letter beyond U+FFFF as two escapes that YAML
    does not put together."""
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in json.dumps(value, ensure_ascii=False))


class _Loader(yaml.SafeLoader):
    """Counts nodes as if aliases were written out; refuses an alias within what it stands for, and deep brackets.

    PyYAML looks ahead of what it builds: open brackets cost it quadratic time before any depth shows.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.nodes = 0
        self.sizes: dict[str, int] = {}

    def fetch_flow_collection_start(self, token: Any) -> None:
        if self.flow_level >= _DEEPEST:
            raise ValueError(f"expected at most {_DEEPEST} levels")
        super().fetch_flow_collection_start(token)

    def compose_node(self, parent: Any, index: Any) -> Any:
        before, event = self.nodes, self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self.sizes:
                raise ValueError(f"*{event.anchor} stands for nothing that is whole")
            self.nodes += self.sizes[event.anchor]
        else:
            self.nodes += 1
        if self.nodes > _MOST:
            raise ValueError(f"expected at most {_MOST:,} values")
        node = super().compose_node(parent, index)
        if isinstance(event, yaml.NodeEvent) and event.anchor and not isinstance(event, yaml.AliasEvent):
            self.sizes[event.anchor] = self.nodes - before
        return node


def _plain(tree: Any, depth: int) -> Any:
    if depth > _DEEPEST:
        raise ValueError(f"expected at most {_DEEPEST} levels")
    if isinstance(tree, dict):
        if unlike := [key for key in tree if not isinstance(key, str)]:
            raise ValueError(f"keys must be text. Got {clipped(unlike[0])}")
        return {key: _plain(value, depth + 1) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_plain(value, depth + 1) for value in tree]
    if isinstance(tree, int) and abs(tree) >= 2**64:
        raise ValueError("numbers must be of at most 64 bits")
    if tree is None or isinstance(tree, str | bool | int | float):
        return tree
    raise ValueError(f"values must be text, numbers, true, false or null. Got {clipped(tree)}")
