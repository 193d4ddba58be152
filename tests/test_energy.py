"""Joules from counters like those of the kernel."""

import pytest

from filigree.energy import energy


def zone(folder, name, microjoules, most=1000):
    (folder / name).mkdir(exist_ok=True)
    (folder / name / "energy_uj").write_text(f"{microjoules}\n")
    (folder / name / "max_energy_range_uj").write_text(f"{most}\n")


def test_packages_add_up_and_counters_start_again(tmp_path):
    zone(tmp_path, "intel-rapl:0", 100)
    zone(tmp_path, "intel-rapl:1", 990)
    zone(tmp_path, "intel-rapl:0:0", 5)  # a part of package 0
    with energy(tmp_path) as used:
        zone(tmp_path, "intel-rapl:0", 400)
        zone(tmp_path, "intel-rapl:1", 10)
        zone(tmp_path, "intel-rapl:0:0", 250)
    assert used.joules == pytest.approx((300 + 20) * 1e-6)


@pytest.mark.parametrize("content", [None, "no number"])
def test_none_where_the_machine_does_not_tell(tmp_path, content):
    if content is not None:
        zone(tmp_path, "intel-rapl:0", content)
    with energy(tmp_path) as used:
        pass
    assert used.joules is None
