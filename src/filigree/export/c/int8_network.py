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
from filigree.export.c.int8_steps import Flat, IntegerSoftmax, Pooling, Product, Scale, Slopes, Table, multiplier
from filigree.export.c.layers import is_known, steps
from filigree.export.c.rows import rows_kept
from filigree.export.c.stages import check_finite, pool_geometry
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
    """It is a step of the network, with the shapes of what it reads and of what it leaves."""

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
        program: the steps. before, after: scales of inputs and outputs.
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
                for name, module in chain(model, is_known, "which cannot be written as C")
                for own in [steps(module, name)] for step in own
            ]  # fmt: skip
            todo = _fused(rows_kept(pairs, lambda pair: pair[0]))
            factor, shift = np.ones(1), np.zeros(1)
            while todo and isinstance(todo[0][0], ScaleShift):
                step = todo.pop(0)[0]
                units = (len(step.scale), *[1] * (x.dim() - 2))
                x = x * torch.as_tensor(step.scale).view(units) + torch.as_tensor(step.shift).view(units)
                factor, shift = factor * step.scale, shift * step.scale + step.shift
            self.before = self.after = _range(x)
            self.shape = self.out_shape = tuple(x.shape[1:])
            self.factor, self.offset = factor / self.before.scale, shift / self.before.scale + self.before.zero + 128.5
            for step, module in todo:
                x = self._add(step, module, x)
            own = self.after.numbers(self.integers(self.stored(calibration[:_SAMPLES])))
            self.error, self.largest = float((own - x).abs().mean()), float(x.abs().max())

    def stored(self, x: Tensor) -> Tensor:
        """Return inputs as integers, int64."""
        units = (-1, *[1] * (x.dim() - 2))
        factor, offset = (torch.from_numpy(a.astype(np.float32)).view(units) for a in (self.factor, self.offset))
        v = x.detach().cpu().float() * factor + offset
        return v.clamp(0, 255).floor().long() - 128

    def integers(self, q: Tensor) -> Tensor:
        """Return the integers that the network makes of these, int64."""
        for placed in self.program:
            q = placed.step.simulated(q)
        return q

    def forward(self, x: Tensor) -> Tensor:
        return self.after.numbers(self.integers(self.stored(x))).to(x.dtype)

    # -- calibration ---------------------------------------------------------------------------------------------------

    def _add(self, step: Any, module: Any, x: Tensor) -> Tensor:
        """Add a step, and return what it makes of the calibration data in floats."""
        before, added = self.after, step
        if isinstance(step, ScaleShift):
            step = _diagonal(step, tuple(x.shape[1:]))
        if isinstance(step, Affine):
            y = _affine(step, x)
            for function in module if isinstance(module, list) else []:
                y = function(y)
            added = _product(step, before, scale := _range(y))
        elif isinstance(step, Reshape):
            y, scale = step.module(x), before
            added = Flat(step.name, step.module)
        elif isinstance(step, Pool):
            y, scale = step.module(x), before
            added = Pooling(step.name, step.module, step.take, pool_geometry(step, tuple(x.shape[1:]))[1], before.zero)
        elif isinstance(step, Softmax) and not (step.logarithm or step.sizes) and x.dim() == 2:
            y, scale = x.softmax(1), _SOFTMAX
            added = IntegerSoftmax(
                step.name, np.round(65535 * np.exp(-np.arange(256) * before.scale)).astype(np.uint16)
            )
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
        else:
            raise refuse(step.name, f"is a {type(step).__name__}, which has no form in 8-bit integers")
        self.program.append(Placed(step.name, added, tuple(x.shape[1:]), tuple(y.shape[1:])))
        self.after, self.out_shape = scale, tuple(y.shape[1:])
        return y


def _range(y: Tensor) -> Scale:
    if not bool(y.isfinite().all()):
        raise ValueError("export: the network's activations on the calibration data must be finite.")
    return Scale.of(float(y.min()), float(y.max()))


def _fused(pairs: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Put scales and shifts into the products before them, and list, in place of a product's module, what saturates."""
    result: list[tuple[Any, Any]] = []
    for step, module in pairs:
        before: Any = result[-1][0] if result else None
        functions: Any = result[-1][1] if result else None
        follows = isinstance(before, Affine)
        if follows and not functions and isinstance(step, ScaleShift) and len(step.scale) == before.matrix.shape[0]:
            result[-1] = before.scaled(step.scale, step.shift), []
        elif follows and isinstance(step, Elementwise) and (saturating := _saturating(step)) is not None:
            functions.append(saturating)
        else:
            result.append((step, [] if isinstance(step, Affine) else module))
    return result


def _saturating(step: Elementwise) -> Callable[[Tensor], Tensor] | None:
    """Return what saturation does by itself, since 0 is among the numbers that a scale is for; None: nothing of it."""
    bounds = dict(step.numbers)
    if step.function == "relu":
        return torch.relu
    if step.function == "clamp" and bounds["low"] <= 0 <= bounds["high"]:
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


def _weight(step: Affine) -> Tensor:
    weight = torch.from_numpy(step.matrix.toarray()).double()
    return weight if step.scale is None else weight * torch.from_numpy(step.scale).double()[:, None]


def _affine(step: Affine, x: Tensor) -> Tensor:
    weight = _weight(step)
    bias = None if step.bias is None else torch.from_numpy(step.bias).double()
    if (g := step.geometry) is None:
        if x.dim() != 2 or x.shape[1] != weight.shape[1]:
            raise refuse(step.name, f"reads {weight.shape[1]} numbers a sample, flat. Got {tuple(x.shape[1:])}")
        return F.linear(x, weight, bias)
    if x.dim() != 4 or x.shape[1] != step.inputs:
        raise refuse(step.name, f"reads ({step.inputs}, height, width) a sample. Got {tuple(x.shape[1:])}")
    top, bottom, left, right = g.padding
    kernel = weight.view(len(weight), -1, *g.kernel)
    return F.conv2d(F.pad(x, (left, right, top, bottom)), kernel, bias, g.stride, 0, g.dilation, g.groups)


def _product(step: Affine, before: Scale, after: Scale) -> Product:
    check_finite(step.name, step.matrix.data, step.scale, step.bias)
    rows = step.matrix.shape[0]
    if step.scale is None:
        largest = np.asarray(abs(step.matrix).max(axis=1).todense()).reshape(-1).astype(np.float64)
        scale = np.where(largest > 0, largest / 127, 1.0)
        data = np.round(step.matrix.data / np.repeat(scale, np.diff(step.matrix.indptr)))
        matrix = csr(
            scipy.sparse.csr_array((data.astype(np.int32), step.matrix.indices, step.matrix.indptr), step.matrix.shape)
        )
    else:
        scale, matrix = np.broadcast_to(step.scale, rows).astype(np.float64), step.matrix
    signs = np.sign(scale) + (scale == 0)
    if (signs < 0).any():  # of a batch norm that turns numbers round
        matrix = csr(
            scipy.sparse.csr_array(
                (
                    matrix.data * np.repeat(signs, np.diff(matrix.indptr)).astype(np.int32),
                    matrix.indices,
                    matrix.indptr,
                ),
                matrix.shape,
            )
        )
    unit = np.where(scale == 0, 1e-30, np.abs(scale)) * before.scale
    bias = np.zeros(rows) if step.bias is None else np.round(step.bias.astype(np.float64) / unit)
    if step.geometry is None:
        bias -= before.zero * np.asarray(matrix.sum(axis=1)).reshape(-1)
    bias = bias.clip(-(2**30), 2**30)
    if 255 * float(np.asarray(abs(matrix).sum(axis=1)).max(initial=0)) + np.abs(bias).max(initial=0) >= 2**31:
        raise refuse(step.name, "has sums that do not fit into 32 bits")
    m, s = np.array([multiplier(each) for each in np.abs(scale) * before.scale / after.scale]).reshape(rows, 2).T
    return Product(
        step.name, matrix, bias.astype(np.int32), m.astype(np.int32), s.astype(np.uint8), before, after, step.geometry
    )


def _slopes(step: ParametricReLU, before: Scale, after: Scale) -> Slopes:
    ratio, slope = before.scale / after.scale, step.slope.astype(np.float64)
    pairs = [[multiplier(abs(each) * ratio) for each in slope], [multiplier(ratio)] * len(slope)]
    m, s = np.array(pairs).transpose(2, 0, 1)
    signs = np.where(slope < 0, -1, 1).astype(np.int8)
    return Slopes(step.name, m.astype(np.int32), s.astype(np.uint8), signs, before, after)
