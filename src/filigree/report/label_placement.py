"""Labels beside the points of a chart so that they cover neither one another nor a point."""

from __future__ import annotations

import math
from collections.abc import Sequence

Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels
LETTER, LINE, MARK = 6.0, 13.0, 5.0  # width of a letter, height of a line, half a marker: in pixels, at 10 points
_DIRECTIONS = [math.tau * i / 16 for i in range(16)]
_REACHES = (16, 26, 38, 52, 68, 86, 106, 130)


def place_labels(
    points: Sequence[tuple[float, float]], labels: Sequence[str], width: float, height: float
) -> list[tuple[float, float]]:
    """From each point to the middle of its label, in pixels, x to the right and y down.

    One label after another takes the nearest place that covers nothing; where there is none, the one that covers least.
    """
    taken: list[Box] = [(x - MARK, y - MARK, x + MARK, y + MARK) for x, y in points]
    shifts = []
    for (x, y), label in zip(points, labels, strict=True):
        half = LETTER * len(label) / 2
        candidates = []
        for reach in _REACHES:
            for angle in _DIRECTIONS:
                dx, dy = math.cos(angle) * (reach + half * abs(math.cos(angle))), math.sin(angle) * reach
                box = (x + dx - half, y + dy - LINE / 2, x + dx + half, y + dy + LINE / 2)
                outside = box[0] < 0 or box[2] > width or box[1] < 0 or box[3] > height
                covered = sum(_common(box, other) for other in taken) + 1e4 * outside
                candidates.append((covered, reach, dx, dy, box))
        _, _, dx, dy, box = min(candidates)
        taken.append(box)
        shifts.append((dx, dy))
    return shifts


def _common(a: Box, b: Box) -> float:
    """The area that two boxes share."""
    across, down = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return across * down if across > 0 and down > 0 else 0.0
