"""Learning in C beside AIfES, on the network and data of the MNIST example that AIfES publishes: 784-10-10-10.

    python benchmarks/aifes.py --out benchmarks/results/aifes.json

Ours, dense and with a tenth of the connections of the first layer, is written for a Cortex-M4: RAM and flash are by the
linker and a painted stack, instructions by the emulator; the same C, compiled for this machine, learns from the first
30,000 images of MNIST, as in the example, an image a step, at the best of four rates, and its accuracy is that on the
test set. AIfES is not run here: its RAM is what its source asks for, `aialgo_sizeof_parameter_memory` and
`aialgo_sizeof_training_memory` of version 2.2.0 (github.com/Fraunhofer-IMS/AIfES_for_Arduino), which `aifes_memory`
adds up. The code, its stack, the structs of layers and tensors, and the data are not in that number, and its flash and
instructions are not known.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

import filigree as fg
from filigree.io.storage import write_json
from filigree.train import Record

WIDTHS, IMAGES, EPOCHS = (784, 10, 10, 10), 30_000, 5
RATES = (1e-4, 3e-4, 1e-3, 3e-3)  # ten times as much without momentum; the best on the last 10,000 training images
_TENSOR = 20  # bytes of a tensor's struct on a 32-bit processor: three pointers more than a type and a dimension
LEARNING = {"SGD": 0, "SGD with momentum": 1, "Adam": 2}  # numbers that are kept for each parameter


def aifes_memory(widths: Sequence[int], kept: int) -> dict[str, int]:
    """Add up the bytes that AIfES asks for to train dense layers of float32, a sample at a time, with activations.

    Args:
        widths: of the input and the layers. kept: how many numbers the optimizer keeps for each parameter.

    Returns:
        parameters; results of all layers, the input and activations among them; gradients, summed over the batch; what
        the optimizer keeps; the gradient of one sample, for the largest layer; `ram`, the sum.
    """
    pairs = list(itertools.pairwise(widths))
    parameters = 4 * sum((before + 1) * after for before, after in pairs)
    memory = {
        "parameters": parameters,
        "results": 4 * (widths[0] + 2 * sum(widths[1:])),
        "gradients": parameters + 2 * _TENSOR * len(pairs),
        "optimizer": kept * parameters,
        "gradient of a sample": 4 * max(before * after for before, after in pairs),
    }
    return memory | {"ram": sum(memory.values())}


def network(density: float) -> nn.Module:
    fg.seed_everything(0)
    model = fg.models.mlp(list(WIDTHS))
    if density < 1:
        fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=density)), where=["fc1"])
    return model


def row_of(density: float, momentum: float, learner: Any, data: Any) -> dict[str, Any]:
    """Let a network learn, and weigh it."""
    x, test = data.train.x.flatten(1), data.test.x.flatten(1)
    tried = []
    with tempfile.TemporaryDirectory() as folder:
        for number, rate in enumerate(RATES if momentum else [10 * rate for rate in RATES]):
            own = learner.Learner(Path(folder), f"learner{number}", network(density), x, momentum=momentum)
            own.learn(x[:IMAGES], data.train.y[:IMAGES], rate, EPOCHS, 0.3 if density < 1 else 0.0)
            tried.append((own.accuracy(x[-10_000:], data.train.y[-10_000:]), rate, own.accuracy(test, data.test.y)))
        _, rate, accuracy = max(tried)
        predicting = fg.export(network(density), Path(folder) / "m.c", target="cortex-m4").device
    step = own.device
    return {
        "density": density, "momentum": momentum, "rate": rate, "accuracy": accuracy,
        "ram": step.ram, "flash": step.flash, "instructions": step.instructions, "timed": step.timed,
        "predicting": {"ram": predicting.ram, "flash": predicting.flash, "instructions": predicting.instructions},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    path = Path(__file__).parent.parent / "examples" / "learn_mnist_in_64_kib.py"
    spec = importlib.util.spec_from_file_location("learner", path)
    assert spec is not None
    assert spec.loader is not None
    learner = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(learner)
    learner.RAM = 256 * 1024  # the dense network needs more than the example's
    head, data = Record.start(), fg.data.load("mnist")
    record: dict[str, Any] = {"machine": head.machine, "versions": head.versions, "commit": head.commit}
    record["settings"] = {"widths": WIDTHS, "images": IMAGES, "epochs": EPOCHS, "rates": RATES, "seed": 0}
    record["aifes"] = {name: aifes_memory(WIDTHS, kept) for name, kept in LEARNING.items()}
    record["rows"] = []
    for density, momentum in itertools.product((1.0, 0.1), (0.0, 0.9)):
        record["rows"].append(row_of(density, momentum, learner, data))
        print(record["rows"][-1], flush=True)
    write_json(options.out, record)


if __name__ == "__main__":
    main()
