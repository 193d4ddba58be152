"""004, 4.3: noisy activations against the soft ones they replace, and against the hard ones without noise."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from filigree import data, models
from filigree.convert import convert_
from filigree.data import tasks
from filigree.dynamics import GradientNoise, NoiseAnnealing
from filigree.models.networks import mlp
from filigree.nn import Noisy
from filigree.nn.noisy_activations import WithNoise
from filigree.report import Chart
from filigree.reproduce.reproduction import Computation, Rows
from filigree.reproduce.steps import Halving, draw, masked_loss, train_steps
from filigree.train import evaluate, fit, seed_everything

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
    split = data.load("mnist", validation=5000)
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
                  test=split.test, each_step=steppers, seed=seed, progress=False)  # fmt: skip
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
    row: dict[str, Any] = {"activation": case, "test %": 100 * evaluate(model, test)["accuracy"]}
    for name in inputs:
        row[f"saturated in {name}, %"] = 100 * float((inputs[name].abs() >= 1).float().mean())
    sizes = [m.p.detach().abs() for m in model.modules() if isinstance(m, WithNoise) and isinstance(m.p, nn.Parameter)]
    if sizes:
        row["mean |p|"] = float(torch.cat(sizes).mean())
    for hook in hooks:
        hook.remove()
    return [row]


# -- language models -----------------------------------------------------------------------------------------------


def language(
    case: str, convert: Callable[[nn.Module], Any], model: nn.Module, text: data.Text, steps: int, length: int,
    batch: int, optimizer_of: Callable[[Any], torch.optim.Optimizer], clip: float, looks: int, held: int,
    halve: int | None = None,
) -> Rows:  # fmt: skip
    """Train a language model on contiguous streams; rows of validation and test losses, in nats."""
    steppers = list(convert(model) or [])
    optimizer = optimizer_of(model.parameters())
    if halve is not None:
        steppers.append(Halving(optimizer, halve, 1327))
    pieces = data.language_model_batches(text.train, batch, length)
    judges = {
        name: data.language_model_batches(part[:held], batch, length)
        for name, part in (("validation", text.validation), ("test", text.test))
    }

    def loss(net: nn.Module, its: tuple[Tensor, ...]) -> Tensor:
        return F.cross_entropy(net(its[0]).flatten(0, 1), its[1].flatten())

    def look(net: Any) -> dict[str, float]:
        found = {}
        for name, (x, y) in judges.items():
            net.reset()
            found[name] = statistics.fmean(float(loss(net, (x[i], y[i]))) for i in range(len(x)))
        return found

    total = len(pieces[0])
    rows = train_steps(
        model, lambda step: (pieces[0][step % total], pieces[1][step % total]), loss, optimizer, steps,
        look, looks, steppers, clip,
    )  # fmt: skip
    return [{"activation": case, **row} for row in rows]


def characters(case: str, seed: int, quick: bool, *, hidden: int = 128, steps: int = 600, held: int = 64_001) -> Rows:
    """Fig. 4.8: a character GRU on Penn Treebank, sequences of 200; bits a character."""
    seed_everything(seed)
    text = data.characters("ptb")
    model = models.language_model(len(text.vocabulary), 32, hidden, layers=1, kind="gru")
    rows = language(
        case, lambda m: arm(m, case, seed) and None, model, text, 10 if quick else steps, 200, 32,
        partial(torch.optim.Adam, lr=0.003), 5.0, 2 if quick else 8, 6401 if quick else held,
    )  # fmt: skip
    return [_scaled(row, ("training loss", "validation", "test"), 1 / math.log(2), "BPC") for row in rows]


def words(
    case: str, seed: int, quick: bool, *, hidden: int = 128, steps: int = 1300, held: int = 35_001,
    halve: int | None = None,
) -> Rows:  # fmt: skip
    """Table 4.2: a word LSTM of two layers on Penn Treebank; perplexities.

    Args:
        halve: the step from which on the learning rate halves every 1327 steps, an epoch; None: never.
    """
    seed_everything(seed)
    text = data.words("ptb")
    model = models.language_model(len(text.vocabulary), hidden, hidden, layers=2)
    optimizer_of = partial(torch.optim.SGD, lr=2.0 if halve is None else 1.0)
    rows = language(
        case, lambda m: arm(m, case, seed) and None, model, text, 6 if quick else steps, 35, 20, optimizer_of, 5.0,
        2 if quick else 5, 7001 if quick else held, halve,
    )  # fmt: skip
    return [perplexities(row) for row in rows]


def perplexities(row: dict[str, Any]) -> dict[str, Any]:
    return row | {f"{key} perplexity": math.exp(row[key]) for key in ("validation", "test")}


def _scaled(row: dict[str, Any], keys: tuple[str, ...], scale: float, unit: str) -> dict[str, Any]:
    return {k: v for k, v in row.items() if k not in keys} | {f"{key} {unit}": row[key] * scale for key in keys}


# -- sequences -----------------------------------------------------------------------------------------------------


def unique(case: str, seed: int, quick: bool, *, steps: int = 6000) -> Rows:
    """Table 4.5: how many different integers there are among 26; LSTM, mean over time, an MLP; errors in %."""
    seed_everything(seed)
    name = case.removesuffix(", annealed")
    model = models.sequence_classifier(11, 16, 64, 12, 64)
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
        model, batch, lambda net, its: F.cross_entropy(net(its[0]), its[1]),
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
        made = tasks.programs(64, digits, nesting, "combined", step / steps, seed=seed * 1_000_003 + step)
        return tasks.encode(made)

    def look(net: nn.Module) -> dict[str, float]:
        x, y, mask = test
        right = (net(x).argmax(2) == y).float() * mask
        return {"characters right %": 100 * float(right.sum() / mask.sum())}

    rows = train_steps(
        model, batch, lambda net, its: masked_loss(net(its[0]), its[1], its[2]),
        torch.optim.Adam(model.parameters(), 0.003), steps, look, 2 if quick else 6, (), 5.0,
    )  # fmt: skip
    return [{"activation": case, **row} for row in rows]


def recall(case: str, seed: int, quick: bool, *, most: int = 6, steps: int = 3000) -> Rows:
    """Fig. 4.11: associative recall with a Neural Turing Machine, 2 to `most` items; noise in its controller."""
    seed_everything(seed)
    name = case.removesuffix(", annealed")
    model = models.ntm(8, 6, 100, 32, 20)
    steps = 4 if quick else steps
    if ARMS[name] is not None:
        convert_(model, Noisy(**{**vars(ARMS[name]), "seed": seed}), where="controller")
    steppers = [NoiseAnnealing(model, 30.0, 0.5, steps=steps)] if case.endswith("annealed") else []
    judges = {items: tasks.associative_recall(100, items, seed=77_777) for items in (2, most)}
    sizes = torch.Generator().manual_seed(seed)

    def loss(net: nn.Module, its: tuple[Tensor, ...]) -> Tensor:
        x, y, mask = its
        each = F.binary_cross_entropy_with_logits(net(x), y, reduction="none").mean(2)
        return (each * mask).sum() / mask.sum()

    def batch(step: int) -> tuple[Tensor, ...]:
        items = int(torch.randint(2, most + 1, (), generator=sizes))
        return tasks.associative_recall(16, items, seed=seed * 1_000_003 + step)

    def look(net: nn.Module) -> dict[str, float]:
        return {f"loss, {items} items": float(loss(net, its)) for items, its in judges.items()}

    rows = train_steps(model, batch, loss, torch.optim.Adam(model.parameters(), 1e-3), steps, look, 2 if quick else 6,
                       steppers, 10.0)  # fmt: skip
    return [{"activation": case, **row} for row in rows]


def translation(case: str, seed: int, quick: bool) -> Rows:
    """A synthetic stand-in for Table 4.4: attention over a small language; sentences translated exactly, in %."""
    seed_everything(seed)
    model = arm(models.translator(len(tasks.SOURCE_WORDS), len(tasks.TARGET_WORDS), 32, 48), case, seed)
    train, test = tasks.translation(20_000, seed=seed), tasks.translation(1000, seed=90_000 + seed)
    chosen = torch.Generator().manual_seed(seed)
    steps = 6 if quick else 1200

    def loss(net: nn.Module, its: tuple[Tensor, ...]) -> Tensor:
        source, target = its
        return F.cross_entropy(net(source, target).flatten(0, 1), target[:, 1:].flatten(), ignore_index=0)

    def look(net: Any) -> dict[str, float]:
        made = net.translate(test[0][:500], test[1].shape[1])
        wanted = test[1][:500]
        width = min(made.shape[1], wanted.shape[1])
        same = (made[:, :width] == wanted[:, :width]) | (wanted[:, :width] == 0)
        return {"test NLL": float(loss(net, test)), "sentences right %": 100 * float(same.all(1).float().mean())}

    rows = train_steps(
        model, lambda _: draw(chosen, *train, size=64), loss, torch.optim.Adam(model.parameters(), 0.002), steps, look,
        2 if quick else 6, (), 5.0,
    )  # fmt: skip
    return [{"activation": case, **row} for row in rows]


# -- claims --------------------------------------------------------------------------------------------------------


def last(rows: Rows, figure: str, key: str = "activation") -> dict[str, list[float]]:
    """Of each arm the figure at the end of each run."""
    found: dict[str, list[float]] = {}
    for name in dict.fromkeys(row[key] for row in rows):
        its = [row for row in rows if row[key] == name and figure in row]
        steps = [str(row.get("step", row.get("epoch", "0"))) for row in its]
        end = max(steps, key=float, default="0")
        found[name] = [row[figure] for row, step in zip(its, steps, strict=True) if step == end]
    return found


def ends(figure: str, printed: str, key: str = "activation") -> Callable[[Rows], str]:
    """A line with every arm's figure at the end of training, beside what is printed."""

    def claim(rows: Rows) -> str:
        arms = last(rows, figure, key)
        parts = [
            f"{name} {statistics.fmean(values):.4g}" + (f" ± {statistics.stdev(values):.2g}" if len(values) > 1 else "")
            for name, values in arms.items()
            if values
        ]
        return f"{figure} at the end: {', '.join(parts)}. Printed: {printed}."

    return claim


_SEEDS = list(range(3))


REPRODUCTIONS: list[Computation] = [
    Computation(
        "noisy-mnist", "One-layer MLPs on MNIST with noisy activations (004, Fig. 4.5).", mnist,
        [*ARMS, "soft + gradient noise"], _SEEDS,
        [Chart("epoch", "training NLL", ["activation"], "training NLL", True),
         Chart("epoch", "validation NLL", ["activation"], "validation NLL", True)],
        [ends("training NLL", "noisy ones converge faster and lower than tanh and hard tanh"),
         ends("validation NLL", "-"), ends("test %", "-")],
    ),
    Computation(
        "noisy-gaussians", "Three layers of 8 units on three Gaussians (004, Figs. 4.6 and 4.7).", gaussians,
        ["soft", "hard", "NAN", "NAH"], _SEEDS, (), [ends("test %", "tanh and noisy tanh solve it almost perfectly")],
    ),
    Computation(
        "noisy-characters", "A character GRU on Penn Treebank, sequences of 200 (004, Fig. 4.8).", characters,
        ["soft", "hard", "NAN", "NAH", "NANI", "NANIS"], _SEEDS,
        [Chart("step", "validation BPC", ["activation"], "validation bits a character")],
        [ends("validation BPC", "NAN about NANI"), ends("test BPC", "-")],
    ),
    Computation(
        "noisy-words", "A word LSTM of two layers on Penn Treebank (004, Table 4.2).", words,
        ["soft", "hard", "NAN, alpha 1.15", "NAH, alpha 1.15"], _SEEDS,
        [Chart("step", "validation perplexity", ["activation"], "validation perplexity", True)],
        [ends("test perplexity", "115.6 soft, 108.0 NAN, 108.7 NAH, of networks trained to the end")],
    ),
    Computation(
        "noisy-unique", "How many unique elements a sequence has (004, Table 4.5).", unique,
        ["soft", "hard", "NAN", "NAN, alpha 1.15", "curriculum", "NAN, annealed", "NAN, alpha 1.15, annealed",
         "NANIL, annealed"], _SEEDS,
        [Chart("step", "test error %", ["activation"], "test error")],
        [ends("test error %", "33.28 soft, 31.12 NAN, 14.83 curriculum, 9.53 NAN annealed, 20.94 NANIL annealed")],
        ["\"Annealing as good or better than the curriculum\" is true of NAN only, by the document's own table."],
    ),
    Computation(
        "noisy-programs", "Learning to execute small programs (004, Table 4.1).", programs,
        ["soft", "hard", "NAH", "NAH, alpha 1.15"], _SEEDS,
        [Chart("step", "characters right %", ["activation"], "characters right")],
        [ends("characters right %", "46.45 soft, 48.09 NAH; a caption calls these 1.64 points 2.5%")],
    ),
    Computation(
        "noisy-recall", "Associative recall with a Neural Turing Machine (004, Fig. 4.11).", recall,
        ["soft", "hard", "NAN, annealed", "NAN, alpha 1.15, annealed"], _SEEDS,
        [Chart("step", "loss, 6 items", ["activation"], "loss at 6 items")],
        [ends("loss, 6 items", "the noisy one converges faster")],
    ),
    Computation(
        "noisy-translation", "A small translation with attention (in place of 004, Table 4.4).", translation,
        ["soft", "hard", "NAH", "NAH, alpha 1.15"], _SEEDS,
        [Chart("step", "test NLL", ["activation"], "test NLL")],
        [ends("test NLL", "65.26 soft, 64.27 hard, 63.46 NAH, of Europarl's sentences"),
         ends("sentences right %", "BLEU 20.18 soft, 21.59 hard, 22.57 NAH")],
        ["More than half of the document's gain is the hard activations' alone (1.41 of 2.39 BLEU)."],
    ),
    *(
        Computation(f"{name}-full", f"{about} In full: hours to days.", compute, cases, [0], [], claims)
        for name, about, compute, cases, claims in (
            ("noisy-characters", "A character GRU on Penn Treebank (Fig. 4.8).",
             partial(characters, hidden=1000, steps=50_000, held=10**7), ["soft", "hard", "NAN", "NANI", "NANIS"],
             [ends("test BPC", "NAN about NANI")]),
            ("noisy-words", "A word LSTM on Penn Treebank (Table 4.2).",
             partial(words, hidden=200, steps=13 * 1327, held=10**6, halve=4 * 1327),
             ["soft", "hard", "NAN, alpha 1.15", "NAH, alpha 1.15"],
             [ends("test perplexity", "115.6 soft, 108.0 NAN, 108.7 NAH")]),
            ("noisy-unique", "Unique elements (Table 4.5).", partial(unique, steps=720_000),
             ["soft", "hard", "NAN", "curriculum", "NAN, annealed", "NANIL, annealed"],
             [ends("test error %", "33.28, 31.12 NAN, 14.83 curriculum, 9.53 NAN annealed, 20.94 NANIL annealed")]),
            ("noisy-programs", "Learning to execute (Table 4.1).",
             partial(programs, digits=6, nesting=3, hidden=400, steps=200_000),
             ["soft", "hard", "NAH", "NAH, alpha 1.15"],
             [ends("characters right %", "46.45 soft, 48.09 NAH")]),
            ("noisy-recall", "Associative recall (Fig. 4.11).", partial(recall, most=16, steps=100_000),
             ["soft", "hard", "NAN, annealed"], [ends("loss, 16 items", "the noisy one converges faster")]),
        )
    ),
]  # fmt: skip
