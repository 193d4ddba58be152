"""What `optimize_` lays a model out as: steps of the kernel, a graph of them, and when it may stand in."""

from __future__ import annotations

import copy
import itertools
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from filigree.fused_steps import count_fused_steps
from filigree.ops.inference import Steps
from filigree.ops.memory import in_memory
from filigree.optimize.arguments import NOTHING, Fixed
from filigree.optimize.layouts import Layout
from filigree.preserved import has_hooks


class Program(nn.Module):
    """Steps as a module: a tensor in, one or several out. It has no parameters and never changes: copies share it."""

    def __init__(self, steps: Steps, layouts: Sequence[Layout]) -> None:
        super().__init__()
        self.steps = steps
        self.shapes = [layout.positions.movedim(layout.batch_dim, 0).shape[1:] for layout in layouts]
        self.samples = [(layout.batch_dim, layout.merged) for layout in layouts]

    def forward(self, x: Tensor) -> Any:
        x = x.contiguous()
        images = len(x)
        tensors = [x, *(x.new_empty((images, *shape)) for shape in self.shapes)]
        self.steps.run(tensors, images)
        out = tensors[1:]
        for number, (dim, merged) in enumerate(self.samples):
            y = out[number].movedim(0, dim) if dim else out[number]
            out[number] = y.flatten(dim, dim + 1) if merged else y
        return out[0] if len(out) == 1 else tuple(out)

    def __deepcopy__(self, memo: Any) -> Program:
        return self


_VERSION = operator.attrgetter("_version")
_VALUES = operator.methodcaller("values")  # a scripted module holds no plain dict
_TRAINING = operator.attrgetter("training")
_HOOKS = operator.attrgetter("_forward_hooks")
_PRE_HOOKS = operator.attrgetter("_forward_pre_hooks")
_ALIKE_IN_TRAINING = (  # modules that training mode does not change
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, nn.LayerNorm, nn.Identity, nn.Flatten, nn.ReLU, nn.ReLU6, nn.SiLU,
    nn.GELU, nn.Sigmoid, nn.Hardsigmoid, nn.Hardswish, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d,
)  # fmt: skip


class _Watch:
    """Whether a model's tensors, modules, modes and hooks are what they were.

    Of a tensor its memory, which is held so that no other tensor gets it, and its version are compared: numbers that
    `tensor.data.copy_()` wrote are not noticed.
    """

    def __init__(self, model: nn.Module, others: Sequence[Tensor]) -> None:
        count_fused_steps()
        modules = list(model.modules())
        self.plain_modules = [m for m in modules[1:] if not m.training and not has_hooks(m)]
        self.in_eval_mode = [m for m in self.plain_modules if type(m) not in _ALIKE_IN_TRAINING]
        self.training = [m for m in modules[1:] if m.training]
        self.holders: list[dict[str, Any]] = [
            held
            for module in modules
            for held in (module._parameters, module._buffers, module._modules)
            if held
        ]  # fmt: skip
        self.held = self._of_holders()
        own = [vars(module) for module in modules if not has_hooks(module)]  # hooks may write theirs at each call
        self.attributes = [(held, name, held[name]) for held in own for name in held if isinstance(held[name], Tensor)]
        tensors = [value for value in self.held if isinstance(value, Tensor)]
        tensors += [*(value for _, _, value in self.attributes), *others]
        self.tensors = [tensor for tensor in tensors if _has_address(tensor)]
        self.memory = [tensor.detach() for tensor in self.tensors]
        self.counted = [tensor for tensor in tensors if not tensor.is_inference()]  # those that have a version
        self.addresses, self.versions = self._of_tensors()

    def _of_holders(self) -> list[Any]:
        return list(itertools.chain.from_iterable(map(_VALUES, self.holders)))

    def _of_tensors(self) -> tuple[list[int], list[int]]:
        return list(map(Tensor.data_ptr, self.tensors)), list(map(_VERSION, self.counted))

    def unchanged(self) -> bool:
        held = self._of_holders()
        return (
            self._of_tensors() == (self.addresses, self.versions)
            and len(held) == len(self.held)
            and all(map(operator.is_, held, self.held))
            and all(held.get(name) is value for held, name, value in self.attributes)
        )

    def plain(self) -> bool:
        """Whether modes and hooks are as they were; those that had hooks are called as modules, with what they have."""
        return (
            not any(map(_HOOKS, self.plain_modules))
            and not any(map(_PRE_HOOKS, self.plain_modules))
            and not any(map(_TRAINING, self.in_eval_mode))
            and all(map(_TRAINING, self.training))
        )  # fmt: skip


def _has_address(tensor: Tensor) -> bool:
    return type(tensor) in (Tensor, nn.Parameter) and tensor.layout is torch.strided and not tensor.is_meta


class Runtime:
    """A graph that computes what a model does in eval mode for batches of samples of these types and sizes, and what
    is fixed after them."""

    def __init__(
        self, graph: nn.Module, examples: Sequence[tuple[torch.dtype, torch.Size]], model: nn.Module,
        fixed: Fixed = NOTHING, held: Sequence[Tensor] = (),
    ) -> None:  # fmt: skip
        self.graph, self.examples, self.watch, self.fixed = graph, list(examples), _Watch(model, held), fixed
        self.held = list(held)
        self.tensors = len(self.examples)  # that come first
        self.run = graph.forward
        self.is_current = self.watch.unchanged
        self.enabled = True

    def of_copy(self, model: nn.Module, memo: dict[int, Any]) -> Runtime:
        return Runtime(copy.deepcopy(self.graph, memo), self.examples, model, self.fixed, self.held)

    def takes(self, args: tuple[Any, ...], named: dict[str, Any]) -> bool:
        return (
            self.enabled
            and len(args) >= self.tensors
            and self.fixed.equals(args[self.tensors :], named)
            and not torch.is_grad_enabled()
            and all(
                type(x) is Tensor and x.dtype is kind and x.dim() and x.shape[1:] == shape and len(x) and in_memory(x)
                for x, (kind, shape) in zip(args, self.examples, strict=False)
            )
            and not torch.is_autocast_enabled("cpu")
            and not torch.compiler.is_compiling()
            and self.watch.plain()
        )
