"""A sparse linear layer whose backward pass uses a part of its connections."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor

from filigree.modes import outside_graphs
from filigree.nn.asymmetric.asymmetric_linear import Asymmetrical, choose, sparsify_output_, with_rule
from filigree.nn.asymmetric.sparsification import Sparsification
from filigree.nn.drop_in import recast
from filigree.nn.sparse.sparse_linear import SparseLinear
from filigree.ops import reference, selection, sparse
from filigree.ops.once_differentiable import once_differentiable
from filigree.ops.pattern import Pattern
from filigree.ops.rows import rows_backward


class AsymmetricSparseLinear(Asymmetrical, SparseLinear, replaces=(SparseLinear,)):
    """`SparseLinear` with a sparsified backward pass: `AsymmetricLinear` on the connections alone.

    Where neurons are chosen for the whole batch (`unified`), the backward pass is that of a sparse layer with the
    chosen neurons only. Where they are chosen for each sample, the ordinary kernels compute it on masked numbers: a
    pattern for each sample would break the vectors over the batch, so nothing is saved. Sparsified weights are chosen
    among the connections of each input. The layer evolves, saves and loads as a `SparseLinear`. Dense equivalent:
    `dense()`.
    """

    @classmethod
    def like(cls, layer: SparseLinear) -> Self:
        """This layer with the parameters and the pattern of a sparse one, which are shared."""
        return recast(cls, layer)

    def forward(self, x: Tensor) -> Tensor:
        if self.is_exact(x):
            return super().forward(x)
        x = self._checked(x)
        y = _run(x.reshape(-1, self.in_features), self.values, self.bias, self)
        return y if x.dim() == 2 else y.reshape(*x.shape[:-1], self.out_features)

    def tracked(self) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        return self.values, (reference.rows(self.indptr, self.nnz), self.indices.long())

    def c_training_form(self, name: str) -> list[Any]:
        step, *rest = super().c_training_form(name)
        return [replace(step, top=self.c_top(name)), *rest]

    def extra_repr(self) -> str:
        return super().extra_repr() + f", {self.config.label()}"


@outside_graphs
def _run(x: Tensor, values: Tensor, bias: Tensor | None, owner: AsymmetricSparseLinear) -> Tensor:
    if x.dtype not in sparse.FLOATS:
        return sparse.in_float32(lambda v, b, x: with_rule(_SparseLinear.apply, x, v, b, owner), values, bias, x)
    return with_rule(_SparseLinear.apply, x, values, bias, owner)


class _SparseLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, bias: Tensor | None, owner: AsymmetricSparseLinear) -> Tensor:
        rule, pattern = owner.rule, owner.pattern
        rows = sparse.feature_major(x.t())
        y = sparse.linear(pattern, values, bias, rows.t())
        ctx.rule, ctx.pattern, ctx.owner = rule, pattern, owner
        kept = sparsify_output_(ctx, y, owner.relu)
        if rule.inputs is not None:
            rows = selection.dense(choose(rule.inputs, x, rule.unified)).t().contiguous()
        ctx.save_for_backward(rows, values, kept)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, values, kept = ctx.saved_tensors
        rule, pattern = ctx.rule, ctx.pattern
        need_input, need_bias = ctx.needs_input_grad[0], ctx.needs_input_grad[2]
        delta = dy if kept is None else dy * kept
        adjoint = None if rule.weights is None else _by_columns(rule.weights, pattern, values)
        if ctx.watched is not None:
            function = rule.sensitivity
            neurons = None if function is None else selection.dense(choose(function, delta, rule.unified)) != 0
            inputs = None if rule.inputs is None else x.t() != 0
            by_weights = None if adjoint is None else adjoint != 0
            ctx.watched.saw_backward(rule.neurons, neurons, inputs, pattern.cols, by_weights)
        if rule.unified and rule.sensitivity is not None and rule.neurons != "union":
            rows = delta.t()  # feature-major: a neuron's row is contiguous
            index = rule.sensitivity(rows.abs().sum(1).unsqueeze(0))[0].nonzero().squeeze(1)
            few = rows.index_select(0, index)
            back = values if adjoint is None else values * adjoint
            dx, dvalues = rows_backward(pattern, index, back, few, x, need_input)
            db = few.new_zeros(pattern.rows).index_copy_(0, index, few.sum(1)) if need_bias else None
            return None if dx is None else dx.t(), dvalues, db, None
        chosen = choose(rule.sensitivity, delta, rule.unified)
        if rule.neurons == "union" and adjoint is not None and rule.sensitivity is not None:
            dx, dvalues, db = _union(pattern, chosen, delta, x, values, adjoint)
            return dx if need_input else None, dvalues, db if need_bias else None, None
        back = values if adjoint is None else values * adjoint
        rows = selection.dense(chosen).t().contiguous()
        dx = sparse.spmm_t(pattern, back, rows).t() if need_input else None
        return dx, sparse.sddmm(pattern, rows, x), selection.sums(chosen) if need_bias else None, None


def _by_columns(function: Sparsification, pattern: Pattern, values: Tensor) -> Tensor:
    """`(nnz,)`: 1 at the connections that the function keeps among those of each input, else 0."""
    counts = pattern.t_indptr.diff().long()
    widest = int(counts.max()) if counts.numel() else 0
    column = torch.repeat_interleave(counts, output_size=pattern.nnz)
    slot = torch.arange(pattern.nnz, device=values.device) - pattern.t_indptr[:-1].long()[column]
    order = pattern.t_perm.long()
    table = values.new_zeros(pattern.cols, max(widest, 1))
    table[column, slot] = values.detach()[order]
    kept = values.new_zeros(values.shape)
    kept[order] = (function(table) != 0)[column, slot].to(values.dtype)
    return kept


def _union(
    pattern: Pattern, chosen: Any, delta: Tensor, x: Tensor, values: Tensor, adjoint: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    few, full = selection.dense(chosen).t().contiguous(), delta.t().contiguous()
    dvalues = torch.where(adjoint > 0, sparse.sddmm(pattern, full, x), sparse.sddmm(pattern, few, x))
    dx = sparse.spmm_t(pattern, values * adjoint, full) + sparse.spmm_t(pattern, values * (1 - adjoint), few)
    row = reference.rows(pattern.indptr, pattern.nnz)
    whole = torch.zeros_like(full[:, 0], dtype=torch.bool).index_fill_(0, row[adjoint > 0], True)
    return dx.t(), dvalues, torch.where(whole, full.sum(1), few.sum(1))
