"""What is installed is pinned, hashed and licensed as docs/supply.md says."""

import re
import runpy
from pathlib import Path

ROOT = Path(__file__).parent.parent


def pinned(text):
    return {
        re.sub(r"[-_.]+", "-", name).lower(): version
        for name, version in re.findall(r"^([\w.-]+)==([\w.+-]+)", text, re.M)
    }


def test_the_lock_holds_the_versions_of_the_constraints_each_with_hashes():
    text = (ROOT / "requirements-dev.lock").read_text()
    assert pinned(text) == pinned((ROOT / "constraints.txt").read_text())
    for entry in re.split(r"^(?=[\w.-]+==)", text, flags=re.M)[1:]:
        assert "--hash=sha256:" in entry, entry


def test_everything_that_filigree_brings_along_has_a_licence_in_the_list():
    licences = runpy.run_path(str(ROOT / "docs" / "licences.py"))
    table = licences["PAGE"].read_text().split("|---|---|")[-1]
    listed = dict(re.findall(r"^\| ([\w-]+) \| (.+) \|$", table, re.M))
    here = {name for name in licences["needed"]() if not name.startswith(("nvidia-", "cuda-", "triton"))}
    assert {"torch", "numpy", "pydantic-core"} <= here <= listed.keys()
    permissive = re.compile(r"MIT|BSD|Apache|ISC|PSF|MPL|Mozilla")
    assert [name for name, text in listed.items() if not permissive.search(text) or "GPL" in text] == []
