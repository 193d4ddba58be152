"""How many units each layer keeps, from one number for the whole network."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import pydantic
import torch
from torch import Tensor, nn

from filigree.compress.pruning.graph import Units, layer_macs, pruned
from filigree.config import Config, config

LEVELS = (0.03, 0.06, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
Chosen = Callable[[Units, int | None], tuple[Tensor, Tensor, str]]


@config
class MaxError(Config):
    """Each layer keeps the fewest units with which the next layer's output is still within `error`.

    The error is measured, on the data: the root of the share of the variance of the next layer's pre-activations that
    is lost when the kept units, refitted by least squares, stand for all (003, 3.3 and 3.10: a total tolerance shared
    out over layers that are then pruned independently: here `error` is a layer's share).
    """

    error: Annotated[float, pydantic.Field(gt=0, lt=1)]


@config
class Budget(Config):
    """A target for the whole network; all layers get the one `MaxError` that meets it. Give one of:

    Args:
        macs, parameters, bytes: at most, of the pruned network; below 1: a share of the original's.
        latency_ms: at most, measured on this machine with `batch` samples.
    """

    macs: Annotated[float, pydantic.Field(gt=0)] | None = None
    parameters: Annotated[float, pydantic.Field(gt=0)] | None = None
    bytes: Annotated[float, pydantic.Field(gt=0)] | None = None
    latency_ms: Annotated[float, pydantic.Field(gt=0)] | None = None
    batch: Annotated[int, pydantic.Field(ge=1)] = 1

    def __post_init__(self) -> None:
        given = [name for name in ("macs", "parameters", "bytes", "latency_ms") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"Budget: give one of macs, parameters, bytes and latency_ms. Got {', '.join(given) or 'none'}."
            )


def output_error(group: Units, features: Tensor, kept: Tensor, model: nn.Module) -> float:
    """The share (root) of the readers' output variance that least squares on the kept units cannot restore.

    `tr(G R) / tr(G S)`: S the covariance of the units, R that of their residuals after regression on the kept ones, G
    the Gram matrix of their outgoing weights. Exact for linear readers; of convolutions taps are taken alone.
    """
    f = features.double()
    f = f - f.mean(1, keepdim=True)
    s = f @ f.T / f.shape[1]
    gram = outgoing_gram(group, model)
    total = float((gram * s).sum())
    if total <= 0:
        return 0.0
    own = s[kept][:, kept]
    own = own + 1e-6 * own.diagonal().mean().clamp(min=1e-30) * torch.eye(len(kept), dtype=torch.float64)
    explained = s[:, kept] @ torch.linalg.solve(own, s[kept])
    return max(0.0, float((gram * (s - explained)).sum()) / total) ** 0.5


def outgoing_gram(group: Units, model: nn.Module) -> Tensor:
    """`G_uv`, the products of the outgoing weights of units u and v, summed over all that read them, float64."""
    gram = torch.zeros(group.count, group.count, dtype=torch.float64)
    for reader in group.readers:
        layer: Any = model.get_submodule(reader.name)
        if not isinstance(layer, nn.Linear | nn.Conv2d) or getattr(layer, "groups", 1) > 1:
            gram += torch.eye(group.count, dtype=torch.float64)
            continue
        weight = (
            layer.weight.detach().double().flatten(2) if layer.weight.dim() == 4 else layer.weight.detach().double()
        )
        fed = weight[:, reader.columns[reader.units.argsort(stable=True)]]  # (outs, units (x block), taps)
        fed = fed.reshape(fed.shape[0], group.count, -1).transpose(0, 1).flatten(1)
        gram += fed @ fed.T
    return gram


def allocate(
    keep: Budget | MaxError, model: nn.Module, groups: list[Units], features: Mapping[str, Tensor], chosen: Chosen,
    x: Tensor, round_to: int,
) -> dict[str, int | None]:  # fmt: skip
    """How many units of each group stay."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for group in groups:
        counts = sorted({_rounded(max(1, round(level * group.count)), group.count, round_to) for level in LEVELS})
        curves[group.name] = [
            (count, output_error(group, features[group.name], chosen(group, count)[0], model)) for count in counts
        ]

    def least(error: float) -> dict[str, int | None]:
        return {
            name: next((count for count, its in curve if its <= error), curve[-1][0]) for name, curve in curves.items()
        }

    if isinstance(keep, MaxError):
        return least(keep.error)
    example = x[: keep.batch]
    errors = sorted({error for curve in curves.values() for _, error in curve})
    limit = _limit(keep, model, example)
    low, high = 0, len(errors) - 1  # the least error whose network is within the budget
    if _cost(keep, model, groups, least(errors[high]), chosen, example) > limit:
        raise ValueError(f"Budget: even the smallest of these networks is above {keep}.")
    while low < high:
        middle = (low + high) // 2
        if _cost(keep, model, groups, least(errors[middle]), chosen, example) <= limit:
            high = middle
        else:
            low = middle + 1
    return least(errors[high])


def _rounded(count: int, most: int, to: int) -> int:
    return min(most, -(-count // to) * to)


def _limit(keep: Budget, model: nn.Module, example: Tensor) -> float:
    for name in ("macs", "parameters", "bytes"):
        value = getattr(keep, name)
        if value is not None:
            return value * _measure(name, model, example) if value < 1 else value
    assert keep.latency_ms is not None
    return keep.latency_ms


def _cost(
    keep: Budget, model: nn.Module, groups: list[Units], counts: dict[str, int | None], chosen: Chosen, example: Tensor
) -> float:
    removed = {}
    for group in groups:
        kept = chosen(group, counts[group.name])[0]
        stays = torch.zeros(group.count, dtype=torch.bool)
        stays[kept] = True
        removed[group.name] = (~stays).nonzero().squeeze(1)
    made = pruned(model, removed, example)
    what = next(name for name in ("macs", "parameters", "bytes", "latency_ms") if getattr(keep, name) is not None)
    return _measure(what, made, example)


def _measure(what: str, model: nn.Module, example: Tensor) -> float:
    if what == "parameters":
        return float(sum(p.numel() for p in model.parameters()))
    if what == "bytes":
        return float(sum(t.numel() * t.element_size() for t in model.state_dict().values()))
    if what == "macs":
        return float(sum(layer_macs(model, example[:1]).values()))
    twin, times = copy.deepcopy(model).eval(), []
    with torch.inference_mode():
        for _ in range(30):
            began = time.perf_counter()
            twin(example)
            times.append(time.perf_counter() - began)
    return statistics.median(times[5:]) * 1e3
