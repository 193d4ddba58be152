"""Frobenius norms of the Jacobians of a chain of layers, sample by sample."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from filigree.convert import inference_context


@dataclass(frozen=True)
class JacobianNorms:
    """Of each layer l, in the order in which they run, with Y_l what layer l + 1 reads, z_l the layer's own output.

    Attributes:
        step: `|dY_l / dY_{l-1}|`, weight: `|dY_l / dW_l|`, outer: `|dY_l / dz_l|`, each `(samples,)`. y: the network's
            output. positions: how many outputs of layer l each of its units has.
    """

    step: dict[str, Tensor]
    weight: dict[str, Tensor]
    outer: dict[str, Tensor]
    y: Tensor
    positions: dict[str, int]


@torch.enable_grad()
def jacobian_norms(model: nn.Module, x: Tensor, probes: int | None = 16, seed: int = 0) -> JacobianNorms:
    """The norms for each sample: by random probes, `|J|^2 = E |J^T v|^2` with v normal, or exact.

    Args:
        probes: how many; None: exact, every row of every Jacobian (feasible for LeNet-5, not for VGG).

    Raises:
        ValueError: the linear layers and convolutions are no chain: one is passed by, or runs twice.
    """
    layers: dict[str, Any] = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    inputs: dict[str, Tensor] = {}  # cut off from what comes before
    outputs: dict[str, Tensor] = {}
    ends: list[Tensor] = []  # what each layer but the first reads, not cut off

    def before(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
            if not args:
                raise ValueError(f"Jacobian norms: {name!r} must be called with its input by position.")
            if name in inputs:
                raise ValueError(f"Jacobian norms: no chain of layers: {name!r} runs twice.")
            if inputs:
                ends.append(args[0])
            inputs[name] = args[0].detach().requires_grad_()
            return (inputs[name],)

        return hook

    def after(name: str) -> Any:
        def hook(_m: nn.Module, _a: Any, y: Tensor) -> Tensor:
            outputs[name] = y
            return y.view_as(y)  # an activation that works in place leaves z itself whole

        return hook

    hooks = [layer.register_forward_pre_hook(before(name)) for name, layer in layers.items()]
    hooks += [layer.register_forward_hook(after(name)) for name, layer in layers.items()]
    with inference_context(model, hooks), torch.enable_grad():
        y = model(x)
        if not isinstance(y, Tensor):
            raise ValueError(f"Jacobian norms: the model must return one tensor. Got a {type(y).__name__}.")
    step, own, outer = {}, {}, {}
    order = list(inputs)
    for number, (name, end) in enumerate(zip(order, [*ends, y], strict=True)):
        _check_chain(end, inputs, order[: number + 1])
        sums = [x.new_zeros(len(x)) for _ in range(3)]
        for v in _probes(end, probes, seed):
            dx, dz = torch.autograd.grad(end, [inputs[name], outputs[name]], v, retain_graph=True)
            parts = _squares(dx), _weight_gradient(layers[name], inputs[name].detach(), dz), _squares(dz)
            for total, part in zip(sums, parts, strict=True):
                total += part / (probes or 1)
        step[name], own[name], outer[name] = (total.sqrt() for total in sums)
    positions = {name: outputs[name][0].numel() // len(layers[name].weight) for name in order}
    return JacobianNorms(step, own, outer, y.detach(), positions)


def _check_chain(end: Tensor, inputs: dict[str, Tensor], order: list[str]) -> None:
    """What follows a layer reads that layer and, of all before it, nothing else."""
    leaves = [inputs[name] for name in order]
    gradients = (
        torch.autograd.grad(end.sum(), leaves, retain_graph=True, allow_unused=True)
        if end.requires_grad
        else [None] * len(leaves)
    )
    reads = [name for name, gradient in zip(order, gradients, strict=True) if gradient is not None]
    if reads != order[-1:]:
        raise ValueError(
            f"Jacobian norms: no chain of layers: what follows {order[-1]!r} reads {', '.join(reads) or 'no layer'}."
        )


def _probes(end: Tensor, probes: int | None, seed: int) -> Iterator[Tensor]:
    """Vectors to pull back."""
    generator = torch.Generator().manual_seed(seed)
    for number in range(end[0].numel() if probes is None else probes):
        if probes is None:
            row = torch.zeros(end[0].numel(), dtype=end.dtype, device=end.device)
            row[number] = 1
            yield row.view(1, *end.shape[1:]).expand_as(end)
        else:
            yield torch.randn(end.shape, generator=generator).to(end)


def _squares(each: Tensor) -> Tensor:
    return each.flatten(1).square().sum(1)


def _weight_gradient(layer: Any, x: Tensor, dz: Tensor) -> Tensor:
    """|d(v . y) / dW|^2 for each sample."""
    if isinstance(layer, nn.Linear):
        if x.dim() == 2:
            return x.square().sum(1) * dz.square().sum(1)
        return _squares(torch.einsum("nti,nto->noi", x, dz))
    mode = {"zeros": "constant"}.get(layer.padding_mode, layer.padding_mode)
    x = F.pad(x, tuple(layer._reversed_padding_repeated_twice), mode=mode)
    patches = F.unfold(x, layer.kernel_size, layer.dilation, 0, layer.stride)
    groups = layer.groups
    patches = patches.view(len(x), groups, -1, patches.shape[-1])
    dz = dz.reshape(len(x), groups, -1, patches.shape[-1])
    return _squares(torch.einsum("ngip,ngop->ngoi", patches, dz))
