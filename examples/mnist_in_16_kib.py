"""MNIST at 16 x 16 for a device with 16 KiB of flash and 2 KiB of RAM: convolutions in small integers, without floats.

    python examples/mnist_in_16_kib.py [FOLDER]    # some minutes on one core; FOLDER is by default runs/mnist16

A network is trained in floats, its weights are rounded to 8, 4, 3 and 2 bits after training, and each is written as a C
program of 8-bit activations for a Cortex-M4. The printed accuracy is that of the program, which is equal bit for bit to
`Int8Network`; where the cross compiler and the emulator are installed (docs/microcontroller.md) flash, RAM and
instructions are theirs.

Needs MNIST (see FILIGREE_DATA in the README).
"""

import copy
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import filigree as fg
from filigree.export.c.int8_network import Int8Network

EPOCHS, FLASH, RAM = 20, "16k", "2k"


def smaller(x: Tensor) -> Tensor:
    """28 x 28 images as 16 x 16 ones."""
    return F.interpolate(x.view(-1, 1, 28, 28), (16, 16), mode="bilinear", antialias=True)


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, 2, 2, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 48, 3, 1, 1, bias=False), nn.BatchNorm2d(48), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(4 * 48, 10),
    )  # fmt: skip


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    fg.seed_everything(0)
    data = fg.data.load("mnist")
    train, test = (smaller(data.train.x), data.train.y), (smaller(data.test.x), data.test.y)
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, EPOCHS * -(-len(train[0]) // 128))
    moved = fg.data.Augment((1, 16, 16), float(train[0].min()), rotation=10, shift=0.06, flip=False)
    fg.fit(
        model, train, optimizer=optimizer, epochs=EPOCHS, augment=moved, callbacks=[fg.each_step(schedule)],
        progress=False,
    )  # fmt: skip
    model.eval()
    fg.save(model, folder / "model.safetensors")
    print(f"in floats: {fg.evaluate(model, test)['accuracy']:.2%} of the test set")
    calibration = train[0][:2000]
    for bits in (8, 4, 3, 2):
        rounded = copy.deepcopy(model)
        fg.compress_(rounded, fg.RoundToNearest(bits))
        accuracy = fg.evaluate(Int8Network(rounded, calibration), test)["accuracy"]
        limits = {} if bits == 8 else {"flash": FLASH, "ram": RAM}
        report = fg.export(
            rounded, folder / f"digits{bits}.c", calibration, activations="int8", target="cortex-m4", **limits
        )
        print(f"\nweights of {bits} bits: {accuracy:.2%} of the test set\n{report}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/mnist16"))
