"""For the API page: configs show their arguments, and each argument of a docstring gets its own line."""

from __future__ import annotations

import re
from typing import Any

import griffe

SECTION = re.compile(r"^(Args|Attributes):\n((?:(?: {4}.*)?\n?)+)", re.M)


class Signatures(griffe.Extension):
    """`@config` makes a dataclass, which griffe, reading the source only, cannot know."""

    def on_class_instance(self, *, cls: griffe.Class, **_: Any) -> None:
        for decorator in cls.decorators:
            if getattr(decorator.value, "canonical_path", None) == "filigree.config.config":
                decorator.value = griffe.ExprName("dataclasses.dataclass")

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = SECTION.sub(_a_line_each, obj.docstring.value)


def _a_line_each(section: re.Match[str]) -> str:
    """`model: any module. path: the file.` in a line becomes two lines."""
    return f"{section[1]}:\n" + re.sub(r"(?<=[.;]) (?=[a-z_]\w*(?:, \w+)*: )", "\n    ", section[2])
