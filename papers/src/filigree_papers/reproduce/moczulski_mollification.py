"""Moczulski 2019, 4.4: mollifying networks against plain ones, residual ones and stochastic depth."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import scipy.sparse
import scipy.sparse.linalg
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from filigree import data, models
from filigree.convert import convert_
from filigree.data import text as texts
from filigree.dynamics import MollificationAnnealing
from filigree.nn.mollified.mollified import Mollified
from filigree.nn.mollified.stochastic_depth import StochasticDepth
from filigree.report import Chart
from filigree.train import evaluate, fit, seed_everything
from filigree_papers import models as own_models
from filigree_papers.data import tasks
from filigree_papers.reproduce.claims import OfRows, before, beside, by_run, compared, test_accuracy
from filigree_papers.reproduce.experiment import Rows
from filigree_papers.reproduce.findings import Finding, claim
from filigree_papers.reproduce.language_training import language, perplexities
from filigree_papers.reproduce.moczulski_noise import arm
from filigree_papers.reproduce.reproduction import Computation, Records, Reproduction
from filigree_papers.reproduce.steps import draw, train_steps


class ResidualMLP(nn.Module):
    """Layers of one width: `x + sigmoid(norm(W x + b))` each, with batch norm; the document's comparison."""

    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        self.first = nn.Linear(sizes[0], sizes[1])
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(i, o), nn.BatchNorm1d(o), nn.Sigmoid()) for i, o in pairwise(sizes[1:-1])
        )
        self.head = nn.Linear(sizes[-2], sizes[-1])

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(self.first(x))
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x)


def deep_mlp(case: str, sizes: list[int], seed: int, k: float) -> tuple[nn.Module, list[Any]]:
    """A sigmoid MLP with Glorot's initial values: plain, with hard sigmoids, residual with batch norm, or mollified.

    Returns:
        the model, and the annealing of its mollification in a list, which is empty for the others.
    """
    seed_everything(seed)
    if case == "residual + batch norm":
        model: nn.Module = ResidualMLP(sizes)
    else:
        model = models.mlp(sizes, activation="sigmoid")
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    if case == "hard":
        arm(model, case, seed)
    if not case.startswith("mollified"):
        return model, []
    convert_(model, Mollified(residual=case.endswith("residual"), expected=True, seed=seed))
    return model, [MollificationAnnealing(model, k=k, stop=0.05)]


def classifier(
    case: str, model: nn.Module, steppers: list[Any], train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor],
    steps: int, seed: int, lr: float, momentum: float, batch: int, looks: int,
) -> Rows:  # fmt: skip
    """SGD on samples drawn from a training set; accuracies on a part of it and on test data."""
    generator = torch.Generator().manual_seed(seed)
    shown = tuple(tensor[:5000] for tensor in train)

    def look(net: nn.Module) -> dict[str, float]:
        row = {}
        for name, (x, y) in (("training", shown), ("test", test)):
            out = torch.cat([net(part) for part in x.split(1000)])
            row[f"{name} %"] = 100 * float((out.argmax(1) == y).float().mean())
            row[f"{name} NLL"] = float(F.cross_entropy(out, y))
        row["sum of p"] = float(sum(block.p for block in steppers[0].layers)) if steppers else 0.0
        return row

    rows = train_steps(
        model, lambda _: draw(generator, *train, size=batch), lambda net, xy: F.cross_entropy(net(xy[0]), xy[1]),
        torch.optim.SGD(model.parameters(), lr, momentum), steps, look, looks, steppers,
    )  # fmt: skip
    return [{"network": case, **row} for row in rows]


def parity(case: str, seed: int, quick: bool) -> Rows:
    """Fig. 4.16: 40-bit parity, six layers of 128 sigmoids, SGD .001 with momentum .92, a ~ U[-2, 2]."""
    model, steppers = deep_mlp(case, [40, *[128] * 6, 2], seed, k=200.0)
    train, test = tasks.parity(20_000, seed=seed), tasks.parity(5000, seed=50_000 + seed)
    return classifier(case, model, steppers, train, test, 20 if quick else 20_000, seed, 0.001, 0.92, 100,
                      2 if quick else 10)  # fmt: skip


def pentomino(case: str, seed: int, quick: bool, *, images: int = 20_000, steps: int = 8000) -> Rows:
    """4.4.4.1: six layers of 200 sigmoids, SGD .001 with momentum (the document: 80,000 images, 100 epochs)."""
    model, steppers = deep_mlp(case, [4096, *[200] * 6, 2], seed, k=200.0)
    samples = 200 if quick else images
    (x, y), (test_x, test_y) = tasks.pentomino(samples, seed=seed), tasks.pentomino(samples // 4, seed=70_000 + seed)
    return classifier(case, model, steppers, (x.flatten(1), y), (test_x.flatten(1), test_y), 20 if quick else steps,
                      seed, 0.001, 0.9, 100, 2 if quick else 8)  # fmt: skip


def residual(case: str, seed: int, quick: bool) -> Rows:
    """Table 4.6: ResNet-8 of width 16 on 8,000 images of CIFAR-10 (the document: 110 layers, 500 epochs)."""
    split = data.load("cifar-10", images=True, validation=5000)
    seed_everything(seed)
    model = models.resnet((1, 1, 1), 16)
    steppers: list[Any] = []
    if "stochastic depth" in case:
        convert_(model, StochasticDepth(0.5))
    samples, held, tested = (256, 500, 500) if quick else (8_000, 1_000, 10_000)
    if "mollified" in case:
        convert_(model, Mollified(expected=True, seed=seed))
        steppers = [MollificationAnnealing(model, k=5.0, stop=0.05)]
    train, test = (split.train.x[:samples], split.train.y[:samples]), (split.test.x[:tested], split.test.y[:tested])
    assert split.validation is not None
    watched = split.validation.x[:held], split.validation.y[:held]
    history = fit(
        model, train, optimizer=torch.optim.SGD(model.parameters(), 0.05, 0.9, weight_decay=1e-4),
        epochs=1 if quick else 8, batch_size=128, validation=watched, seed=seed, callbacks=steppers,
        augment=split.augment, progress=False,
    )  # fmt: skip
    rows = [
        {"network": case, "epoch": str(row["epoch"] + 1), "training NLL": row["train_loss"],
         "validation %": 100 * row["val_accuracy"]}
        for row in history
    ]  # fmt: skip
    rows[-1]["test %"] = 100 * evaluate(model, test)["accuracy"]
    return rows


def words(case: str, seed: int, quick: bool, *, hidden: int = 128, steps: int = 1300, held: int = 35_001) -> Rows:
    """Table 4.7: a word LSTM of two layers with hard sigmoids as gates on both sides, mollified and not."""
    seed_everything(seed)
    text = texts.words("ptb")
    model = models.language_model(len(text.vocabulary), hidden, hidden, layers=2)

    def convert(net: nn.Module) -> list[Any]:
        if case == "soft":
            return []
        convert_(net, Mollified(expected=True, seed=seed), where="rnn")
        annealing = MollificationAnnealing(net, k=0.0 if case == "hard gates" else 10.0, stop=0.05)
        return [annealing]

    rows = language(
        case, convert, model, text, 6 if quick else steps, 35, 20, partial(torch.optim.SGD, lr=2.0), 5.0,
        2 if quick else 5, 7001 if quick else held,
    )  # fmt: skip
    return [
        {"network" if key == "activation" else key: value for key, value in perplexities(row).items()} for row in rows
    ]


def vectors(size: int, tokens: Tensor, vocabulary: int) -> Tensor:
    """Word vectors of our own: the leading singular vectors of positive pointwise mutual information, window 2."""
    ids = tokens.numpy()
    pairs = [(ids[:-d], ids[d:]) for d in (1, 2)]
    rows, columns = (np.concatenate([p[i] for p in pairs] + [p[1 - i] for p in pairs]) for i in (0, 1))
    counts = scipy.sparse.coo_matrix((np.ones(len(rows)), (rows, columns)), (vocabulary, vocabulary)).tocsr()
    total, each = counts.sum(), np.asarray(counts.sum(1)).ravel()
    entries = counts.tocoo()
    pmi = np.log(entries.data * total / (each[entries.row] * each[entries.col]))
    positive = scipy.sparse.coo_matrix((np.maximum(pmi, 0), (entries.row, entries.col)), counts.shape).tocsr()
    u, s, _ = scipy.sparse.linalg.svds(positive, size, random_state=np.random.RandomState(0))
    embedded = torch.from_numpy(np.ascontiguousarray(u * np.sqrt(s))).float()
    return (embedded - embedded.mean(0)) / embedded.std(0)


def embedding(case: str, seed: int, quick: bool) -> Rows:
    """Fig. 4.19: word vectors from characters; a bidirectional LSTM and five layers of tanh, RMSProp .0006."""
    text = texts.words("ptb")
    targets = vectors(100, text.train, len(text.vocabulary))
    letters = sorted({letter for word in text.vocabulary for letter in word})
    spelled = torch.zeros(len(text.vocabulary), 16, dtype=torch.long)
    for number, word in enumerate(text.vocabulary):
        indices = [letters.index(letter) + 1 for letter in word[:16]]
        spelled[number, : len(indices)] = torch.tensor(indices)
    order = torch.randperm(len(spelled), generator=torch.Generator().manual_seed(seed))
    train, test = order[:-1000], order[-1000:]
    seed_everything(seed)
    model = own_models.character_encoder(len(letters) + 1, 16, 64, 100, layers=5, width=200)
    steppers: list[Any] = []
    if case == "hard":
        arm(model, case, seed)
    if case == "mollified":
        convert_(model, Mollified(expected=True, seed=seed))
        steppers = [MollificationAnnealing(model, k=100.0, stop=0.05)]
    generator = torch.Generator().manual_seed(seed)

    def look(net: nn.Module) -> dict[str, float]:
        embedded = net(spelled[test])
        return {
            "test loss": float(F.mse_loss(embedded, targets[test])),
            "cosine": float(F.cosine_similarity(embedded, targets[test]).mean()),
        }

    rows = train_steps(
        model, lambda _: draw(generator, spelled[train], targets[train], size=64),
        lambda net, xy: F.mse_loss(net(xy[0]), xy[1]),
        torch.optim.RMSprop(model.parameters(), 0.0006, momentum=0.92), 10 if quick else 2000, look, 2 if quick else 8,
        steppers, 5.0,
    )  # fmt: skip
    return [{"network": case, **row} for row in rows]


def _curves(x: str, *figures: str) -> list[Chart]:
    return [Chart(x, figure, ["network"], figure) for figure in figures]


def annealing_claim(records: Records) -> list[Finding]:
    """4.3.6.6 anneals the noise of networks for sequences; here it is an MLP."""
    parts = compared(by_run(records, test_accuracy), [("annealed", "nan")], unit=" points")
    says = "Annealed noise is better than noise that stays"
    return [claim("Moczulski 2019, section 4.3.6.6", says, parts)] if parts else []


def pentomino_claims() -> list[OfRows]:
    """4.4.4.1."""
    where, key = "Moczulski 2019, section 4.4.4.1, Pentomino", "network"
    return [
        beside(where, "test %", {"plain": 69.5, "mollified, residual": 75.15}, key),
        before(where, "The mollified network with residual connections is more accurate", "test %",
               [("mollified, residual", "plain")], key),
    ]  # fmt: skip


def word_claims() -> list[OfRows]:
    """Table 4.7."""
    where, key = "Moczulski 2019, Table 4.7", "network"
    return [
        beside(where, "test perplexity", {"hard gates": 128.4, "mollified": 123.6}, key),
        before(where, "The mollified network is better", "test perplexity", [("mollified", "hard gates")], key,
               lower=True),
    ]  # fmt: skip


_SEEDS = list(range(3))
_BLOCKS = ["plain", "hard", "residual + batch norm", "mollified", "mollified, residual"]

REPRODUCTIONS: list[Computation | Reproduction] = [
    Computation(
        "mollified-parity", "40-bit parity with six layers of sigmoids (Moczulski 2019, Fig. 4.16).", parity, _BLOCKS,
        _SEEDS, (), _curves("step", "training NLL", "test %"),
        [before("Moczulski 2019, Fig. 4.16", "Plain does not learn, mollified converges faster than residual",
                "training NLL", [("mollified", "plain"), ("mollified", "residual + batch norm")], "network",
                lower=True)],
    ),
    Computation(
        "mollified-pentomino", "Are three Pentominoes the same? Six layers of sigmoids (Moczulski 2019, 4.4.4.1).",
        pentomino, _BLOCKS, _SEEDS, (), _curves("step", "training NLL", "test %"), pentomino_claims(),
    ),
    Computation(
        "mollified-resnet",
        "Residual networks on CIFAR-10: plain, mollified, stochastic depth (Moczulski 2019, Table 4.6).",
        residual, ["plain", "mollified", "stochastic depth", "mollified + stochastic depth"], _SEEDS, ["cifar-10"],
        _curves("epoch", "training NLL", "validation %"),
        [beside("Moczulski 2019, Table 4.6", "test %", {"plain": 91.78, "mollified": 92.45, "stochastic depth": 93.25},
                "network"),
         before("Moczulski 2019, Table 4.6", "Stochastic depth is best, mollified better than plain", "test %",
                [("stochastic depth", "mollified"), ("mollified", "plain")], "network"),
         before("Moczulski 2019, section 4.4.4.1, future work", "Both together are better than either", "test %",
                [("mollified + stochastic depth", "mollified"), ("mollified + stochastic depth", "stochastic depth")],
                "network")],
    ),
    Computation(
        "mollified-words", "A word LSTM of two layers, mollified (Moczulski 2019, Table 4.7).", words,
        ["soft", "hard gates", "mollified"], _SEEDS, ["ptb"],
        [Chart("step", "validation perplexity", ["network"], "validation perplexity", True)], word_claims(),
    ),
    Computation(
        "mollified-embedding", "Word vectors from characters (Moczulski 2019, Fig. 4.19).", embedding,
        ["soft", "hard", "mollified"], _SEEDS, ["ptb"], _curves("step", "training loss", "test loss"),
        [before("Moczulski 2019, Fig. 4.19", "The mollified network converges faster", "training loss",
                [("mollified", "soft")], "network", lower=True)],
    ),
    Computation(
        "mollified-pentomino-full", "Pentomino in full: 80,000 images, 100 epochs (Moczulski 2019, 4.4.4.1).",
        partial(pentomino, images=80_000, steps=80_000), ["plain", "mollified", "mollified, residual"],
        claims=pentomino_claims(), long=True,
    ),
    Computation(
        "mollified-words-full", "A word LSTM of two layers, mollified, in full (Moczulski 2019, Table 4.7).",
        partial(words, hidden=200, steps=13 * 1327, held=10**6), ["hard gates", "mollified"], data=["ptb"],
        claims=word_claims(), long=True,
    ),
    Reproduction(
        "cifar-resnet110-mollified", "ResNet-110 on CIFAR-10, mollified, with stochastic depth, both. Days to weeks.",
        "cifar-resnet110-mollified", {"cifar-10": []},
        {"cifar-10": {"plain": {"test": 0.9178}, "mollified": {"test": 0.9245}, "stochastic-depth": {"test": 0.9325}}},
        "Moczulski 2019, Table 4.6",
        ["training.epochs=1", "model.blocks=[1,1,1]", "data.name=orl", "data.validation=0.2"], long=True,
    ),
    Reproduction(
        "noisy-mlp", "Three layers of tanh on MNIST: soft, hard, noisy, annealed, mollified (Moczulski 2019, 4.3.6.6).",
        "noisy-mlp", {"mnist": []}, quick=["training.epochs=1", "seeds=[0]"], claims=[annealing_claim],
    ),
]  # fmt: skip
