"""One target under atheris: `python fuzz/harness.py NAME [libFuzzer's options] CORPUS`. `fuzz/run.py` calls it."""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

import atheris

# whose branches count as new ground: what reads the bytes, since instrumenting everything takes minutes
READ_BY = {
    "model": [
        "filigree.io.storage", "filigree.io.saving", "filigree.config", "filigree.nn.sparse.sparse_layer",
        "filigree.nn.integer.integer_code", "filigree.nn.integer.integer_layer", "filigree.topology.flat_indices",
    ],
    "checkpoint": [
        "filigree.io.storage", "filigree.train.checkpoints", "filigree.train.rng", "filigree.nn.sparse.sparse_layer",
        "filigree.topology.flat_indices", "filigree.dynamics.evolution",
    ],
    "recipe": ["filigree.recipes.recipe", "filigree.recipes.plain_yaml", "filigree.config", "yaml"],
    "record": ["filigree.train.records"],
    "npz": ["filigree.data.readers", "zipfile", "numpy.lib._format_impl"],
    "csv": ["filigree.data.readers", "numpy.lib._npyio_impl"],
    "mat": ["filigree.data.readers", "filigree.data.matlab"],
    "idx": ["filigree.data.readers", "gzip", "_compression"],
}  # fmt: skip

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
import kernels  # noqa: E402 - beside this file; torch comes with it, before the compiled kernels


def as_plain_files() -> None:
    """Import an editable install from its source folder: atheris sees no branches through that install's own loader."""
    finders = [finder for finder in sys.meta_path if type(finder).__name__ == "ScikitBuildRedirectingFinder"]
    if not finders:
        return
    sys.meta_path.remove(finders[0])
    sys.path.insert(0, str(HERE.parent / "src"))
    compiled = Path(sysconfig.get_path("platlib"), "filigree", "ops").glob("_kernels*.so")
    kernels.load(str(next(compiled)))


if __name__ == "__main__":
    name = sys.argv.pop(1)
    as_plain_files()
    with atheris.instrument_imports(include=READ_BY[name]):
        import targets
    command = f"{sys.executable} {sys.argv[0]} {name}"  # by which libFuzzer calls itself when it merges
    atheris.Setup([command, *sys.argv[1:]], targets.TARGETS[name])
    atheris.Fuzz()
