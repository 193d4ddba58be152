"""What a network computes on data, kept in bounded memory: activations of units, and outputs of layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from filigree.compress.pruning.graph import trainable
from filigree.convert import inference_context, run_on
from filigree.modes import evaluating
from filigree.nn.resizing import has_units
from filigree.outputs import numbers_in

ROWS = 16_384  # samples (of convolutions and sequences: positions of samples) kept of a layer
FEATURES = 4_096  # numbers that describe a unit
BATCH = 256


def rows_of(layer: Any, x: Tensor, y: Tensor, per_sample: int, seed: int) -> tuple[Tensor, Tensor]:
    """Rows of a layer's input, as its weights read them, and of its output at the same positions.

    Of a convolution `per_sample` positions of each image are drawn by `seed`: `(groups, rows, in_features)` and
    `(rows, out)`.
    """
    if not isinstance(layer, nn.Conv2d):
        return x.reshape(1, -1, x.shape[-1]), y.reshape(-1, y.shape[-1])
    images, height, width = len(y), y.shape[2], y.shape[3]
    generator = torch.Generator().manual_seed(seed)
    positions = torch.randint(height * width, (images, min(per_sample, height * width)), generator=generator)
    outputs = y.flatten(2).gather(2, positions[:, None].expand(-1, y.shape[1], -1)).transpose(1, 2).flatten(0, 1)
    mode = {"zeros": "constant"}.get(layer.padding_mode, layer.padding_mode)
    padded = F.pad(x, tuple(layer._reversed_padding_repeated_twice), mode=mode)
    (kh, kw), (sh, sw), (dh, dw) = layer.kernel_size, layer.stride, layer.dilation
    top, left = positions // width * sh, positions % width * sw
    h = top[..., None] + torch.arange(kh) * dh  # (images, places, kh)
    w = left[..., None] + torch.arange(kw) * dw
    number = torch.arange(images)[:, None, None, None]
    patches = padded.permute(0, 2, 3, 1)[number, h[..., :, None], w[..., None, :]]  # (images, places, kh, kw, C)
    rows = patches.flatten(0, 1).permute(0, 3, 1, 2)  # (rows, C, kh, kw)
    rows = rows.reshape(len(rows), layer.groups, -1).transpose(0, 1)
    return rows, outputs


def per_sample(layer: nn.Module, samples: int) -> int:
    return max(1, ROWS // max(1, samples))


def run_hooked(
    model: nn.Module, x: Tensor, hooks: dict[str, Callable[[nn.Module, Tensor, Tensor], Any]], batch: int = BATCH
) -> None:
    """Run the model on all of x, batch by batch in eval mode; hooks see module, input and output, at each call."""

    def seen(hook: Callable[[nn.Module, Tensor, Tensor], Any]) -> Callable[..., None]:
        return lambda module, args, kwargs, y: hook(module, first_input(args, kwargs), y)

    handles = (
        model.get_submodule(name).register_forward_hook(seen(hook), with_kwargs=True) for name, hook in hooks.items()
    )
    with inference_context(model, handles):
        for first in range(0, len(x), batch):
            run_on(model, x[first : first + batch], "pruning")


def first_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a module is called with, by position or by name."""
    return next(iter((*args, *kwargs.values())), None)


def unit_activations(model: nn.Module, groups: Sequence[Any], x: Tensor, pooled: bool) -> dict[str, Tensor]:
    """What the first reader of each group reads of its units: `(units, numbers)`, by the group's name.

    A unit of a linear layer gives a number for each sample; a filter one for each position of each sample (at most
    `FEATURES`, spread over all), or if `pooled` its mean over them.

    Raises:
        ValueError: the data do not reach a layer, or activations are not finite.
    """
    parts_by_group: dict[str, list[Tensor]] = {group.name: [] for group in groups}
    hooks: dict[str, Any] = {}
    each = max(1, FEATURES // max(1, len(x)))
    readers: dict[str, list[Any]] = {}
    for group in groups:
        readers.setdefault(group.readers[0].name, []).append(group)

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, value: Tensor, _: Tensor) -> None:
            for group in readers[name]:
                reader = group.readers[0]
                order = reader.units.argsort(stable=True)
                columns = reader.columns[order]
                if isinstance(module, nn.Conv2d):
                    part = value[:, columns].flatten(2)  # (samples, units, positions)
                else:
                    flat = value.reshape(-1, value.shape[-1])[:, columns]
                    part = flat.view(len(flat), group.count, -1)
                if pooled:
                    part = part.mean(2, keepdim=True)
                elif part.shape[2] > each:
                    part = part[:, :, torch.linspace(0, part.shape[2] - 1, each).round().long()]
                parts_by_group[group.name].append(part.transpose(0, 1).flatten(1))

        return hook

    reached = set()

    def note(name: str) -> Callable[..., None]:
        return lambda *_: reached.add(name)

    for name, module in model.named_modules():
        if has_units(module):
            hooks[name] = keep(name) if name in readers else note(name)
    run_hooked(model, x, hooks)
    reached |= {name for name in readers if parts_by_group[readers[name][0].name]}
    _check_reached(model, [name for name in hooks if name not in reached], x[:BATCH])
    activations = {name: torch.cat(parts, 1) for name, parts in parts_by_group.items()}
    for name, features in activations.items():
        if not bool(features.isfinite().all()):
            raise ValueError(f"pruning: the activations of {name!r} are not finite on these data.")
    return activations


def _check_reached(model: nn.Module, names: list[str], x: Tensor) -> None:
    """Refuse a model of which the data reach only a part: whether the rest fits fewer units cannot be known.

    A layer that does not run may have weights that the model reads itself: then gradients reach them.
    """
    parameters = {name: list(model.get_submodule(name).parameters(recurse=False)) for name in names}
    with evaluating(model), trainable(model), torch.enable_grad():
        outputs = [y for y in numbers_in(run_on(model, x, "pruning"), "pruning") if y.requires_grad]
        output = torch.stack([y.abs().sum() for y in outputs]).sum()
        for name, own in parameters.items():
            if own and all(g is None for g in torch.autograd.grad(output, own, retain_graph=True, allow_unused=True)):
                raise ValueError(
                    f"pruning: the data do not reach {name!r}, so whether it fits fewer units is not known. Give data "
                    "that reach all layers, or take it out of the model."
                )
