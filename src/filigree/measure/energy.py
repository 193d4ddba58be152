"""Energy by the machine's own counters (RAPL): joules of all processor packages and memory, where they can be read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

COUNTERS = Path("/sys/class/powercap")


@dataclass
class Energy:
    """`joules` of all processors and memory, set when the block has ended; None where no counter can be read."""

    joules: float | None = None


@contextmanager
def energy(counters: Path = COUNTERS) -> Iterator[Energy]:
    """Measure the energy that a block takes: `with energy() as used: ...`, then `used.joules`.

    The counters are of the packages (`package-0`, on AMD too) and, where the machine has them, of memory (`dram`: a
    folder of its package, but not in its count); other processes' work is included. Left out are `core` and `uncore`,
    which the package counts, and `psys`, which counts the packages. Each counter starts again at 0 after its
    `max_energy_range_uj`, which is taken into account once: a block of hours is measured too low. Many systems let only
    root read them.
    """
    used = Energy()
    before = _read(counters)
    yield used
    after = _read(counters)
    if before and before.keys() == after.keys():
        used.joules = 1e-6 * sum((after[zone][0] - before[zone][0]) % after[zone][1] for zone in after)


def _read(counters: Path) -> dict[str, tuple[int, int]]:
    """Microjoules of each counter and the value at which it wraps around; empty if one of them cannot be read."""
    readings = {}
    try:
        for zone in counters.glob("intel-rapl:[0-9]*"):  # intel-rapl:0:0, a part of intel-rapl:0, stands beside it
            if (zone / "name").read_text().startswith(("package", "dram")):
                energy, most = (int((zone / file).read_text()) for file in ("energy_uj", "max_energy_range_uj"))
                readings[zone.name] = energy, most
    except (OSError, ValueError):
        return {}
    return readings
