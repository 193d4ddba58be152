"""The windows of convolutions: what is around an input, and where windows begin and lie."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from torch import Tensor, fx


def windows_of(conv: Any, sizes: Sequence[int]) -> tuple[list[int], tuple[slice, ...], tuple[slice, ...]]:
    """Of a convolution of padded sizes: the sizes of its outputs, the taps of its first window, where windows begin."""
    outs = [
        (size - d * (k - 1) - 1) // s + 1
        for size, k, s, d in zip(sizes, conv.kernel_size, conv.stride, conv.dilation, strict=True)
    ]
    taps = tuple(slice(0, d * (k - 1) + 1, d) for k, d in zip(conv.kernel_size, conv.dilation, strict=True))
    return outs, taps, tuple(slice(0, (out - 1) * s + 1, s) for out, s in zip(outs, conv.stride, strict=True))


def padding_of(conv: Any) -> list[tuple[int, int]]:
    flat = list(getattr(conv, "_around", None) or conv._reversed_padding_repeated_twice)
    return list(zip(flat[::2], flat[1::2], strict=True))[::-1]


def zeros_around(node: fx.Node, dims: int) -> list[tuple[int, int]] | None:
    """What `F.pad` puts around each of `dims` dimensions; None: not zeros, or fewer numbers than there were."""
    names = ("pad", "mode", "value")
    given = {**dict(zip(names, node.args[1:], strict=False)), **node.kwargs}
    pads: Any = given.get("pad")
    if given.get("mode", "constant") != "constant" or given.get("value") not in (None, 0, 0.0):
        return None
    if not all(isinstance(p, int) and p >= 0 for p in pads) or len(pads) > 2 * dims:
        return None
    pairs = list(zip(pads[::2], pads[1::2], strict=True))[::-1]
    return [(0, 0)] * (dims - len(pairs)) + pairs


def cut(positions: Tensor, slices: tuple[slice, ...]) -> Tensor:
    cut: Tensor = operator.getitem(positions, slices)
    return cut
