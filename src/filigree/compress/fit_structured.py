"""Fitting a structured layer to a trained dense one."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Self

import pydantic
import torch
from torch import Tensor, nn

from filigree.calibration import Calibration
from filigree.compress.compression import Compression
from filigree.compress.fit_low_rank import fit_low_rank
from filigree.config import config
from filigree.convert import Change, Conversion, layer_inputs
from filigree.nn.structured.low_rank import LowRank
from filigree.nn.structured.structured import ACDC, Structured


@config
class FitStructured(Compression):
    """Replace trained layers by structured ones, fitted by least squares on what the layers read.

    Each minimises `|structured(x) - (x W^T + b)|^2` over the layer's inputs x in the data, by Adam with a cosine decay;
    low ranks, of linear layers and 2-D convolutions, are solved for, each on what the layers before it then give. The
    report gives the relative error that remains; of low ranks that of the rank alone, over the best of full rank on the
    same inputs.

    Args:
        by: the structured layer, for instance `fg.ACDC(order=8)`, or `fg.LowRank(0.25)`. steps, lr, batch_size: of the
            fit by Adam. seed: of the draws of rows.
    """

    by: Any
    steps: Annotated[int, pydantic.Field(ge=1)] = 2000
    lr: Annotated[float, pydantic.Field(gt=0)] = 0.01
    batch_size: Annotated[int, pydantic.Field(ge=1)] = 256
    seed: int = 0

    @classmethod
    def examples(cls) -> dict[str, Self]:
        return {"FitStructured": cls(ACDC(order=2), steps=3)}

    def __post_init__(self) -> None:
        if not isinstance(self.by, Structured | LowRank):
            raise ValueError(f"FitStructured: by must be a structured layer such as fg.ACDC(order=8). Got {self.by!r}.")

    def accepts(self, module: nn.Module) -> bool:
        return self.by.accepts(module) if isinstance(self.by, LowRank) else type(module) is nn.Linear

    def gains(self, module: nn.Module) -> bool:
        return not isinstance(self.by, LowRank) or self.by.gains(module)

    def compress(
        self, model: nn.Module, names: list[str], data: Calibration | None
    ) -> tuple[list[Change], list[tuple[Conversion, list[str]]]]:
        if data is None:
            raise ValueError("FitStructured: data are needed: fg.compress_(model, config, data).")
        if isinstance(self.by, LowRank):
            return fit_low_rank(model, names, self.by, data, self.seed)
        inputs = layer_inputs(model, names, data, "FitStructured")
        changes: list[Change] = []
        for name in names:
            layer: Any = model.get_submodule(name)
            x = inputs[name].reshape(-1, layer.in_features)
            with torch.no_grad():
                y = layer.forward(x)  # hooks stay what they are, on the new layer too
            (change,) = self.by.apply(model, [name])
            error = self._fit(model.get_submodule(name), x, y)
            changes.append(replace(change, note=f"relative error {error:.3g}"))
        return changes, [(self.by, [name]) for name in names]

    def _fit(self, structured: nn.Module, x: Tensor, y: Tensor) -> float:
        order = torch.Generator().manual_seed(self.seed)
        optimizer = torch.optim.Adam(structured.parameters(), self.lr)
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        with torch.enable_grad():
            for _ in range(self.steps):
                rows = torch.randint(len(x), (min(self.batch_size, len(x)),), generator=order)
                optimizer.zero_grad()
                nn.functional.mse_loss(structured(x[rows]), y[rows]).backward()
                nn.utils.clip_grad_norm_(structured.parameters(), 1.0)
                optimizer.step()
                decay.step()
        with torch.no_grad():
            return float((structured(x) - y).norm() / (y - y.mean(0)).norm().clamp(min=1e-30))
