"""Products of a network of 8-bit integers: linear layers, convolutions, and sums of gates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy
import torch
from torch import Tensor
from torch.nn import functional as F

from filigree.export.c.int8_steps import HIGHEST, LOWEST, Scale, multiplier, rescaled
from filigree.export.c.stages import check_finite
from filigree.ops.c_steps import Affine, csr, refuse
from filigree.ops.conv import Geometry

_BIAS_BITS = 24  # of the largest bias: a row of weights that are smaller still than what it is rounded to is zeros


@dataclass(frozen=True)
class Product:
    """`y = W x + bias` in integers: a linear layer, or with a geometry a convolution.

    `matrix` is a `scipy.sparse.csr_array` of integers; bias int32, m and s int32 and uint8, one of each a row. `before`
    and `after` are the scales of what is read and of what is written. Of a linear layer the bias includes the zero.
    """

    name: str
    matrix: Any
    bias: np.ndarray
    m: np.ndarray
    s: np.ndarray
    before: Scale
    after: Scale
    geometry: Geometry | None = None

    def sums(self, q: Tensor) -> Tensor:
        """Return the products in units of `after`, before they become 8-bit integers."""
        weight = torch.from_numpy(self.matrix.toarray().astype(np.float64))
        m, s, bias = (torch.from_numpy(array.astype(np.int64)) for array in (self.m, self.s, self.bias))
        if (g := self.geometry) is None:
            sums = F.linear(q.double(), weight).long()  # float64 holds such sums exactly
        else:
            top, bottom, left, right = g.padding
            x = F.pad((q - self.before.zero).double(), (left, right, top, bottom))
            kernel = weight.view(len(weight), -1, *g.kernel)
            sums = F.conv2d(x, kernel, None, g.stride, 0, g.dilation, g.groups).long()
            m, s, bias = (part.view(-1, 1, 1) for part in (m, s, bias))
        return rescaled(sums + bias, m, s)

    def simulated(self, q: Tensor) -> Tensor:
        return (self.sums(q) + self.after.zero).clamp(LOWEST, HIGHEST)


def product(step: Affine, before: Scale, after: Scale) -> Product:
    """Round weights to integers of 8 bits with a scale a row, `largest |w| / 127`; integers stay as they are.

    Raises:
        ValueError: weights that are not finite; sums that do not fit into 32 bits.
    """
    check_finite(step.name, step.matrix.data, step.scale, step.bias)
    rows = step.matrix.shape[0]
    floats = np.zeros(rows) if step.bias is None else step.bias.astype(np.float64)
    if step.scale is None:
        largest = np.zeros(rows)
        np.maximum.at(largest, np.repeat(np.arange(rows), np.diff(step.matrix.indptr)), np.abs(step.matrix.data))
        scale = np.maximum(largest / 127, np.abs(floats) / (before.scale * 2**_BIAS_BITS))
        scale = np.where(scale > 0, scale, 1.0)
        data = np.round(step.matrix.data / np.repeat(scale, np.diff(step.matrix.indptr)))
        matrix = csr(
            scipy.sparse.csr_array((data.astype(np.int32), step.matrix.indices, step.matrix.indptr), step.matrix.shape)
        )
    else:
        scale, matrix = np.broadcast_to(step.scale, rows).astype(np.float64), step.matrix
    signs = np.sign(scale) + (scale == 0)
    if (signs < 0).any():  # of a batch norm that turns numbers round
        data = matrix.data * np.repeat(signs, np.diff(matrix.indptr)).astype(np.int32)
        matrix = csr(scipy.sparse.csr_array((data, matrix.indices, matrix.indptr), matrix.shape))
    bias = np.round(floats / (np.where(scale == 0, 1e-30, np.abs(scale)) * before.scale))
    if step.geometry is None:
        bias -= before.zero * np.asarray(matrix.sum(axis=1)).reshape(-1)
    bias = bias.clip(-(2**30), 2**30)
    if 255 * float(np.asarray(abs(matrix).sum(axis=1)).max(initial=0)) + np.abs(bias).max(initial=0) >= 2**31:
        raise refuse(step.name, "has sums that do not fit into 32 bits")
    m, s = np.array([multiplier(each) for each in np.abs(scale) * before.scale / after.scale]).reshape(rows, 2).T
    return Product(
        step.name, matrix, bias.astype(np.int32), m.astype(np.int32), s.astype(np.uint8), before, after, step.geometry
    )
