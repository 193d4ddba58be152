"""One target under atheris: `python fuzz/harness.py NAME [libFuzzer's options] CORPUS`. `fuzz/run.py` calls it."""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

# whose branches count as new ground: what reads the bytes, since instrumenting everything takes minutes
READ_BY = {
    "model": ["filigree.storage", "filigree.saving", "filigree.config", "filigree.nn.sparse_layer",
              "filigree.nn.integer_code", "filigree.nn.integer_layer", "filigree.topology.sampling"],
    "checkpoint": ["filigree.storage", "filigree.train.checkpoints", "filigree.train.rng", "filigree.nn.sparse_layer",
                   "filigree.topology.sampling", "filigree.dynamics.evolution"],
    "recipe": ["filigree.recipes.recipe", "filigree.recipes.plain_yaml", "filigree.config", "yaml"],
    "record": ["filigree.train.records"],
    "npz": ["filigree.data.readers", "zipfile", "numpy.lib._format_impl"],
    "csv": ["filigree.data.readers", "numpy.lib._npyio_impl"],
    "mat": ["filigree.data.readers", "scipy.io.matlab"],
    "idx": ["filigree.data.readers", "gzip", "_compression"],
}  # fmt: skip

sys.path.insert(0, str(Path(__file__).parent))

if __name__ == "__main__":
    name = sys.argv.pop(1)
    with atheris.instrument_imports(include=READ_BY[name]):
        import targets
    atheris.Setup(sys.argv, targets.TARGETS[name])
    atheris.Fuzz()
