"""Attention that a model writes out, `softmax(Q K^T / sqrt(width) + mask) V`, as a call of the one function for it."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from filigree.nn.dropout.dropout import FastDropout
from filigree.preserved import has_hooks

_LEAST = -1e4  # as a score: it weighs nothing
_PRODUCTS = (torch.matmul, operator.matmul, torch.bmm, "matmul", "bmm", "__matmul__")
_SOFTMAX = (F.softmax, torch.softmax, "softmax")
_SAME = ("contiguous", "to", "float", "type_as", "clone", "detach")
_SUMS = {operator.add: 1, operator.iadd: 1, torch.add: 1, "add": 1, "add_": 1,
         operator.sub: -1, operator.isub: -1, torch.sub: -1, "sub": -1, "sub_": -1}  # fmt: skip
_FACTORS = {operator.mul: 1, operator.imul: 1, torch.mul: 1, "mul": 1, "mul_": 1,
            operator.truediv: -1, operator.itruediv: -1, torch.div: -1, "div": -1, "div_": -1}  # fmt: skip
_VIEWS = ("view", "reshape", "flatten", "unflatten", "unsqueeze", "squeeze", torch.reshape)
_FILLED = (torch.masked_fill, "masked_fill", "masked_fill_")


@dataclass(frozen=True)
class _Written:
    """`softmax(scale Q K^T + bias) V`, which the node `result` holds; `within`: the nodes between these."""

    result: fx.Node
    queries: fx.Node
    transposed_keys: fx.Node
    values: fx.Node
    scale: float
    bias: Tensor
    within: list[fx.Node]


class WrittenAttention:
    """Puts `F.scaled_dot_product_attention` where a graph writes it out.

    Args:
        value_of: what a node holds for one sample. constant: what a constant is, None of what is none. module_of: the
            module that a node calls, or None. samples: along which dimension of a node the samples lie, and how many
            rows each has. keep: keeps a tensor with the graph, and names it.
    """

    def __init__(
        self, value_of: Callable[[fx.Node], Any], constant: Callable[[Any], Any], module_of: Callable[[fx.Node], Any],
        samples: Callable[[fx.Node], tuple[int, int] | None], keep: Callable[[Tensor], str],
    ) -> None:  # fmt: skip
        self.value_of, self.constant, self.module_of, self.keep = value_of, constant, module_of, keep
        self.samples = samples

    def replace(self, graph: fx.Graph, computes: Callable[[list[fx.Node], fx.Node], bool]) -> list[fx.Node]:
        """Returns the nodes in whose place others stand now, which are unread.

        Args:
            computes: keeps the values of new nodes, each after those it reads, and says whether those of the last one
                are those of the node in whose place it is to stand.
        """
        replaced: list[fx.Node] = []
        for node in list(graph.nodes):
            written = self._written(node) if self._is_softmax(node) else None
            if written is None:
                continue
            with graph.inserting_before(written.result):
                new = self._call(graph, written)
            if computes(new, written.result):
                written.result.replace_all_uses_with(new[-1])
                replaced += written.within
            else:
                for unread in reversed(new):
                    graph.erase_node(unread)
        return replaced

    def _call(self, graph: fx.Graph, written: _Written) -> list[fx.Node]:
        """The nodes of the call, each after those it reads."""
        keys = graph.call_function(torch.transpose, (written.transposed_keys, -2, -1))
        masks = self._masks(graph, written.bias) if bool(written.bias.any()) else []
        named: dict[str, Any] = {"scale": written.scale, **({"attn_mask": masks[-1]} if masks else {})}
        arguments = written.queries, keys, written.values
        return [keys, *masks, graph.call_function(F.scaled_dot_product_attention, arguments, named)]

    def _masks(self, graph: fx.Graph, bias: Tensor) -> list[fx.Node]:
        """The nodes of a bias; where it differs between the rows of a sample, of the last one for all samples."""
        bias = bias[:1] if torch.equal(bias, bias[:1].expand_as(bias)) else bias
        mask = graph.get_attr(self.keep(bias.contiguous()))
        if len(bias) == 1:
            return [mask]
        source = next(node for node in graph.nodes if node.op == "placeholder" and self.samples(node) == (0, 1))
        count = graph.call_method("size", (source, 0))
        return [mask, count, graph.call_method("repeat", (mask, count, *[1] * (bias.dim() - 1)))]

    def _is_softmax(self, node: fx.Node) -> bool:
        """Over the last of several dimensions."""
        module = self.module_of(node)
        if type(module) is nn.Softmax and not has_hooks(module) and node.args:
            dim: Any = module.dim
        elif node.target in _SOFTMAX and node.args:
            dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
        else:
            return False
        value = self.value_of(node)
        return value.dim() > 2 and dim in (-1, value.dim() - 1) and value.dtype is torch.float32

    def _written(self, softmax: fx.Node) -> _Written | None:
        """What a softmax is part of."""
        result, within, shape = softmax, [softmax], self.value_of(softmax).shape
        while len(result.users) == 1:
            (result,) = result.users
            within.append(result)
            if not self._is_same(result):
                break
        if result.target not in _PRODUCTS or len(result.args) != 2 or result.args[0] not in within:
            return None
        products = self._scores(softmax.args[0], within, torch.zeros([1] * len(shape)))
        values: Any = result.args[1]
        if products is None or values in within:
            return None
        scale, bias, (queries, transposed) = products
        tensors = [self.value_of(each) if isinstance(each, fx.Node) else None for each in (queries, transposed, values)]
        floats = [each for each in tensors if isinstance(each, Tensor) and each.dtype is torch.float32]
        if len(floats) < 3 or any(each.shape[:-2] != shape[:-2] for each in floats):
            return None
        samples = self.samples(softmax)
        if (
            samples is None
            or samples[0]
            or bias.dim() > len(shape)
            or not bool((bias.amax(-1) > -torch.inf).all())
            or bool(bias.isnan().any())
        ):
            return None
        return _Written(result, queries, transposed, values, scale, bias, within)

    def _scores(self, node: Any, within: list[fx.Node], bias: Tensor) -> tuple[float, Tensor, Any] | None:
        """The scale, the bias and the two factors of products that nothing else reads."""
        scale = 1.0
        while isinstance(node, fx.Node) and len(node.users) == 1 and node.args:
            within.append(node)
            first, *rest = node.args
            constants: list[Any] = [None if each is None else self.constant(each) for each in rest]
            if node.target in _PRODUCTS and len(rest) == 1:
                queries: Any = first
                while (power := self._power(queries)) and len(queries.users) == 1:
                    within.append(queries)
                    scale *= float(self.constant(queries.args[1])) ** power
                    queries = queries.args[0]
                return scale, bias, (queries, rest[0])
            if power := self._power(node):
                scale *= float(constants[0]) ** power
            elif node.target in _SUMS and len(rest) == 1 and not node.kwargs and _is_numeric(constants[0]):
                bias = bias + scale * _SUMS[node.target] * torch.as_tensor(constants[0]).detach().float()
            elif node.target in _FILLED and len(rest) == 2 and _hides(constants[0], constants[1], scale):
                bias = torch.where(constants[0], -torch.inf, bias)
            elif node.target is torch.where and len(rest) == 2 and _hides(self.constant(first), constants[1], scale):
                bias = torch.where(self.constant(first), bias, -torch.inf)
                first = rest[0]
            elif self._is_view(node):
                bias = bias.expand(self.value_of(node).shape).reshape(self.value_of(node.all_input_nodes[0]).shape)
            elif not self._is_same(node):
                return None
            node = first
        return None

    def _is_same(self, node: fx.Node) -> bool:
        """Whether a node holds the numbers of the one that it reads."""
        module = self.module_of(node)
        if module is not None:
            return type(module) in (nn.Dropout, nn.Identity, FastDropout) and not has_hooks(module)
        if node.target is F.dropout:
            given = {**dict(zip(("p", "training"), node.args[1:], strict=False)), **node.kwargs}
            return given.get("training", True) is False
        source: Any = node.args[0] if node.args else None
        if node.op != "call_method" or node.target not in _SAME or not isinstance(source, fx.Node):
            return False
        return self.value_of(source).dtype is self.value_of(node).dtype

    def _is_view(self, node: fx.Node) -> bool:
        """Whether it only takes apart or joins dimensions before the last two."""
        if node.target not in _VIEWS:
            return False
        before, after = (self.value_of(each).shape for each in (node.all_input_nodes[0], node))
        return len(before) > 2 and before[-2:] == after[-2:]

    def _power(self, node: Any) -> int:
        """1 or -1 of a product with, or a quotient by, a number that is not zero; 0: it is none."""
        if not isinstance(node, fx.Node) or node.target not in _FACTORS or len(node.args) != 2 or node.kwargs:
            return 0
        number = self.constant(node.args[1])
        is_number = _is_numeric(number) and torch.as_tensor(number).numel() == 1 and bool(number != 0)
        return _FACTORS[node.target] if is_number and torch.as_tensor(number).dim() == 0 else 0


def _is_numeric(value: Any) -> bool:
    return isinstance(value, Tensor | float | int) and not (isinstance(value, Tensor) and value.dtype is torch.bool)


def _hides(mask: Any, value: Any, scale: float) -> bool:
    """Whether what is put where a mask tells weighs nothing."""
    is_mask = isinstance(mask, Tensor) and mask.dtype is torch.bool and _is_numeric(value) and scale > 0
    return is_mask and torch.as_tensor(value).numel() == 1 and scale * float(value) <= _LEAST
