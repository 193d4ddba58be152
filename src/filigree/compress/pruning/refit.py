"""Compensation: what the kept units take over from those that went."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from filigree.compress.pruning.graph import Units
from filigree.compress.pruning.samples import per_sample, rows_of, run_hooked
from filigree.convert import inference_context


def least_squares(
    smaller: nn.Module, kept_outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor], x: Tensor, damping: float
) -> None:
    """Refit all layers of a pruned network, in the order in which they run, on its own inputs.

    Of each layer `min |W x' + b - y|^2 + damping v |W - W_kept|^2` over W and b, x' what it now reads, y what the
    original computed there (pre-activations, the kept units only), v the mean variance of x'. Closed form, in float64;
    one pass over the data, since what a layer computes after its refit is what the next ones read.

    Args:
        kept_outputs: of each layer, the kept units in the original's numbering. targets: of each layer, rows of the
            original's outputs, by `original_outputs` with the same x.
    """

    def refit(name: str) -> Any:
        def hook(layer: Any, args: tuple[Tensor, ...]) -> None:
            value = args[0]
            seed, each = _seed(name), per_sample(layer, len(value))
            rows, _ = rows_of(layer, value, _like_output(layer, value), each, seed)
            y = targets[name][:, kept_outputs[name]].double()
            if hasattr(layer, "indptr"):
                _refit_connections(layer, rows[0].double(), y, damping)
                return
            weight = layer.weight.flatten(1)
            new = torch.empty_like(weight)
            shifts = []
            for inputs, part, its_y, out in zip(
                rows, weight.chunk(len(rows)), y.chunk(len(rows), 1), new.chunk(len(rows)), strict=True
            ):
                mean, its_mean = inputs.double().mean(0), its_y.mean(0)
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
            shift = torch.cat(shifts).to(layer.weight.dtype)
            if layer.bias is None:
                layer.bias = nn.Parameter(shift)
            else:
                layer.bias.copy_(shift)

        return hook

    hooks = [smaller.get_submodule(name).register_forward_pre_hook(refit(name)) for name in targets]
    with inference_context(smaller, hooks):
        smaller(x)


def _refit_connections(layer: Any, inputs: Tensor, y: Tensor, damping: float) -> None:
    """The same of each unit on its own connections."""
    mean, its_mean = inputs.mean(0), y.mean(0)
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
    shift = shift.to(layer.values.dtype)
    if layer.bias is None:
        layer.bias = nn.Parameter(shift)
    else:
        layer.bias.copy_(shift)


def original_outputs(model: nn.Module, names: list[str], x: Tensor) -> dict[str, Tensor]:
    """Rows of what each layer computes on x, `(rows, out)`: all samples, of convolutions drawn positions of them."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(layer: nn.Module, value: Tensor, y: Tensor) -> None:
            if getattr(layer, "relu", False):  # fused in: what comes before it is the target
                plain: Any = copy.copy(layer)
                plain.relu = False
                y = plain.forward(value)
            outputs[name] = rows_of(layer, value, y, per_sample(layer, len(value)), _seed(name))[1].clone()

        return hook

    run_hooked(model, x, {name: keep(name) for name in names}, batch=max(1, len(x)))
    return outputs


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
) -> None:  # fmt: skip
    """Fold what each removed unit fed forward into its replacement, before it is taken out (John 2019, eqs. 5.8-5.12).

    With f the units' activations as the next layer reads them: `w_sk += alpha w_uk`, `b_k += beta w_uk`, alpha =
    cov(f_u, f_s) / (var f_s + eps), beta = mean f_u - alpha mean f_s, the least squares line. A flattened filter spans
    a block of columns; zero padding makes beta approximate at an image's border.

    Args:
        replacements: of each group, for each unit the kept unit that takes its place: itself where it stays.
    """
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
            if getattr(layer, "groups", 1) > 1:
                continue
            columns: dict[int, list[int]] = {}
            for column, unit in zip(reader.columns.tolist(), reader.units.tolist(), strict=True):
                columns.setdefault(unit, []).append(column)
            if layer.bias is None:
                layer.bias = nn.Parameter(weight.new_zeros(len(weight)))
            for u, s, a, b in zip(gone.tolist(), to.tolist(), alpha.tolist(), beta.tolist(), strict=True):
                fed = weight[:, columns[u]]
                weight[:, columns[s]] += a * fed
                layer.bias += b * fed.flatten(1).sum(1)
