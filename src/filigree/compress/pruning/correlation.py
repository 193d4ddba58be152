"""Compensation by correlation: one kept unit takes over from each that went."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from filigree.compress.pruning.graph import Units
from filigree.nn.resizing import cuts_itself
from filigree.ties import why_tied


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
            if not cuts_itself(layer) and not isinstance(layer, nn.Linear | nn.Conv2d):
                left[reader.name] = f"it is a {type(layer).__name__}"
                continue
            if cuts_itself(layer):
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
