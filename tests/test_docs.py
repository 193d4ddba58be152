"""The documentation: it builds strictly, its programs and commands run as they stand, and it names what there is."""

import importlib.util
import itertools
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

import filigree as fg
from filigree import recipes
from filigree.cli import build

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
WRITTEN = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS]
ONNX = ("onnx", "onnxruntime", "onnxscript")  # of the extra `onnx`
NEEDS = {"tutorial": ONNX, "export": ONNX}
ids = {"ids": lambda page: page.stem}


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.S | re.M)


def run(page, names):
    """A page is read from its top: a block goes on where the one above stopped."""
    for program in blocks(page, "python"):
        exec(compile(program, page.name, "exec"), names)
    return names


def test_the_program_in_the_readme(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert len(blocks(ROOT / "README.md", "python")) == 1
    run(ROOT / "README.md", {})
    assert "training step" in capsys.readouterr().out
    assert (tmp_path / "model.safetensors").is_file()


LONG = {
    "tutorial": "trains and compares several networks", "transformers": "trains five decoders",
    "index": "README's programs again",
}  # fmt: skip
PAGES = [
    pytest.param(page, marks=pytest.mark.long(LONG[page.stem])) if page.stem in LONG else page
    for page in DOCS if blocks(page, "python")
]  # fmt: skip


@pytest.mark.parametrize("page", PAGES, **ids)
def test_programs_in_the_documentation(page, tmp_path, monkeypatch, capsys):
    for package in NEEDS.get(page.stem, ()):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    run(page, {})
    programs = [block for block in blocks(page, "c") if "int main" in block]  # the others are lines of one
    if programs and shutil.which("cc") is None:
        pytest.skip("no C compiler")
    for program in programs:  # against what the page's Python left here, by the page's own commands
        (tmp_path / "main.c").write_text(program)
        (build,) = [block for block in blocks(page, "sh") if block.startswith("cc ")]
        done = subprocess.run(["bash", "-ec", build], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert f"torch says {done.stdout.split()[-1]}\n" in capsys.readouterr().out


def commands(page):
    """Every `filigree ...` of the shell blocks, as lists of words."""
    for line in "\n".join(blocks(page, "sh")).replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|")
        lexer.whitespace_split = True
        for is_end, words in itertools.groupby(lexer, key={";", "&&", "|"}.__contains__):
            first, *rest = words
            if not is_end and Path(first).name == "filigree":
                yield rest


@pytest.mark.parametrize("page", [page for page in WRITTEN if list(commands(page))], **ids)
def test_commands_are_what_the_command_line_takes(page):
    group = typer.main.get_command(build())
    for name, *arguments in commands(page):
        if name.startswith("-"):
            assert name == "--help" or any(name in option.opts for option in group.params), name
            continue
        known_recipe(name, group.commands[name].make_context(name, arguments).params.get("recipe"))


@pytest.mark.parametrize("page", WRITTEN, **ids)
def test_commands_in_the_text_exist(page):
    group = typer.main.get_command(build())
    for name, word in re.findall(r"`(?:\S*/)?filigree ([a-z_]+)(?: ([\w.-]+))?", page.read_text()):
        assert name in group.commands, f"filigree {name}"
        known_recipe(name, word)


def known_recipe(command, word):
    """A word after `train` or `sweep` is a recipe of the library or of papers/; words in capitals stand for any."""
    if word and not word.startswith("-") and not word.isupper() and command in ("train", "sweep"):
        of_papers = {file.stem for file in (ROOT / "papers/src/filigree_papers/recipes").glob("*.yaml")}
        assert word in {*recipes.names(), *of_papers}, f"filigree {command} {word}"


def test_every_public_name_is_on_the_api_page():
    listed = set(re.findall(r"^::: filigree\.(\w+(?:\.\w+)*)$", (ROOT / "docs" / "api.md").read_text(), flags=re.M))
    fronts = {name.partition(".")[0] for name in listed}
    assert set(fg.__all__) <= fronts
    for module in (fg.nn, fg.models, fg.data, fg.topology, fg.ops):
        prefix = module.__name__.removeprefix("filigree.") + "."
        missing = {
            name for name in module.__all__
            if name not in fronts and not any(entry.startswith(prefix + name) for entry in listed)
        }  # fmt: skip
        assert missing <= {"SUFFIXES", "compiled", "kernels", "builder", "made_by"}, f"{module.__name__}: {missing}"


def test_files_named_in_the_documentation_exist():
    rows = [line for line in (ROOT / "docs" / "ideas.md").read_text().splitlines() if line.startswith("|")]
    named = re.findall(r"`([\w/]+(?:\.(?:py|cpp|yaml)|/))`", "".join(rows))
    assert len(named) > 80
    for name in named:
        assert (ROOT / "src" / "filigree" / name).exists() or (ROOT / name).exists(), name


def test_tables_are_those_of_the_records():
    tables = runpy.run_path(str(ROOT / "docs" / "tables.py"))
    for page in tables["PAGES"]:
        text = (ROOT / page).read_text()
        assert tables["filled"](text) == text, f"{page}: run `python docs/tables.py`"


@pytest.mark.long("mkdocs imports and renders all pages")
def test_the_site_builds_strictly(tmp_path):
    if importlib.util.find_spec("mkdocs") is None or importlib.util.find_spec("mkdocstrings") is None:
        pytest.skip("the extra `docs` is not installed: mkdocs-material and mkdocstrings")
    # without --quiet, which hides warnings from --strict
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
    page = (tmp_path / "api.html").read_text()
    assert 'id="filigree.convert_"' in page
    assert "topology" in page[page.index('id="filigree.Sparse"') :][:2000]  # configs show their arguments
    outside = re.findall(r'(?:src|href)="(https?://[^"]+)"', "".join(p.read_text() for p in tmp_path.glob("*.html")))
    assert not [link for link in outside if link.endswith((".css", ".js", ".woff2"))]  # it works offline
