"""Moczulski 2019, 4.3: noisy activations against soft ones and against hard ones without noise, for MLPs and text."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from filigree import data, models
from filigree.convert import convert_
from filigree.data import text as texts
from filigree.dynamics import GradientNoise
from filigree.models.networks import mlp
from filigree.nn.noisy.noisy import Noisy
from filigree.nn.noisy.noisy_activations import WithNoise
from filigree.report import Chart
from filigree.train import fit, seed_everything
from filigree_papers.data import tasks
from filigree_papers.reproduce.claims import OfRows, before, beside
from filigree_papers.reproduce.experiment import Rows
from filigree_papers.reproduce.language_training import language, perplexities, rescaled
from filigree_papers.reproduce.reproduction import Computation
from filigree_papers.reproduce.steps import fewer, percent

# what takes the place of sigmoid and tanh; the hard activations are noisy ones without noise
ARMS: dict[str, Noisy | None] = {
    "soft": None,
    "hard": Noisy("NAN", alpha=1.0, c=0.0, learn_p=False, p=0.0),
    "NAN": Noisy("NAN"),
    "NAH": Noisy("NAH"),
    "NANI": Noisy("NANI"),
    "NANIL": Noisy("NANIL"),
    "NANIS": Noisy("NANIS"),
    "NAN, p fixed": Noisy("NAN", learn_p=False),
    "NAN, alpha 1.15": Noisy("NAN", alpha=1.15),  # as in the public code of the document's authors
    "NAH, alpha 1.15": Noisy("NAH", alpha=1.15),
}


def arm(model: nn.Module, name: str, seed: int, **changes: Any) -> nn.Module:
    """The model with an arm's activations."""
    if (config := ARMS[name]) is not None:
        convert_(model, Noisy(**{**vars(config), "seed": seed, **changes}))
    return model


# -- a layer on MNIST, and three Gaussians -------------------------------------------------------------------------


def mnist(case: str, seed: int, quick: bool) -> Rows:
    """Fig. 4.5: one hidden layer of 200, RMSProp 0.001, batch 128; negative log-likelihoods, epoch by epoch."""
    split = fewer(data.load("mnist", validation=5000), quick)
    seed_everything(seed)
    model = mlp([784, 200, 10], activation="tanh")
    optimizer_of = partial(torch.optim.RMSprop, lr=1e-3)
    steppers = []
    if case == "soft + gradient noise":
        optimizer = optimizer_of(model.parameters())
        steppers = [GradientNoise(optimizer, 0.01, seed=seed)]
    else:
        optimizer = optimizer_of(arm(model, case, seed).parameters())
    history = fit(model, split.train, optimizer=optimizer, epochs=1 if quick else 15, validation=split.validation,
                  test=split.test, callbacks=steppers, seed=seed, progress=False)  # fmt: skip
    return [
        {
            "activation": case, "epoch": str(row["epoch"] + 1), "training NLL": row["train_loss"],
            "validation NLL": row["val_loss"], "test %": 100 * row["test_accuracy"],
        }
        for row in history
    ]  # fmt: skip


def gaussians(case: str, seed: int, quick: bool) -> Rows:
    """Figs. 4.6 and 4.7: three layers of 8 on three Gaussians, alpha 1: accuracy, and how many units are saturated."""
    seed_everything(seed)
    model = mlp([1, 8, 8, 8, 3], activation="tanh")
    arm(model, case, seed, **({} if case in ("soft", "hard") else {"alpha": 1.0}))
    train, test = (tasks.gaussians(size, seed=seed + place) for place, size in enumerate((5000, 5000)))
    inputs: dict[str, Tensor] = {}
    hooks = [
        layer.register_forward_pre_hook(lambda _, args, name=name: inputs.__setitem__(name, args[0]))
        for name, layer in model.named_children()
        if name.startswith("tanh")
    ]
    fit(model, train, optimizer=torch.optim.Adam(model.parameters(), 0.01), epochs=1 if quick else 20, batch_size=64,
        seed=seed, progress=False)  # fmt: skip
    row: dict[str, Any] = {"activation": case, "test %": percent(model, test)}
    for name in inputs:
        row[f"saturated in {name}, %"] = 100 * float((inputs[name].abs() >= 1).float().mean())
    sizes = [m.p.detach().abs() for m in model.modules() if isinstance(m, WithNoise) and isinstance(m.p, nn.Parameter)]
    if sizes:
        row["mean |p|"] = float(torch.cat(sizes).mean())
    for hook in hooks:
        hook.remove()
    return [row]


# -- language models -----------------------------------------------------------------------------------------------


def characters(case: str, seed: int, quick: bool, *, hidden: int = 128, steps: int = 600, held: int = 64_001) -> Rows:
    """Fig. 4.8: a character GRU on Penn Treebank, sequences of 200; bits a character."""
    seed_everything(seed)
    text = texts.characters("ptb")
    model = models.language_model(len(text.vocabulary), 32, hidden, layers=1, kind="gru")
    rows = language(
        case, lambda m: arm(m, case, seed) and None, model, text, 10 if quick else steps, 200, 32,
        partial(torch.optim.Adam, lr=0.003), 5.0, 2 if quick else 8, 6401 if quick else held,
    )  # fmt: skip
    return [rescaled(row, ("training loss", "validation", "test"), 1 / math.log(2), "BPC") for row in rows]


def words(
    case: str, seed: int, quick: bool, *, hidden: int = 128, steps: int = 1300, held: int = 35_001,
    halve: int | None = None,
) -> Rows:  # fmt: skip
    """Table 4.2: a word LSTM of two layers on Penn Treebank; perplexities.

    Args:
        halve: the step from which on the learning rate halves every 1327 steps, an epoch; None: never.
    """
    seed_everything(seed)
    text = texts.words("ptb")
    model = models.language_model(len(text.vocabulary), hidden, hidden, layers=2)
    optimizer_of = partial(torch.optim.SGD, lr=2.0 if halve is None else 1.0)
    rows = language(
        case, lambda m: arm(m, case, seed) and None, model, text, 6 if quick else steps, 35, 20, optimizer_of, 5.0,
        2 if quick else 5, 7001 if quick else held, halve,
    )  # fmt: skip
    return [perplexities(row) for row in rows]


# -- what is printed -----------------------------------------------------------------------------------------------

_ALPHA = "NAN, alpha 1.15", "NAH, alpha 1.15"


def word_claims() -> list[OfRows]:
    """Table 4.2 and Fig. 4.9."""
    table, nan, nah = "Moczulski 2019, Table 4.2", *_ALPHA
    return [
        beside(table, "test perplexity", {"soft": 115.6, nan: 108.0, nah: 108.7}),
        before(table, "Noisy activations are better", "test perplexity", [(nan, "soft"), (nah, "soft")], lower=True),
        beside("Moczulski 2019, Fig. 4.9", "validation perplexity", {"soft": 119.4, nan: 111.7, nah: 112.6}),
    ]


_SEEDS = list(range(3))
_CHARACTERS = [
    before(
        "Moczulski 2019, Fig. 4.8", "NAN and NANI are alike", "validation BPC", [], alike=[("NAN", "NANI")], within=0.05
    )
]

REPRODUCTIONS: list[Computation] = [
    Computation(
        "noisy-mnist", "One-layer MLPs on MNIST with noisy activations (Moczulski 2019, Fig. 4.5).", mnist,
        [*ARMS, "soft + gradient noise"], _SEEDS, ["mnist"],
        [Chart("epoch", "training NLL", ["activation"], "training NLL", True),
         Chart("epoch", "validation NLL", ["activation"], "validation NLL", True)],
        [before("Moczulski 2019, Fig. 4.5", "Noisy activations end at a lower loss than soft and hard ones",
                "training NLL", [(noisy, other) for noisy in ("NAN", "NAH") for other in ("soft", "hard")], lower=True),
         before("Moczulski 2019, section 4.3.7", "Noise of a fixed size is better than none", "validation NLL",
                [("NANI", "soft"), ("NAN, p fixed", "soft")], lower=True)],
    ),
    Computation(
        "noisy-gaussians", "Three layers of 8 units on three Gaussians (Moczulski 2019, Figs. 4.6 and 4.7).", gaussians,
        ["soft", "hard", "NAN", "NAH"], _SEEDS,
        claims=[before("Moczulski 2019, Figs. 4.6 and 4.7", "Tanh and noisy tanh solve it alike", "test %", [],
                       alike=[("NAN", "soft"), ("NAH", "soft")])],
    ),
    Computation(
        "noisy-characters", "A character GRU on Penn Treebank, sequences of 200 (Moczulski 2019, Fig. 4.8).",
        characters, ["soft", "hard", "NAN", "NAH", "NANI", "NANIS"], _SEEDS, ["ptb"],
        [Chart("step", "validation BPC", ["activation"], "validation bits a character")], _CHARACTERS,
    ),
    Computation(
        "noisy-words", "A word LSTM of two layers on Penn Treebank (Moczulski 2019, Table 4.2).", words,
        ["soft", "hard", *_ALPHA], _SEEDS, ["ptb"],
        [Chart("step", "validation perplexity", ["activation"], "validation perplexity", True)], word_claims(),
    ),
    Computation(
        "noisy-characters-full", "A character GRU on Penn Treebank (Fig. 4.8). In full: hours to days.",
        partial(characters, hidden=1000, steps=50_000, held=10**7), ["soft", "hard", "NAN", "NANI", "NANIS"],
        data=["ptb"], claims=_CHARACTERS, long=True,
    ),
    Computation(
        "noisy-words-full", "A word LSTM on Penn Treebank (Table 4.2). In full: hours to days.",
        partial(words, hidden=200, steps=13 * 1327, held=10**6, halve=4 * 1327), ["soft", "hard", *_ALPHA],
        data=["ptb"], claims=word_claims(), long=True,
    ),
]  # fmt: skip
