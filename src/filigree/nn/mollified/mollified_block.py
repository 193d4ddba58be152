"""Blocks whose units are skipped at random (Moczulski 2019, 4.4.3.1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from filigree.modes import evaluating
from filigree.nn.capabilities import Capabilities
from filigree.nn.mollified.mollified_activation import MollifiedActivation
from filigree.nn.mollified.mollified_onnx import PlainBlock
from filigree.nn.torch_attributes import TORCH_ATTRIBUTES, ReadsAttributes


class MollifiedModule(Capabilities, nn.Module):
    """Base of modules with a level of mollification: blocks, and the gates of recurrent layers.

    Attributes:
        p: the level, in [0, 1], at first 1; annealing sets it, and it is part of the `state_dict`.
    """

    _p: float = 1.0

    @property
    def p(self) -> float:
        return self._p

    @p.setter
    def p(self, level: float) -> None:
        if not 0 <= level <= 1:
            raise ValueError(f"{type(self).__name__}: p must be in [0, 1]. Got {level}.")
        self._p = float(level)

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self._p, dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        self.p = float(state)


class MollifiedBlock(ReadsAttributes, MollifiedModule):
    """`h = pi * skip(x) + (1 - pi) * psi(body(x))`, pi ~ Bernoulli(p) for each unit (Moczulski 2019, 4.27 to 4.30).

    At p = 1 it is `skip(x)`, and the body is not computed; at p = 0 it is `psi(body(x))` without noise. pi is drawn for
    each sample. In eval mode p counts as 0, or with `expected` h is `p skip(x) + (1 - p) E psi(body(x))`.

    Args:
        body: everything up to the pre-activation, or a whole block. activation: a `MollifiedActivation`, or None where
            the body has its own, which then get the block's level.
        skip: "pad": the input itself, with zeros for the units that it lacks or without the units that are too many,
            images averaged down to the size; "project": `projection`. projection: a linear map, for "project".
        residual: compute `psi(body(x) + skip(x))`. expected: see above.
    """

    skips = True
    instead: ClassVar[Mapping[str, str]] = dict.fromkeys(TORCH_ATTRIBUTES, "read it of a layer of its body")

    def attributes_from(self, name: str) -> nn.Module | None:
        return self._modules.get("body") if name in TORCH_ATTRIBUTES else None

    def __init__(
        self, body: nn.Module, activation: nn.Module | None = None, skip: Literal["pad", "project"] = "pad",
        projection: nn.Module | None = None, residual: bool = False, expected: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        if (skip == "project") != (projection is not None):
            raise ValueError(f"MollifiedBlock: a projection is needed for skip='project' only. Got skip={skip!r}.")
        self.body, self.activation, self.projection = body, activation or nn.Identity(), projection
        self.residual, self.expected = residual, expected
        self._shapes: dict[tuple[int | None, ...], torch.Size] = {}
        images = any(isinstance(getattr(m, "out_channels", None), int) for m in body.modules())
        self._sides = 3 if images else 1  # dimensions of one sample; a linear layer's may have more before them
        self.p = 1.0
        for module in self.modules():
            if isinstance(module, MollifiedActivation):
                module.expected = expected

    @property
    def p(self) -> float:
        return self._p

    @p.setter
    def p(self, level: float) -> None:
        MollifiedModule.p.fset(self, level)  # type: ignore[attr-defined]
        for module in self.modules():
            if isinstance(module, MollifiedActivation):
                module.p = self._p

    def forward(self, x: Tensor) -> Tensor:
        p = self.p if self.training or self.expected else 0.0
        if p == 1:
            return self._skip(x, self._shape_after(x))
        y = self.body(x)
        skip = self._skip(x, y.shape) if p or self.residual else None
        h: Tensor = self.activation(y + skip if self.residual else y)
        if not p or skip is None:
            return h
        if self.training:
            return torch.where(torch.rand_like(h, dtype=torch.promote_types(h.dtype, torch.float32)) < p, skip, h)
        return p * skip + (1 - p) * h

    def label(self) -> str:
        own = type(self.body).__name__ if isinstance(self.activation, nn.Identity) else self.activation.name
        return f"MollifiedBlock({own})"

    def _shape_after(self, x: Tensor) -> torch.Size:
        """The shape of `body(x)`; the body is run once for each shape of a sample to find out."""
        alone = x.dim() == self._sides  # one sample
        sides = tuple(x.shape) if alone else (None, *x.shape[1:])
        if sides not in self._shapes:
            with torch.no_grad(), evaluating(self.body):
                self._shapes[sides] = self.body(x if alone else x[:1]).shape
        shape = self._shapes[sides]
        return shape if alone else torch.Size([len(x), *shape[1:]])

    def _skip(self, x: Tensor, shape: torch.Size) -> Tensor:
        units = -self._sides
        if self.projection is not None:
            x = self.projection(x)
        elif (lacking := shape[units] - x.shape[units]) > 0:
            x = F.pad(x, (*[0] * (2 * self._sides - 1), lacking))
        else:
            x = x.narrow(units, 0, shape[units])
        other = self._sides > 1 and x.shape[-2:] != shape[-2:]
        return F.adaptive_avg_pool2d(x, (shape[-2], shape[-1])) if other else x

    def extra_repr(self) -> str:
        notes: Any = [f"p={self.p:.3g}", "residual" * self.residual, "expected" * self.expected]
        return ", ".join(filter(None, notes))

    def onnx_form(self) -> nn.Module:
        return PlainBlock(self)
