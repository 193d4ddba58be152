"""`make soak`: 500 epochs of rewiring, watched: memory, open files, connections, the index and its transpose.

A sparse network is trained and rewired after every epoch, with a checkpoint and a record each time, by SET and by RigL.
After a warm-up the resident memory must not grow by more than 2%, and the number of open files and of connections must
stay what it is. FILIGREE_DEBUG=1 has every rewiring checked: the index sorted and in range, its transpose of the same
topology.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import torch
from kept import Line, keep

import filigree as fg
from filigree.dynamics.consistency import is_transpose
from filigree.nn import SparseLinear
from filigree.train import FitState, seed_everything

HERE = Path(__file__).parent
WARM_UP = 0.1  # of the epochs
TOLERANCE = 0.02  # of the resident memory


class Watch:
    """A hook that writes down, after each rewiring, what must not change."""

    def __init__(self, say: Line, name: str) -> None:
        self.say, self.name, self.process = say, name, psutil.Process()
        self.rss: list[int] = []
        self.files: list[int] = []
        self.nnz: list[list[int]] = []
        self.wrong = 0
        self.flat_indices: list[torch.Tensor] = []

    def on_epoch_end(self, state: FitState) -> None:
        layers = [module for module in state.model.modules() if isinstance(module, SparseLinear)]
        gc.collect()  # what only waits to be collected, or to be given back to the system, is no growth
        ctypes.CDLL(None).malloc_trim(0)
        self.rss.append(self.process.memory_info().rss)
        self.files.append(self.process.num_fds())
        self.nnz.append([layer.nnz for layer in layers])
        self.wrong += sum(not is_transpose(layer.pattern) for layer in layers)
        if state.epoch in (0, state.epochs - 1):
            self.flat_indices.append(layers[0].flat_indices())
        self.say(f"{self.name}: epoch {state.epoch + 1} of {state.epochs}, {self.rss[-1] / 2**20:.1f} MiB resident")

    def figures(self) -> dict[str, Any]:
        warm = max(1, int(WARM_UP * len(self.rss)))
        first, after = self.rss[warm - 1], self.rss[warm:]
        moved = len(set(self.flat_indices[0].tolist()) - set(self.flat_indices[-1].tolist()))
        return {
            "epochs": len(self.rss), "rss_mib_after_warm_up": round(first / 2**20, 2),
            "rss_mib_at_the_end": round(after[-1] / 2**20, 2),
            "rss_growth_at_most": round(max(after) / first - 1, 5), "rss_mib_least": round(min(after) / 2**20, 2),
            "open_files": sorted(set(self.files[warm:])), "nnz": sorted(set(map(tuple, self.nnz))),
            "transposes_checked": len(self.nnz) * len(self.nnz[0]), "transposes_wrong": self.wrong,
            "connections_of_the_first_layer_that_are_new": moved,
        }  # fmt: skip


def soak(epochs: int, grow: Any, folder: Path, say: Line) -> dict[str, Any]:
    """One run. Returns its figures."""
    seed_everything(0)
    began = time.monotonic()
    model = fg.models.mlp([784, 1000, 1000, 1000, 10], dropout=0.3)
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(epsilon=20)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    evolution = fg.Evolution(model, optimizer, fg.Constant(0.3), grow=grow)
    y = torch.arange(1024) % 10
    x = torch.randn(10, 784)[y] + torch.randn(1024, 784)
    watch = Watch(say, grow)
    fg.fit(
        model, (x, y), optimizer=optimizer, epochs=epochs, validation=(x[:256], y[:256]),
        callbacks=[evolution, watch], checkpoint=folder, record=folder, progress=False,
    )  # fmt: skip
    return watch.figures() | {"seconds": round(time.monotonic() - began, 1)}


def failures(figures: dict[str, Any]) -> list[str]:
    """What must hold and does not."""
    wrong = {
        f"resident memory grew by more than {TOLERANCE:.0%}": figures["rss_growth_at_most"] > TOLERANCE,
        "the number of open files changed": len(figures["open_files"]) > 1,
        "the number of connections changed": len(figures["nnz"]) > 1,
        "an index and its transpose differ": figures["transposes_wrong"] > 0,
        "nothing was rewired": figures["connections_of_the_first_layer_that_are_new"] == 0,
    }
    return [what for what, holds in wrong.items() if holds]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=500, help="of each run (default 500)")
    parser.add_argument("--grow", choices=("random", "gradient"), help="only this growth; by default both in turn")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "soak.json", help="the record")
    options = parser.parse_args()
    os.environ["FILIGREE_DEBUG"] = "1"
    torch.set_num_threads(1)
    gc.freeze()  # of what is there by now nothing will go: `gc.collect` need not look at it
    runs, line = dict[str, Any](), Line()
    for grow in (options.grow,) if options.grow else ("random", "gradient"):
        with tempfile.TemporaryDirectory(prefix="soak-") as folder:
            runs[grow] = soak(options.epochs, grow, Path(folder), line)
    wrong = [f"{grow}: {what}" for grow, figures in runs.items() for what in failures(figures)]
    keep(options.out, {"runs": runs, "failures": wrong})
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
