"""The processes that a launcher started together (`torchrun`, `accelerate launch`): the first of them writes."""

from __future__ import annotations

import atexit
import gc
import os

import torch
from torch import distributed

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


def join() -> None:
    """Make the group of these processes, unless there is one.

    One of CPUs ends with Python: a thread of gloo that is left then may abort the process.
    """
    if several() and not distributed.is_initialized():
        needed("accelerate", "several processes", "accelerate").PartialState(cpu=on_cpus())
        if on_cpus():
            atexit.register(_end)


def wait() -> None:
    """Until every process is here: before it nothing that one of them writes may be read by another."""
    if several():
        join()
        needed("accelerate", "several processes", "accelerate").PartialState(cpu=on_cpus()).wait_for_everyone()


def _end() -> None:
    gc.collect()  # models in cycles, which hold the group
    if distributed.is_initialized():
        distributed.destroy_process_group()
