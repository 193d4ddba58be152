"""The length of a run, as told by what runs it."""

from __future__ import annotations


def horizon_of(name: str, given: int | None, done: int, to_come: int) -> int:
    """How many calls of `step` a run has: those `done` and those `to_come`, which the user may have `given` already.

    Raises:
        ValueError: the two differ.
    """
    if given is not None and given != done + to_come:
        raise ValueError(
            f"{name}: epochs must be that of the run, {done + to_come}. Got {given}: leave it out, and it is filled in."
        )
    return done + to_come
