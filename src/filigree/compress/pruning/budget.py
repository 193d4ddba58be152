"""How many units each layer keeps, from one number for the whole network."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import pydantic
import torch
from torch import Tensor, nn

from filigree.compress.pruning.graph import Units, layer_macs
from filigree.compress.pruning.jacobians import jacobian_norms
from filigree.config import Config, config
from filigree.convert import inference_context, run_on
from filigree.measure.timing import inference, time_interleaved
from filigree.outputs import numbers_in

LEVELS = (0.03, 0.06, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
Counts = dict[str, int | None]  # units that stay, by the group's name
Chosen = Callable[[Units, int | None], tuple[Tensor, Tensor, str]]
Built = Callable[[Counts, bool], nn.Module]  # a network of so many units, compensated or not


@config
class MaxError(Config):
    """The fewest units with which an error stays within a tolerance, shared out over the layers, each of which is then
    pruned on its own (John 2019, 3.3 and 3.10).

    A layer's own error is measured on the data: the root of the share of the variance of the next layer's
    pre-activations that is lost when the kept units, refitted by least squares, stand for all.

    Args:
        error: the tolerance, relative.
        of: "output": the network's output, `|Y' - Y| / |Y - mean Y|` on the data (of several outputs the largest
            error), measured with the compensation asked for; all layers get the largest own error that meets it.
            "layer": each layer's own error.
            "bound": Theorem 2's bound on the output, `sum_l epsilon_l <= error |Y|`: each of L layers gets `error |Y| /
            L`, its change of weights being what least squares leaves. Chains of layers only, and so loose a bound that
            it removes few units: it is here to be compared.
    """

    error: Annotated[float, pydantic.Field(gt=0, lt=1)]
    of: Literal["output", "layer", "bound"] = "output"


@config
class Budget(Config):
    """A target for the whole network; all layers get the one own error (`MaxError`) that meets it. Give one of:

    Args:
        macs, parameters, bytes: at most, of the pruned network; up to 1: a share of the original's.
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
    """The share (root) of the readers' output variance that least squares on the kept units cannot restore."""
    lost, total = lost_variance(group, features, kept, model)
    return (lost / total) ** 0.5 if total > 0 else 0.0


def lost_variance(group: Units, features: Tensor, kept: Tensor, model: nn.Module) -> tuple[float, float]:
    """`tr(G R)` and `tr(G S)`: S the covariance of the units, R that of their residuals after regression on the kept
    ones, G the Gram matrix of their outgoing weights. Exact for linear readers; of convolutions taps are taken alone.
    """
    f = features.double()
    f = f - f.mean(1, keepdim=True)
    s = f @ f.T / f.shape[1]
    gram = outgoing_gram(group, model)
    own = s[kept][:, kept]
    own = own + 1e-6 * own.diagonal().mean().clamp(min=1e-30) * torch.eye(len(kept), dtype=torch.float64)
    explained = s[:, kept] @ torch.linalg.solve(own, s[kept])
    return max(0.0, float((gram * (s - explained)).sum())), float((gram * s).sum())


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
    built: Built, x: Tensor, round_to: int,
) -> Counts:  # fmt: skip
    """How many units of each group stay."""
    of_bound = isinstance(keep, MaxError) and keep.of == "bound"
    errors = _shares_of_bound(model, groups, x) if of_bound else {}
    curves: dict[str, list[tuple[int, float]]] = {}
    for group in groups:
        counts = sorted({_rounded(max(1, round(level * group.count)), group.count, round_to) for level in LEVELS})
        f, curve = features[group.name], []
        for count in counts:
            kept = chosen(group, count)[0]
            curve.append((count, errors[group.name](f, kept) if of_bound else output_error(group, f, kept, model)))
        curves[group.name] = curve

    def least(error: float) -> Counts:
        return {
            name: next((count for count, own in curve if own <= error), curve[-1][0]) for name, curve in curves.items()
        }

    if isinstance(keep, MaxError) and keep.of != "output":
        return least(keep.error / (len(groups) if of_bound else 1))
    levels = sorted({error for curve in curves.values() for _, error in curve})
    if isinstance(keep, MaxError):
        y = outputs_on(model, x)
        return least(_last(levels, lambda error: relative_error(built(least(error), True), x, y) <= keep.error))
    example = x[: keep.batch]
    what, limit = _limit(keep, model, example)
    # the least error whose network is within the budget: the first that is no more above it
    above = _last([-math.inf, *levels], lambda error: _measure(what, built(least(error), False), example) > limit)
    if above == levels[-1]:
        raise ValueError(f"Budget: even the smallest of these networks is above {keep}.")
    return least(next(error for error in levels if error > above))


def _last(ordered: list[float], holds: Callable[[float], bool]) -> float:
    """The last number for which `holds`, by bisection; the first is taken to hold."""
    low, high = 0, len(ordered) - 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(ordered[middle]) else (low, middle - 1)
    return ordered[low]


def outputs_on(model: nn.Module, x: Tensor) -> list[Tensor]:
    """All that the model returns, in evaluation mode."""
    with inference_context(model):
        return numbers_in(run_on(model, x, "pruning"), "pruning")


def relative_error(model: nn.Module, x: Tensor, y: list[Tensor]) -> float:
    """`|Y' - Y| / |Y - mean Y|` of a network; of several outputs, the largest."""
    errors = []
    for output, expected in zip(outputs_on(model, x), y, strict=True):
        lost, size = (output - expected).abs().double().norm(), expected.abs().double().norm()
        spread = (expected - expected.mean(0)).abs().double().norm()
        errors.append(float(lost / torch.maximum(spread, 1e-6 * size).clamp(min=1e-30)))  # of a constant: its size
    return max(errors)


def _shares_of_bound(model: nn.Module, groups: list[Units], x: Tensor) -> dict[str, Callable[[Tensor, Tensor], float]]:
    """For each group: features and kept units -> its epsilon_l, relative to the output's mean norm.

    Theorem 2 with the change of the readers' weights that least squares makes: `|dY_l / dW_l delta W_l|` is the norm of
    the change of what layer l computes, carried on by the norms of the Jacobians.
    """
    norms = jacobian_norms(model, x[:100])
    scale = float(norms.y.flatten(1).norm(dim=1).mean())
    carried, after = torch.ones(len(norms.y)), {}
    for name in reversed(norms.step):
        after[name] = float((carried * norms.outer[name]).mean()) * norms.positions[name] ** 0.5
        carried = carried * norms.step[name]

    def share(group: Units) -> Callable[[Tensor, Tensor], float]:
        factor = max(after[reader.name] for reader in group.readers) / scale

        def epsilon(features: Tensor, kept: Tensor) -> float:
            lost, _ = lost_variance(group, features, kept, model)
            return factor * lost**0.5

        return epsilon

    return {group.name: share(group) for group in groups}


def _rounded(count: int, most: int, to: int) -> int:
    return min(most, -(-count // to) * to)


def _limit(keep: Budget, model: nn.Module, example: Tensor) -> tuple[str, float]:
    """What is measured, and how much of it there may be."""
    what, value = next((k, v) for k, v in vars(keep).items() if k != "batch" and v is not None)
    share = value <= 1 and what != "latency_ms"
    return what, value * _measure(what, model, example) if share else value


def _measure(what: str, model: nn.Module, example: Tensor) -> float:
    if what == "parameters":
        return float(sum(p.numel() for p in model.parameters()))
    if what == "bytes":
        return float(sum(t.numel() * t.element_size() for t in model.state_dict().values()))
    if what == "macs":
        return float(sum(layer_macs(model, example[:1]).values()))
    return time_interleaved([inference(copy.deepcopy(model).eval(), example)], seconds=0.1)[0].median
