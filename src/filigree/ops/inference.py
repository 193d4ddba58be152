"""A network for inference as one call of a compiled kernel: steps on float32 images, and how their weights are packed.

Each step reads and writes numbers at positions that tables of int32 give (`kernels/inference.cpp`), so that layouts,
padding and flattening cost nothing. Weights are packed as `panel_weights` does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from filigree.ops._load import kernels
from filigree.ops.addresses import address
from filigree.ops.curves import CURVES
from filigree.ops.panel_weights import PanelWeight, padded

GATHER, MULTIPLY, MAXIMUM, MEAN, ADD, LSTM, GRU, NORM, ATTENTION, DEPTHWISE, TIMES, MINUS = range(12)

_ABOVE_ZERO = ("sigmoid", "hard_sigmoid")  # what they make of zero


class Finishing(NamedTuple):
    """What becomes of sums, by output: `factor * relu(scale * sum + bias) + shift`.

    Below zero ReLU is `slope` times the number, where that is given; `curve` is one of the `CURVES` in its place. None:
    left out.
    """

    scale: Tensor | None = None
    bias: Tensor | None = None
    slope: Tensor | None = None
    factor: Tensor | None = None
    shift: Tensor | None = None
    relu: bool = False
    curve: str = ""

    @property
    def is_curved(self) -> bool:
        return self.relu or self.slope is not None or bool(self.curve)

    def packed(self, outputs: int) -> Finishing:
        """Padded with zeros to whole panels, also of what a curve makes of zero."""
        given: list[Any] = list(self[:5])
        if self.curve in _ABOVE_ZERO and self.factor is None:
            given[3:] = torch.ones(1), torch.zeros(1)
        parts = [None if part is None else _filled(part.float().expand(outputs), padded(outputs)) for part in given]
        return Finishing(parts[0], parts[1], parts[2], parts[3], parts[4], self.relu, self.curve)

    def plain(self) -> tuple[Any, ...]:
        return (*(address(part) for part in self[:5]), self.relu, CURVES.index(self.curve))


class Attention(NamedTuple):
    """What heads that attend have besides: `keys` of each, the `width` of a value, and what is added to the products.

    `bias`: `(1 or heads, queries, keys)`, with the keys padded to whole panels.
    """

    keys: int = 0
    width: int = 0
    bias: Tensor | None = None

    def plain(self) -> tuple[Any, ...]:
        return (self.keys, self.width, address(self.bias), 0 if self.bias is None else len(self.bias))


@dataclass(frozen=True)
class Step:
    """A step of a program; `source`, `other`, `third` and `target` are numbers of its spans.

    `by_image`: inputs that are rounded to bytes have one scale an image, not one for each point. `number`: of NORM what
    is added to the variance, of ATTENTION the scale of the products.
    """

    kind: int
    source: int
    target: int
    points: int
    reads: Tensor
    writes: Tensor | None = None
    other: int = 0
    third: int = 0
    others: Tensor | None = None
    taps: int = 1
    channels: int = 0
    clear: bool = False
    by_image: bool = False
    number: float = 0.0
    weight: PanelWeight | None = None
    finish: Finishing = field(default_factory=Finishing)
    attention: Attention = field(default_factory=Attention)
    work: int = 0

    def plain(self) -> tuple[Any, ...]:
        weight = (0,) * 11 if self.weight is None else self.weight.plain()
        return (
            self.kind, self.source, self.other, self.third, self.target, self.points, self.taps, self.channels,
            self.reads.data_ptr(), address(self.others), address(self.writes), self.clear, self.by_image,
            self.number, weight, self.finish.plain(), self.attention.plain(),
        )  # fmt: skip


@dataclass(frozen=True)
class Span:
    """Numbers of each image: of a tensor that is given, or `offset` numbers into the scratch memory; or a `constant`,
    float32 and the same for all of them."""

    size: int
    offset: int | None = None
    constant: Tensor | None = None

    @property
    def is_given(self) -> bool:
        return self.offset is None and self.constant is None


class Steps:
    """Steps ready to be run: `run(inputs, outputs)` fills the tensors of the spans that are given.

    Those come first, the inputs before the outputs. Nothing here changes after construction: copies share it.
    """

    def __init__(self, spans: list[Span], steps: list[Step], chunk: int) -> None:
        self.spans, self.steps, self.chunk = spans, steps, chunk
        self.given = [span.size for span in spans if span.is_given]
        self.numbers = max((span.offset + span.size for span in spans if span.offset is not None), default=0)
        self.work = sum(step.work for step in steps)
        self._inner = [
            (0, span.offset, span.size) if span.constant is None else (span.constant.data_ptr(), 0, 0)
            for span in spans
            if not span.is_given
        ]
        self._plain = [step.plain() for step in steps]

    def run(self, tensors: list[Tensor], images: int) -> None:
        """`tensors`: contiguous float32, of `images` times as many numbers as their spans; the kernel writes that many.

        Raises:
            ValueError: one holds another number of them.
        """
        if [t.numel() for t in tensors] != [images * size for size in self.given]:
            sizes = [t.numel() for t in tensors]
            raise ValueError(f"Steps: tensors must hold {images} times {self.given} numbers. Got {sizes}.")
        given = [(t.data_ptr(), 0, size) for t, size in zip(tensors, self.given, strict=True)]
        kernels.inference([*given, *self._inner], self._plain, images, self.chunk, self.numbers, self.work)

    def __deepcopy__(self, memo: Any) -> Steps:
        return self


def _filled(part: Tensor, size: int) -> Tensor:
    out = torch.zeros(size)
    out[: len(part)] = part
    return out
