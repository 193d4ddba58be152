"""Which matrices of weights a module has, and what each of them is multiplied with when the module runs."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from filigree.compress.one_shot.recurrence import CELLS, NETWORKS, Call, read

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
WIDEST = 4096  # columns whose moments are kept together; wider matrices are taken as several side by side

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class Product(ABC):
    """A matrix of weights of a module, `(groups, rows, columns)`: each group of rows reads columns of its own.

    Args:
        weight, bias: the names of the module's parameters. part: which of their rows, from the first on up to the one
            before the second; all by default.
        taps: how many columns an input channel has, next to each other.
    """

    weight: str = "weight"
    bias: str | None = "bias"
    part: tuple[int, int] | None = None
    taps: int = 1

    def matrix(self, module: nn.Module) -> Tensor:
        parameter: Tensor = getattr(module, self.weight)
        return self._folded(module, parameter.detach()[self._part])

    def write_(self, module: nn.Module, matrix: Tensor, shift: Tensor | None) -> None:
        """Give the module this matrix, and add the shift to its bias; both are new parameters.

        Args:
            matrix: as `matrix` gives it. shift: `(groups * rows,)`, or None.
        """
        old = getattr(module, self.weight)
        weight = old.detach().clone()
        weight[self._part] = self._unfolded(module, matrix.to(weight)).reshape(weight[self._part].shape)
        setattr(module, self.weight, nn.Parameter(weight, old.requires_grad))
        if shift is not None and self.has_bias(module):
            before = getattr(module, str(self.bias))
            bias = before.detach().clone()
            bias[self._part] += shift.to(bias)
            setattr(module, str(self.bias), nn.Parameter(bias, before.requires_grad))

    @property
    def _part(self) -> slice:
        return slice(None) if self.part is None else slice(*self.part)

    def has_bias(self, module: nn.Module) -> bool:
        return self.bias is not None and getattr(module, self.bias, None) is not None

    def mask(self, module: nn.Module, matrix: Tensor) -> Tensor:
        """A matrix of truth values in the shape of the parameter."""
        return self._unfolded(module, matrix).reshape(getattr(module, self.weight)[self._part].shape)

    def _folded(self, module: nn.Module, weight: Tensor) -> Tensor:
        return weight.flatten(1).unsqueeze(0)

    def _unfolded(self, module: nn.Module, matrix: Tensor) -> Tensor:
        return matrix.flatten(0, 1)

    @abstractmethod
    def rows(self, module: nn.Module, call: Call, most: int, generator: torch.Generator) -> Tensor:
        """What the columns read in a call, `(groups, n, columns)`: all of it, or `most` draws of positions."""


@dataclass(frozen=True)
class Linear(Product):
    """`x W^T`, x the argument with this number, or by keyword: of this name, without one the first."""

    argument: int = 0
    name: str | None = None

    def read(self, module: nn.Module, call: Call) -> Tensor:
        args, kwargs = call
        if len(args) > self.argument:
            return args[self.argument]
        return kwargs[self.name] if self.name else next(iter(kwargs.values()))

    def rows(self, module: nn.Module, call: Call, most: int, generator: torch.Generator) -> Tensor:
        x = self.read(module, call)
        return _drawn(x.reshape(-1, x.shape[-1]), most, generator).unsqueeze(0)


@dataclass(frozen=True)
class TransposedLinear(Linear):
    """`x W + b`: the linear layers of GPT-2 in transformers."""

    def _folded(self, module: nn.Module, weight: Tensor) -> Tensor:
        return weight.t().unsqueeze(0)

    def _unfolded(self, module: nn.Module, matrix: Tensor) -> Tensor:
        return matrix[0].t()


@dataclass(frozen=True)
class Convolution(Product):
    """A convolution in one, two or three dimensions; columns are `(in_channels / groups, *kernel)`."""

    def _folded(self, module: Any, weight: Tensor) -> Tensor:
        return weight.flatten(1).unflatten(0, (module.groups, -1))

    def rows(self, module: Any, call: Call, most: int, generator: torch.Generator) -> Tensor:
        x = Linear().read(module, call)
        x = x if x.dim() == len(module.kernel_size) + 2 else x.unsqueeze(0)
        mode = {"zeros": "constant"}.get(module.padding_mode, module.padding_mode)
        x = F.pad(x, tuple(module._reversed_padding_repeated_twice), mode=mode)
        return _patches(x, module.kernel_size, module.stride, module.dilation, module.groups, most, generator)


@dataclass(frozen=True)
class TransposedConvolution(Product):
    """A transposed convolution: one of stride 1 over the input with zeros in between, the kernel turned round."""

    def _folded(self, module: Any, weight: Tensor) -> Tensor:
        sides = tuple(range(2, weight.dim()))
        return weight.flip(sides).unflatten(0, (module.groups, -1)).transpose(1, 2).flatten(2)

    def _unfolded(self, module: Any, matrix: Tensor) -> Tensor:
        kernel = tuple(module.kernel_size)
        weight = matrix.unflatten(2, (-1, *kernel)).transpose(1, 2).flatten(0, 1)
        return weight.flip(tuple(range(2, weight.dim())))

    def rows(self, module: Any, call: Call, most: int, generator: torch.Generator) -> Tensor:
        x = Linear().read(module, call)
        x = x if x.dim() == len(module.kernel_size) + 2 else x.unsqueeze(0)
        sides = [(side - 1) * stride + 1 for side, stride in zip(x.shape[2:], module.stride, strict=True)]
        spread = x.new_zeros(*x.shape[:2], *sides)
        steps = tuple(slice(None, None, stride) for stride in module.stride)
        spread[:, :, *steps] = x
        around: list[int] = []
        sizes = (module.kernel_size, module.dilation, module.padding, module.output_padding)
        for kernel, dilation, padding, more in reversed(list(zip(*sizes, strict=True))):
            around += [dilation * (kernel - 1) - padding, dilation * (kernel - 1) - padding + more]
        ones = (1,) * len(sides)
        return _patches(
            F.pad(spread, around), module.kernel_size, ones, module.dilation, module.groups, most, generator
        )


@dataclass(frozen=True)
class AttentionOutput(Linear):
    """The last product of `nn.MultiheadAttention`, which its forward pass computes by itself."""

    def read(self, module: nn.Module, call: Call) -> Tensor:
        attention: Any = copy.copy(module)
        attention._modules = {"out_proj": copy.copy(attention.out_proj)}
        attention._forward_hooks, attention._forward_pre_hooks = {}, {}
        weight = attention.out_proj.weight
        identity = nn.Parameter(torch.eye(len(weight)).to(weight)), nn.Parameter(torch.zeros(len(weight)).to(weight))
        attention.out_proj._parameters = dict(zip(("weight", "bias"), identity, strict=True))
        args, kwargs = call
        y: Tensor = attention.eval().forward(*args, **kwargs)[0]
        return y

    def matrix(self, module: nn.Module) -> Tensor:
        return super().matrix(module.out_proj)  # type: ignore[arg-type]

    def write_(self, module: nn.Module, matrix: Tensor, shift: Tensor | None) -> None:
        super().write_(module.out_proj, matrix, shift)  # type: ignore[arg-type]

    def has_bias(self, module: nn.Module) -> bool:
        return super().has_bias(getattr(module, "out_proj", module))


@dataclass(frozen=True)
class Recurrent(Product):
    """What a layer of a recurrent network in one direction, or a cell, sums up of its input and its state.

    Args:
        suffix: of the parameters' names, such as "_l0_reverse". sides: which matrices, side by side: "ih" reads the
            input x_t, "hh" the state h_{t-1}, "hr" what a projection reads.
    """

    suffix: str = ""
    sides: tuple[str, ...] = ("ih", "hh")

    def parameters(self) -> list[Linear]:
        """The matrices one by one; the first has the bias."""
        bias = None if self.sides == ("hr",) else f"bias_{self.sides[0]}{self.suffix}"
        names = [f"weight_{side}{self.suffix}" for side in self.sides]
        return [Linear(name, None if number else bias, self.part) for number, name in enumerate(names)]

    def widths(self, module: nn.Module) -> list[int]:
        return [getattr(module, part.weight).shape[1] for part in self.parameters()]

    def matrix(self, module: nn.Module) -> Tensor:
        return torch.cat([part.matrix(module) for part in self.parameters()], 2)

    def write_(self, module: nn.Module, matrix: Tensor, shift: Tensor | None) -> None:
        for part, columns in zip(self.parameters(), matrix.split(self.widths(module), 2), strict=True):
            part.write_(module, columns, shift)

    def has_bias(self, module: nn.Module) -> bool:
        return self.parameters()[0].has_bias(module)

    def rows(self, module: nn.Module, call: Call, most: int, generator: torch.Generator) -> Tensor:
        both = read(module, self.suffix, call)
        rows = torch.cat([getattr(both, side) for side in self.sides], 1)
        return _drawn(rows, most, generator).unsqueeze(0)


def products_of(module: Any, multiple: int = 1) -> dict[str, Product]:
    """The matrices of weights of a module, by a name that is added to the module's; {}: it has none that is known.

    Args:
        multiple: the columns of a matrix are taken in so many; recurrent matrices are side by side where it divides.
    """
    kind = type(module)
    if kind is nn.Linear:
        return {"": Linear()}
    if kind.__name__ == "Conv1D" and kind.__module__.startswith("transformers."):
        return {"": TransposedLinear()}
    if kind in _CONVOLUTIONS:
        return {"": Convolution(taps=module.weight[0, 0].numel())}
    if kind in _TRANSPOSED:
        return {"": TransposedConvolution(taps=module.weight[0, 0].numel())}
    if kind in CELLS:
        return _gates(module, "", multiple)
    if kind in NETWORKS:
        sides = ("", "_reverse") if module.bidirectional else ("",)
        suffixes = [f"_l{layer}{side}" for layer in range(module.num_layers) for side in sides]
        return {key: product for suffix in suffixes for key, product in _gates(module, suffix, multiple).items()}
    if kind is nn.MultiheadAttention:
        return _attention(module)
    return {}


def _gates(module: Any, suffix: str, multiple: int) -> dict[str, Product]:
    """The products of a layer and direction: input and state side by side where gates read the sum of both.

    A GRU's new state does not: `n + r * of_n`, r the reset gate; nor are matrices that are very wide.
    """
    inputs, state = (getattr(module, f"weight_{side}{suffix}").shape[1] for side in ("ih", "hh"))
    hidden, together = module.hidden_size, not inputs % multiple and inputs + state <= WIDEST
    summed = 2 * hidden if isinstance(module, nn.GRU | nn.GRUCell) else len(getattr(module, f"weight_ih{suffix}"))
    products: dict[str, Product] = {}
    for sides in (("ih", "hh"),) if together else (("ih",), ("hh",)):
        products["+".join(sides) + suffix] = Recurrent(part=(0, summed), suffix=suffix, sides=sides)
    if isinstance(module, nn.GRU | nn.GRUCell):
        for side in ("ih", "hh"):
            products[f"new, {side}{suffix}"] = Recurrent(part=(summed, 3 * hidden), suffix=suffix, sides=(side,))
    if getattr(module, "proj_size", 0):
        products[f"hr{suffix}"] = Recurrent(suffix=suffix, sides=("hr",))
    return products


def _attention(module: Any) -> dict[str, Product]:
    width = module.embed_dim
    products: dict[str, Product] = {}
    for number, name in enumerate(("query", "key", "value")):
        part = number * width, (number + 1) * width
        if module.in_proj_weight is None:  # each has a parameter of its own, but one bias is there for all
            products[name] = Linear(f"{name[0]}_proj_weight", None, argument=number, name=name)
        else:
            products[name] = Linear("in_proj_weight", "in_proj_bias", part, argument=number, name=name)
    return products | {"out_proj": AttentionOutput()}


def _drawn(rows: Tensor, most: int, generator: torch.Generator) -> Tensor:
    if len(rows) <= most:
        return rows
    return rows[torch.randperm(len(rows), generator=generator)[:most].to(rows.device)]


def _patches(
    x: Tensor, kernel: Any, stride: Any, dilation: Any, groups: int, most: int, generator: torch.Generator
) -> Tensor:
    """What drawn positions of a convolution over a padded input read, `(groups, n, columns)`."""
    count, sides = len(x), x.shape[2:]
    steps = torch.tensor([sides[d + 1 :].numel() for d in range(len(sides))])  # of the flat index
    starts = _grid([range(0, side - d * (k - 1), s) for side, k, s, d in zip(sides, kernel, stride, dilation,
                                                                          strict=True)]) @ steps  # fmt: skip
    offsets = _grid([range(0, k * d, d) for k, d in zip(kernel, dilation, strict=True)]) @ steps  # (taps,)
    total = count * len(starts)
    drawn = torch.arange(total) if total <= most else torch.randperm(total, generator=generator)[:most]
    sample, position = (drawn // len(starts)).to(x.device), starts[drawn % len(starts)]
    flat = x.flatten(2).transpose(1, 2)  # (samples, numbers, channels)
    at = (position[:, None] + offsets).to(x.device)
    patches = flat[sample[:, None], at]  # (n, taps, channels)
    return patches.transpose(1, 2).reshape(len(drawn), groups, -1).transpose(0, 1)


def _grid(ranges: list[range]) -> Tensor:
    return torch.cartesian_prod(*(torch.tensor(list(r)) for r in ranges)).reshape(-1, len(ranges))
