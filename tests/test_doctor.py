"""`filigree doctor`: what it says of machines that are not this one."""

import sys

import pytest

from filigree.cli import main
from filigree.cli.doctor import _huge_pages, _instruction_set, _pools, _threads


def test_doctor_runs_here(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["filigree", "doctor"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    subjects = [line[5:24].strip() for line in lines if not line.startswith("     ")]
    assert subjects == [
        "versions", "instruction set", "OpenMP pools", "threads", "huge pages", "C++ compiler", "optional packages",
        "data", "speed",
    ]  # fmt: skip
    assert "dense" in lines[-1] or "dense" in lines[-2]


def test_what_is_slow_and_why():
    assert not _instruction_set("avx512", ["portable", "avx2", "avx512"], "x86_64").advice
    assert "FILIGREE_ISA chose portable" in _instruction_set("portable", ["portable", "avx2"], "x86_64").advice
    assert "riscv64" in _instruction_set("portable", ["portable"], "riscv64").advice
    one = "7f00 r-xp /a/torch/lib/libgomp.so.1\n7f01 rw-p /a/torch/lib/libgomp.so.1\n"
    assert _pools(one).text == "libgomp.so.1"
    assert not _pools(one).advice
    assert "compete" in _pools(one + "7f02 r-xp /b/scikit_learn.libs/libgomp-a34b3233.so.1.0.0\n").advice
    assert not _threads(2, 2, "max 100000\n", None).advice
    assert "OMP_NUM_THREADS=1" in _threads(8, 8, "150000 100000\n", None).advice
    assert "set_num_threads(2)" in _threads(8, 2, "", None).advice
    assert "7 processors are not used: OMP_NUM_THREADS" in _threads(1, 8, "", "1").advice
    assert _huge_pages("always [madvise] never").text == "madvise"
    assert "echo madvise" in _huge_pages("always madvise [never]").advice
    assert _huge_pages("").text == "not known here"
