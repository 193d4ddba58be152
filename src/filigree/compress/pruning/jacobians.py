"""Frobenius norms of the Jacobians of a chain of layers, sample by sample."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from filigree.convert import looking_on

CHUNK = 64  # rows of an exact Jacobian at a time


@dataclass(frozen=True)
class JacobianNorms:
    """Of each layer l, in the order in which they run, with Y_l what layer l + 1 reads, z_l the layer's own output.

    Attributes:
        step: `|dY_l / dY_{l-1}|`, weight: `|dY_l / dW_l|`, outer: `|dY_l / dz_l|`, each `(samples,)`. y: the network's
            output. places: how many outputs of layer l each of its units has.
    """

    step: dict[str, Tensor]
    weight: dict[str, Tensor]
    outer: dict[str, Tensor]
    y: Tensor
    places: dict[str, int]


def jacobian_norms(model: nn.Module, x: Tensor, probes: int | None = 16, seed: int = 0) -> JacobianNorms:
    """The norms for each sample: by random probes, `|J|^2 = E |J^T v|^2` with v normal, or exact.

    Args:
        probes: how many; None: exact, every row of every Jacobian (feasible for LeNet-5, not for VGG).

    Raises:
        ValueError: the linear layers and convolutions are no chain.
    """
    names = [name for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}

    def before(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
            inputs[name] = args[0] if args[0].requires_grad else args[0].detach().requires_grad_()
            return (inputs[name],)

        return hook

    def after(name: str) -> Any:
        def hook(_m: nn.Module, _a: Any, y: Tensor) -> Tensor:
            outputs[name] = y
            return y.view_as(y)  # an activation that works in place leaves z itself whole

        return hook

    hooks = [model.get_submodule(name).register_forward_pre_hook(before(name)) for name in names]
    hooks += [model.get_submodule(name).register_forward_hook(after(name)) for name in names]
    with looking_on(model, hooks), torch.enable_grad():
        y = model(x)
    step, own, outer = {}, {}, {}
    order = list(inputs)
    for name, end in zip(order, [*(inputs[name] for name in order[1:]), y], strict=True):
        layer = model.get_submodule(name)
        found = [x.new_zeros(len(x)) for _ in range(3)]
        for v in _probes(end, probes, seed):
            try:
                dx, dz = torch.autograd.grad(
                    end, [inputs[name], outputs[name]], v, retain_graph=True, is_grads_batched=True
                )
            except RuntimeError as error:
                if "not have been used" not in str(error):
                    raise
                raise ValueError(
                    f"Jacobian norms: no chain of layers: what follows {name!r} does not read it."
                ) from None
            for one, its in zip(dx, dz, strict=True):
                parts = (_squares(one), _weight_gradient(layer, inputs[name].detach(), its), _squares(its))
                for total, part in zip(found, parts, strict=True):
                    total += part / (probes or 1)
        step[name], own[name], outer[name] = (total.sqrt() for total in found)
    layers: dict[str, Any] = {name: model.get_submodule(name) for name in order}
    places = {name: outputs[name][0].numel() // len(layer.weight) for name, layer in layers.items()}
    return JacobianNorms(step, own, outer, y.detach(), places)


def _probes(end: Tensor, probes: int | None, seed: int) -> Iterator[Tensor]:
    """Vectors to pull back, some at a time: `(some, *end.shape)`."""
    if probes is None:
        each = end[0].numel()
        for first in range(0, each, CHUNK):
            rows = torch.eye(each, dtype=end.dtype, device=end.device)[first : first + CHUNK]
            yield rows.view(-1, 1, *end.shape[1:]).expand(-1, *end.shape)
        return
    generator = torch.Generator().manual_seed(seed)
    for _ in range(probes):
        yield torch.randn((1, *end.shape), generator=generator).to(end)


def _squares(each: Tensor) -> Tensor:
    return each.flatten(1).square().sum(1)


def _weight_gradient(layer: Any, x: Tensor, dz: Tensor) -> Tensor:
    """|d(v . y) / dW|^2 for each sample."""
    if isinstance(layer, nn.Linear):
        if x.dim() == 2:
            return x.square().sum(1) * dz.square().sum(1)
        return _squares(torch.einsum("nti,nto->noi", x, dz))
    x = F.pad(x, tuple(layer._reversed_padding_repeated_twice))
    patches = F.unfold(x, layer.kernel_size, layer.dilation, 0, layer.stride)
    groups = layer.groups
    patches = patches.view(len(x), groups, -1, patches.shape[-1])
    dz = dz.reshape(len(x), groups, -1, patches.shape[-1])
    return _squares(torch.einsum("ngip,ngop->ngoi", patches, dz))
