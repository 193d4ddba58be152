"""The library without extensions, with one, and with one that is broken."""

import importlib.metadata
import importlib.resources
import os
import subprocess
import sys

import pytest

from command_line import call
from filigree import recipes
from filigree.extensions import GROUP, extensions
from filigree.recipes import RecipeError


@pytest.fixture
def no_extension(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **_: importlib.metadata.EntryPoints())
    extensions.cache_clear()
    yield
    extensions.cache_clear()


@pytest.mark.parametrize("arguments", [["reproduce"], ["reproduce", "x", "--quick"], ["counts"]])
def test_commands_of_an_absent_package_say_how_to_get_it(no_extension, monkeypatch, capsys, arguments):
    code, out, err = call(monkeypatch, capsys, *arguments)
    assert (code, out) == (1, "")
    (line,) = err.splitlines()
    assert line.startswith(f"filigree: {arguments[0]}: ")
    assert "pip install ./papers" in line


def test_the_list_without_extensions(no_extension, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    code, out, err = call(monkeypatch, capsys, "list")
    assert (code, err) == (0, "")
    own = {file.name.removesuffix(".yaml") for file in importlib.resources.files("filigree.recipes").iterdir()
           if file.name.endswith(".yaml") and not file.name.startswith("_")}  # fmt: skip
    assert set(recipes.names()) == own
    assert all(name in out for name in own)
    assert "filigree reproduce" not in out
    with pytest.raises(RecipeError, match="there is no recipe 'fashion-3x1000'"):
        recipes.load("fashion-3x1000")


def test_the_report_without_extensions(no_extension, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, _, err = call(monkeypatch, capsys, "report")
    assert (code, err) == (0, "")
    assert sorted(file.name for file in (tmp_path / "report").iterdir()) == ["index.html", "plotly.min.js"]
    page = (tmp_path / "report" / "index.html").read_text()
    assert "documents" not in page.partition("<body")[2]


def test_the_help_has_no_absent_commands(no_extension, monkeypatch, capsys):
    code, out, _ = call(monkeypatch, capsys, "--help")
    assert code == 0
    assert "train" in out
    assert "counts" not in out


@pytest.fixture
def environment(tmp_path):
    """Of processes that have one more package installed, with `extension.py` as its extension."""
    folder = tmp_path / "some_package-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: some-package\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(f"[{GROUP}]\nextra = extension\n")
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}


def python(environment, *arguments):
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)


def test_extensions_are_loaded_when_they_are_needed(environment, tmp_path):
    (tmp_path / "extension.py").write_text("import pathlib\nRECIPES = pathlib.Path(__file__).parent\n")
    (tmp_path / "mine.yaml").write_text("extends: demo\nabout: Mine.\n")
    program = """
import sys, filigree as fg
from filigree import recipes
recipes.load("demo"), fg.models.build("mlp", sizes=[2, 2])
assert not {"extension", "filigree_papers"} & sys.modules.keys()
assert recipes.load("mine").about == "Mine."
assert "extension" in sys.modules
"""
    done = python(environment, "-c", program)
    assert (done.returncode, done.stderr) == (0, "")
    program = """
import sys, filigree as fg
try:
    fg.models.build("nothing")
except ValueError as error:
    assert "name must be one of" in str(error)
assert "extension" in sys.modules
"""
    done = python(environment, "-c", program)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import a_module_that_is_absent", "ModuleNotFoundError: No module named 'a_module_that_is_absent'"),
        ("def add_commands(app):\n    raise RuntimeError('two\\nlines')", "RuntimeError: two lines"),
    ],
)
def test_a_broken_extension_is_named_in_a_line(environment, tmp_path, text, reason):
    (tmp_path / "extension.py").write_text(text)
    done = python(environment, "-m", "filigree.cli", "--help")
    assert done.returncode == 0
    assert "demo" in done.stdout
    (line,) = done.stderr.splitlines()
    package = "some-package" if "import" in text else "extension"
    assert line == f"filigree: the extension {package} cannot be loaded and is left out: {reason}"
