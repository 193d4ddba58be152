"""Torch's fused optimizers write into parameters without counting that as a version: here it is counted."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook


@functools.cache
def count_fused_steps() -> None:
    """From now on a step of a fused optimizer, of any, counts as a change of the parameters that it has."""
    register_optimizer_step_post_hook(_count)


def _count(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    for group in optimizer.param_groups:
        if group.get("fused"):
            torch.autograd.graph.increment_version(group["params"])
