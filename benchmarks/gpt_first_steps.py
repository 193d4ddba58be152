"""Losses and times of the first steps of GPT-2 small's shape, dense and with its linear layers 90% sparse.

    python benchmarks/gpt_first_steps.py --steps 300 --out benchmarks/results/gpt_first_steps.json

12 blocks of 768 / 3,072, 12 heads, tied head, 1 x 256 tokens a step, AdamW at 3e-4 after a warm-up of 100 steps; the
text is tiny Shakespeare in characters, so of the 50,257 tokens only 65 occur, but all are part of each step. Both
networks see the same pieces. They train in turns, ten steps each, so that a noisy machine is noisy for both.

The record is written every ten steps, with a checkpoint beside it: what was cut off goes on. On an idle machine.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

import filigree as fg
from filigree.io.storage import read_state, write_json, write_state
from filigree.ops import kernels
from filigree.train import Record

TOKENS, LENGTH, TURN = 50_257, 256, 10
CONTESTANTS = {"dense": None, "sparse 90%": 0.1, "sparse 95%": 0.05}


class Training:
    def __init__(self, density: float | None, checkpoint: Path) -> None:
        fg.seed_everything(0)
        self.model: Any = fg.models.gpt(TOKENS, 1024, 768, 12, 12, bias=True)
        if density is not None:
            layers = ["*.attention.*", "*.feed_forward.*"]
            fg.convert_(self.model, fg.Sparse(fg.ErdosRenyi(density=density), init=0.02 / density**0.5), where=layers)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 3e-4, fused=True)
        self.checkpoint = checkpoint
        self.losses: list[float] = []
        self.seconds: list[float] = []
        if checkpoint.exists():
            state = read_state(checkpoint)
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.losses, self.seconds = state["losses"], state["seconds"]

    def step(self, data: Any) -> None:
        number = len(self.losses)
        row = torch.randint(len(data.x), (1,), generator=torch.Generator().manual_seed(number))
        began = time.perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = 3e-4 * min(1.0, (number + 1) / 100)
        self.optimizer.zero_grad()
        loss = self.model.loss(data.x[row], data.y[row])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.losses.append(loss.item())
        self.seconds.append(time.perf_counter() - began)

    def save(self) -> None:
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        write_state(self.checkpoint, state | {"losses": self.losses, "seconds": self.seconds})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--contestants", nargs="+", default=["dense", "sparse 90%"], choices=CONTESTANTS)
    parser.add_argument("--checkpoints", type=Path, default=Path("."), help="a folder for 1.5 GB and less each")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    data = fg.data.load_text("tiny-shakespeare", length=LENGTH).train
    head = Record.start(isa=kernels.isa())
    record: dict[str, Any] = {"machine": head.machine, "versions": head.versions, "commit": head.commit, "seed": 0}
    record |= {"length": LENGTH, "losses": {}, "seconds": {}}
    if options.out.exists():
        record = json.loads(options.out.read_text())
    trainings = {}
    for name in options.contestants:
        file = options.checkpoints / f"gpt-first-steps-{name.replace(' ', '-').rstrip('%')}.safetensors"
        if len(record["losses"].get(name, [])) < options.steps:
            trainings[name] = Training(CONTESTANTS[name], file)
    while trainings:
        for name, training in list(trainings.items()):
            for _ in range(min(TURN, options.steps - len(training.losses))):
                training.step(data)
            training.save()
            record["losses"][name], record["seconds"][name] = training.losses, training.seconds
            write_json(options.out, record)
            print(f"{name}: step {len(training.losses)}, loss {training.losses[-1]:.3f}", flush=True)
            if len(training.losses) >= options.steps:
                del trainings[name]


if __name__ == "__main__":
    main()
