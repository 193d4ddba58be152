"""What a program needs on a device: flash, RAM and time, by the cross compiler and the emulator, else by arithmetic."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from filigree.export.c.source import CLayer, Program, Trial
from filigree.export.device.emulator import Run, Weight, firmware, function_of, missing_tools
from filigree.export.device.targets import Target

# By arithmetic: bytes of a function of the program, of C's mathematics, of floats in software; of the stack.
_FUNCTION, _MATHEMATICS, _SOFTWARE_FLOATS, _STACK = 140, 1400, 2600, 256
_LINEAR, _CONVOLUTION, _SOFTWARE = 8, 22, 75  # instructions a multiply-add, and what floats in software add to them


@dataclass(frozen=True)
class Footprint:
    """It says what a program needs on a target.

    Attributes:
        target: the processor's name. weights, code, libraries: bytes of flash: constants and first values; the
            program's own code; C's mathematics and floats in software. memory: bytes of RAM that are always in use:
            activations and what is trained. stack: the most bytes of stack that a call takes.
        function: what is timed. instructions, cycles: of one call; the cycles are an estimate.
        weighed: how flash and RAM were determined. timed: how the instructions were.
        flash_limit, ram_limit: what the device has, where it was given.
    """

    target: str
    weights: int
    code: int
    libraries: int
    memory: int
    stack: int
    function: str
    instructions: int
    cycles: int
    weighed: str
    timed: str
    flash_limit: int | None = None
    ram_limit: int | None = None

    @property
    def flash(self) -> int:
        return self.weights + self.code + self.libraries

    @property
    def ram(self) -> int:
        return self.memory + self.stack

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"flash": self.flash, "ram": self.ram}

    def __str__(self) -> str:
        return "\n".join([
            f"{self.target}: flash {_of(self.flash, self.flash_limit)} (weights {self.weights:,}, code {self.code:,}, "
            f"libraries {self.libraries:,}), {self.weighed}",
            f"{self.target}: RAM {_of(self.ram, self.ram_limit)} (static {self.memory:,}, stack {self.stack:,})",
            f"{self.target}: {self.function}: {self.instructions:,} instructions, about {self.cycles:,} cycles, "
            f"{self.timed}",
        ])  # fmt: skip

    def check(self, path: str) -> None:
        """Refuse what does not fit. `ValueError` gives the numbers."""
        lacking = []
        if self.flash_limit is not None and self.flash > self.flash_limit:
            parts = f"weights {self.weights:,}, code {self.code:,}, libraries {self.libraries:,}"
            lacking.append(f"{self.flash:,} bytes of flash of {self.flash_limit:,} ({parts})")
        if self.ram_limit is not None and self.ram > self.ram_limit:
            parts = f"static {self.memory:,}, stack {self.stack:,}"
            lacking.append(f"{self.ram:,} bytes of RAM of {self.ram_limit:,} ({parts})")
        if lacking:
            needs = " and ".join(lacking)
            raise ValueError(f"export: {path} does not fit: on a {self.target} it needs {needs}. Nothing was written.")


def footprint(
    program: Program, trial: Trial, name: str, target: Target, flash: int | None = None, ram: int | None = None
) -> tuple[Footprint, str]:
    """Determine what a program needs on the target; say too how its numbers there compare with torch's.

    Raises:
        RuntimeError: the program does not compile for the target, or its numbers there are not torch's.
    """
    timed_function = function_of(program.functions[0])
    if why := missing_tools(emulator=False):
        weight, instructions, stack = _arithmetic(program, target)
        weighed, timed, verified = f"by arithmetic ({why})", "by arithmetic", f"not run as on a {target.name}: {why}"
    else:
        with firmware(program.source, program.header, name, target) as built:
            weight = built.weigh([function_of(declaration) for declaration in program.functions])
            weighed = "by the linker's map"
            if why := missing_tools():
                _, instructions, stack = _arithmetic(program, target)
                timed, verified = "by arithmetic", f"not run as on a {target.name}: {why}"
            else:
                built.link(trial.main, program.functions[0])
                run = built.run(trial.data)
                instructions, stack = run.instructions // run.calls, run.stack
                timed, verified = f"counted by qemu ({target.machine})", _compared(run, trial, target)
    return Footprint(
        target.name, weight.constants + weight.initialised, weight.code, weight.libraries, weight.memory, stack,
        timed_function, instructions, round(instructions * target.cycles), weighed, timed, flash, ram,
    ), verified  # fmt: skip


def _compared(run: Run, trial: Trial, target: Target) -> str:
    difference, largest = trial.difference(np.frombuffer(run.output, trial.expected.dtype))
    if not trial.allows(difference, largest):
        raise RuntimeError(
            f"export: as on a {target.name} the program differs from torch by {difference:.3g}, where the largest "
            f"number is {largest:.3g}. Nothing was written."
        )
    return f"run as on a {target.name}: {trial.what}: largest difference from torch {difference:.2g} of {largest:.3g}"


def _arithmetic(program: Program, target: Target) -> tuple[Weight, int, int]:
    """Estimate what the program needs from its layers and its text."""
    code = _FUNCTION * len(re.findall(r"^(?:static )?\w+ \w+\(", program.source, flags=re.M))
    floats = "float" in program.source
    libraries = _MATHEMATICS * ("<math.h>" in program.source) + _SOFTWARE_FLOATS * (floats and not target.has_floats)
    weight = Weight(program.constant_bytes, code, libraries, program.ram_bytes, 0)
    return weight, _instructions(program.layers, floats and not target.has_floats), _STACK


def _instructions(layers: Sequence[CLayer], in_software: bool) -> int:
    each = [(_CONVOLUTION if "convolution" in x.what else _LINEAR) + _SOFTWARE * in_software for x in layers]
    return sum(layer.macs * cost for layer, cost in zip(layers, each, strict=True))


def _of(count: int, limit: int | None) -> str:
    return f"{count:,} bytes" if limit is None else f"{count:,} of {limit:,} bytes"
