"""Compensation: what the kept units take over from those that went."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from filigree.compress.pruning.budget import relative_error
from filigree.compress.pruning.graph import Units
from filigree.compress.pruning.samples import first_input, per_sample, rows_of, run_hooked
from filigree.computed_weights import why_computed
from filigree.convert import inference_context
from filigree.nn.resizing import has_units, sizes_of
from filigree.ties import why_tied


@dataclass(frozen=True)
class Channels:
    """What a pruned network has of the original, by layer: which of its outputs, and which of its inputs.

    Of a grouped convolution the inputs are those of its first block.
    """

    outputs: Mapping[str, Tensor]
    inputs: Mapping[str, Tensor]


def channels_of(model: nn.Module, groups: list[Units], kept: Mapping[str, Tensor]) -> Channels:
    """Which of the original's outputs and inputs each layer has without the other units."""
    outputs, inputs = {}, {}
    for name, module in model.named_modules():
        if has_units(module):
            outs, ins, *_ = sizes_of(module)  # type: ignore[misc]
            outputs[name] = torch.arange(outs)
            inputs[name] = torch.arange(ins // getattr(module, "groups", 1))
    for group in groups:
        for name, units in group.makers.items():
            outputs[name] = torch.isin(units, kept[group.name]).nonzero().squeeze(1)
        for reader in group.readers:
            gone = reader.columns[~torch.isin(reader.units, kept[group.name])]
            inputs[reader.name] = inputs[reader.name][~torch.isin(inputs[reader.name], gone)]
    return Channels(outputs, inputs)


def may_gain_biases(model: nn.Module) -> bool:
    """Whether a refit may add biases: a model that its owner saves and makes again from a configuration would lose them
    there."""
    return not any(hasattr(module, "save_pretrained") for module in model.modules())


@dataclass(frozen=True)
class Recorded:
    """What a layer of the original computed: rows of its outputs `(rows, out)`, of all its calls one after the other,
    and where it is called several times what it read there `(groups, rows, in)`; or why it cannot be refitted.
    """

    outputs: Tensor | None = None
    inputs: Tensor | None = None
    problem: str = ""


def least_squares(
    smaller: nn.Module, channels: Channels, targets: Mapping[str, Recorded], x: Tensor, damping: float, biases: bool
) -> dict[str, str]:
    """Refit all layers of a pruned network, in the order in which they run, on its own inputs.

    Of each layer `min |W x' + b - y|^2 + damping v |W - W_kept|^2` over W and b, x' what it now reads, y what the
    original computed there (pre-activations, the kept units only), v the mean variance of x'. Closed form, in float64;
    one pass over the data, since what a layer computes after its refit is what the next ones read.

    A layer that runs several times is refitted once, on all its calls, each weighed by its rows; x' is what it read in
    the original, without the units that went: what it will read then depends on itself.

    Args:
        targets: of each layer, by `original_outputs` with the same x. biases: whether a layer without a bias may gain
            one. Without, W alone is fitted, about zero.

    Returns:
        The layers that are left as they were, each with the reason.
    """
    left = {name: recorded.problem for name, recorded in targets.items() if recorded.problem}
    left |= {name: f"it {reason}" for name, reason in why_tied(smaller).items() if name in targets}
    waiting = {name: recorded for name, recorded in targets.items() if name not in left}

    def refit(name: str, layer: Any, rows: Tensor) -> None:
        y = waiting.pop(name).outputs[:, channels.outputs[name]].double()  # type: ignore[index]
        if rows.shape[1] != len(y):
            left[name] = "it runs on another number of rows than in the original"
        elif hasattr(layer, "indptr"):
            _refit_connections(layer, rows[0].double(), y, damping, biases)
        else:
            _refit_dense(layer, rows, y, damping, biases)

    def before(name: str) -> Any:
        def hook(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if name in waiting:
                value = first_input(args, kwargs)
                each = per_sample(layer, len(value))
                refit(name, layer, rows_of(layer, value, _like_output(layer, value), each, _seed(name))[0])

        return hook

    for name, recorded in list(waiting.items()):
        if recorded.inputs is not None:
            layer: Any = smaller.get_submodule(name)
            groups, rows, _ = recorded.inputs.shape
            taps = layer.weight[0, 0].numel() if isinstance(layer, nn.Conv2d) else 1
            read = recorded.inputs.view(groups, rows, -1, taps)[:, :, channels.inputs[name]].flatten(2)
            refit(name, layer, read)
    hooks = (
        smaller.get_submodule(name).register_forward_pre_hook(before(name), with_kwargs=True) for name in list(waiting)
    )
    with inference_context(smaller, hooks):
        smaller(x)
    return left | dict.fromkeys(waiting, "the data do not reach it")


def _refit_dense(layer: Any, rows: Tensor, y: Tensor, damping: float, biases: bool) -> None:
    weight = layer.weight.flatten(1)
    new = torch.empty_like(weight)
    shifts = []
    centre = biases or layer.bias is not None
    for inputs, part, its_y, out in zip(
        rows, weight.chunk(len(rows)), y.chunk(len(rows), 1), new.chunk(len(rows)), strict=True
    ):
        mean, its_mean = inputs.double().mean(0) * centre, its_y.mean(0) * centre
        centred = inputs - mean.to(inputs.dtype)  # products of millions of numbers in their own precision
        own = (centred.T @ centred).double() / len(inputs)
        ridge = damping * own.diagonal().mean().clamp(min=1e-12)
        right = (centred.T @ (its_y - its_mean).to(inputs.dtype)).double() / len(inputs)
        right += ridge * part.double().T
        own.diagonal().add_(ridge)
        solved = torch.linalg.solve(own, right).T
        out.copy_(solved)
        shifts.append(its_mean - solved @ mean)
    layer.weight.copy_(new.view_as(layer.weight))
    if centre:
        _set_bias(layer, torch.cat(shifts).to(layer.weight.dtype))


def _set_bias(layer: Any, shift: Tensor) -> None:
    if layer.bias is None:
        layer.bias = nn.Parameter(shift)
    else:
        layer.bias.copy_(shift)


def _refit_connections(layer: Any, inputs: Tensor, y: Tensor, damping: float, biases: bool) -> None:
    """The same of each unit on its own connections."""
    centre = biases or layer.bias is not None
    mean, its_mean = inputs.mean(0) * centre, y.mean(0) * centre
    centred = inputs - mean
    own = centred.T @ centred / len(inputs)
    own.diagonal().add_(ridge := float(damping * own.diagonal().mean().clamp(min=1e-12)))
    right = centred.T @ (y - its_mean) / len(inputs)
    starts, columns = layer.indptr.tolist(), layer.indices.long()
    shift = its_mean.clone()
    for row, (first, last) in enumerate(pairwise(starts)):
        read = columns[first:last]
        if len(read):
            old = layer.values[first:last].double()
            solved = torch.linalg.solve(own[read][:, read], right[read, row] + ridge * old)
            layer.values[first:last] = solved.to(layer.values.dtype)
            shift[row] -= solved @ mean[read]
    if centre:
        _set_bias(layer, shift.to(layer.values.dtype))


def original_outputs(model: nn.Module, names: list[str], x: Tensor) -> dict[str, Recorded]:
    """Rows of what each layer computes on x, `(rows, out)`: all samples, of convolutions drawn positions of them."""
    calls = dict.fromkeys(names, 0)
    outputs: dict[str, list[Tensor]] = {name: [] for name in names}
    inputs: dict[str, list[Tensor]] = {name: [] for name in names}
    problems = {name: f"it {reason}" for name in names if (reason := why_computed(model.get_submodule(name)))}

    def count(name: str) -> Any:
        def hook(layer: nn.Module, value: Tensor, y: Tensor) -> None:
            calls[name] += 1

        return hook

    def keep(name: str) -> Any:
        def hook(layer: nn.Module, value: Tensor, y: Tensor) -> None:
            if not isinstance(value, Tensor):
                problems[name] = f"it is called with a {type(value).__name__}"
                return
            if getattr(layer, "relu", False):  # fused in: what comes before it is the target
                plain: Any = copy.copy(layer)
                plain.relu = False
                y = plain.forward(value)
            each = per_sample(layer, len(value) * max(1, calls[name]))
            read, computed = rows_of(layer, value, y, each, _seed(name))
            outputs[name].append(computed.clone())
            if calls[name] > 1:
                inputs[name].append(read.clone())

        return hook

    run_hooked(model, x[:1], {name: count(name) for name in names})
    run_hooked(model, x, {name: keep(name) for name in names}, batch=max(1, len(x)))
    for name in names:
        if len(outputs[name]) not in (0, calls[name]):
            problems[name] = "how often it runs depends on the data"
    return {
        name: Recorded(problem=problems[name])
        if name in problems
        else Recorded(torch.cat(outputs[name]), torch.cat(inputs[name], 1) if inputs[name] else None)
        for name in names
        if outputs[name] or name in problems
    }


def _like_output(layer: Any, x: Tensor) -> Tensor:
    """A tensor of the output's shape, without computing it."""
    if not isinstance(layer, nn.Conv2d):
        return x.new_empty(1, 1).expand(*x.shape[:-1], 1)
    with torch.no_grad():
        shape = nn.functional.conv2d(
            x.new_empty(1, *x.shape[1:], device="meta"), layer.weight.to("meta"), None, layer.stride, layer.padding,
            layer.dilation, layer.groups,
        ).shape  # fmt: skip
    return x.new_empty(1).expand(len(x), 1, *shape[2:])


def _seed(name: str) -> int:
    return sum((i + 1) * byte for i, byte in enumerate(name.encode())) % 2**31


def correlation(
    model: nn.Module, groups: list[Units], features: Mapping[str, Tensor], replacements: Mapping[str, Tensor],
    biases: bool,
) -> dict[str, str]:  # fmt: skip
    """Fold what each removed unit fed forward into its replacement, before it is taken out (John 2019, eqs. 5.8-5.12).

    With f the units' activations as the next layer reads them: `w_sk += alpha w_uk`, `b_k += beta w_uk`, alpha =
    cov(f_u, f_s) / (var f_s + eps), beta = mean f_u - alpha mean f_s, the least squares line. A flattened filter spans
    a block of columns; zero padding makes beta approximate at an image's border.

    Args:
        replacements: of each group, for each unit the kept unit that takes its place: itself where it stays.
        biases: whether a layer without a bias may gain one.

    Returns:
        The layers that are left as they were, each with the reason.
    """
    left = {}
    tied = why_tied(model)
    for group in groups:
        f, replacement = features[group.name].double(), replacements[group.name]
        gone = (replacement != torch.arange(group.count)).nonzero().squeeze(1)
        if not len(gone):
            continue
        mean = f.mean(1)
        centred = f - mean[:, None]
        to = replacement[gone]
        cov = (centred[gone] * centred[to]).mean(1)
        alpha = cov / (centred[to].square().mean(1) + 1e-12)
        beta = mean[gone] - alpha * mean[to]
        for reader in group.readers:
            layer: Any = model.get_submodule(reader.name)
            if not isinstance(layer, nn.Linear | nn.Conv2d):
                raise ValueError(
                    f'pruning: compensate="correlation" needs dense readers. {reader.name!r} is a '
                    f'{type(layer).__name__}: use "least_squares".'
                )
            weight = layer.weight
            if reader.name in tied:
                left[reader.name] = f"it {tied[reader.name]}"
                continue
            if getattr(layer, "groups", 1) > 1:
                left[reader.name] = "it is a grouped convolution"
                continue
            columns: dict[int, list[int]] = {}
            for column, unit in zip(reader.columns.tolist(), reader.units.tolist(), strict=True):
                columns.setdefault(unit, []).append(column)
            if layer.bias is None and biases:
                layer.bias = nn.Parameter(weight.new_zeros(len(weight)))
            for u, s, a, b in zip(gone.tolist(), to.tolist(), alpha.tolist(), beta.tolist(), strict=True):
                fed = weight[:, columns[u]]
                weight[:, columns[s]] += a * fed
                if layer.bias is not None:
                    layer.bias += b * fed.flatten(1).sum(1)
    return left


def better(
    who: str, how: str, plain: nn.Module, compensated: nn.Module, x: Tensor, y: list[Tensor], unfit: Mapping[str, str]
) -> tuple[nn.Module, str]:
    """The compensated network and a note of its error, of that without, and of the layers that are not refitted.

    A warning tells where compensation makes the outputs y on x worse; least squares is then left out.
    """
    before, after = (relative_error(network, x, y) for network in (plain, compensated))
    note = f"error {after:.3g} with {how}, {before:.3g} without"
    note += "".join(f"; not refitted: {name}, since {reason}" for name, reason in unfit.items())
    if after <= before:
        return compensated, note
    kept = how == "correlation"
    if after > before * 1.01 + 1e-3:  # more than rounding
        warnings.warn(
            f"{who}: compensation by {how} makes the outputs worse (relative error {after:.3g}, without {before:.3g})"
            f"{'' if kept else ', so it is left out'}.",
            stacklevel=2,
        )
    return (compensated, note) if kept else (plain, f"{note}; left out")
