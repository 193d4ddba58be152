"""Steps whose weights are not chosen yet, and how they become a program."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx

from filigree.ops.inference import Finishing, Span, Step, Steps
from filigree.ops.panel_weights import INT8_CODINGS
from filigree.optimize.weights import LayerWeight, scaled


class NotTaken(Exception):
    """A node that steps cannot stand for."""


@dataclass(eq=False)
class Draft:
    """A step whose weight is not chosen yet; what follows it may still be fused into it."""

    step: Step
    layer: LayerWeight | None = None
    node: fx.Node | None = None
    finish: Finishing = field(default_factory=Finishing)
    outputs: int = 0
    forms: dict[str, Any] = field(default_factory=dict)
    form: str = "floats"
    part: str = ""  # of a layer that has several weights
    error: float = 0.0  # of the forms that round to bytes

    @property
    def is_int8(self) -> bool:
        return self.form in INT8_CODINGS

    def built(self) -> Step:
        finish = self.finish
        weight = None
        if self.layer is not None:
            weight, scale = self.forms[self.form]
            finish = scaled(finish, scale)
        return Step(**{**vars(self.step), "weight": weight, "finish": finish.packed(self.outputs)})


def arranged(steps: list[Step], sizes: list[int], given: list[int], constants: dict[int, Tensor], chunk: int) -> Steps:
    """Give spans their memory, where those that are no longer read make room, and number them anew."""
    last: dict[int, int] = {}
    for number, step in enumerate(steps):
        for span in (step.source, step.other, step.third, step.target):
            last[span] = number
    offsets: dict[int, int] = {}
    for number, step in enumerate(steps):
        for span in (step.target, step.other, step.third):
            if span in given or span in offsets or span in constants:
                continue
            busy = sorted((offsets[s], offsets[s] + _room(sizes[s])) for s in offsets if last[s] >= number)
            at = 0
            for low, high in busy:
                if low >= at + _room(sizes[span]):
                    break
                at = max(at, high)
            offsets[span] = at
    order = [*given, *offsets, *constants]
    numbers = {span: number for number, span in enumerate(order)}
    spans = [Span(sizes[span], offsets.get(span), constants.get(span)) for span in order]
    renamed = [
        Step(**{**vars(step), "source": numbers[step.source], "target": numbers[step.target],
                "other": numbers.get(step.other, 0), "third": numbers.get(step.third, 0)})
        for step in steps
    ]  # fmt: skip
    return Steps(spans, renamed, chunk)


def _room(size: int) -> int:
    return -(-size // 16) * 16
