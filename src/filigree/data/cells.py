"""What a cell of a table says: a number, or that a value is missing."""

from __future__ import annotations

MARKERS = {"", "na", "n/a", "#n/a", "#na", "<na>", "?", "nan", "-nan", "null", "nat"}  # lower case, without spaces


def is_number(cell: str | bytes) -> bool:
    """Whether a cell of a table is a number, "nan" and "inf" included."""
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in str(cell)  # Python would take 1_1 for 11
