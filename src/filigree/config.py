"""Configs: small frozen objects that say what to do, check themselves, and round-trip through plain dicts.

A config is a pydantic dataclass made by the decorator `config`. Its plain form, used in recipes and files, is a
dict whose `kind` is the class name: `{"kind": "ErdosRenyi", "epsilon": 20.0}`.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Self, TypeVar, dataclass_transform

import pydantic
from pydantic.dataclasses import dataclass as pydantic_dataclass

_KINDS: dict[str, type[Config]] = {}

T = TypeVar("T", bound="Config")


class Config:
    """Base of all configs. Subclasses are declared with `@config`."""

    @classmethod
    def kinds(cls) -> list[str]:
        """The names of the configs of this class."""
        return list(cls.by_kind())

    @classmethod
    def by_kind(cls) -> dict[str, type[Self]]:
        """The configs of this class, by name."""
        return {name: known for name, known in _KINDS.items() if issubclass(known, cls)}

    @classmethod
    def examples(cls) -> dict[str, Self]:
        """Configs of this class for tests and tables that try all methods on small networks, each under its name.

        Without arguments, unless a class says otherwise; none of what is no method by itself.
        """
        return {cls.__name__: cls()}

    def to_dict(self) -> dict[str, Any]:
        """The plain form, for JSON and YAML; `Config.from_dict` reads it back."""
        fields = dataclasses.fields(self)  # type: ignore[arg-type]
        return {"kind": type(self).__name__} | {f.name: _plain(getattr(self, f.name), self) for f in fields}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """Build a config from its plain form. `ValueError` names an unknown kind or field."""
        if not isinstance(plain, Mapping) or "kind" not in plain:
            raise ValueError(f"{cls.__name__}: a mapping with a 'kind' was expected. Got {clipped(plain)}.")
        kind = plain["kind"]
        names = cls.kinds()
        if kind not in names:
            raise ValueError(f"{cls.__name__}: kind must be {_choices(kind, names)}. Got {clipped(kind)}.")
        known = [f.name for f in dataclasses.fields(_KINDS[kind])]  # type: ignore[arg-type]
        for key in plain:
            if key not in (*known, "kind"):
                listed = ", ".join(known) or "none"
                raise ValueError(f"{kind}: unknown field {clipped(key)}; the fields are {listed}.")
        try:
            return _KINDS[kind](**{key: _revive(value) for key, value in plain.items() if key != "kind"})  # type: ignore[return-value]
        except (TypeError, OverflowError, RecursionError) as error:  # its own check did not expect such a value
            raise ValueError(f"{kind}: {one_line(error)}.") from None


@dataclass_transform(frozen_default=True, field_specifiers=(pydantic.Field, dataclasses.field))
def config(cls: type[T]) -> type[T]:
    """Class decorator: a frozen, validated dataclass, known by its name to `Config.from_dict`.

    The same definition may be executed again (a module reloaded, a notebook's cell): it takes the place of the first.

    Raises:
        ValueError: another class of this name, which files and recipes would mistake for this one.
    """
    known = _KINDS.get(cls.__name__, cls)
    if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
        raise ValueError(
            f"config: a config needs a name of its own, by which files find it. There is a {cls.__name__} already, "
            f"{known.__module__}.{known.__qualname__}. Got {cls.__module__}.{cls.__qualname__}."
        )
    options = pydantic.ConfigDict(extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False)
    decorated = pydantic_dataclass(cls, frozen=True, config=options)
    validated = decorated.__init__

    @functools.wraps(validated)
    def init(self: Config, *args: Any, **kwargs: Any) -> None:
        try:
            validated(self, *args, **kwargs)
        except pydantic.ValidationError as error:
            raise ValueError(_explained(type(self), error)) from None

    decorated.__init__ = init  # type: ignore[method-assign, assignment]
    _KINDS[decorated.__name__] = decorated  # type: ignore[assignment]
    return decorated  # type: ignore[return-value]


def clipped(value: Any) -> str:
    """`repr` of a value from outside, cut to what an error message can hold."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def check_choice(who: str, name: str, value: Any, known: Collection[Any]) -> None:
    """`ValueError` unless an argument is one of these."""
    if value not in known:
        raise ValueError(f"{who}: {name} must be one of {', '.join(map(repr, known))}. Got {clipped(value)}.")


def visible(text: str) -> str:
    """Text from a file for a terminal: what is not printable, as escapes, would steer it."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


def listed(names: Sequence[str], most: int = 5) -> str:
    """Names with commas between, to be read in a message: of many only the first, of long ones the beginning."""
    rest = len(names) - most
    shown = names if rest <= 1 else names[:most]
    text = ", ".join(name if len(name) <= 100 else f"{name[:100]}..." for name in shown)
    return text if rest <= 1 else f"{text} and {rest:,} more"


def one_line(error: Any, most: int = 200) -> str:
    """The text of an error in one line of at most `most` characters."""
    return " ".join(str(error).split())[:most]


def _plain(value: Any, owner: Config) -> Any:
    if isinstance(value, Config):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {key: _plain(item, owner) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, owner) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{type(owner).__name__}: {value!r} has no plain form, so this config cannot be written to a file.")


def _revive(value: Any) -> Any:
    if isinstance(value, Mapping):
        return Config.from_dict(value) if "kind" in value else {key: _revive(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_revive(item) for item in value]
    return value


def _choices(value: Any, names: list[str]) -> str:
    close = difflib.get_close_matches(str(value)[:50], names, n=1)
    return f"one of {', '.join(sorted(names))}" + (f" (did you mean {close[0]}?)" if close else "")


def _explained(cls: type, error: pydantic.ValidationError) -> str:
    """pydantic's report as one line: what was expected, what came, whose argument."""
    known = [f.name for f in dataclasses.fields(cls)]
    parts = []
    for item in error.errors():
        if item["type"] == "unexpected_positional_argument":
            takes = f"takes at most {len(known)} by position ({', '.join(known)})" if known else "takes no arguments"
            parts.append(f"{takes}. Got {clipped(item['input'])} beyond them")
            continue
        where = ".".join(
            known[part] if isinstance(part, int) and i == 0 else str(part) for i, part in enumerate(item["loc"])
        )
        if item["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            parts.append(f"unknown field {where!r}; the fields are {', '.join(known) or 'none'}")
        elif item["type"] == "value_error":
            text = str(item["ctx"]["error"]) if "ctx" in item else item["msg"]
            parts.append(text.removeprefix(f"{cls.__name__}: "))
        elif item["type"] == "missing":
            parts.append(f"{where} is required")
        else:
            message = item["msg"].replace("Input should be", f"{where} must be") if where else item["msg"]
            parts.append(f"{message}. Got {clipped(item['input'])}")
    return f"{cls.__name__}: " + "; ".join(dict.fromkeys(parts)).rstrip(".") + "."
