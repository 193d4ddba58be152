"""Moczulski 2019, 4.3.6: noisy activations for hard tasks: programs, unique elements, recall, a small translation."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from filigree import models
from filigree.convert import convert_
from filigree.dynamics import NoiseAnnealing
from filigree.nn.noisy.noisy import Noisy
from filigree.report import Chart
from filigree.train import seed_everything
from filigree_papers import models as own_models
from filigree_papers.data import tasks
from filigree_papers.reproduce.claims import OfRows, before, beside
from filigree_papers.reproduce.experiment import Rows
from filigree_papers.reproduce.moczulski_noise import ARMS, arm
from filigree_papers.reproduce.reproduction import Computation
from filigree_papers.reproduce.steps import draw, masked_loss, train_steps


def unique(case: str, seed: int, quick: bool, *, steps: int = 6000) -> Rows:
    """Table 4.5: how many different integers there are among 26; LSTM, mean over time, an MLP; errors in %."""
    seed_everything(seed)
    name = case.removesuffix(", annealed")
    model = own_models.sequence_classifier(11, 16, 64, 12, 64)
    steps = 20 if quick else steps
    arm(model, "soft" if name == "curriculum" else name, seed)
    steppers = [NoiseAnnealing(model, 30.0, 0.5, steps=steps)] if case.endswith("annealed") else []
    test = tasks.unique_elements(10_000, seed=10_000 + seed)

    def batch(step: int) -> tuple[Tensor, ...]:
        length = 26 if name != "curriculum" else min(26, 4 + 26 * step // max(1, steps * 2 // 3))
        return tasks.unique_elements(100, length, seed=seed * 1_000_003 + step)

    def look(net: nn.Module) -> dict[str, float]:
        return {"test error %": 100 * float((net(test[0]).argmax(1) != test[1]).float().mean())}

    rows = train_steps(
        model, batch, lambda net, xy: F.cross_entropy(net(xy[0]), xy[1]),
        torch.optim.Adam(model.parameters(), 0.002), steps, look, 2 if quick else 12, steppers, 5.0,
    )  # fmt: skip
    return [{"activation": case, **row} for row in rows]


def programs(
    case: str, seed: int, quick: bool, *, digits: int = 2, nesting: int = 2, hidden: int = 128, steps: int = 1500
) -> Rows:
    """Table 4.1: learning to execute (the document: 6 digits, nesting 3), combined curriculum."""
    seed_everything(seed)
    steps = 6 if quick else steps
    tokens = len(tasks.CHARACTERS)
    model = arm(models.language_model(tokens, 32, hidden, layers=2, carry=False), case, seed)
    test = tasks.encode(tasks.programs(1000, digits, nesting, "baseline", seed=99_991 + seed))

    def batch(step: int) -> tuple[Tensor, ...]:
        return tasks.encode(tasks.programs(64, digits, nesting, "combined", step / steps, seed=seed * 1_000_003 + step))

    def look(net: nn.Module) -> dict[str, float]:
        x, y, mask = test
        right = (net(x).argmax(2) == y).float() * mask
        return {"characters right %": 100 * float(right.sum() / mask.sum())}

    rows = train_steps(
        model, batch, lambda net, xy: masked_loss(net(xy[0]), xy[1], xy[2]),
        torch.optim.Adam(model.parameters(), 0.003), steps, look, 2 if quick else 6, (), 5.0,
    )  # fmt: skip
    return [{"activation": case, **row} for row in rows]


def recall(case: str, seed: int, quick: bool, *, most: int = 6, steps: int = 3000) -> Rows:
    """Fig. 4.11: associative recall with a Neural Turing Machine, 2 to `most` items; noise in its controller."""
    seed_everything(seed)
    name = case.removesuffix(", annealed")
    model = own_models.ntm(8, 6, 100, 32, 20)
    steps = 4 if quick else steps
    if ARMS[name] is not None:
        convert_(model, Noisy(**{**vars(ARMS[name]), "seed": seed}), where="controller")
    steppers = [NoiseAnnealing(model, 30.0, 0.5, steps=steps)] if case.endswith("annealed") else []
    judges = {items: tasks.associative_recall(100, items, seed=77_777) for items in (2, most)}
    sizes = torch.Generator().manual_seed(seed)

    def loss(net: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        x, y, mask = batch
        each = F.binary_cross_entropy_with_logits(net(x), y, reduction="none").mean(2)
        return (each * mask).sum() / mask.sum()

    def batch(step: int) -> tuple[Tensor, ...]:
        items = int(torch.randint(2, most + 1, (), generator=sizes))
        return tasks.associative_recall(16, items, seed=seed * 1_000_003 + step)

    def look(net: nn.Module) -> dict[str, float]:
        return {f"loss, {items} items": float(loss(net, batch)) for items, batch in judges.items()}

    rows = train_steps(model, batch, loss, torch.optim.Adam(model.parameters(), 1e-3), steps, look, 2 if quick else 6,
                       steppers, 10.0)  # fmt: skip
    return [{"activation": case, **row} for row in rows]


def exactly(translated: Tensor, wanted: Tensor) -> Tensor:
    """Which rows are equal, whatever follows the end of the wanted ones: `(batch, time)` to `(batch,)`."""
    translated = F.pad(translated, (0, wanted.shape[1] - translated.shape[1]))
    return ((translated == wanted) | (wanted == 0)).all(1)


def translation(case: str, seed: int, quick: bool) -> Rows:
    """A synthetic stand-in for Table 4.4: attention over a small language; sentences translated exactly, in %."""
    seed_everything(seed)
    model = arm(own_models.translator(len(tasks.SOURCE_WORDS), len(tasks.TARGET_WORDS), 32, 48), case, seed)
    train, test = tasks.translation(20_000, seed=seed), tasks.translation(1000, seed=90_000 + seed)
    generator = torch.Generator().manual_seed(seed)
    steps = 6 if quick else 1200

    def loss(net: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        source, target = batch
        return F.cross_entropy(net(source, target).flatten(0, 1), target[:, 1:].flatten(), ignore_index=0)

    def look(net: Any) -> dict[str, float]:
        wanted = test[1][:500, 1:]  # without the word that begins each
        right = exactly(net.translate(test[0][:500], wanted.shape[1]), wanted)
        return {"test NLL": float(loss(net, test)), "sentences right %": 100 * float(right.float().mean())}

    rows = train_steps(
        model, lambda _: draw(generator, *train, size=64), loss, torch.optim.Adam(model.parameters(), 0.002), steps,
        look, 2 if quick else 6, (), 5.0,
    )  # fmt: skip
    return [{"activation": case, **row} for row in rows]


# -- what is printed -----------------------------------------------------------------------------------------------


def unique_claims() -> list[OfRows]:
    """Table 4.5."""
    printed = {"soft": 33.28, "NAN": 31.12, "curriculum": 14.83, "NAN, annealed": 9.53, "NANIL, annealed": 20.94}
    return [
        beside("Moczulski 2019, Table 4.5", "test error %", printed),
        before("Moczulski 2019, Table 4.5", "Noise helps, annealing as much as the curriculum", "test error %",
               [("NAN", "soft"), ("NAN, annealed", "curriculum"), ("NANIL, annealed", "curriculum")], lower=True),
    ]  # fmt: skip


def program_claims() -> list[OfRows]:
    """Table 4.1 and Fig. 4.10."""
    name, pairs = "characters right %", [("NAH", "soft"), ("NAH, alpha 1.15", "soft")]
    return [
        beside("Moczulski 2019, Table 4.1", name, {"soft": 46.45, "NAH": 48.09}),
        before("Moczulski 2019, Table 4.1", "The noisy network is more accurate", name, pairs),
        before("Moczulski 2019, Fig. 4.10", "The noisy network learns faster", "training loss", pairs, lower=True),
        before("Moczulski 2019, Table 4.1", "Noise is better than the hard activation alone", name,
               [("NAH, alpha 1.15", "hard")]),
    ]  # fmt: skip


def recall_claims(items: int) -> list[OfRows]:
    """Fig. 4.11."""
    return [before("Moczulski 2019, Fig. 4.11", "The noisy controller solves it, the plain one does not",
                   f"loss, {items} items", [("NAN, annealed", "soft")], lower=True)]  # fmt: skip


TRANSLATED: list[OfRows] = [
    before("Moczulski 2019, Table 4.4",
           "Hard activations are better than soft ones, noisy ones than both, in a small language", "test NLL",
           [("hard", "soft"), ("NAH", "soft"), ("NAH", "hard")], lower=True),
]  # fmt: skip

_SEEDS = list(range(3))
_LONG = "In full: hours to days."

REPRODUCTIONS: list[Computation] = [
    Computation(
        "noisy-unique", "How many unique elements a sequence has (Moczulski 2019, Table 4.5).", unique,
        ["soft", "hard", "NAN", "NAN, alpha 1.15", "curriculum", "NAN, annealed", "NAN, alpha 1.15, annealed",
         "NANIL, annealed"], _SEEDS, (),
        [Chart("step", "test error %", ["activation"], "test error")], unique_claims(),
    ),
    Computation(
        "noisy-programs", "Learning to execute small programs (Moczulski 2019, Table 4.1).", programs,
        ["soft", "hard", "NAH", "NAH, alpha 1.15"], _SEEDS, (),
        [Chart("step", "characters right %", ["activation"], "characters right")], program_claims(),
    ),
    Computation(
        "noisy-recall", "Associative recall with a Neural Turing Machine (Moczulski 2019, Fig. 4.11).", recall,
        ["soft", "hard", "NAN, annealed", "NAN, alpha 1.15, annealed"], _SEEDS, (),
        [Chart("step", "loss, 6 items", ["activation"], "loss at 6 items")], recall_claims(6),
    ),
    Computation(
        "noisy-translation", "A small translation with attention (in place of Moczulski 2019, Table 4.4).", translation,
        ["soft", "hard", "NAH", "NAH, alpha 1.15"], _SEEDS, (),
        [Chart("step", "test NLL", ["activation"], "test NLL")], TRANSLATED,
    ),
    Computation(
        "noisy-unique-full", f"Unique elements (Table 4.5). {_LONG}", partial(unique, steps=720_000),
        ["soft", "hard", "NAN", "curriculum", "NAN, annealed", "NANIL, annealed"], claims=unique_claims(),
        long=True,
    ),
    Computation(
        "noisy-programs-full", f"Learning to execute (Table 4.1). {_LONG}",
        partial(programs, digits=6, nesting=3, hidden=400, steps=200_000), ["soft", "hard", "NAH", "NAH, alpha 1.15"],
        claims=program_claims(), long=True,
    ),
    Computation(
        "noisy-recall-full", f"Associative recall (Fig. 4.11). {_LONG}", partial(recall, most=16, steps=100_000),
        ["soft", "hard", "NAN, annealed"], claims=recall_claims(16), long=True,
    ),
]  # fmt: skip
