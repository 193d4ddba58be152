"""The processes that a launcher started together (`torchrun`, `accelerate launch`): the first of them writes."""

from __future__ import annotations

import os

import torch

from filigree.optional import needed


def several() -> bool:
    """Whether a launcher started more than this process."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_main() -> bool:
    """Whether this is the process that writes files and shows what comes of it."""
    return not several() or int(os.environ.get("RANK", "0")) == 0


def on_cpus() -> bool:
    """Whether they train on CPUs. Accelerate must be told: without it each process under `torchrun` would be alone."""
    return several() and not torch.accelerator.is_available()


def wait() -> None:
    """Until every process is here: before it nothing that one of them writes may be read by another."""
    if several():
        needed("accelerate", "several processes", "accelerate").PartialState(cpu=on_cpus()).wait_for_everyone()
