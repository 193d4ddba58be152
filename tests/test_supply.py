"""What is installed is pinned, hashed and licensed as docs/supply.md says."""

import re
import runpy
import tomllib
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


LICENCES = runpy.run_path(str(ROOT / "docs" / "licences.py"))


def brought_by(*extras):
    """What an installation of filigree brings along, without torch's parts for CUDA."""
    requirements = [text for extra in ("", *extras) for text in LICENCES["declared"](extra)]
    return {name for name in LICENCES["needed"](requirements) if not name.startswith(("nvidia-", "cuda-", "triton"))}


def test_everything_that_filigree_and_its_extras_bring_along_has_a_licence_in_the_list():
    table = LICENCES["PAGE"].read_text().split("|---|---|---|")[-1]
    rows = re.findall(r"^\| ([\w-]+) \| (.+) \| (.+) \|$", table, re.M)
    listed = {name: licence for name, licence, _ in rows}
    assert {"torch", "numpy", "pydantic-core"} <= brought_by() <= {name for name, _, by in rows if by == "filigree"}
    assert {"plotly", "scikit-learn", "onnx"} <= brought_by("all") <= listed.keys()
    permissive = re.compile(r"MIT|BSD|Apache|ISC|PSF|Python Software Foundation|MPL|Mozilla")
    assert [name for name, text in listed.items() if not permissive.search(text) or "GPL" in text] == []


def test_the_demo_installs_at_most_a_third_of_what_development_does():
    torch = LICENCES["needed"](["torch"]).keys()
    demo, dev = brought_by("demo") - torch, brought_by("dev") - torch
    assert {"plotly", "scikit-learn", "rich"} <= demo
    assert not demo & {"accelerate", "lightning", "transformers", "onnx", "mkdocs", "tensorboard", "optuna"}
    assert 3 * len(demo) <= len(dev)


def test_each_extra_is_part_of_all_or_named_as_left_out():
    parts = re.findall(r"[\w]+", LICENCES["declared"]("all")[0].partition("[")[2])
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"].keys()
    assert extras - set(parts) == {"all", "ray", "demo", "bench", "docs", "dev", "gpu", "parquet"}
    assert brought_by("demo") <= brought_by("all")
