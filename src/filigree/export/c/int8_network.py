"""A network in 8-bit integers, weights and activations, as a module of torch: the reference of the C program."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import scipy
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from filigree.convert import inference_context
from filigree.export.c.chain import chain
from filigree.export.c.int8_products import product
from filigree.export.c.int8_recurrent import cells
from filigree.export.c.int8_steps import Flat, IntegerSoftmax, Pooling, Scale, Slopes, Sum, Table, multiplier
from filigree.export.c.kept import Add, Keep, Kept, Restore
from filigree.export.c.layers import is_known, steps
from filigree.export.c.recurrent import Last, LastMoment, Recurrent, moment
from filigree.export.c.rows import rows_kept
from filigree.export.c.stages import pool_geometry
from filigree.ops.c_steps import (
    Affine,
    Elementwise,
    NoisyExpectation,
    ParametricReLU,
    Pool,
    Reshape,
    ScaleShift,
    Softmax,
    csr,
    refuse,
)
from filigree.ops.conv import Geometry

_SOFTMAX = Scale(1 / 256, -128)
_SAMPLES = 2048  # of the calibration data


class Placed(NamedTuple):
    """It is a step of the network, with the shapes of what it reads and of what it leaves, at each time step."""

    name: str
    step: Any
    shape: tuple[int, ...]
    out: tuple[int, ...]


class Int8Network(nn.Module):
    """A chain of layers computed in 8-bit integers with the rounding of the exported C program, bit for bit.

    `Int8Network(model, calibration)` takes the smallest and the largest number of each activation on the calibration
    data for its scale; weights get a scale a row, `largest |w| / 127`, unless they are small integers already.

    Args:
        model: as for `fg.export(model, "m.c")`, in floats; it stays as it was. calibration: a batch of inputs.

    Attributes:
        program: the steps. before, after: scales of inputs and outputs. by_moment: whether it reads a sample
            `(time, features)` one time step after the other, as networks with recurrent layers do.
        factor, offset: `q = floor(factor x + offset) - 128` stores an input, with the scaling that stands at the front
            of the model; one of each, or one a feature.
        error, largest: of the outputs on the calibration data: the mean difference from floats; the largest number.

    Shape: as the model's; floats in and out. `integers` takes and returns the integers.

    Raises:
        ValueError: what has no form in 8-bit integers (log-softmax), by name; calibration data without samples.
    """

    def __init__(self, model: nn.Module, calibration: Tensor | None) -> None:
        super().__init__()
        if not isinstance(calibration, Tensor) or calibration.dim() < 2 or not len(calibration):
            raise ValueError("export: activations='int8' needs calibration data as the example: a batch of inputs.")
        x = calibration[:_SAMPLES].detach().cpu().double()
        self.program: list[Placed] = []
        with inference_context(model):
            pairs = [
                (step, module if len(own) == 1 else None)
                for name, module in chain(model, is_known, "which cannot be written as C", sums=True)
                for own in [steps(module, name)] for step in own
            ]  # fmt: skip
            pairs = rows_kept(pairs, lambda pair: pair[0])
            self.shape = tuple(x.shape[1:])
            self.by_moment = any(isinstance(step, Recurrent | Last) for step, _ in pairs)
            sample = moment([step for step, _ in pairs], self.shape) if self.by_moment else self.shape
            todo = _fused(pairs)
            factor, shift = np.ones(1), np.zeros(1)
            while todo and isinstance(todo[0][0], ScaleShift):
                step = todo.pop(0)[0]
                if len(step.scale) not in (1, sample[0]):
                    raise refuse(step.name, f"has {len(step.scale)} units. Got {sample}")
                x = x * self._units(torch.as_tensor(step.scale)) + self._units(torch.as_tensor(step.shift))
                factor, shift = factor * step.scale, shift * step.scale + step.shift
            self.before = self.after = _range(x)
            self.out_shape = sample
            self.factor, self.offset = factor / self.before.scale, shift / self.before.scale + self.before.zero + 128.5
            kept: dict[Kept, tuple[Tensor, Scale]] = {}
            for step, module in todo:
                x = self._add(step, module, x, kept)
            own = self.after.numbers(self.integers(self.stored(calibration[:_SAMPLES])))
            self.error, self.largest = float((own - x).abs().mean()), float(x.abs().max())

    def stored(self, x: Tensor) -> Tensor:
        """Return inputs as integers, int64."""
        factor, offset = (self._units(torch.from_numpy(a.astype(np.float32))) for a in (self.factor, self.offset))
        v = x.detach().cpu().float() * factor + offset
        return v.clamp(0, 255).floor().long() - 128

    def integers(self, q: Tensor) -> Tensor:
        """Return the integers that the network makes of these, int64."""
        kept: dict[Kept, Tensor] = {}
        for step in (placed.step for placed in self.program):
            if isinstance(step, Sum):
                q = step.simulated(q, kept[step.kept])
            elif isinstance(step, Restore):
                q = kept[step.kept]
            elif isinstance(step, Keep):
                kept[step.kept] = q
            else:
                q = step.simulated(q)
        return q

    def forward(self, x: Tensor) -> Tensor:
        return self.after.numbers(self.integers(self.stored(x))).to(x.dtype)

    def _units(self, numbers: Tensor) -> Tensor:
        """Put a number a unit along the units of a batch of inputs: the features of a time step, or the channels."""
        return numbers if self.by_moment else numbers.view(-1, *[1] * (len(self.shape) - 1))

    # -- calibration ---------------------------------------------------------------------------------------------------

    def _add(self, step: Any, module: Any, x: Tensor, kept: dict[Kept, tuple[Tensor, Scale]]) -> Tensor:
        """Add a step, and return what it makes of the calibration data in floats; `kept` are tensors and scales."""
        before, shape, added = self.after, self.out_shape, step
        if isinstance(step, ScaleShift):
            step = _diagonal(step, shape)
        if isinstance(step, Affine):
            y = _affine(step, x, shape)
            for function in module if isinstance(module, list) else []:
                y = function(y)
            added = product(step, before, scale := _range(y))
        elif isinstance(step, Add):
            other, of_other = kept[step.kept]
            if other.shape != x.shape:
                own = tuple(other.shape[x.dim() - len(shape) :])
                raise refuse(step.name, f"must add tensors of one shape. Got {own} and {shape}")
            y = x + other
            for function in module:
                y = function(y)
            added = Sum(step.name, step.kept, (before, of_other), scale := _range(y))
        elif isinstance(step, Keep):
            y, scale = kept.setdefault(step.kept, (x, before))  # a Restore comes after the Keep
        elif isinstance(step, Recurrent):
            y, added = cells(step, before, x)
            scale = added.after
        elif isinstance(step, Last):
            y, scale = x[:, -1], before
            added = Flat(step.name, LastMoment())
        elif isinstance(step, Reshape):
            y, scale = step.module(x), before
            added = Flat(step.name, step.module)
        elif isinstance(step, Pool):
            y, scale = step.module(x), before
            added = Pooling(step.name, step.module, step.take, pool_geometry(step, shape)[1], before.zero)
        elif isinstance(step, Softmax) and not step.logarithm:
            if len(shape) != 1 or step.dim not in (None, 1, -1):
                expected = f"must be over the numbers of a flat sample, dim=1. Got dim={step.dim} of {shape}"
                raise refuse(step.name, expected)
            sizes = step.sizes or shape
            y, scale = torch.cat([part.softmax(-1) for part in x.split(sizes, -1)], -1), _SOFTMAX
            table = np.round(65535 * np.exp(-np.arange(256) * before.scale)).astype(np.uint16)
            added = IntegerSoftmax(step.name, table, sizes)
        elif isinstance(step, ParametricReLU) and len(step.slope) > 1:
            y = F.prelu(x, torch.from_numpy(step.slope).double())
            added = _slopes(step, before, scale := _range(y))
        elif (function := _function(step, module)) is not None:
            y = function(x)
            scale = _range(y)
            every = function(before.numbers(torch.arange(-128, 128))[None])[0]
            added = Table(
                step.name, getattr(step, "function", "activation"), scale.stored(every).numpy().astype(np.int8)
            )
        elif isinstance(step, Softmax):
            raise refuse(step.name, "is a log-softmax: leave it out, the order of the outputs is the same")
        else:
            raise refuse(step.name, f"is a {type(step).__name__}, which has no form in 8-bit integers")
        self.out_shape = tuple(y.shape[1 if isinstance(step, Last) else x.dim() - len(shape) :])
        self.program.append(Placed(step.name, added, shape, self.out_shape))
        self.after = scale
        return y


def _range(y: Tensor) -> Scale:
    if not bool(y.isfinite().all()):
        raise ValueError("export: the network's activations on the calibration data must be finite.")
    return Scale.of(float(y.min()), float(y.max())) if y.numel() else Scale(1.0, 0)


def _fused(pairs: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Put scales and shifts into the products before them; of products and sums list what saturates after them."""
    result: list[tuple[Any, Any]] = []
    for step, module in pairs:
        before: Any = result[-1][0] if result else None
        functions: Any = result[-1][1] if result else None
        linear = isinstance(before, Affine) and not functions
        if linear and isinstance(step, ScaleShift) and len(step.scale) == before.matrix.shape[0]:
            result[-1] = before.scaled(step.scale, step.shift), []
        elif isinstance(before, Affine | Add) and (saturating := _saturating(step)) is not None:
            functions.append(saturating)
        else:
            result.append((step, [] if isinstance(step, Affine | Add) else module))
    return result


def _saturating(step: Any) -> Callable[[Tensor], Tensor] | None:
    """Return what saturation does by itself, since 0 is among the numbers that a scale is for; None: nothing of it."""
    if isinstance(step, Elementwise) and step.function == "relu":
        return torch.relu
    if isinstance(step, Elementwise) and step.function == "clamp":
        bounds = dict(step.numbers)
        if bounds["low"] <= 0 <= bounds["high"]:
            return functools.partial(torch.clamp, min=bounds["low"], max=bounds["high"])
    return None


def _function(step: Any, module: Any) -> Callable[[Tensor], Tensor] | None:
    """Return a function of one number; None: it is something else."""
    if isinstance(step, Elementwise):
        return _saturating(step) or module
    if isinstance(step, ParametricReLU):
        return functools.partial(F.leaky_relu, negative_slope=float(step.slope[0]))
    return module if isinstance(step, NoisyExpectation) and len(step.p) == 1 else None


def _diagonal(step: ScaleShift, shape: tuple[int, ...]) -> Affine:
    """Write a scale and shift of each unit or channel as a product."""
    units = shape[0]
    scale, shift = (np.broadcast_to(array, units).astype(np.float32) for array in (step.scale, step.shift))
    if len(shape) == 1:
        return Affine(step.name, csr(scipy.sparse.diags_array(scale)), None, shift)
    each = Geometry((1, 1), (1, 1), (0, 0, 0, 0), (1, 1), units)
    return Affine(step.name, csr(scale[:, None]), None, shift, each, units)


def _affine(step: Affine, x: Tensor, shape: tuple[int, ...]) -> Tensor:
    weight = torch.from_numpy(step.matrix.toarray()).double()
    weight = weight if step.scale is None else weight * torch.from_numpy(step.scale).double()[:, None]
    bias = None if step.bias is None else torch.from_numpy(step.bias).double()
    if (g := step.geometry) is None:
        if shape != (weight.shape[1],):
            raise refuse(step.name, f"reads {weight.shape[1]} numbers a sample, flat. Got {shape}")
        return F.linear(x, weight, bias)
    if len(shape) != 3 or shape[0] != step.inputs:
        raise refuse(step.name, f"reads ({step.inputs}, height, width) a sample. Got {shape}")
    top, bottom, left, right = g.padding
    kernel = weight.view(len(weight), -1, *g.kernel)
    return F.conv2d(F.pad(x, (left, right, top, bottom)), kernel, bias, g.stride, 0, g.dilation, g.groups)


def _slopes(step: ParametricReLU, before: Scale, after: Scale) -> Slopes:
    ratio, slope = before.scale / after.scale, step.slope.astype(np.float64)
    pairs = [[multiplier(abs(each) * ratio) for each in slope], [multiplier(ratio)] * len(slope)]
    m, s = np.array(pairs).transpose(2, 0, 1)
    signs = np.where(slope < 0, -1, 1).astype(np.int8)
    return Slopes(step.name, m.astype(np.int32), s.astype(np.uint8), signs, before, after)
