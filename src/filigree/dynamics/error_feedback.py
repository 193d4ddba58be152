"""Sparsified updates that forget nothing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from filigree.nn.sparsification import Sparsification


class ErrorFeedback:
    """SGD with memory (Stich et al. 2018): only a part of each gradient is applied, the rest is added to the next one.

    Before each step of the optimizer, with m a tensor's memory, g its gradient and S a sparsification function on all
    of its entries: `m += g; g = S(m); m -= g`.

        fg.ErrorFeedback(optimizer, fg.TopK(0.01))
    """

    def __init__(self, optimizer: torch.optim.Optimizer, keep: Sparsification) -> None:
        self.optimizer, self.keep = optimizer, keep
        self.memory: dict[int, Tensor] = {}
        self._hook = optimizer.register_step_pre_hook(self._before_step)

    def remove(self) -> None:
        """Leave the optimizer as it was."""
        self._hook.remove()

    def state_dict(self) -> dict[str, Any]:
        return {"memory": [self.memory.get(i) for i in range(len(self._parameters()))]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.memory = {i: m.clone() for i, m in enumerate(state["memory"]) if m is not None}

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    @torch.no_grad()
    def _before_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        for number, parameter in enumerate(self._parameters()):
            if parameter.grad is None:
                continue
            memory = self.memory.setdefault(number, torch.zeros_like(parameter))
            memory += parameter.grad
            parameter.grad = self.keep(memory.view(1, -1)).view_as(memory)
            memory -= parameter.grad
