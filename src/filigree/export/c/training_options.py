"""The options of a C program that trains."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic
import torch
from torch import nn

from filigree.config import Config, config

Share = Annotated[float, pydantic.Field(ge=0, le=1)]


@config
class Training(Config):
    """An exported program trains as `torch.optim.SGD` with these options.

    Args:
        loss: "cross_entropy" of labels, or "mse" of targets: means, as `nn.CrossEntropyLoss` and `nn.MSELoss`.
        batch: the largest batch; the macro `M_BATCH` of the program.
        momentum, weight_decay, nesterov: of SGD. Without momentum no memory is set aside for it.
        adaptive: `(least, most)`: of a sample's gradients at each linear layer only a share counts, the largest, as in
            TinyProp (Rüb et al. 2023): between these two, as the sample's error there, the sum of magnitudes, is to
            the largest error yet. `fg.Asymmetric.topk` layers have a fixed number of their own.
        grow: where new connections come: "random" (SET), or "gradient" (RigL): at the empty cells of the largest
            gradients on a batch, which `m_rewire` is given.
        weights: "float"; or "int8": whole numbers of a unit for each layer, a 64th of the largest weight at first, and
            twice as large when a weight has outgrown 127 of them. A step rounds at random: it is right on average.
        checkpoint: write `m_save` and `m_load` too, which keep what was learned in flash, in two slots by turns: it
            survives a loss of power at any time.
    """

    loss: Literal["cross_entropy", "mse"] = "cross_entropy"
    batch: Annotated[int, pydantic.Field(ge=1)] = 32
    momentum: Annotated[float, pydantic.Field(ge=0)] = 0.9
    weight_decay: Annotated[float, pydantic.Field(ge=0)] = 0.0
    nesterov: bool = False
    adaptive: tuple[Share, Share] | None = None
    grow: Literal["random", "gradient"] = "random"
    weights: Literal["float", "int8"] = "float"
    checkpoint: bool = False

    def __post_init__(self) -> None:
        if self.nesterov and not self.momentum:
            raise ValueError("Training: nesterov needs a momentum above 0. Got 0.")
        if self.adaptive is not None and self.adaptive[0] > self.adaptive[1]:
            raise ValueError(f"Training: adaptive must be a smaller share and a larger one. Got {self.adaptive}.")

    def optimizer(self, model: nn.Module, rate: float) -> torch.optim.SGD:
        """Return the same optimizer of torch."""
        return torch.optim.SGD(
            model.parameters(), rate, momentum=self.momentum, weight_decay=self.weight_decay, nesterov=self.nesterov
        )  # fmt: skip
