"""Low-rank layers that are fitted to what trained dense ones compute on data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from filigree.calibration import Calibration
from filigree.compress.one_shot.fitting import refitted_whole
from filigree.compress.one_shot.moments import moments_of, order_of, parts_of
from filigree.compress.one_shot.products import products_of
from filigree.compress.one_shot.surgery import lost
from filigree.computed_weights import copied
from filigree.convert import Change, Conversion, replace_module
from filigree.nn.structured.low_rank import LowRank, kind_of

WHO = "FitStructured"


@torch.no_grad()
def fit_low_rank(
    model: nn.Module, names: Sequence[str], by: LowRank, data: Calibration, seed: int
) -> tuple[list[Change], list[tuple[Conversion, list[str]]]]:
    """Put low-rank layers in place of linear ones and convolutions, in the order in which they run.

    Each minimises `E|U V x' + c - W x|^2`, x what the layer reads in the original, x' what it reads in the network with
    the layers before it replaced, c the change of its bias. With W' the best of full rank and `L L^T = E[x' x'^T]`, U
    holds the first singular vectors of `W' L`, and `V = U^T W'` (reduced-rank regression: Izenman 1975). Of matrices
    with more than 4,096 columns `E[x' x'^T]` between parts of so many is left out.

    A layer that the data do not reach stays whole.

    Raises:
        ValueError: the data reach none, or a layer's weights or inputs are not finite.
    """
    before, after = copied(model), copied(model)
    chunks = parts_of(data)
    runs = order_of(after, names, chunks, WHO)
    if not runs:
        raise ValueError(f"{WHO}: the data do not reach {names[0]!r}.")
    missed = (name for name in names if name not in runs)
    changes = [Change.of(name, None, None, "left whole: the data do not reach it") for name in missed]
    steps = list[tuple[Conversion, list[str]]]()
    for name, count in runs.items():
        layer: Any = before.get_submodule(name)
        (product,) = products_of(layer).values()
        weight = product.matrix(layer).double().cpu()
        if not bool(weight.isfinite().all()):
            raise ValueError(f"{WHO}: the weights of {name!r} must be finite.")
        targets, scaled, shifts, sizes = [], [], [], []
        parts = list(moments_of(product, name, (before, after), chunks, count, seed, WHO))
        if not all(bool(part.isfinite().all()) for _, moments in parts for part in (moments.own, moments.cross)):
            raise ValueError(f"{WHO}: the inputs of {name!r} are not finite on these data.")
        for columns, moments in parts:
            target, damped = refitted_whole(weight[..., columns], moments.own, moments.cross, moments.count, None)
            targets.append(target)
            scaled.append(target @ torch.linalg.cholesky(damped))
        rank = by.rank_of(layer)
        up = torch.linalg.svd(torch.cat(scaled, 2)[0], full_matrices=False).U[:, :rank]
        down = up.t() @ torch.cat(targets, 2)[0]
        for (columns, moments), target in zip(parts, targets, strict=True):
            new = (up @ down[:, columns]).unsqueeze(0)
            shifts.append(weight[..., columns] @ moments.mean_before.unsqueeze(2) - new @ moments.mean.unsqueeze(2))
            sizes.append([float(lost(each, moments.own).sum()) for each in (new - target, target)])
        low_rank = kind_of(layer).sized_like(layer, rank)
        root = down.norm(dim=1).clamp(min=1e-30).sqrt()  # rows of one factor become as large as columns of the other
        shift = torch.stack(shifts).sum(0).flatten()
        bias = None if layer.bias is None else layer.bias + shift.to(layer.bias)
        low_rank.write_(up * root, down / root[:, None], bias)
        product.write_(after.get_submodule(name), (up @ down).unsqueeze(0), shift)
        dense = model.get_submodule(name)
        replace_module(model, name, low_rank)
        gone, whole = (sum(each) for each in zip(*sizes, strict=True))
        step, error = LowRank(rank), f"error of the rank {(gone / max(whole, 1e-30)) ** 0.5:.3g}"
        changes.append(Change.of(name, dense, low_rank, ", ".join(filter(None, (step.note(dense), error)))))
        steps.append((step, [name]))
    return changes, steps
