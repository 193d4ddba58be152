"""Language models at equal training time: dense, a narrower dense one, static sparse, and sparse ones that change.

    python benchmarks/gpt_quality.py --data tiny-shakespeare --budget 3600 --out gpt-quality-shakespeare.json

Each contestant trains for `--budget` seconds: its step is timed first, and so many steps as fit are its run, with a
warm-up and a cosine in the learning rate over them. Of the learning rates of the grid each takes the one of the lowest
validation loss with the first seed; the other seeds follow with that. The test loss is that of the weights at the end.
Contestants of equal parameters: `narrow` has as many as the sparse ones, `wide` sparse ones as many as dense.

The record holds a row a run and is written after each; what it holds already is not run again, so that a run that was
cut off goes on. On an idle machine: time is the measure. All takes contestants x (rates + seeds - 1) budgets.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import torch

import filigree as fg
from filigree.io.storage import write_json
from filigree.ops import kernels
from filigree.train import Record

INSIDE = {"*.attention.*": 0.3, "*.feed_forward.*": 0.1}  # densities: attention 70% sparse, feed-forward 90%
EVERY = 100  # steps between rewirings
SPARSE = {
    "static": None,
    "SET": lambda m, o, n: fg.SET(m, o, 0.1, n, every=EVERY, interval="step"),
    "EXD": lambda m, o, n: fg.EXD(m, o, 0.3, horizon=500, epochs=n, every=EVERY, interval="step"),
    "RigL": lambda m, o, n: fg.RigL(m, o, 0.3, EVERY, steps=n),
    "CHTs": lambda m, o, n: fg.CHTs(m, o, 0.1, n, every=EVERY, interval="step"),
    "topk": lambda m, o, n: fg.AnnealedTopK(m, o, 0.15, n),
}
CONTESTANTS = ("dense", "narrow", *SPARSE, "SET-wide", "RigL-wide")


def build(contestant: str, tokens: int, options: argparse.Namespace, seed: int) -> Any:
    fg.seed_everything(seed)
    method, _, wide = contestant.partition("-")
    width = options.width
    if contestant == "narrow":
        width = fitting(lambda w: size(tokens, w, options) / size(tokens, options.width, options, INSIDE), 1.0)
    elif wide:
        width = fitting(lambda w: size(tokens, w, options, INSIDE) / size(tokens, options.width, options), 1.0)
    model = fg.models.gpt(tokens, options.length, width, options.blocks, options.heads, dropout=options.dropout)
    if method in SPARSE:
        for where, density in INSIDE.items():
            topology = fg.topology.Full() if method == "topk" else fg.ErdosRenyi(density=density)
            init: Any = "keep" if method == "topk" else 0.02 / math.sqrt(density)
            fg.convert_(model, fg.Sparse(topology, init=init, seed=seed), where=where)
    return model


def size(tokens: int, width: int, options: argparse.Namespace, densities: dict[str, float] | None = None) -> float:
    """Parameters of a decoder: embedding, positions, and 4 and 8 squares of the width in each block."""
    attention, inner = (1.0, 1.0) if densities is None else densities.values()
    return (tokens + options.length) * width + options.blocks * width**2 * (4 * attention + 8 * inner)


def fitting(share: Any, goal: float) -> int:
    """The width, in steps of 16, at which the share is nearest to the goal."""
    return min(range(16, 4096, 16), key=lambda width: abs(share(width) - goal))


def train(contestant: str, data: Any, options: argparse.Namespace, rate: float, seed: int) -> dict[str, Any]:
    tokens, method = data.classes, contestant.partition("-")[0]
    model = build(contestant, tokens, options, seed)
    parameters = sum(p.numel() for p in model.parameters())
    steps = max(2, int(options.budget / step_seconds(build(contestant, tokens, options, seed), data, options)))
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=0.1, betas=(0.9, 0.95))
    moves = SPARSE[method](model, optimizer, steps) if SPARSE.get(method) else None
    warm = max(1, steps // 20)
    generator, losses = torch.Generator().manual_seed(seed), []
    began = time.perf_counter()
    for step in range(steps):
        share = min(1.0, (step + 1) / warm) * (0.55 + 0.45 * math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = rate * share
        losses.append(one_step(model, optimizer, data, options, generator))
        if moves is not None:
            moves.step()
    seconds = time.perf_counter() - began
    return {
        "contestant": contestant, "lr": rate, "seed": seed, "width": model.tokens.embedding_dim, "steps": steps,
        "seconds": seconds,
        "parameters": sum(p.numel() for p in model.parameters()), "parameters_at_start": parameters,
        "train_loss": sum(losses[-50:]) / len(losses[-50:]),
        "val_loss": loss_of(model, data.validation, options), "test_loss": loss_of(model, data.test, options),
    }  # fmt: skip


def one_step(model: Any, optimizer: Any, data: Any, options: argparse.Namespace, generator: torch.Generator) -> float:
    rows = torch.randint(len(data.train.x), (options.batch,), generator=generator)
    optimizer.zero_grad()
    loss = model.loss(data.train.x[rows], data.train.y[rows])
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()


def step_seconds(model: Any, data: Any, options: argparse.Namespace) -> float:
    """The median of some steps, after a warm-up."""
    optimizer, generator = torch.optim.AdamW(model.parameters(), 1e-4), torch.Generator().manual_seed(0)
    times = []
    for _ in range(12):
        began = time.perf_counter()
        one_step(model, optimizer, data, options, generator)
        times.append(time.perf_counter() - began)
    return sorted(times[2:])[5]


@torch.no_grad()
def loss_of(model: Any, part: Any, options: argparse.Namespace) -> float:
    """The mean cross-entropy of a part of the text, in nats a token; of its first 500 pieces."""
    model.eval()
    pieces = min(500, len(part.x))
    total = 0.0
    for x, y in zip(part.x[:pieces].split(options.batch), part.y[:pieces].split(options.batch), strict=True):
        total += model.loss(x, y).item() * len(x)
    model.train()
    return total / pieces


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="tiny-shakespeare", help="tiny-shakespeare (characters), ptb (words), a file")
    parser.add_argument("--budget", type=float, default=3600, help="seconds of training, each run")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rates", type=float, nargs="+", default=[3e-4, 1e-3, 3e-3])
    parser.add_argument("--contestants", nargs="+", default=CONTESTANTS, choices=CONTESTANTS)
    for name, value in (("width", 256), ("blocks", 4), ("heads", 4), ("length", 128), ("batch", 8)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    unit: Any = "words" if options.data == "ptb" else "characters"
    data = fg.data.load_text(options.data, unit=unit, length=options.length)
    settings = {k: v for k, v in vars(options).items() if k not in ("out", "contestants", "seeds", "rates")}
    head = Record.start(isa=kernels.isa())
    record: dict[str, Any] = {"settings": settings, "machine": head.machine, "versions": head.versions}
    record |= {"commit": head.commit, "rows": []}
    if options.out.exists():
        record = json.loads(options.out.read_text())
        if record["settings"] != settings:
            parser.error(f"{options.out} holds runs of other settings: {record['settings']}")
    rows = record["rows"]

    def run(contestant: str, rate: float, seed: int) -> None:
        if any((r["contestant"], r["lr"], r["seed"]) == (contestant, rate, seed) for r in rows):
            return
        rows.append(row := train(contestant, data, options, rate, seed))
        write_json(options.out, record)
        print("  ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items()), flush=True)

    for contestant in options.contestants:
        for rate in options.rates:
            run(contestant, rate, 0)
        tried = [r for r in rows if r["contestant"] == contestant and r["seed"] == 0]
        best = min(tried, key=lambda r: r["val_loss"] if math.isfinite(r["val_loss"]) else math.inf)["lr"]
        for seed in range(1, options.seeds):
            run(contestant, best, seed)


if __name__ == "__main__":
    main()
