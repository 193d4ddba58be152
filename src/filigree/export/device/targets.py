"""The processors that a C program can be written for, and the boards on which qemu emulates them."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """It is a processor, and the board that stands for it in the emulator.

    Attributes:
        name: as users give it. flags: of arm-none-eabi-gcc. has_floats: whether float32 is computed by the processor.
        machine: of qemu. flash, ram: where the board has them. clock: nanoseconds of a tick of its timer.
        cycles: an instruction takes, on average, from memory without wait states: an estimate, for the order of size.
    """

    name: str
    flags: tuple[str, ...]
    has_floats: bool
    machine: str
    cycles: float
    flash: int = 0x00000000
    ram: int = 0x20000000
    clock: int = 40


_HARD = "-mfloat-abi=hard"
TARGETS = {
    target.name: target
    for target in (
        Target("cortex-m0plus", ("-mcpu=cortex-m0plus",), False, "mps2-an385", 1.5),  # the M3 runs its instructions
        Target("cortex-m3", ("-mcpu=cortex-m3",), False, "mps2-an385", 1.4),
        Target("cortex-m4", ("-mcpu=cortex-m4", _HARD, "-mfpu=fpv4-sp-d16"), True, "mps2-an386", 1.4),
        Target("cortex-m7", ("-mcpu=cortex-m7", _HARD, "-mfpu=fpv5-sp-d16"), True, "mps2-an500", 0.8),
        Target("cortex-m33", ("-mcpu=cortex-m33", _HARD, "-mfpu=fpv5-sp-d16"), True, "mps2-an505", 1.3,
               0x10000000, 0x38000000, 50),
    )
}  # fmt: skip


def target_of(name: str) -> Target:
    """Return the target of this name. `ValueError` lists those that there are."""
    if (target := TARGETS.get(str(name).lower())) is None:
        raise ValueError(f"export: target must be one of {', '.join(TARGETS)}. Got {name!r}.")
    return target


def bytes_of(size: str | int | None, what: str) -> int | None:
    """Read a number of bytes: 65536, "64k", "64KiB", "1M"; k and M are 1024 and 1024 squared.

    Raises:
        ValueError: what is no positive number of bytes; `what` names the argument.
    """
    if size is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kKmM]?)(?:i?[bB])?", str(size).strip())
    count = int(float(match[1]) * 1024 ** " km".index(match[2].lower() or " ")) if match else 0
    if isinstance(size, bool) or count <= 0:
        raise ValueError(f"export: {what} must be a number of bytes, as 65536, 64k or 1M. Got {size!r}.")
    return count
