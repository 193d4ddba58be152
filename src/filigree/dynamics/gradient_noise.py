"""Noise on gradients, smaller from step to step: what noisy activations are compared with."""

from __future__ import annotations

from typing import Any, Literal

import torch

from filigree.dynamics.annealing import Annealing


class GradientNoise(Annealing):
    """Annealed gradient noise (Neelakantan et al. 2015): N(0, eta / (1 + t)^gamma) is added to every gradient before
    the optimizer's step t; eta is a variance. Call `step()` after each batch (`fg.fit(..., callbacks=noise)`).

    Args:
        optimizer: whose parameters' gradients get it, from when this object is made until `remove()`.
        eta: in the publication 0.01, 0.3 or 1. gamma: 0.55.
        seed: of the noise.
    """

    interval: Literal["epoch", "step"] = "step"

    def __init__(self, optimizer: torch.optim.Optimizer, eta: float = 0.01, gamma: float = 0.55, seed: int = 0) -> None:
        if eta < 0 or gamma < 0:
            raise ValueError(f"GradientNoise: eta and gamma must be at least 0. Got {eta} and {gamma}.")
        self.eta, self.gamma = eta, gamma
        self.generator = torch.Generator().manual_seed(seed)
        self._handle = optimizer.register_step_pre_hook(self._add)

    @property
    def deviation(self) -> float:
        return float((self.eta / (1 + self.epoch) ** self.gamma) ** 0.5)

    def apply(self) -> None:
        """Nothing is set: the noise is added when the optimizer steps."""

    def remove(self) -> None:
        self._handle.remove()

    def _add(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if (args[1] if len(args) > 1 else kwargs.get("closure")) is not None:
            raise ValueError("GradientNoise: step(closure) makes gradients after the noise was added: call it without.")
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    if parameter.grad.is_sparse:
                        raise ValueError("GradientNoise: sparse gradients cannot get noise: sparse=False is needed.")
                    noise = torch.randn(parameter.grad.shape, generator=self.generator, dtype=torch.float32)
                    parameter.grad.add_(noise.to(parameter.grad), alpha=self.deviation)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"])
        super().load_state_dict(state)
