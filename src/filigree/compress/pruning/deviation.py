"""What pruning does to the output, measured and bounded (John 2019, 3.2 and 3.3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from filigree.compress.pruning.jacobians import jacobian_norms
from filigree.convert import inference_context


@dataclass(frozen=True)
class Deviation:
    """Error and bound of a pruned network; `value` is dev of 3.12, error minus bound.

    Attributes:
        error: `|Y - Y'|`, the mean over the samples of the L2 norm. bounds: epsilon_l of each layer (3.9), by name.
    """

    error: float
    bounds: dict[str, float]

    @property
    def bound(self) -> float:
        return sum(self.bounds.values())

    @property
    def value(self) -> float:
        return self.error - self.bound

    def __str__(self) -> str:
        layers = ", ".join(f"{name} {value:.3g}" for name, value in self.bounds.items())
        return f"error {self.error:.4g}, bound {self.bound:.4g} ({layers}), deviation {self.value:.4g}"


def net_deviation(
    model: nn.Module, pruned: nn.Module, data: Tensor, probes: int | None = 16, seed: int = 0
) -> Deviation:
    """The error of a pruned network's output, and Theorem 2's bound on it, layer by layer.

    `epsilon_l = prod_{i > l} |dY_i / dY_{i-1}| |dY_l / dW_l| |delta W_l|`, first order, norms of Frobenius; Y_i is what
    layer i + 1 reads. A removed unit counts as weights set to zero; changes of biases are not in the bound.

    Args:
        probes: random ones for each Jacobian norm, `|J|^2 = E |J^T v|^2`; None: exact, up to about LeNet-5.

    Raises:
        ValueError: `pruned` has other layers, or sizes that nobody recorded (`compress_` records them on the model); or
            the linear layers and convolutions are no chain.
    """
    changes = {
        name: _weight_change(model, pruned, name)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    }
    norms = jacobian_norms(model, data, probes, seed)
    with inference_context(pruned):
        error = float((norms.y - pruned(data)).flatten(1).norm(dim=1).mean())
    bounds, carried = {}, torch.ones(len(data))
    for name in reversed(norms.step):
        bounds[name] = float((carried * norms.weight[name]).mean() * changes[name])
        carried = carried * norms.step[name]
    return Deviation(error, {name: bounds[name] for name in norms.step})


def normalised(deviations: Sequence[float]) -> list[float]:
    """D of 3.13 over a curve, or over all curves that are compared: `dev / |dev|`."""
    norm = math.sqrt(sum(value**2 for value in deviations))
    return [value / norm if norm else 0.0 for value in deviations]


def _weight_change(model: nn.Module, pruned: nn.Module, name: str) -> float:
    """|delta W|, removed units' weights as zeros."""
    layer: Any = model.get_submodule(name)
    try:
        remaining: Any = pruned.get_submodule(name)
    except AttributeError:
        raise ValueError(f"net_deviation: the pruned network has no layer {name!r}.") from None
    old, new = layer.weight.detach(), remaining.weight.detach()
    if old.shape != new.shape:
        rows, columns = getattr(remaining, "kept_outputs", None), getattr(remaining, "kept_inputs", None)
        if rows is None or columns is None:
            raise ValueError(f"net_deviation: {name!r} has other sizes, and no record of which units it kept.")
        whole = torch.zeros_like(old)
        whole[rows[:, None], columns] = new
        new = whole
    return float((old - new).norm())
