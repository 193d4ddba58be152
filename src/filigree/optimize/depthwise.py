"""Convolutions of each channel by itself as steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from filigree.ops.inference import DEPTHWISE, Finishing, Step
from filigree.ops.panel_weights import PANEL, PanelWeight, padded
from filigree.optimize.drafts import Draft
from filigree.optimize.layouts import Layout
from filigree.optimize.planning import Plan, table
from filigree.optimize.weights import LayerWeight
from filigree.optimize.windows import cut, padding_of, windows_of


def depthwise(plan: Plan, node: fx.Node, source: fx.Node, dense: Any, weight: LayerWeight) -> Layout:
    """`y[c] = sum_t w[c, t] x[c, t] + b[c]` over the taps t of each pixel."""
    layout = plan.batch_first(source)
    positions = layout.with_zeros(padding_of(dense))
    if not layout.is_by_pixel or int(positions.min()) < 0:
        layout = plan.gathered(layout, positions, padded(dense.in_channels))
        positions = layout.positions
    pixels = positions[0, 0]
    sizes, taps, starts = windows_of(dense, pixels.shape)
    inputs = cut(pixels, taps).reshape(-1)
    reads = cut(pixels, starts)
    out = plan.pixels_for(node, dense.out_channels, sizes)
    step = Step(
        DEPTHWISE, layout.span, out.span, reads.numel(), table(reads), table(out.positions[0, 0]), taps=len(inputs),
        others=table(inputs - inputs[0]), channels=padded(dense.out_channels), clear=plan.clears(out),
        work=reads.numel() * len(inputs) * dense.out_channels,
    )  # fmt: skip
    finish = Finishing(bias=weight.bias, relu=weight.relu)
    forms = {"floats": (by_tap(weight.matrix), None)}
    plan.add(node, Draft(step, weight, node, finish, dense.out_channels, forms))
    return out


def by_tap(matrix: Tensor) -> PanelWeight:
    """A weight `(channels, taps)` as the kernel reads it: tap by tap, with zeros up to a whole panel."""
    channels, taps = matrix.shape
    values = torch.zeros(taps, padded(channels))
    values[:, :channels] = matrix.t()
    return PanelWeight(
        "floats", taps, padded(channels) // PANEL, values, None, None, torch.zeros(0, 2, dtype=torch.int32)
    )
