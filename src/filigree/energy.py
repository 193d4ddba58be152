"""Energy by the machine's own counters (RAPL): joules of all processor packages, where they can be read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

COUNTERS = Path("/sys/class/powercap")


@dataclass
class Energy:
    """`joules` of the whole machine's processors, known when the block has ended; None where nothing tells."""

    joules: float | None = None


@contextmanager
def energy(counters: Path = COUNTERS) -> Iterator[Energy]:
    """Measure what a block takes: `with energy() as used: ...`, then `used.joules`.

    The counters are of the packages (`intel-rapl:0`, on AMD too), other processes' work included; each starts again at
    0 after its `max_energy_range_uj`, which is taken into account once: a block of hours is measured too low.
    Many systems let only root read them.
    """
    used = Energy()
    before = _read(counters)
    yield used
    after = _read(counters)
    if before and before.keys() == after.keys():
        used.joules = 1e-6 * sum((after[zone][0] - before[zone][0]) % after[zone][1] for zone in after)


def _read(counters: Path) -> dict[str, tuple[int, int]]:
    """Microjoules of each package, and where its counter starts again; nothing if one of them cannot be read."""
    found = {}
    for zone in sorted(counters.glob("intel-rapl:[0-9]*")):
        if zone.name.count(":") == 1:  # intel-rapl:0:0 is a part of intel-rapl:0
            try:
                found[zone.name] = tuple(int((zone / f).read_text()) for f in ("energy_uj", "max_energy_range_uj"))
            except (OSError, ValueError):
                return {}
    return found  # type: ignore[return-value]
