"""Accuracy against flash: MNIST at 16 x 16 by every method that makes a network's weights few or small.

    python benchmarks/flash_curve.py --out benchmarks/results/flash_curve.json

The network of `examples/mnist_in_16_kib.py` is trained once in floats, and once for each method that acts while it
trains; what is compressed afterwards gets 2,000 training images, without labels. Each result is written as a C
program of 8-bit activations for a Cortex-M4: flash and RAM are by the linker and a painted stack, instructions by the
emulator, the accuracy is that of the program (equal bit for bit to `Int8Network`) on the 10,000 test images. The
record holds a row a program and goes on where it was cut off; `python docs/tables.py` draws the table and the picture
from it.
"""

from __future__ import annotations

import argparse
import copy
import json
import runpy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import filigree as fg
from filigree.export.c.int8_network import Int8Network
from filigree.io.storage import write_json
from filigree.train import Record

example = runpy.run_path(str(Path(__file__).parent.parent / "examples" / "mnist_in_16_kib.py"))

Trained = tuple[Callable[[nn.Module], Any] | None, Callable[..., Any] | None]  # before and while a network trains
INNER = ["3", "6", "11"]  # all layers but the first convolution, which has 400 weights


def _sparse(topology: Any) -> Callable[[nn.Module], Any]:
    return lambda model: fg.convert_(model, fg.Sparse(topology), where=INNER)


TRAINED: dict[str, Trained] = {
    "dense": (None, None),
    "static, half of the connections": (_sparse(fg.ErdosRenyiKernel(0.5)), None),
    "SET, half of the connections": (_sparse(fg.ErdosRenyiKernel(0.5)), lambda m, o: fg.SET(m, o, 0.1)),
    "SET, a fourth": (_sparse(fg.ErdosRenyiKernel(0.25)), lambda m, o: fg.SET(m, o, 0.1)),
    "RigL, a fourth": (_sparse(fg.ErdosRenyiKernel(0.25)), lambda m, o: fg.RigL(m, o, 0.3)),
    "RigL, a tenth": (_sparse(fg.ErdosRenyiKernel(0.1)), lambda m, o: fg.RigL(m, o, 0.3)),
    "AnnealedTopK, a fourth": (_sparse(fg.topology.Full()), lambda m, o: fg.AnnealedTopK(m, o, 0.25)),
    "AnnealedTopK, a tenth": (_sparse(fg.topology.Full()), lambda m, o: fg.AnnealedTopK(m, o, 0.1)),
}
COMPRESSED: dict[str, list[Any]] = {  # of the network that was trained dense
    "RoundToNearest(8)": [fg.RoundToNearest(8)],
    "RoundToNearest(4)": [fg.RoundToNearest(4)],
    "RoundToNearest(3)": [fg.RoundToNearest(3)],
    "RoundToNearest(2)": [fg.RoundToNearest(2)],
    "MonteCarlo, 2 samples a weight": [fg.MonteCarlo(2.0, per="filter")],
    "MonteCarlo, 1 sample": [fg.MonteCarlo(1.0, per="filter")],
    "MonteCarlo, half a sample": [fg.MonteCarlo(0.5, per="filter")],
    "MonteCarlo, a fourth": [fg.MonteCarlo(0.25, per="filter")],
    "OneShot, 4 bits": [fg.OneShot(sparsity=0.0, bits=4)],
    "OneShot, 3 bits": [fg.OneShot(sparsity=0.0, bits=3)],
    "OneShot, 2 bits": [fg.OneShot(sparsity=0.0, bits=2)],
    "OneShot, 50% zeros, 4 bits": [fg.OneShot(sparsity=0.5, bits=4)],
    "OneShot, 50% zeros, 3 bits": [fg.OneShot(sparsity=0.5, bits=3)],
    "OneShot, 70% zeros, 4 bits": [fg.OneShot(sparsity=0.7, bits=4)],
    "OneShot, 80% zeros, 4 bits": [fg.OneShot(sparsity=0.8, bits=4)],
    "OneShot, 90% zeros, 4 bits": [fg.OneShot(sparsity=0.9, bits=4)],
    "OneShot by magnitude, 70% zeros, 4 bits": [fg.OneShot(sparsity=0.7, bits=4, method="magnitude")],
    "SubsetPruning(3/4), 4 bits": [fg.SubsetPruning(keep=0.75), fg.OneShot(sparsity=0.0, bits=4)],
    "SubsetPruning(1/2), 4 bits": [fg.SubsetPruning(keep=0.5), fg.OneShot(sparsity=0.0, bits=4)],
    "SubsetPruning(3/4), 50% zeros, 4 bits": [fg.SubsetPruning(keep=0.75), fg.OneShot(sparsity=0.5, bits=4)],
    "ClusterPruning(3/4), 4 bits": [fg.ClusterPruning(keep=0.75), fg.OneShot(sparsity=0.0, bits=4)],
    "MagnitudePruning(3/4), 4 bits": [fg.MagnitudePruning(keep=0.75), fg.OneShot(sparsity=0.0, bits=4)],
    "SubsetPruning(3/4), MonteCarlo, 1 sample": [fg.SubsetPruning(keep=0.75), fg.MonteCarlo(1.0, per="filter")],
}


def trained(name: str, data: Any, epochs: int, folder: Path) -> nn.Module:
    """The network, trained as the example trains it; kept in the folder."""
    file = folder / f"{name}.safetensors"
    before, during = TRAINED[name]
    fg.seed_everything(0)
    model = example["network"]()
    if file.exists():
        return fg.load(file, into=model)
    if before:
        before(model)
    train = data[0]
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, epochs * -(-len(train[0]) // 128))
    moved = fg.data.Augment((1, 16, 16), float(train[0].min()), rotation=10, shift=0.06, flip=False)
    callbacks = [fg.each_step(schedule), *([during] if during else [])]
    fg.fit(model, train, optimizer=optimizer, epochs=epochs, augment=moved, callbacks=callbacks, progress=False)
    fg.save(model.eval(), file)
    return model


def row_of(model: nn.Module, data: Any, calibration: torch.Tensor) -> dict[str, Any]:
    accuracy = fg.evaluate(Int8Network(model, calibration), data[1])["accuracy"]
    with tempfile.TemporaryDirectory() as folder:
        report = fg.export(model, Path(folder) / "m.c", calibration, activations="int8", target="cortex-m4")
    device = report.device.to_dict()
    kept = {key: device[key] for key in ("flash", "ram", "weights", "instructions", "weighed", "timed")}
    return {"accuracy": accuracy, **kept, "forms": [str(layer.form) for layer in report.layers if layer.bytes]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--models", type=Path, default=Path("runs/flash-curve"), help="trained networks are kept here")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.models.mkdir(parents=True, exist_ok=True)
    head, settings = Record.start(), {"epochs": options.epochs, "seed": 0}
    record: dict[str, Any] = {"settings": settings, "machine": head.machine, "versions": head.versions}
    record |= {"rows": []}
    if options.out.exists():
        record = json.loads(options.out.read_text())
        if record["settings"] != settings:
            parser.error(f"{options.out} holds rows of other settings: {record['settings']}")
    mnist = fg.data.load("mnist")
    data = [(example["smaller"](part.x), part.y) for part in (mnist.train, mnist.test)]
    calibration = data[0][0][:2000]

    def add(name: str, kind: str, model: nn.Module, floats: float | None = None) -> None:
        row = {"method": name, "kind": kind, "commit": head.commit, "accuracy_floats": floats}
        row |= row_of(model, data, calibration)
        record["rows"].append(row)
        write_json(options.out, record)
        print(f"{name}: {row['accuracy']:.2%}, {row['flash']:,} bytes of flash, {row['ram']:,} of RAM", flush=True)

    done = {row["method"] for row in record["rows"]}
    dense = trained("dense", data, options.epochs, options.models).eval()
    for name, steps in COMPRESSED.items():
        if name not in done:
            model = copy.deepcopy(dense)
            for step in steps:
                fg.compress_(model, step, calibration)
            add(name, "compressed", model)
    for name in list(TRAINED)[1:]:
        if f"{name}, 4 bits" not in done:
            model = trained(name, data, options.epochs, options.models).eval()
            floats = fg.evaluate(model, data[1])["accuracy"]
            fg.compress_(model, fg.RoundToNearest(4))
            add(f"{name}, 4 bits", "trained", model, floats)


if __name__ == "__main__":
    main()
