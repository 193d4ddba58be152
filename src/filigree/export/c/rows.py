"""Layers of one dimension as those of two: a signal `(channels, length)` is an image of one row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from filigree.ops.c_steps import Elementwise, ParametricReLU, Pool, Reshape, ScaleShift
from filigree.ops.conv import Geometry


class _ToRow(nn.Unflatten):
    """`(channels, length)` to `(channels, 1, length)`."""

    def __init__(self) -> None:
        super().__init__(2, (1, -1))


class _FromRow(nn.Flatten):
    """`(channels, 1, length)` to `(channels, length)`."""

    def __init__(self) -> None:
        super().__init__(2)


def in_a_row(name: str, step: Any) -> list[Any]:
    """Put a step on images of one row between the two changes of shape."""
    return [Reshape(name, _ToRow()), step, Reshape(name, _FromRow())]


def row_geometry(conv: Any) -> Geometry:
    """Return the geometry of an `nn.Conv1d` as that of a convolution on one row."""
    left, right = conv._reversed_padding_repeated_twice
    return Geometry((1, *conv.kernel_size), (1, *conv.stride), (0, 0, left, right), (1, *conv.dilation), conv.groups)


def row_pool(module: Any, name: str, take: str) -> Pool:
    """Return pooling of signals as that of images of one row."""
    if isinstance(module, nn.AdaptiveAvgPool1d):
        return Pool(name, nn.AdaptiveAvgPool2d((1, _first(module.output_size))), take)
    if isinstance(module, nn.AdaptiveMaxPool1d):
        return Pool(name, nn.AdaptiveMaxPool2d((1, _first(module.output_size))), take)
    window: Any = {key: (least, _first(getattr(module, key)))
                   for key, least in (("kernel_size", 1), ("stride", 1), ("padding", 0))}  # fmt: skip
    if isinstance(module, nn.MaxPool1d):
        return Pool(
            name, nn.MaxPool2d(**window, dilation=(1, _first(module.dilation)), ceil_mode=module.ceil_mode), take
        )
    counted = {"ceil_mode": module.ceil_mode, "count_include_pad": module.count_include_pad}
    return Pool(name, nn.AvgPool2d(**window, **counted), take)


def rows_kept(program: Sequence[Any], step_of: Callable[[Any], Any] = lambda step: step) -> list[Any]:
    """Leave images of one row as they are between layers of one dimension, and through what is done to each number."""
    result: list[Any] = []
    for item in program:
        step = step_of(item)
        before = step_of(result[-1]) if result else None
        if isinstance(before, Reshape) and isinstance(before.module, _FromRow):
            if isinstance(step, Reshape) and isinstance(step.module, _ToRow):
                result.pop()
                continue
            if isinstance(step, Elementwise | ScaleShift | ParametricReLU):
                result.insert(-1, item)
                continue
        result.append(item)
    return result


def _first(value: Any) -> int:
    return int(value[0] if isinstance(value, tuple | list) else value)
