"""Language models at equal training time: dense, a narrower dense one, static sparse, and sparse ones that change.

    python benchmarks/gpt_quality.py --data tiny-shakespeare --budget 3600 --out gpt_quality-shakespeare.json

Each contestant trains for `--budget` seconds: the budget over the time of a step are its steps, with a warm-up and a
cosine in the learning rate over them. Of the learning rates of the grid each takes the one of the lowest validation
loss with the first seed; the other seeds follow with that. The test loss is that of the weights at the end.
Contestants of equal parameters: `narrow` has as many as the sparse ones, `wide` sparse ones as many as dense. Of equal
memory: `narrow-memory` has twice the weights in its blocks, since the index of a sparse one takes as much as its value,
gradient and averages.

Time is the measure, and is taken once, before the runs: all contestants train a short run in turns, what moves their
connections included. `--time-only` does that and ends, one round more each time, and the record keeps all rounds; that
is for an idle machine. The runs count steps, and may share the machine with others.

The record holds a row a run and is written after each; what it holds already is not run again, so that runs that were
cut off go on. All takes contestants x (rates + seeds - 1) budgets.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

import torch

import filigree as fg
from filigree.io.storage import write_json
from filigree.ops import kernels
from filigree.train import Record

INSIDE = {"*.attention.*": 0.3, "*.feed_forward.*": 0.1}  # densities: attention 70% sparse, feed-forward 90%
SPARSE = {
    "static": None,
    "SET": lambda m, o, n, every: fg.SET(m, o, 0.1, n, every=every, interval="step"),
    "EXD": lambda m, o, n, every: fg.EXD(m, o, 0.3, horizon=500, epochs=n, every=every, interval="step"),
    "RigL": lambda m, o, n, every: fg.RigL(m, o, 0.3, every, steps=n),
    "CHTs": lambda m, o, n, every: fg.CHTs(m, o, 0.1, n, every=every, interval="step"),
    "topk": lambda m, o, n, every: fg.AnnealedTopK(m, o, 0.15, n),
}
CONTESTANTS = ("dense", "narrow", "narrow-memory", *SPARSE, "static-wide", "SET-wide", "RigL-wide")
SCOPE = ("out", "contestants", "seeds", "rates", "time_only")  # options of which a record may hold several


def build(contestant: str, tokens: int, options: argparse.Namespace, seed: int) -> Any:
    fg.seed_everything(seed)
    method, _, wide = contestant.partition("-")
    width = options.width
    if method == "narrow":
        inside = {where: density * (2 if wide else 1) for where, density in INSIDE.items()}
        width = fitting(lambda w: size(tokens, w, options) / size(tokens, options.width, options, inside), 1.0)
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


class Training:
    """A contestant and its schedule of so many steps."""

    def __init__(
        self, contestant: str, data: Any, options: argparse.Namespace, rate: float, seed: int, steps: int
    ) -> None:
        self.model = build(contestant, data.classes, options, seed)
        self.data, self.batch, self.rate, self.steps = data, options.batch, rate, steps
        self.optimizer = torch.optim.AdamW(self.model.parameters(), rate, weight_decay=0.1, betas=(0.9, 0.95))
        moves = SPARSE.get(contestant.partition("-")[0])
        self.moves = moves(self.model, self.optimizer, steps, options.every) if moves else None
        self.generator, self.losses = torch.Generator().manual_seed(seed), []

    def step(self) -> None:
        step, part = len(self.losses), self.data.train
        share = min(1.0, (step + 1) / max(1, self.steps // 20)) * (0.55 + 0.45 * math.cos(math.pi * step / self.steps))
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * share
        rows = torch.randint(len(part.x), (self.batch,), generator=self.generator)
        self.optimizer.zero_grad()
        loss = self.model.loss(part.x[rows], part.y[rows])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.losses.append(loss.item())
        if self.moves is not None:
            self.moves.step()


def train(
    contestant: str, data: Any, options: argparse.Namespace, rate: float, seed: int, steps: int
) -> dict[str, Any]:
    training = Training(contestant, data, options, rate, seed, steps)
    model, losses = training.model, training.losses
    parameters = parameters_of(model)
    began = time.process_time()
    for _ in range(steps):
        training.step()
    return {
        "contestant": contestant, "lr": rate, "seed": seed, "width": model.tokens.embedding_dim, "steps": steps,
        "processor_seconds": time.process_time() - began,
        "parameters": parameters_of(model), "parameters_at_start": parameters,
        "train_loss": sum(losses[-50:]) / len(losses[-50:]),
        "val_loss": loss_of(model, data.validation, options), "test_loss": loss_of(model, data.test, options),
    }  # fmt: skip


def parameters_of(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def time_steps(contestants: list[str], data: Any, options: argparse.Namespace) -> dict[str, float]:
    """Seconds a step of each contestant, the mean of a whole run of `2 * every` steps; some of each in turns."""
    steps, turn = 2 * options.every, 10
    for name in contestants:  # first steps wait for memory
        Training(name, data, options, 1e-3, 0, steps).step()
    trainings = {name: Training(name, data, options, 1e-3, 0, steps) for name in contestants}
    seconds = dict.fromkeys(contestants, 0.0)
    for _ in range(0, steps, turn):
        for name, training in trainings.items():
            began = time.perf_counter()
            for _ in range(min(turn, steps - len(training.losses))):
                training.step()
            seconds[name] += time.perf_counter() - began
    return {name: total / steps for name, total in seconds.items()}


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
    parser.add_argument("--every", type=int, default=100, help="steps between rewirings")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--time-only", action="store_true", help="time the steps once more, on an idle machine; no run")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    unit: Any = "words" if options.data == "ptb" else "characters"
    data = fg.data.load_text(options.data, unit=unit, length=options.length)
    settings = {k: v for k, v in vars(options).items() if k not in SCOPE}
    head = Record.start(isa=kernels.isa())
    record: dict[str, Any] = {"settings": settings, "machine": head.machine, "versions": head.versions}
    record |= {"commit": head.commit, "threads": torch.get_num_threads(), "step_seconds": {}, "rows": []}
    if options.out.exists():
        record = json.loads(options.out.read_text())
        if record["settings"] != settings:
            parser.error(f"{options.out} holds runs of other settings: {record['settings']}")
    rows, rounds = record["rows"], record["step_seconds"]
    untimed = [name for name in options.contestants if name not in rounds]
    if options.time_only or untimed:
        for name, seconds in time_steps(options.contestants if options.time_only else untimed, data, options).items():
            rounds.setdefault(name, []).append(seconds)
        write_json(options.out, record)
    for name in options.contestants:
        print(f"{name}: {', '.join(f'{1e3 * seconds:.1f}' for seconds in rounds[name])} ms a step", flush=True)
    if options.time_only:
        return

    def run(contestant: str, rate: float, seed: int) -> None:
        if any((r["contestant"], r["lr"], r["seed"]) == (contestant, rate, seed) for r in rows):
            return
        steps = max(2, int(options.budget / statistics.median(rounds[contestant])))
        rows.append(row := train(contestant, data, options, rate, seed, steps))
        write_json(options.out, record)
        print("  ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items()), flush=True)

    for contestant in options.contestants:
        for rate in options.rates:
            run(contestant, rate, 0)
    for seed in range(1, options.seeds):  # so that runs that were cut off have as many seeds of each
        for contestant in options.contestants:
            tried = [r for r in rows if r["contestant"] == contestant and r["seed"] == 0]
            best = min(tried, key=lambda r: r["val_loss"] if math.isfinite(r["val_loss"]) else math.inf)
            run(contestant, best["lr"], seed)


if __name__ == "__main__":
    main()
