"""The check that all tasks make of the sizes they are given."""

from __future__ import annotations


def at_least(least: int, task: str, **sizes: int) -> None:
    """`ValueError` that names the task and the first size below `least`."""
    for name, size in sizes.items():
        if size < least:
            raise ValueError(f"{task}: {name} must be at least {least}. Got {size}.")
