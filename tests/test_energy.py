"""Joules from counters like those of the kernel."""

import pytest

from filigree.measure.energy import energy


def zone(folder, where, name, microjoules, most=1000):
    (folder / where).mkdir(exist_ok=True)
    (folder / where / "name").write_text(f"{name}\n")
    (folder / where / "energy_uj").write_text(f"{microjoules}\n")
    (folder / where / "max_energy_range_uj").write_text(f"{most}\n")


def test_packages_and_memory_add_up_and_counters_start_again(tmp_path):
    zone(tmp_path, "intel-rapl:0", "package-0", 100)
    zone(tmp_path, "intel-rapl:1", "package-1", 990)
    zone(tmp_path, "intel-rapl:2", "psys", 0)  # contains the packages
    zone(tmp_path, "intel-rapl:0:0", "core", 5)  # a part of package 0
    zone(tmp_path, "intel-rapl:0:1", "dram", 7)  # not a part of it
    with energy(tmp_path) as used:
        zone(tmp_path, "intel-rapl:0", "package-0", 400)
        zone(tmp_path, "intel-rapl:1", "package-1", 10)
        zone(tmp_path, "intel-rapl:2", "psys", 500)
        zone(tmp_path, "intel-rapl:0:0", "core", 250)
        zone(tmp_path, "intel-rapl:0:1", "dram", 57)
    assert used.joules == pytest.approx((300 + 20 + 50) * 1e-6)


@pytest.mark.parametrize("content", [None, "no number"])
def test_none_where_the_machine_does_not_tell(tmp_path, content):
    if content is not None:
        zone(tmp_path, "intel-rapl:0", "package-0", content)
    with energy(tmp_path) as used:
        pass
    assert used.joules is None
