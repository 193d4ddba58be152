"""Programs in the README and the documentation run as they stand."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def programs(path):
    return re.findall(r"```python\n(.*?)```", path.read_text(), flags=re.S)


def test_the_program_in_the_readme(tmp_path, monkeypatch, capsys):
    (program,) = programs(ROOT / "README.md")
    monkeypatch.chdir(tmp_path)
    exec(compile(program, "README.md", "exec"), {})
    assert "training step" in capsys.readouterr().out
    assert (tmp_path / "model.safetensors").is_file()


PAGES = [page for page in sorted((ROOT / "docs").glob("*.md")) if programs(page)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_programs_in_the_documentation(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}  # a page is read from its top
    for program in programs(page):
        exec(compile(program, page.name, "exec"), names)
