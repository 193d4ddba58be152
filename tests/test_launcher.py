"""The console script: what it shows without torch is what the command line itself shows."""

import io
import json
import subprocess
import sys
import tomllib
from contextlib import redirect_stdout
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import typer

import filigree_launcher
import filigree_papers
from filigree.cli.application import COMMANDS, build, library
from filigree.optional import DISTRIBUTION
from filigree_launcher import describe, stored_help

ROOT = Path(__file__).parent.parent
STORED = [Path(module.__file__).parent / describe.FILE for module in (filigree_launcher, filigree_papers)]


def help_of(app, words, width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERMINAL_WIDTH", str(width))
    text = io.StringIO()
    with redirect_stdout(text):
        typer.main.get_command(app)(words, standalone_mode=False, prog_name="filigree")
    return text.getvalue()


def test_the_descriptions_are_current():
    papers = typer.Typer()
    filigree_papers.add_commands(papers)
    hint = "python -m filigree_launcher writes it again"
    assert STORED[0].read_text() == describe.text_of(describe.describe(library())), hint
    assert STORED[1].read_text() == describe.text_of(describe.describe(papers)), hint


@pytest.mark.parametrize("width", [80, 132])
def test_help_is_that_of_the_command_line(width, monkeypatch):
    app, stored = build(), stored_help.application([json.loads(file.read_text()) for file in STORED])
    for words in ([], *([name] for name in (*COMMANDS, "reproduce", "counts"))):
        expected = help_of(app, [*words, "--help"], width, monkeypatch)
        assert f"Usage: filigree {' '.join(words)}".rstrip() in expected
        assert help_of(stored, [*words, "--help"], width, monkeypatch) == expected


def test_help_and_version_load_no_torch():
    code = """import sys
sys.argv = ["filigree", *{words}]
from filigree_launcher import main
try:
    main()
except SystemExit as end:
    print(end.code, "torch" in sys.modules, "filigree" in sys.modules)"""
    for words, code_wanted in ((["--version"], None), (["--help"], 0), ([], 2), (["train", "--help"], 0)):
        done = subprocess.run([sys.executable, "-c", code.format(words=words)], capture_output=True, text=True)
        assert done.stdout.splitlines()[-1] == f"{code_wanted} False False", done.stderr


def test_what_is_not_stored_is_left_to_the_command_line(capsys):
    assert stored_help.show(["nonsense", "--help"], []) is None
    unknown = EntryPoint("other", "json", "filigree.extensions")  # a package without a description
    assert stored_help.show(["--help"], [unknown]) is None
    assert capsys.readouterr().out == ""


def test_interrupted_while_torch_is_imported(monkeypatch, capsys):
    class Interrupts:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name == "filigree.cli":
                raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["filigree", "list"])
    monkeypatch.delitem(sys.modules, "filigree.cli")
    monkeypatch.setattr(sys, "meta_path", [Interrupts, *sys.meta_path])
    with pytest.raises(SystemExit) as end:
        filigree_launcher.main()
    assert end.value.code == 130
    assert capsys.readouterr().err == "filigree: interrupted; nothing was begun.\n"


def test_one_name_of_the_distribution_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["name"] == DISTRIBUTION == filigree_launcher.DISTRIBUTION
    papers = tomllib.loads((ROOT / "papers" / "pyproject.toml").read_text())["project"]
    assert f"{DISTRIBUTION}[all]" in papers["dependencies"]
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "src").rglob("*.py")]
    for page in pages:  # nobody is sent to another project's package
        assert "pip install filigree\n" not in page.read_text()
        assert "pip install 'filigree[" not in page.read_text(), page
