"""Dropout by partitions (Keller et al.): each unit is dropped exactly once in P steps.

It takes a P-th of the random numbers of dropout.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

import pydantic
import torch
from torch import Tensor, nn

from filigree.config import check_choice, config
from filigree.convert import Change, Conversion, replace_module
from filigree.nn.capabilities import Capabilities
from filigree.nn.drop_in import DropIn, dense_linear, recast
from filigree.nn.dropout.replace_dropout import replace_dropouts
from filigree.nn.sparse.sparse_linear import SparseLinear
from filigree.nn.sparse.sparse_sequential import SEQUENCES
from filigree.nn.step_memory import StepMemory
from filigree.nn.torch_attributes import ReadsAttributes
from filigree.ops.dropout import partition_dropout
from filigree.ops.memory import floats_on_cpu
from filigree.ops.rows import rows_linear
from filigree.ops.transforms import transforming


class Partitions(Capabilities, nn.Module):
    """Base of modules that assign each element of a tensor to one of P partitions, and drop one partition in each step.

    Each element draws `floor(xi P)`, xi uniform, once; over the next P steps each partition is dropped once. Each call
    draws one number from torch's global generator, that of a round's first call is the seed of its partitions.
    Partitions and the step are in `state_dict`: a resumed run goes on in the same round. What gradient checkpointing
    computes again sees the same step (`filigree.nn.step_memory`).

    Attributes:
        drawn: how many random numbers have been drawn so far.
    """

    partition: Tensor
    step: Tensor

    def __init__(self, parts: int) -> None:
        super().__init__()
        if parts < 2:
            raise ValueError(f"{type(self).__name__}: parts must be at least 2. Got {parts}.")
        self.parts, self.drawn = parts, 0
        self.memory = StepMemory(type(self).__name__)
        self.register_buffer("partition", torch.empty(0, dtype=torch.int16))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def keep(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """A mask of what is kept of a tensor of this shape in this step; the next step begins."""
        return self._kept(shape, like, 1)

    def kept_now(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """A mask of what will be kept of a tensor of this shape in the coming step."""
        return self._kept(shape, like, 0)

    def _kept(self, shape: tuple[int, ...], like: Tensor, steps: int) -> Tensor:
        """A mask of what is kept in this step; then so many steps are taken."""
        if like.is_meta:
            return torch.empty(shape, dtype=torch.bool, device=like.device)

        def draw(seed: int) -> Tensor:
            numbers = torch.Generator(like.device).manual_seed(seed)
            return torch.randint(self.parts, shape, dtype=torch.int16, device=like.device, generator=numbers)

        partition, now = self._take(shape, math.prod(shape), draw, steps)
        return partition != now

    def _take(
        self, shape: tuple[int, ...], elements: int, draw: Callable[[int], Tensor], steps: int
    ) -> tuple[Tensor, int]:
        """The partition and the number of this step in its round, of a new one if need be; `steps` are taken."""

        def choose(seed: int) -> tuple[Tensor, int]:
            partition, step = self.partition, self.step
            now = int(step)
            if now >= self.parts or partition.shape != shape:  # a new round
                self.partition = partition = draw(seed)
                self.drawn += elements
                now = 0
            step.fill_(now + steps)
            return partition, now

        return self.memory.of_call(choose)

    def label(self) -> str:
        return f"{type(self).__name__}({self.parts})"

    def why_not_prunable(self) -> str | None:
        return None  # partitions are drawn anew where the units have become fewer

    @property
    def scale(self) -> float:
        """The factor of what is kept, so that expectations stay: P / (P - 1)."""
        return self.parts / (self.parts - 1)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        stored = state_dict.get(prefix + "partition")
        if isinstance(stored, Tensor):
            self.partition = torch.empty_like(stored, device=self.partition.device)
        super()._load_from_state_dict(state_dict, prefix, *args)


class PartitionedDropout(ReadsAttributes, Partitions):
    """Dropout of probability 1 / P in which every unit or element is dropped exactly once in P steps.

    Args:
        parts: P, at least 2.
        per: "unit": a feature (of images: a channel) is dropped in all samples of the batch at once; "element": each
            number of the batch has its own partition. Its random number is the element's position in a counter-based
            generator: on the CPU `partition` holds the round's seed, and no partitions.
        trailing_dims: with "unit", how many dimensions follow that of the features; None: those of images, where the
            input has more than three dimensions and is `(N, C, ...)`, else none.

    What is kept is multiplied by P / (P - 1). The module is the identity in eval mode. It has no `p`: code that
    reads it to drop by itself, as attention does, would not drop by partitions. Shape: any, to the same. Dense
    equivalent: `dense()`, `nn.Dropout(1 / P)`, which has the same expectation and a larger variance over steps.
    """

    inplace = False
    instead: ClassVar[Mapping[str, str]] = {
        "p": "it drops each unit once in as many steps as it has parts; read its parts"
    }

    def __init__(
        self, parts: int, per: Literal["unit", "element"] = "unit", trailing_dims: int | None = None
    ) -> None:  # fmt: skip
        super().__init__(parts)
        check_choice("PartitionedDropout", "per", per, ("unit", "element"))
        self.per, self.trailing_dims = per, trailing_dims
        self.size = 0  # elements of this round's tensors; not known after loading

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        if self.per == "element":
            return self._elements(x)
        side = 1 if x.dim() > 3 and self.trailing_dims is None else x.dim() - 1 - (self.trailing_dims or 0)
        kept = self.keep((x.shape[side],), x)
        factor = kept.to(x.dtype).mul_(self.scale)
        return x * factor.view(-1, *(1,) * (x.dim() - 1 - side))

    def _elements(self, x: Tensor) -> Tensor:
        if not floats_on_cpu(x) or transforming():
            return torch.where(self.keep(tuple(x.shape), x), x * self.scale, 0)
        if self.size not in (0, x.numel()):
            self.step.fill_(self.parts)  # the round is over
        self.size = x.numel()
        seed, now = self._take((), x.numel(), torch.tensor, 1)
        return partition_dropout(x, now, self.parts, seed)

    def dense(self) -> nn.Module:
        return nn.Dropout(1 / self.parts)

    def extra_repr(self) -> str:
        return f"parts={self.parts}, per={self.per!r}"


class PartitionedLinear(DropIn, nn.Linear):
    """A linear layer before a `PartitionedDropout`: the rows that it will drop are not computed, their outputs are 0.

    In training, on the units that the dropout keeps in this step, `nn.Linear`; in its or the dropout's eval mode
    `nn.Linear`.
    """

    dropout: list[PartitionedDropout]  # in a list: it is registered where it stands

    @property
    def macs(self) -> int:
        """Multiply-adds of one sample in training."""
        return self.weight.numel() - self.weight.numel() // self.dropout[0].parts

    def label(self) -> str:
        return type(self).__name__

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and self.dropout[0].training) or x.is_meta:
            return super().forward(x)
        rows = self.dropout[0].kept_now((self.out_features,), x).nonzero().squeeze(1)
        bias = None if self.bias is None else self.bias.index_select(0, rows)
        y = nn.functional.linear(x, self.weight.index_select(0, rows), bias)
        return y.new_zeros(*x.shape[:-1], self.out_features).index_copy(-1, rows, y)


class PartitionedSparseLinear(SparseLinear):
    """`PartitionedLinear` of a sparse layer: the connections of dropped units are not read."""

    has_integer_form = False
    dropout: list[PartitionedDropout]

    @property
    def macs(self) -> int:
        """Multiply-adds of one sample in training."""
        return self.nnz - self.nnz // self.dropout[0].parts

    def label(self) -> str:
        return type(self).__name__

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and self.dropout[0].training) or x.is_meta:
            return super().forward(x)
        x = self._checked(x)
        rows = self.dropout[0].kept_now((self.out_features,), x).nonzero().squeeze(1)
        y = rows_linear(self.pattern, rows, self.values, self.bias, x.reshape(-1, self.in_features), self.relu)
        return y.reshape(*x.shape[:-1], self.out_features)


class PartitionedConnect(Partitions):
    """DropConnect (Wan et al. 2013) by partitions: each weight of a linear layer is dropped exactly once in P steps."""

    def __init__(self, linear: nn.Linear, parts: int) -> None:
        super().__init__(parts)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return nn.functional.linear(x, self.weight, self.bias)
        kept = self.keep(tuple(self.weight.shape), x)
        return nn.functional.linear(x, torch.where(kept, self.weight * self.scale, 0), self.bias)

    @torch.no_grad()
    def dense(self) -> nn.Linear:
        """The equivalent of eval mode, with a copy of the parameters."""
        return dense_linear(self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, parts={self.parts}"


_TRAILING_DIMS: dict[type[nn.Module], int | None] = {
    nn.Dropout: None,
    nn.Dropout1d: 1,
    nn.Dropout2d: 2,
    nn.Dropout3d: 3,
}


@config
class PartitionDropout(Conversion):
    """Replace every `nn.Dropout` by dropout by partitions (Keller et al.), or linear layers by DropConnect.

    Args:
        parts: P: each unit is dropped once in P steps, as often as by `nn.Dropout(1 / P)`; the probabilities of the
            layers it replaces are not read. per: "unit" or "element", see `filigree.nn.PartitionedDropout`.
        connect: drop weights of linear layers in place of units after which a dropout stands.

    In an `nn.Sequential`, a linear or sparse layer that only activations separate from a dropout per unit, and that
    stands nowhere else, does not compute the rows that will be dropped.
    """

    keeps_ties = True

    parts: Annotated[int, pydantic.Field(ge=2)]
    per: Literal["unit", "element"] = "unit"
    connect: bool = False

    @classmethod
    def examples(cls) -> dict[str, Self]:
        return {"PartitionDropout": cls(2)}

    def accepts(self, module: nn.Module) -> bool:
        if self.connect:
            return type(module) is nn.Linear
        return type(module) in _TRAILING_DIMS

    def apply(self, model: nn.Module, names: list[str]) -> list[Change]:
        if self.connect:
            return [self._connect(model, name) for name in names]
        changes = replace_dropouts(
            model, names, "PartitionDropout",
            lambda name, old: PartitionedDropout(self.parts, self.per, _TRAILING_DIMS[type(old)]),
        )  # fmt: skip
        for name in names:
            new = model.get_submodule(name)
            if isinstance(new, PartitionedDropout) and self.per == "unit" and not new.trailing_dims:
                changes += _skip_dropped_rows(model, new)
        return changes

    def _connect(self, model: nn.Module, name: str) -> Change:
        linear: Any = model.get_submodule(name)
        replace_module(model, name, connect := PartitionedConnect(linear, self.parts))
        return Change.of(name, linear, connect)


_ELEMENTWISE = (
    nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Hardtanh,
    nn.Hardsigmoid, nn.Softplus, nn.Identity,
)  # fmt: skip


def _skip_dropped_rows(model: nn.Module, dropout: PartitionedDropout) -> list[Change]:
    """Let the layer before a dropout compute only what is kept, where a sequence says which layer that is."""
    changes = []
    for parent_name, parent in list(model.named_modules()):
        if type(parent) not in SEQUENCES or dropout not in parent._modules.values():
            continue
        keys = list(parent._modules)
        before = keys[: list(parent._modules.values()).index(dropout)]
        while before and isinstance(parent._modules[before[-1]], _ELEMENTWISE):
            before.pop()
        layer: Any = parent._modules[before[-1]] if before else None
        kind = {nn.Linear: PartitionedLinear, SparseLinear: PartitionedSparseLinear}.get(type(layer))
        if kind is None or layer._forward_hooks or layer._forward_pre_hooks:
            continue
        if sum(child is layer for module in model.modules() for child in module._modules.values()) > 1:
            continue  # elsewhere its outputs are all needed
        partitioned: Any = recast(kind, layer)
        partitioned.dropout, dropout.trailing_dims = [dropout], 0  # a linear layer's features are the last dimension
        name = f"{parent_name}.{before[-1]}".lstrip(".")
        replace_module(model, name, partitioned)
        changes.append(Change.of(name, layer, partitioned, "in training; dropped rows are not computed"))
    return changes
