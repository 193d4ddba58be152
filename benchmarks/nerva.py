"""Nerva's protocol on CIFAR-10 (Wesselink et al. 2024; `snn.py` of its repository), and its 100 epochs of training.

    python benchmarks/nerva.py [--network filigree] [--seeds 1 2 3 4 5]    # resumes where it was ended

3072-1024-512-10 with ReLU, Erdos-Renyi of 1% of all weights, batches of 100, SGD with Nesterov momentum 0.9, a learning
rate of 0.1 that falls tenfold after epochs 50 and 75, crops of images padded by 4 (reflected), flips. It prints 56.2%
of the test set at 1%. Dense networks start at 0.01, as theirs do. `test_nerva.py` measures the time of an epoch.

Records of every epoch go to `benchmarks/results/nerva/`, checkpoints to `runs/nerva/`. Needs CIFAR-10 (FILIGREE_DATA).
"""

import argparse
import statistics
from pathlib import Path

import torch
from networks import densified
from torch import nn
from torch.nn import functional as F

import filigree as fg
from filigree.ops import kernels
from filigree.train import Record

SIZES, DENSITY, BATCH, EPOCHS, RATES = [3072, 1024, 512, 10], 0.01, 100, 100, {"dense": 0.01}
MEAN, DEVIATION = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)  # of a channel


def images(split):
    """Samples `(n, 3072)`, normalised by channel as Nerva does it."""
    mean, deviation = (torch.tensor(each).repeat_interleave(32 * 32) for each in (MEAN, DEVIATION))
    return (split.x - mean) / deviation, split.y


def augmented(x, generator):
    """Random crops of images padded by four pixels, half of them flipped."""
    padded = F.pad(x.view(-1, 3, 32, 32), (4, 4, 4, 4), mode="reflect")
    top, left = torch.randint(9, (2, len(x), 1), generator=generator)
    side = torch.arange(32)
    flipped = torch.rand(len(x), 1, generator=generator) < 0.5
    rows, columns = top + side, left + torch.where(flipped, 31 - side, side)  # (n, 32)
    sample, channel = torch.arange(len(x)).view(-1, 1, 1, 1), torch.arange(3).view(1, 3, 1, 1)
    return padded[sample, channel, rows[:, None, :, None], columns[:, None, None, :]].flatten(1)


class Masked(nn.Sequential):
    """The dense network with the weights of a sparse one, zero elsewhere: `mask_()` after a step keeps them so.

    Nerva's script multiplies by the masks before the update, so that its network computes with the last update of the
    weights that it masks. After the update, at the same cost, all contestants compute the same.
    """

    def __init__(self, sparse):
        super().__init__(*densified(sparse))
        self.masks = [(layer.weight, (layer.weight != 0).float()) for layer in self if isinstance(layer, nn.Linear)]

    @torch.no_grad()
    def mask_(self):
        for weight, mask in self.masks:
            weight.mul_(mask)

    def on_step_end(self, state):
        self.mask_()


def ours(seed=0):
    model = fg.models.mlp(SIZES)
    fg.convert_(model, fg.Sparse(fg.ErdosRenyiKernel(DENSITY), seed=seed))
    return model


def dense():
    model = fg.models.mlp(SIZES)
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
    return model


NETWORKS = {"filigree": ours, "masked": lambda seed: Masked(ours(seed)), "dense": lambda seed: dense()}


def optimizer_of(network, rate=0.1):
    return torch.optim.SGD(network.parameters(), rate, momentum=0.9, nesterov=True, fused=True)


def trained(network, seed, epochs, data):
    """Train to the end, from the last checkpoint if there is one; the accuracy on the test set."""
    fg.seed_everything(seed)
    model = NETWORKS[network](seed)
    optimizer = optimizer_of(model, RATES.get(network, 0.1))
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [epochs // 2, epochs * 3 // 4])
    record = Record.start(
        recipe="nerva", method=network, seed=seed, isa=kernels.isa(),
        config={"sizes": SIZES, "density": DENSITY, "batch_size": BATCH, "epochs": epochs},
        folder=Path(__file__).parent / "results" / "nerva" / f"{network}-{seed}",
    )  # fmt: skip
    history = fg.fit(
        model, images(data.train), optimizer=optimizer, epochs=epochs, batch_size=BATCH, test=images(data.test),
        callbacks=[scheduler, *([model] if network == "masked" else [])], augment=augmented, seed=seed, record=record,
        checkpoint=Path("runs", "nerva", f"{network}-{seed}-{epochs}"), resume=True,
    )  # fmt: skip
    return history.rows[-1]["test_accuracy"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", choices=NETWORKS, default="filigree")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    arguments = parser.parse_args()
    data = fg.data.load("cifar-10", standardize=None)
    accuracies = []
    for seed in arguments.seeds:
        accuracies.append(trained(arguments.network, seed, arguments.epochs, data))
        print(f"{arguments.network}, seed {seed}: {accuracies[-1]:.2%} of the test set", flush=True)
    print(f"mean of {len(accuracies)}: {statistics.fmean(accuracies):.2%}")
