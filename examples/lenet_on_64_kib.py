"""LeNet-300-100 for a device with 64 KiB of flash: trained on MNIST, pruned, quantised, written as C, and tested as C.

    python examples/lenet_on_64_kib.py [FOLDER]    # about a minute on one core

The files go to FOLDER, by default runs/lenet. With seed 0: 97.8% of the test set trained, 96.4% with a fourth of the
units, 95.0% quantised and the same in C, in 31.5 kB of flash.

Needs MNIST (see FILIGREE_DATA in the README) and a C compiler.
"""

import ctypes
import subprocess
import sys
from pathlib import Path

import torch

import filigree as fg

FLASH = 64 * 1024  # bytes


def trained(data: fg.data.DataSet, epochs: int = 4) -> torch.nn.Module:
    model = fg.models.lenet_300_100()
    fg.fit(model, data.train, optimizer=torch.optim.Adam(model.parameters(), 1e-3), epochs=epochs, progress=False)
    return model


def accuracy_in_c(path: Path, data: fg.data.DataSet) -> float:
    """The share of the test set that the compiled program gets right, one sample at a time."""
    library = path.with_suffix(".so")
    strict = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", "-Os"]
    subprocess.run(["cc", *strict, "-shared", "-fPIC", "-o", library, path, "-lm"], check=True)
    predict = getattr(ctypes.CDLL(str(library.resolve())), f"{path.stem}_predict")
    outputs = (ctypes.c_float * data.classes)()
    right = 0
    for x, label in zip(data.test.x.numpy(), data.test.y.tolist(), strict=True):
        predict(x.ctypes.data_as(ctypes.POINTER(ctypes.c_float)), outputs)
        right += max(range(data.classes), key=outputs.__getitem__) == label
    return right / len(data.test.y)


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    fg.seed_everything(0)
    data = fg.data.load("mnist")
    calibration = data.train.x[:5000]
    model = trained(data)

    def report(what: str) -> None:
        print(f"{what}: {fg.evaluate(model, data.test)['accuracy']:.2%} of the test set\n")

    report("trained")
    print(fg.compress_(model, fg.SubsetPruning(keep=0.25), calibration))
    report("a fourth of the units")
    print(fg.compress_(model, fg.MonteCarlo(samples=0.5), calibration))
    report("half a sample a weight")

    path = folder / "lenet.c"
    written = fg.export(model, path, data.test.x)
    print(written)
    print(f"the C program: {accuracy_in_c(path, data):.2%} of the test set")
    if written.flash_bytes is not None:
        fits = "fits" if written.flash_bytes <= FLASH else "is too large"
        print(f"{written.flash_bytes:,} of {FLASH:,} bytes: it {fits}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/lenet"))
