"""How many weights each layer keeps: the same share, or where leaving them out costs the network's outputs least."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise

LEVELS = (1.0, 0.85, 0.7, 0.55, 0.4, 0.3, 0.2, 0.12, 0.06, 0.03)  # shares that are tried


def by_error(sizes: Mapping[str, int], keep: float, error: Callable[[str, float], float]) -> dict[str, float]:
    """Shares of the layers' weights that keep `keep` of all, with the least sum of squared errors.

    Args:
        sizes: the number of weights of each layer. error: of the network's outputs with this share of one layer.

    The errors at `LEVELS`, made convex, are followed from the dense network on: always in the layer that costs least
    for each weight that goes.
    """
    steps = []
    for name, size in sizes.items():
        points = [(1.0, 0.0), *((level, error(name, level) ** 2) for level in LEVELS[1:])]
        for (high, before), (low, after) in _convex(points):
            steps.append(((after - before) / ((high - low) * size), name, high, low))
    left = dict.fromkeys(sizes, 1.0)
    surplus = sum(sizes.values()) * (1 - keep)
    for _, name, high, low in sorted(steps):
        taken = min((high - low) * sizes[name], surplus)
        left[name] = high - taken / sizes[name]
        surplus -= taken
        if surplus <= 0:
            break
    return {name: min(share, keep) for name, share in left.items()} if surplus > 0 else left


def _convex(points: list[tuple[float, float]]) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """The edges of the lower hull over falling shares: each steeper than the one before."""
    hull: list[tuple[float, float]] = []
    for share, cost in points:
        cost = max(cost, hull[-1][1]) if hull else cost
        while len(hull) > 1:
            (a, ca), (b, cb) = hull[-2:]
            if (cost - cb) * (a - b) >= (cb - ca) * (b - share):
                break
            hull.pop()
        hull.append((share, cost))
    return list(pairwise(hull))
