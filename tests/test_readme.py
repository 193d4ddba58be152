"""The README's program runs as it stands."""

import re
from pathlib import Path


def test_the_program_in_the_readme(tmp_path, monkeypatch, capsys):
    text = (Path(__file__).parents[1] / "README.md").read_text()
    (program,) = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    monkeypatch.chdir(tmp_path)
    exec(compile(program, "README.md", "exec"), {})
    assert "training step" in capsys.readouterr().out
    assert (tmp_path / "model.safetensors").is_file()
