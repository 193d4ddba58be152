"""Sparsified updates that forget nothing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from filigree.nn.asymmetric.sparsification import Sparsification

_STATE = "error_feedback"


class ErrorFeedback:
    """SGD with memory (Stich et al. 2018): only a part of each gradient is applied, the rest is added to the next one.

    Before each step of the optimizer, with m a tensor's memory, g its gradient and S a sparsification function on all
    of its entries: `m += g; g = S(m); m -= g`.

        fg.ErrorFeedback(optimizer, fg.TopK(0.01))

    The memory is part of the optimizer's state, `state[parameter]["error_feedback"]`: it is saved with it, and follows
    the connections when `fg.Evolution` rewires them.

    Raises:
        ValueError: at a step with a closure, which makes gradients when it is too late.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, keep: Sparsification) -> None:
        self.optimizer, self.keep = optimizer, keep
        self._held: dict[Tensor, Tensor] = {}  # memories while the optimizer steps: it may ask whether a state is empty
        self._hooks = optimizer.register_step_pre_hook(self._before), optimizer.register_step_post_hook(self._after)

    def remove(self) -> None:
        """Leave the optimizer as it was."""
        for hook in self._hooks:
            hook.remove()
        for state in self.optimizer.state.values():
            state.pop(_STATE, None)

    def memory(self, parameter: Tensor) -> Tensor:
        """What of this parameter's gradients has not been applied yet; of its shape."""
        memory: Tensor | None = self.optimizer.state.get(parameter, {}).get(_STATE)
        return torch.zeros_like(parameter) if memory is None else memory

    @torch.no_grad()
    def _before(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if (args[1] if len(args) > 1 else kwargs.get("closure")) is not None:
            raise ValueError("ErrorFeedback: step(closure) makes gradients too late to be sparsified: call it without.")
        for parameter in (p for group in optimizer.param_groups for p in group["params"]):
            if parameter.grad is not None:
                memory = self.memory(parameter).add_(parameter.grad)
                parameter.grad = self.keep(memory.reshape(1, -1)).view_as(memory)
                self._held[parameter] = memory.sub_(parameter.grad)
                optimizer.state.get(parameter, {}).pop(_STATE, None)

    def _after(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        while self._held:
            parameter, memory = self._held.popitem()
            optimizer.state[parameter][_STATE] = memory
