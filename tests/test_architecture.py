"""What the documents say of the sources is true: CONTRIBUTING's tree names every folder, and the files that pages name
exist."""

import re
import subprocess
from pathlib import Path

import filigree_papers
import filigree_papers.data.tasks
import filigree_papers.models

ROOT = Path(__file__).parents[1]
LIBRARY = "src/filigree/"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def tree():
    """The paths that the tree names, folders with a slash at the end, in its order."""
    (block,) = re.findall(
        r"^```text\n(src/filigree/.*?)^```", (ROOT / "CONTRIBUTING.md").read_text(), flags=re.S | re.M
    )
    parents: list[str] = []
    for line in block.splitlines():
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        parents = [*parents[:depth], name]
        yield "".join(parents)


def folders():
    """The folders with a file that git knows: all of the library and of papers/, else those at the top."""
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    inside = {str(parent) for name in files for parent in Path(name).parents}
    deep = {
        name
        for name in inside
        if f"{name}/".startswith((LIBRARY, "src/filigree_launcher/", "papers/")) and "/tests/" not in name
    }
    return {f"{name}/" for name in deep | {name for name in inside if "/" not in name and name[0] != "."}} - {"src/"}


def test_the_tree_names_each_folder():
    if not (ROOT / ".git").exists():
        return test_what_the_tree_names_exists()  # an sdist: git cannot list the files
    named = {path for path in tree() if path.endswith("/")}
    assert named == folders()


def test_what_the_tree_names_exists():
    missing = [path for path in tree() if not (ROOT / path).exists()]
    assert not missing
    modules = {f"{LIBRARY}{file.name}" for file in (ROOT / LIBRARY).glob("*.py")} - {f"{LIBRARY}__init__.py"}
    assert modules <= set(tree())


def test_files_named_in_the_documentation_exist():
    roots = [ROOT, ROOT / "src" / "filigree", ROOT / "docs"]
    path = re.compile(r"`([\w./-]+/[\w.-]+\.(?:py|cpp|h|in|yaml|json|svg)|(?:src|papers)/[\w/-]+/)`")
    named = {(page.name, name) for page in PAGES for name in path.findall(page.read_text())}
    rows = (ROOT / "docs" / "ideas.md").read_text()
    named |= {("ideas.md", name) for name in re.findall(r"`([\w/]+/)`", rows)}
    assert len(named) > 150
    generated = re.compile(r"[A-Z]{3}|^runs/|block_diagonal")  # what a run writes; the example of a new layer
    missing = [
        f"{page}: {name}" for page, name in sorted(named)
        if not generated.search(name) and not any((root / name).exists() for root in roots)
    ]  # fmt: skip
    assert not missing, "\n".join(missing)


def test_every_name_of_the_papers_is_on_their_page():
    text = (ROOT / "docs" / "api-papers.md").read_text()
    listed = set(re.findall(r"^::: filigree_papers\.(\w+(?:\.\w+)*)$", text, flags=re.M))
    for module in (filigree_papers.data, filigree_papers.data.tasks, filigree_papers.models):
        prefix = module.__name__.removeprefix("filigree_papers.") + "."
        assert {prefix + name for name in module.__all__} - {"data.tasks"} <= listed
