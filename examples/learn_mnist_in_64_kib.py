"""MNIST learned from scratch in 64 KiB of RAM, and a trained network that a person's own images change: in C.

    python examples/learn_mnist_in_64_kib.py [FOLDER [PART ...]]    # three minutes on one core; FOLDER: runs/learn

Programs that learn are written for a Cortex-M4 and compared with torch on this machine and as on the processor, where
flash, RAM and instructions are counted (docs/microcontroller.md says what that needs). Then the same C is compiled for
this machine and sees MNIST, an image a step: sparse layers that are rewired after each epoch, convolutions, and the
same in weights of 8 bits. Last the convolutions come to somebody who holds the device at an angle of 40 degrees: all
but the first are trained anew, on 4,000 of such images, at the rate that is best on 1,000 others.

Parts are sparse, bytes and images. Rates and widths were chosen on the last 10,000 training images, on which nothing
here is trained from scratch; a person's images are of these. Needs MNIST (see FILIGREE_DATA in the README) and a C
compiler.
"""

import ctypes
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import filigree as fg

RAM, FLASH, TRAINED, OWN = 64 * 1024, "256k", 50_000, 4_000
FAST = ["-std=c99", "-O3", "-march=native", "-ffast-math"]
Floats, Ints = ctypes.POINTER(ctypes.c_float), ctypes.POINTER(ctypes.c_int)


class Learner:
    """A program that learns, written for the device and compiled for this machine."""

    def __init__(self, folder: Path, name: str, model: nn.Module, example: Tensor, **options: object) -> None:
        path = folder / name / f"{name}.c"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = 4 * example[0].numel()  # bytes that the caller needs, too
        options |= {"training": True, "batch": 1, "target": "cortex-m4", "flash": FLASH, "ram": RAM - image}
        report = fg.export(model, path, example[:100], **options)
        print(f"\n{name}\n{report}\nRAM with an image of {image:,} bytes: {report.device.ram + image:,} of {RAM:,}")
        library = path.with_suffix(".so")
        subprocess.run(["cc", *FAST, "-shared", "-fPIC", "-o", library, path, "-lm"], check=True)
        self.library, self.name, self.device = ctypes.CDLL(str(library.resolve())), name, report.device
        self.step, self.predict = self.function("train_step"), self.function("predict")
        self.step.argtypes = [Floats, Ints, ctypes.c_size_t, ctypes.c_float]

    def function(self, name: str) -> ctypes._CFuncPtr:
        return getattr(self.library, f"{self.name}_{name}")

    def learn(self, x: Tensor, y: Tensor, rate: float, epochs: int, zeta: float = 0.0) -> None:
        """Take a step an image, at a rate that falls to 0; after each epoch but the last rewire, less each time."""
        generator, taken, steps = torch.Generator().manual_seed(0), 0, epochs * len(x)
        images, labels = x.flatten(1).numpy(), y.int().numpy()
        for epoch in range(1, epochs + 1):
            for i in torch.randperm(len(x), generator=generator).tolist():
                image, label = images[i].ctypes.data_as(Floats), labels[i:].ctypes.data_as(Ints)
                self.step(image, label, 1, rate * (1 - taken / steps))
                taken += 1
            if zeta and epoch < epochs:
                self.function("rewire")(ctypes.c_float(zeta * (1 - epoch / epochs)), epoch)

    def accuracy(self, x: Tensor, y: Tensor) -> float:
        outputs = np.zeros(10, np.float32)
        right = 0
        for image, label in zip(x.flatten(1).numpy(), y.tolist(), strict=True):
            self.predict(image.ctypes.data_as(Floats), outputs.ctypes.data_as(Floats))
            right += int(outputs.argmax()) == label
        return right / len(y)

    def floats(self, name: str, count: int) -> ctypes.Array[ctypes.c_float]:
        """The struct of all weights or velocities, where these are so many floats."""
        return (ctypes.c_float * count).in_dll(self.library, f"{self.name}_{name}")


def sparse(density: float) -> nn.Module:
    fg.seed_everything(0)
    model = fg.models.mlp([784, 100, 10])
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=density)), where=["fc1"])
    return model


def convolutions() -> nn.Sequential:
    fg.seed_everything(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 5, 2, 2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(144, 10),
    )  # fmt: skip


def turned(x: Tensor, degrees: float) -> Tensor:
    """The images turned about their middle; what comes in at the borders is black."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    grid = F.affine_grid(torch.tensor([[[cos, -sin, 0.0], [sin, cos, 0.0]]]), (1, 1, 28, 28), align_corners=False)
    black = x.min()
    return F.grid_sample(x - black, grid.expand(len(x), -1, -1, -1), align_corners=False) + black


def main(folder: Path, parts: list[str]) -> None:
    data = fg.data.load("mnist")
    x, test = data.train.x.view(-1, 1, 28, 28), data.test.x.view(-1, 1, 28, 28)
    y, test_y = data.train.y, data.test.y
    held = slice(TRAINED, None)

    def learned(learner: Learner, rate: float, epochs: int, zeta: float = 0.0) -> Learner:
        learner.learn(x[:TRAINED], y[:TRAINED], rate, epochs, zeta)
        right = learner.accuracy(x[held], y[held]), learner.accuracy(test, test_y)
        print(f"{learner.name}: {right[0]:.2%} of the held out, {right[1]:.2%} of the test set", flush=True)
        return learner

    if "sparse" in parts:
        learned(Learner(folder, "sparse", sparse(0.05), x.flatten(1)), 3e-3, 5, 0.3)
    if "bytes" in parts:
        learned(Learner(folder, "bytes", convolutions(), x, weights="int8", momentum=0.0), 5e-3, 2)
    if "images" in parts:
        model = convolutions()
        images = learned(Learner(folder, "images", model, x), 1e-3, 2)
        count = sum(parameter.numel() for parameter in model.parameters())
        nn.utils.vector_to_parameters(torch.tensor(images.floats("weights", count)[:]), model.parameters())
        upright = images.accuracy(test, test_y)
        personal(folder, model, (turned(x[held], 40), y[held]), (turned(test, 40), test_y), upright)


def personal(
    folder: Path, model: nn.Sequential, own: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], upright: float
) -> None:
    """Train all but the first layer anew on a person's own images."""
    model[0].requires_grad_(False)  # constants in flash from now on
    learner = Learner(folder, "personal", model, own[0])
    count = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    start, before = learner.floats("weights", count)[:], learner.accuracy(*test)

    def trained_anew(rate: float) -> float:
        learner.floats("velocity", count)[:] = [0.0] * count
        learner.floats("weights", count)[:] = start
        learner.learn(own[0][:OWN], own[1][:OWN], rate, 5)
        return learner.accuracy(own[0][OWN : OWN + 1000], own[1][OWN : OWN + 1000])

    rates = {rate: trained_anew(rate) for rate in (2e-4, 5e-4, 1e-3)}
    best = max(rates, key=rates.__getitem__)
    trained_anew(best)
    after = learner.accuracy(*test)
    regained = (after - before) / (upright - before)
    print(f"turned by 40 degrees: {before:.2%} of the test set. Rates and shares of the others right: {rates}")
    print(f"trained anew at {best:g}: {after:.2%} of the test set, {regained:.0%} of what was lost", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/learn"), sys.argv[2:] or ["sparse", "images", "bytes"])
