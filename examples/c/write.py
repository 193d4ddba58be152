"""Digits in plain C: write a network that classifies, one that learns, and samples for both.

    python examples/c/write.py [FOLDER]          # FOLDER: runs/c
    make -C examples/c run emulated PROGRAMS=$PWD/runs/c

`classify.c` prints the class of each sample that it reads. `learn.c` sees a stream of labelled samples, as a device
does: it says what it takes each for, then learns from it, and prints how many of the last 1,000 were right. `make run`
compiles them for this machine, `make emulated` for a Cortex-M4 in qemu (docs/microcontroller.md says what that needs).
"""

import sys
from pathlib import Path

import numpy as np
import torch

import filigree as fg

PASSES = 5


def main(folder: Path) -> None:
    fg.seed_everything(0)
    data = fg.data.load("digits")
    model = fg.models.mlp([64, 48, 10])
    fg.fit(model, data.train, optimizer=torch.optim.Adam(model.parameters(), 3e-3), epochs=15, progress=False)
    fg.compress_(model, fg.RoundToNearest(4))
    learner = fg.models.mlp([64, 100, 10])
    fg.convert_(learner, fg.Sparse(fg.ErdosRenyi(density=0.2)), where=["fc1"])
    for name in ("digits", "learner"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    options = {"target": "cortex-m4", "flash": "64k", "ram": "64k"}
    print(fg.export(model, folder / "digits" / "digits.c", data.train.x, activations="int8", **options))
    print(fg.export(learner, folder / "learner" / "learner.c", training=True, batch=16, momentum=0.9, **options))
    data.test.x.numpy().astype("<f4").tofile(folder / "digits" / "input.bin")
    data.test.y.numpy().astype("<i4").tofile(folder / "digits" / "labels.bin")
    order = torch.cat([torch.randperm(len(data.train.x)) for _ in range(PASSES)])
    records = np.zeros(len(order), np.dtype([("x", "<f4", 64), ("label", "<i4")]))
    records["x"], records["label"] = data.train.x[order].numpy(), data.train.y[order].numpy()
    records.tofile(folder / "learner" / "input.bin")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/c"))
