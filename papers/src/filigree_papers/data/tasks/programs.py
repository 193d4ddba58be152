"""Learning to execute (Zaremba and Sutskever 2014): short programs and what they print, character by character."""

from __future__ import annotations

import string
from collections.abc import Callable
from random import Random
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from filigree_papers.data.tasks.sizes import at_least

Curriculum = Literal["baseline", "naive", "mix", "combined"]
Operand = tuple[str, int]  # an expression and its value

CHARACTERS = ("", *"\n ()*+-.0123456789:<=>", *string.ascii_lowercase)  # the first pads
VARIABLES = string.ascii_lowercase.replace("x", "")  # x counts in loops


def programs(
    samples: int,
    length: int = 6,
    nesting: int = 3,
    curriculum: Curriculum = "combined",
    progress: float = 1.0,
    seed: int = 0,
) -> list[tuple[str, str]]:
    """Random programs, each with the integer that it prints.

    `nesting` operations, each on the result of the one before and on numbers of up to `length` digits: sum, difference,
    product with or loop over a number up to `4 length`, assignment, and choice by comparison. How hard a program is:

    - "baseline": `length` and `nesting`. - "mix": both are drawn, from 1, for each program.
    - "naive": (1, 1), (2, 1), ..., (length, 1), (1, 2), ..., (length, nesting), as far as `progress` in [0, 1] says.
    - "combined": "naive" or "mix", by halves (the authors' later code mixes one in five).

    Returns:
        Pairs of a Python program that ends with a newline and what it prints, without one.
    """
    at_least(1, "programs", samples=samples, length=length, nesting=nesting)
    if nesting > len(VARIABLES):
        raise ValueError(f"programs: nesting must be at most {len(VARIABLES)}, one variable each. Got {nesting}.")
    if curriculum not in get_args(Curriculum):
        raise ValueError(f"programs: curriculum must be one of {', '.join(get_args(Curriculum))}. Got {curriculum!r}.")
    if not 0 <= progress <= 1:
        raise ValueError(f"programs: progress must be in [0, 1]. Got {progress}.")
    chance = Random(seed)
    stage = min(int(progress * length * nesting), length * nesting - 1)
    naive = stage % length + 1, stage // length + 1
    pairs = []
    for _ in range(samples):
        if curriculum == "baseline":
            hardness = length, nesting
        elif curriculum == "naive" or (curriculum == "combined" and chance.random() < 0.5):
            hardness = naive
        else:
            hardness = chance.randint(1, length), chance.randint(1, nesting)
        pairs.append(_program(chance, *hardness))
    return pairs


def encode(pairs: list[tuple[str, str]]) -> tuple[Tensor, Tensor, Tensor]:
    """Programs as sequences of characters, to be predicted one ahead: the program, its target and a full stop.

    Returns:
        x and y `(samples, time)`, int64, indices into `CHARACTERS`: y is x one step later. And a mask
        `(samples, time)`, float32, 1 where y is of the target or its full stop. Shorter sequences end in 0.
    """
    if not pairs:
        raise ValueError("encode: at least one program is expected. Got none.")
    texts = [f"{program}{target}." for program, target in pairs]
    index = {character: number for number, character in enumerate(CHARACTERS)}
    try:
        codes = np.fromiter((index[character] for text in texts for character in text), np.int64)
    except KeyError as error:
        raise ValueError(f"encode: programs must be of CHARACTERS. Got {error}.") from None
    starts, ends = (np.array([len(text) for text in side])[:, None] for side in ([p for p, _ in pairs], texts))
    step = np.arange(ends.max())
    rows = np.zeros((len(texts), len(step)), np.int64)
    rows[step < ends] = codes
    mask = (starts <= step) & (step < ends)
    return torch.from_numpy(rows[:, :-1]), torch.from_numpy(rows[:, 1:]), torch.from_numpy(mask[:, 1:]).float()


def _program(chance: Random, length: int, nesting: int) -> tuple[str, str]:
    lines: list[str] = []
    known: list[Operand] = []
    for variable in chance.sample(VARIABLES, nesting):
        operation, operands = chance.choice(OPERATIONS)
        numbers = [chance.randrange(1, 10**length) for _ in range(operands - len(known))]
        taken = known + [(str(number), number) for number in numbers]
        chance.shuffle(taken)
        known = [operation(chance, lines, variable, 4 * length, *taken)]
    ((expression, value),) = known
    return "\n".join([*lines, f"print({expression})\n"]), str(value)


def _sum(chance: Random, lines: list[str], variable: str, most: int, a: Operand, b: Operand) -> Operand:
    sign = chance.choice("+-")
    return f"({a[0]}{sign}{b[0]})", a[1] + b[1] if sign == "+" else a[1] - b[1]


def _product(chance: Random, lines: list[str], variable: str, most: int, a: Operand) -> Operand:
    times = chance.randint(1, most)
    return chance.choice((f"({a[0]}*{times})", f"({times}*{a[0]})")), times * a[1]


def _assignment(chance: Random, lines: list[str], variable: str, most: int, a: Operand, b: Operand) -> Operand:
    lines.append(f"{variable}={a[0]}")
    return _sum(chance, lines, variable, most, (variable, a[1]), b)


def _loop(chance: Random, lines: list[str], variable: str, most: int, a: Operand, b: Operand) -> Operand:
    times, sign = chance.randint(1, most), chance.choice("+-")
    lines += [f"{variable}={a[0]}", f"for x in range({times}):{variable}{sign}={b[0]}"]
    return variable, a[1] + times * b[1] if sign == "+" else a[1] - times * b[1]


def _choice(
    chance: Random, lines: list[str], variable: str, most: int, a: Operand, b: Operand, c: Operand, d: Operand
) -> Operand:
    sign = chance.choice("<>")
    holds = a[1] < b[1] if sign == "<" else a[1] > b[1]
    return f"({c[0]} if {a[0]}{sign}{b[0]} else {d[0]})", c[1] if holds else d[1]


OPERATIONS: tuple[tuple[Callable[..., Operand], int], ...] = (
    (_sum, 2), (_product, 1), (_assignment, 2), (_loop, 2), (_choice, 4),
)  # fmt: skip
