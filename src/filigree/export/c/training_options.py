"""The options of a C program that trains."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic
import torch
from torch import nn

from filigree.config import Config, config


@config
class Training(Config):
    """An exported program trains as `torch.optim.SGD` with these options.

    Args:
        loss: "cross_entropy" of labels, or "mse" of targets: means, as `nn.CrossEntropyLoss` and `nn.MSELoss`.
        batch: the largest batch; the macro `M_BATCH` of the program.
        momentum, weight_decay, nesterov: of SGD. Without momentum no memory is set aside for it.
        checkpoint: write `m_save` and `m_load` too, which keep what was learned in flash, in two slots by turns: it
            survives a loss of power at any time.
    """

    loss: Literal["cross_entropy", "mse"] = "cross_entropy"
    batch: Annotated[int, pydantic.Field(ge=1)] = 32
    momentum: Annotated[float, pydantic.Field(ge=0)] = 0.9
    weight_decay: Annotated[float, pydantic.Field(ge=0)] = 0.0
    nesterov: bool = False
    checkpoint: bool = False

    def __post_init__(self) -> None:
        if self.nesterov and not self.momentum:
            raise ValueError("Training: nesterov needs a momentum above 0. Got 0.")

    def optimizer(self, model: nn.Module, rate: float) -> torch.optim.SGD:
        """Return the same optimizer of torch."""
        return torch.optim.SGD(
            model.parameters(), rate, momentum=self.momentum, weight_decay=self.weight_decay, nesterov=self.nesterov
        )  # fmt: skip
