"""The console script: what it shows without torch is what the command line itself shows."""

import json
import os
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import filigree_launcher
import filigree_papers
from filigree.cli.application import COMMANDS
from filigree.optional import DISTRIBUTION
from filigree.torch_version import refuse_old_torch
from filigree_launcher import describe, stored_help

ROOT = Path(__file__).parent.parent
STORED = [Path(module.__file__).parent / describe.FILE for module in (filigree_launcher, filigree_papers)]


WIDTHS = 80, 132
HELPS = """import io, os
from contextlib import redirect_stdout
import typer
def helps_of(app, commands, width):
    os.environ["COLUMNS"] = os.environ["TERMINAL_WIDTH"] = str(width)
    texts = {}
    for words in ([], *([name] for name in commands)):
        text = io.StringIO()
        with redirect_stdout(text):
            typer.main.get_command(app)([*words, "--help"], standalone_mode=False, prog_name="filigree")
        texts[" ".join(words)] = text.getvalue()
    return texts
"""


def in_a_new_process(code):
    """What the code writes as JSON; tests of this process have registered configs of their own, which help lists."""
    done = subprocess.run([sys.executable, "-c", HELPS + code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_descriptions_are_current():
    texts = in_a_new_process("""
import json, filigree_papers
from filigree.cli.application import library
from filigree_launcher.describe import describe, text_of
papers = typer.Typer()
filigree_papers.add_commands(papers)
print(json.dumps([text_of(describe(app)) for app in (library(), papers)]))""")
    for file, text in zip(STORED, texts, strict=True):
        assert file.read_text() == text, "python -m filigree_launcher writes it again"


def test_help_is_that_of_the_command_line():
    commands = [*COMMANDS, "reproduce", "counts"]
    helps = f"print(json.dumps([helps_of(app, {commands}, width) for width in {WIDTHS}]))"
    expected = in_a_new_process(f"""
import json
from filigree.cli.application import build
app = build()
{helps}""")
    for texts in expected:
        assert all(f"Usage: filigree {words}".rstrip() in text for words, text in texts.items())
    assert expected == in_a_new_process(f"""
import json
from pathlib import Path
from filigree_launcher import stored_help
app = stored_help.application([json.loads(Path(file).read_text()) for file in {[str(file) for file in STORED]}])
{helps}""")


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


@pytest.mark.parametrize(("torch", "message"), [
    ('__version__ = "2.6.0"', "filigree: filigree needs torch 2.11 or newer. Got 2.6.0: pip install 'torch>=2.11'"),
    ('raise ModuleNotFoundError("No module named \'torch\'", name="torch")', "filigree: No module named 'torch'"),
])  # fmt: skip
def test_a_torch_that_is_too_old_or_absent_is_one_line(torch, message, tmp_path):
    (tmp_path / "torch.py").write_text(torch)
    code = "from filigree_launcher import main; main()"
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code, "list"], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith(message)


def test_versions_of_torch():
    for version in ("2.11.0+cpu", "2.13.0a0+git1234", "3.0.0"):
        refuse_old_torch(version)
    for version in ("2.10.1", "1.13.1+cu117"):
        with pytest.raises(ImportError, match=r"2\.11 or newer\. Got"):
            refuse_old_torch(version)


def test_one_name_of_the_distribution_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["name"] == DISTRIBUTION == filigree_launcher.DISTRIBUTION
    papers = tomllib.loads((ROOT / "papers" / "pyproject.toml").read_text())["project"]
    assert f"{DISTRIBUTION}[all]" in papers["dependencies"]
    citation, conda = ((ROOT / file).read_text() for file in ("CITATION.cff", "packaging/conda/meta.yaml"))
    assert papers["version"] == project["version"]
    assert f"version: {project['version']}\n" in citation
    assert f'version: "{project["version"]}"\n' in conda
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "src").rglob("*.py")]
    for page in pages:  # nobody is sent to another project's package
        assert "pip install filigree\n" not in page.read_text()
        assert "pip install 'filigree[" not in page.read_text(), page
