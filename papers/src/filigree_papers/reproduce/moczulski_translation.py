"""Moczulski 2019, 4.3.6.4 and 4.3.6.5: noisy activations in translation and in captions.

The data, Europarl and Flickr8k, are the user's own.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
import statistics
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from filigree.convert import inference_context
from filigree.report import Chart
from filigree.train import EarlyStopping, seed_everything
from filigree_papers import data as own_data
from filigree_papers import models as own_models
from filigree_papers.data.captions import Captioned
from filigree_papers.data.parallel import SentencePair
from filigree_papers.data.sentences import END, PADDING, UNKNOWN
from filigree_papers.reproduce.claims import OfRows, before, beside
from filigree_papers.reproduce.experiment import Rows
from filigree_papers.reproduce.moczulski_noise import arm
from filigree_papers.reproduce.reproduction import Computation
from filigree_papers.reproduce.steps import Batch, train_steps

Batches = Callable[[], Iterator[Batch]]  # iterates over a part of the data


def _ngrams(sentence: Sequence[Hashable], n: int) -> Counter[tuple[Hashable, ...]]:
    return Counter(zip(*(sentence[i:] for i in range(n)), strict=False))


def bleu(
    candidates: Sequence[Sequence[Hashable]], references: Sequence[Sequence[Sequence[Hashable]]], order: int = 4
) -> float:
    """BLEU of a corpus in % (Papineni et al. 2002): `min(1, exp(1 - r / c)) (prod_n p_n)^(1 / order)`.

    p_n: the share of the candidates' n-grams that are in a reference, each counted at most as often as in the one that
    has it most. c: the candidates' words; r: those of the references closest in length, the shorter of two. Each
    candidate has one reference or more.
    """
    shared, total, length, closest = [0] * order, [0] * order, 0, 0
    for candidate, own_references in zip(candidates, references, strict=True):
        length += len(candidate)
        closest += min((abs(len(one) - len(candidate)), len(one)) for one in own_references)[1]
        for n in range(order):
            own, *others = (_ngrams(one, n + 1) for one in (candidate, *own_references))
            shared[n] += (own & functools.reduce(operator.or_, others)).total()
            total[n] += own.total()
    if not all(shared):
        return 0.0
    precision = statistics.fmean(math.log(right / count) for right, count in zip(shared, total, strict=True))
    return 100 * math.exp(min(0.0, 1 - closest / length) + precision)


def orthogonal_(model: nn.Module, scale: float) -> None:
    """The recurrent weights of every gate become a random orthogonal matrix times `scale`."""
    for module in model.modules():
        if isinstance(module, nn.RNNBase | nn.RNNCellBase):
            for name, weight in module.named_parameters(recurse=False):
                if name.startswith("weight_hh"):
                    for gate in weight.detach().split(weight.shape[1]):
                        nn.init.orthogonal_(gate, scale)


def sentence_nll(logits: Tensor, tokens: Tensor) -> Tensor:
    """The mean over the batch of -log p of a sentence, in nats.

    Args:
        logits: `(batch, T - 1, tokens)`. tokens: `(batch, T)`.
    """
    total = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), ignore_index=PADDING, reduction="sum")
    return total / len(tokens)


def uneven(weights: Tensor, tokens: Tensor) -> Tensor:
    """`sum_i (1 - sum_t alpha_ti)^2` over regions i (Xu et al. 2015, 4.2.1), padding left out, the mean of the batch.

    Args:
        weights: alpha `(batch, T - 1, regions)`. tokens: `(batch, T)`.
    """
    looked = (weights * (tokens[:, 1:] != PADDING).unsqueeze(-1)).sum(1)
    return (1 - looked).square().sum(1).mean()


def mean_nll(nll: Callable[[nn.Module, Batch], Tensor], model: nn.Module, batches: Iterable[Batch]) -> float:
    """The mean of `nll` over all sentences, from its means over batches."""
    sums = [(float(nll(model, batch)) * len(batch[-1]), len(batch[-1])) for batch in batches]
    return sum(total for total, _ in sums) / sum(count for _, count in sums)


def words(tokens: Tensor) -> list[int]:
    """A sentence without begin, end and padding."""
    return [token for token in tokens.tolist() if token > END]


def guessed(tokens: Tensor) -> list[list[int]]:
    """The sentences of a model, to be compared by BLEU: an unknown word is equal to no word."""
    return [[-1 if token == UNKNOWN else token for token in words(sentence)] for sentence in tokens]


def stopped_early(
    case: str, model: nn.Module, train: Callable[[int], Iterator[Batch]], loss: Callable[[nn.Module, Batch], Tensor],
    nll: Callable[[nn.Module, Batch], Tensor], validation: Batches, test: Callable[[nn.Module], dict[str, float]],
    optimizer: torch.optim.Optimizer, steps: int, looks: int,
) -> Rows:  # fmt: skip
    """Train with gradients clipped at norm 1, and test with the weights of the best evaluation.

    Args:
        train: a function from the number of an epoch to its batches.
        loss: what is minimised. nll: what is evaluated on `validation`, which makes those batches.

    Returns:
        a row for each evaluation, then one of `test`.
    """
    stopping = EarlyStopping("validation NLL")
    stream = itertools.chain.from_iterable(map(train, itertools.count()))
    numbers = itertools.count()

    def look(net: nn.Module) -> dict[str, float]:
        seen = {"validation NLL": mean_nll(nll, net, validation())}
        stopping.update({"epoch": next(numbers), **seen}, net)
        return seen

    rows = train_steps(model, lambda _: next(stream), loss, optimizer, steps, look, looks, (), 1.0)
    assert stopping.best_epoch is not None  # there was a look at the last step
    stopping.restore(model)
    best = {"best validation NLL": stopping.best, "best step": float(rows[stopping.best_epoch]["step"])}
    with inference_context(model):
        return [{"activation": case, **row} for row in [*rows, {**best, **test(model)}]]


def europarl(case: str, seed: int, quick: bool, orthogonal: float | None = 0.01, steps: int = 300_000) -> Rows:
    """Table 4.4: English to French with attention; test NLL and BLEU-4, of greedy translations.

    The data come from `filigree_papers.data.parallel`; for the document's figures the test part is newstest2011.
    Embeddings have 512 and states 1024 units; Adadelta, batches of 80 (the document gives none of these).

    Args:
        orthogonal: the scale of recurrent weights at the start, 0.01 in the document; None: as torch draws them.
    """
    seed_everything(seed)
    text, device = own_data.parallel(), _device()
    embedding, hidden = (8, 16) if quick else (512, 1024)
    model = own_models.translator(len(text.source), len(text.target), embedding, hidden)
    if orthogonal is not None:
        orthogonal_(model, orthogonal)
    arm(model, case, seed).to(device)

    def batches(pairs: Sequence[SentencePair], number: int = 0) -> Iterator[Batch]:
        for source, target in own_data.parallel_batches(pairs[:64] if quick else pairs, 80, number):
            yield source.to(device), target.to(device)

    def nll(net: nn.Module, batch: Batch) -> Tensor:
        return sentence_nll(net(*batch), batch[1])

    def test(net: Any) -> dict[str, float]:
        translated, wanted = [], []
        for source, target in batches(text.test):
            translated += guessed(net.translate(source, 100))
            wanted += [[words(sentence)] for sentence in target]
        return {"test NLL": mean_nll(nll, net, batches(text.test)), "BLEU-4": bleu(translated, wanted)}

    return stopped_early(
        case, model, lambda epoch: batches(text.train, seed * 1_000_003 + epoch), nll, nll,
        lambda: batches(text.validation), test, torch.optim.Adadelta(model.parameters()), 4 if quick else steps,
        2 if quick else 60,
    )  # fmt: skip


def flickr(
    case: str, seed: int, quick: bool, orthogonal: float | None = 0.01, steps: int = 12_000, evenness: float = 1.0
) -> Rows:
    """Table 4.3: captions of Flickr8k with soft attention; test NLL, and BLEU of greedy captions.

    The data come from `filigree_papers.data.captions`; BLEU is against all captions of an image. Embeddings have 512
    and states 1000 units; Adam, batches of 64 captions (the document gives none of these), dropout 0.5.

    Args:
        orthogonal: as of `europarl`.
        evenness: the weight of `uneven` in what is minimised ("doubly stochastic" attention): every region should be
            seen equally much.
    """
    seed_everything(seed)
    name = case.removesuffix(", no dropout")
    shown, device = own_data.captions(), _device()
    embedding, hidden = (8, 16) if quick else (512, 1000)
    width = shown.features([shown.train[0][0]]).shape[-1]
    model = own_models.captioner(len(shown.vocabulary), width, embedding, hidden, 0.5 if name == case else 0.0)
    if orthogonal is not None:
        orthogonal_(model, orthogonal)
    arm(model, name, seed).to(device)

    def batches(part: Sequence[Captioned], number: int = 0) -> Iterator[Batch]:
        part = part[:16] if quick else part
        pairs = [(torch.tensor([i]), caption) for i, (_, captions) in enumerate(part) for caption in captions]
        for indices, tokens in own_data.parallel_batches(pairs, 64, number):
            yield shown.features([part[i][0] for i in indices[:, 0]]).to(device), tokens.to(device)

    def nll(net: nn.Module, batch: Batch) -> Tensor:
        return sentence_nll(net(*batch), batch[1])

    def loss(net: Any, batch: Batch) -> Tensor:
        logits, weights = net.attend(*batch)
        return sentence_nll(logits, batch[1]) + evenness * uneven(weights, batch[1])

    def test(net: Any) -> dict[str, float]:
        described, wanted = [], []
        for image, captions in shown.test[: 16 if quick else None]:
            described += guessed(net.describe(shown.features([image]).to(device), 50))
            wanted.append([words(caption) for caption in captions])
        scores = {f"BLEU-{order}": bleu(described, wanted, order) for order in (1, 2, 3, 4)}
        return {"test NLL": mean_nll(nll, net, batches(shown.test)), **scores}

    return stopped_early(
        case, model, lambda epoch: batches(shown.train, seed * 1_000_003 + epoch), loss, nll,
        lambda: batches(shown.validation), test, torch.optim.Adam(model.parameters(), 2e-4), 4 if quick else steps,
        2 if quick else 24,
    )  # fmt: skip


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


_GREEDY = "Translations and captions are the likeliest token at each step; the document does not say how it searched."


def translation_claims() -> list[OfRows]:
    """Table 4.4."""
    where, arms = "Moczulski 2019, Table 4.4", ("soft", "hard", "NAH")
    return [
        beside(where, "best validation NLL", dict(zip(arms, (65.26, 64.27, 63.46), strict=True))),
        beside(where, "BLEU-4", dict(zip(arms, (20.18, 21.59, 22.57), strict=True))),
        before(where, "Hard activations are better than soft ones, noisy ones than both", "BLEU-4",
               [("hard", "soft"), ("NAH", "soft"), ("NAH", "hard")]),
    ]  # fmt: skip


def caption_claims() -> list[OfRows]:
    """Table 4.3."""
    where, arms = "Moczulski 2019, Table 4.3", ("soft", "NAH", "NAH, no dropout", "NANI", "NANIL")
    printed = {
        "test NLL": (40.33, 40.17, 39.8, 40.0, 39.9), "BLEU-4": (19.5, 20.9, 20.9, 20.7, 20.0),
        "BLEU-1": (67.0, 66.0, 64.9, 66.0, 66.0),
    }  # fmt: skip
    beaten = [(noisy, "soft") for noisy in arms[1:]]
    return [
        *(beside(where, name, dict(zip(arms, numbers, strict=True))) for name, numbers in printed.items()),
        before(where, "Noisy activations have the lower NLL", "test NLL", beaten, lower=True),
        before(where, "Dropout improves further", "test NLL", [("NAH", "NAH, no dropout")], lower=True),
    ]


REPRODUCTIONS: list[Computation] = [
    Computation(
        "noisy-europarl", "Translation with attention on your own Europarl (Moczulski 2019, Table 4.4).", europarl,
        ["soft", "hard", "NAH", "NAH, alpha 1.15"], [0], ["europarl"],
        [Chart("step", "validation NLL", ["activation"], "validation NLL of a sentence")], translation_claims(),
        [_GREEDY], long=True,
    ),
    Computation(
        "noisy-flickr8k", "Captions with soft attention on your own Flickr8k (Moczulski 2019, Table 4.3).", flickr,
        ["soft", "hard", "NAH", "NAH, alpha 1.15", "NAH, no dropout", "NANI", "NANIL"], [0], ["flickr8k"],
        [Chart("step", "validation NLL", ["activation"], "validation NLL of a caption")], caption_claims(),
        ["The document has no hard activations without noise here; METEOR is not computed.", _GREEDY], long=True,
    ),
]  # fmt: skip
