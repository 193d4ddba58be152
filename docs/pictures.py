"""The pictures that come from records: `python docs/pictures.py` draws them; a test checks that they are current."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

from filigree.report.label_placement import LETTER, place_labels

ROOT = Path(__file__).parent.parent
WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 900, 560, 64, 52, 20, 54
FAMILIES = {  # how a method's name begins: its family and its colour
    "RoundToNearest": ("rounded to the nearest", "#c77c02"), "MonteCarlo": ("sampled", "#7b55c0"),
    "OneShot": ("one-shot", "#3b82d6"), "": ("units pruned", "#2f8f46"), "trained": ("trained sparse", "#c2415b"),
}  # fmt: skip


def flash_curve() -> str:
    """Accuracy against flash of the programs for MNIST at 16 x 16, those above 97.9%, and the front of the best."""
    rows = json.loads((ROOT / "benchmarks" / "results" / "flash_curve.json").read_text())["rows"]
    rows = [row for row in rows if row["accuracy"] >= 0.979]
    flash = [math.log2(row["flash"]) for row in rows]
    low, high, least, most = min(flash) - 0.1, max(flash) + 0.1, 0.979, max(row["accuracy"] for row in rows) + 0.002

    def across(value: float) -> float:
        return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def down(value: float) -> float:
        return TOP + (most - value) / (most - least) * (HEIGHT - TOP - BOTTOM)

    points = [(across(x), down(row["accuracy"])) for x, row in zip(flash, rows, strict=True)]
    parts = [_head("MNIST at 16 x 16 on a Cortex-M4: accuracy of the program against bytes of flash")]
    for kib in (4, 5, 6, 8, 10, 12, 16, 20, 24):
        if low <= (x := math.log2(1024 * kib)) <= high:
            parts.append(f'<path class="line" d="M{across(x):.1f} {TOP}V{HEIGHT - BOTTOM}"/>')
            parts.append(f'<text class="soft middle" x="{across(x):.1f}" y="{HEIGHT - 32}">{kib} KiB</text>')
    for percent in (98, 98.5, 99):
        y = down(percent / 100)
        parts.append(f'<path class="line" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text class="soft end" x="{LEFT - 8}" y="{y + 4:.1f}">{percent}%</text>')
    front, best = [], 0.0
    for row, point in sorted(zip(rows, points, strict=True), key=lambda pair: pair[0]["flash"]):
        if row["accuracy"] > best:
            front.append(point)
            best = row["accuracy"]
    parts.append(f'<polyline class="front" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in front)}"/>')
    labels = [row["method"] for row in rows]
    for row, label, (x, y), (dx, dy) in zip(rows, labels, points, _shifts(points, labels), strict=True):
        colour = _family(row)[1]
        if math.hypot(max(0.0, abs(dx) - LETTER * len(label) / 2), dy) > 24:  # too far to be seen as this point's
            parts.append(f'<path class="lead" d="M{x:.1f} {y:.1f}L{x + dx:.1f} {y + dy:.1f}"/>')
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{colour}"/>')
        parts.append(f'<text class="text middle" x="{x + dx:.1f}" y="{y + dy + 4:.1f}">{escape(label)}</text>')
    for i, (name, colour) in enumerate(FAMILIES.values()):
        parts.append(f'<circle cx="{LEFT + 170 * i + 6}" cy="{HEIGHT - 12}" r="5" fill="{colour}"/>')
        parts.append(f'<text class="soft" x="{LEFT + 170 * i + 16}" y="{HEIGHT - 8}">{name}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _shifts(points: list[tuple[float, float]], labels: list[str]) -> list[tuple[float, float]]:
    inside = [(x - LEFT, y - TOP) for x, y in points]
    return place_labels(inside, labels, WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM)


def _family(row: dict[str, Any]) -> tuple[str, str]:
    if row["kind"] == "trained":
        return FAMILIES["trained"]
    return FAMILIES[next(name for name in FAMILIES if row["method"].startswith(name))]


def _head(title: str) -> str:
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" \
aria-labelledby="title" font-family="system-ui, 'Segoe UI', Helvetica, Arial, sans-serif" font-size="11">
<title id="title">{title}</title>
<style>
  .ground {{ fill: #ffffff; stroke: #d0d7de }} .text {{ fill: #1f2328 }} .soft {{ fill: #59636e; font-size: 12px }}
  .line {{ stroke: #e4e8ec }} .front {{ stroke: #59636e; stroke-dasharray: 4 3; fill: none }}
  .lead {{ stroke: #b4bcc6 }} .middle {{ text-anchor: middle }} .end {{ text-anchor: end }}
  .head {{ fill: #1f2328; font-size: 16px; font-weight: 600 }}
  @media (prefers-color-scheme: dark) {{
    .ground {{ fill: #161b22; stroke: #3d444d }} .text, .head {{ fill: #e6edf3 }} .soft {{ fill: #9da7b3 }}
    .line {{ stroke: #262c34 }} .lead {{ stroke: #4b535d }}
  }}
</style>
<rect class="ground" x=".5" y=".5" width="{WIDTH - 1}" height="{HEIGHT - 1}" rx="10"/>
<text class="head" x="{LEFT}" y="32">{title}</text>"""


PICTURES: dict[str, Callable[[], str]] = {"flash-curve.svg": flash_curve}

if __name__ == "__main__":
    for name, draw in PICTURES.items():
        (ROOT / "docs" / name).write_text(draw())
