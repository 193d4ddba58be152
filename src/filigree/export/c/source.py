"""Write the parts of a C99 program: literals that read back exactly, constant arrays, names, pieces of a template."""

from __future__ import annotations

import functools
import math
import re
import string
import textwrap
from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

_TYPES = {
    "float32": "float", "int8": "int8_t", "int16": "int16_t", "int32": "int32_t",
    "uint8": "uint8_t", "uint16": "uint16_t", "uint32": "uint32_t",
}  # fmt: skip
_BYTES = {kind: np.dtype(name).itemsize for name, kind in _TYPES.items()}
_HEADERS = [
    "assert", "complex", "ctype", "errno", "fenv", "float", "inttypes", "iso646", "limits", "locale", "math", "setjmp",
    "signal", "stdarg", "stdbool", "stddef", "stdint", "stdio", "stdlib", "string", "tgmath", "time", "wchar", "wctype",
]  # fmt: skip


@dataclass(frozen=True)
class CConstant:
    """It holds the name of a constant, its `static const` definition, and the bytes that it takes in flash."""

    name: str
    text: str
    bytes: int


@dataclass(frozen=True)
class CMemory:
    """It is a static array of numbers of a type in C. `lasts`: its numbers are read at the next time step.

    One of no numbers has room for one, as C has no arrays of nothing.
    """

    name: str
    size: int
    type: str = "float"
    lasts: bool = False

    @property
    def text(self) -> str:
        return f"static {self.type} {self.name}[{max(self.size, 1)}];"

    @property
    def bytes(self) -> int:
        return max(self.size, 1) * _BYTES[self.type]


def largest(memory: Iterable[CMemory]) -> list[CMemory]:
    """Return of the arrays of one name the largest."""
    sizes: dict[str, CMemory] = {}
    for array in memory:
        if array.name not in sizes or sizes[array.name].size < array.size:
            sizes[array.name] = array
    return list(sizes.values())


@dataclass(frozen=True)
class CLayer:
    """A line of the report says a module's name, what its step does, the form of its weights, and their bytes.

    `macs` are its multiply-adds a sample.
    """

    name: str
    what: str
    form: str
    bytes: int
    macs: int = 0


@dataclass(frozen=True)
class Program:
    """It holds a `.c` and a `.h` file, and the bytes of constants and of static memory that they take.

    Attributes:
        shape: of one sample. trial: how it is compared with torch. functions: the declarations of the header; the first
            is timed on devices. outputs: numbers of a sample. types: in C, of inputs and of outputs.
            note: what else the report says.
    """

    source: str
    header: str
    layers: list[CLayer]
    constant_bytes: int
    ram_bytes: int
    shape: tuple[int, ...]
    trial: Callable[[Tensor], Trial]
    functions: tuple[str, ...]
    outputs: int
    types: tuple[str, str] = ("float", "float")
    note: str = ""

    @property
    def sides(self) -> tuple[int, int]:
        """Numbers of inputs and of outputs."""
        return math.prod(self.shape), self.outputs


@dataclass(frozen=True)
class Trial:
    """It holds a `main.c` that reads `data` and writes float32 numbers, and the numbers that torch expects.

    `tolerance` is a share of the largest number: sums of float32 in another order. 0: they are equal.
    """

    main: str
    data: bytes
    expected: np.ndarray
    what: str
    tolerance: float = 1e-4

    def difference(self, outputs: np.ndarray) -> tuple[float, float]:
        """Return the largest difference of what the program wrote from what torch expects, and the largest number."""
        expected = self.expected.reshape(-1)
        assert outputs.shape == expected.shape
        with np.errstate(invalid="ignore"):  # an infinity is equal to itself, though their difference is no number
            apart = np.where(outputs == expected, 0, np.abs(outputs.astype(float) - expected))
        return float(apart.max(initial=0)), float(np.abs(expected[np.isfinite(expected)]).max(initial=0))

    def allows(self, difference: float, largest: float) -> bool:
        """Tell whether the difference is one of rounding; what is equal bit for bit must not differ at all."""
        return difference <= self.tolerance * largest + (1e-6 if self.tolerance else 0)


def constant(name: str, numbers: np.ndarray) -> CConstant:
    """Write the numbers as a constant array; an empty one holds a zero, as C has no arrays of nothing."""
    numbers = numbers.reshape(-1) if numbers.size else np.zeros(1, numbers.dtype)
    text = f"static const {c_type(numbers)} {name}[{numbers.size}] = {braced(numbers)};"
    return CConstant(name, text, numbers.nbytes)


def c_type(numbers: np.ndarray) -> str:
    return _TYPES[numbers.dtype.name]


def braced(numbers: np.ndarray, indent: str = "    ") -> str:
    """Write the numbers between braces, several a line."""
    each = 8 if numbers.dtype.kind == "f" else 20
    words = literals(numbers.reshape(-1))
    lines = [indent + ", ".join(words[i : i + each]) for i in range(0, len(words), each)]
    return "{\n" + ",\n".join(lines) + f"\n{indent[:-4]}}}"


def literals(numbers: np.ndarray) -> list[str]:
    """Write numbers so that a compiler reads them back as they are: floats in the shortest decimals that do."""
    if numbers.dtype.kind == "f":
        texts = [f"{text}f" for text in numbers.astype(np.float32).astype(str).tolist()]
        return [text.replace("inff", "INFINITY") for text in texts]
    return list(map(str, numbers.tolist()))


def literal(number: float) -> str:
    """Write one such number; an int stays an int."""
    return literals(np.array([number]))[0]


def smallest_unsigned(numbers: np.ndarray) -> np.ndarray:
    """Store the numbers in uint8, uint16 or uint32, whichever is the smallest that holds them."""
    return numbers.astype(np.min_scalar_type(int(numbers.max(initial=0))))


def smallest_signed(numbers: np.ndarray) -> np.ndarray:
    """Store the numbers in int8, int16 or int32; in int8 without -128, so that each has its negative."""
    most = int(np.abs(numbers).max(initial=0))
    return numbers.astype(np.int8 if most < 2**7 else np.int16 if most < 2**15 else np.int32)


def prefix_of(stem: str) -> str:
    """Make of a file's name what every name of the program begins with.

    Raises:
        ValueError: a header of that name would hide one of C's own, or cannot be named in an `#include`.
    """
    if re.search(r'["\\\x00-\x1f\x7f]', stem) or not stem.isprintable():
        raise ValueError(
            f"export: a file's name must be printable, without quotes and backslashes. Got {stem + '.c'!r}."
        )
    if stem.lower() in _HEADERS:
        raise ValueError(f"export: a file {stem}.h would hide a header of C. Choose another name than {stem}.c.")
    return identifier(stem).lower()


def identifier(name: str, fallback: str = "net") -> str:
    """Write a name as C allows it: `conv.1` becomes `conv_1`, `0` becomes `net_0`."""
    plain = re.sub(r"[^0-9A-Za-z]+", "_", name).strip("_")
    return plain if plain[:1].isalpha() else f"{fallback}_{plain}".strip("_")


class Names:
    """Names of a program in C are given out here: none twice, and none that is a word of the templates."""

    def __init__(self) -> None:
        self._labels: set[str] = set()  # what names of a layer's own begin with; `a` and `a_state` may share some
        self._taken = set(_words())

    def labels(self, name: str) -> Iterator[str]:
        """Propose labels for a module: `conv_1`, `conv_1_2`, ..., until `take` has the names that begin with one."""
        while True:
            yield _free(identifier(name, "layer"), self._labels)

    def take(self, names: Set[str]) -> bool:
        """Take all of the names, or none: then one is taken already."""
        is_free = self._taken.isdisjoint(names)
        self._taken |= names if is_free else set()
        return is_free

    def function(self, name: str) -> str:
        """Return the name, followed by a number where it is taken already."""
        return _free(name, self._taken)


def _free(name: str, taken: set[str]) -> str:
    count, free = 1, name
    while free in taken:
        count += 1
        free = f"{name}_{count}"
    taken.add(free)
    return free


@functools.cache
def _words() -> frozenset[str]:
    """Return all words of C in the templates: what they define, what they call, and C's own."""
    texts = (file.read_text() for file in Path(__file__).parent.glob("*.c.in"))
    return frozenset(re.findall(r"[A-Za-z_]\w*", re.sub(r"/\*.*?\*/", "", "\n".join(texts), flags=re.DOTALL)))


def braces(declaration: str, statements: list[str]) -> str:
    """Write a function."""
    return "\n".join([declaration, "{", *(f"    {line}" for line in statements), "}"])


def piece(file: str, name: str, **words: str) -> str:
    """Fill in the `$words` of a piece of a template; a word alone on its line may become a block of lines."""
    lines = []
    for line in _pieces(file)[name].split("\n"):
        filled = string.Template(line.strip()).substitute(words)
        lines.append(textwrap.indent(filled, line[: len(line) - len(line.lstrip())]))
    return "\n".join(lines)


def in_order(file: str, names: set[str]) -> list[str]:
    """Return these pieces, which have no words to fill in, in the order of the template."""
    return [text for name, text in _pieces(file).items() if name in names]


@functools.cache
def _pieces(file: str) -> dict[str, str]:
    text = Path(__file__).with_name(file).read_text()
    parts = re.split(r"/\*== (.+) ==\*/\n", text)[1:]
    return {name: body.strip("\n") for name, body in zip(parts[::2], parts[1::2], strict=True)}


def source_file(name: str, body: list[str]) -> str:
    """Write `name.c`: its own header, the headers of C that it needs, its definitions."""
    text = "\n\n".join(body)
    mathematics = re.search(r"\b(?:(?:expf|expm1f|logf|tanhf|erff)\(|INFINITY\b)", text)
    includes = ["#include <stddef.h>", "#include <stdint.h>", *(["#include <math.h>"] if mathematics else [])]
    note = "/* Written by filigree. C99, no memory but what is static, no library but C's own. */"
    return "\n".join([note, "", f'#include "{name}.h"', "", *includes, "", text, ""])


def header_file(prefix: str, body: str, includes: str = "") -> str:
    """Write a `.h` file, for C and C++."""
    guard = f"{prefix.upper()}_H"
    opening = [f"#ifndef {guard}\n#define {guard}", includes, '#ifdef __cplusplus\nextern "C" {\n#endif']
    parts = ["/* Written by filigree. */", *opening, body, "#ifdef __cplusplus\n}\n#endif", "#endif"]
    return "\n\n".join(part for part in parts if part) + "\n"
