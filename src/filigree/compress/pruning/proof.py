"""Pruning proves itself: a network without units computes what the whole one does when nobody reads these units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from filigree.calibration import Calibration
from filigree.compress.pruning.graph import Reader, Units
from filigree.compress.pruning.removal import copy_of, gone_channels, pruned
from filigree.config import listed, one_line
from filigree.convert import inference_context
from filigree.outputs import numbers_in


def wrong_groups(
    model: nn.Module, groups: Sequence[Units], kept: Mapping[str, Tensor], data: Calibration
) -> dict[str, str]:
    """The groups from which these units cannot be taken, each with the reason; empty where the network is right.

    All outputs of the smaller network, on the data and on random ones like them, must be those of the whole network
    whose readers have weights of zero for the units that went, and whose norms over units leave these out. No list of
    modules decides: whatever reorders, mixes, counts or reads units elsewhere changes an output (`with_random_weights`
    shows it even where the network's own are small).
    """
    some = [group for group in groups if group.problem or len(kept[group.name]) < group.count]
    samples = [data]
    if data.tensor is not None:  # what other batches hold may be indices and masks
        samples.append(data.with_inputs(_random_like(data.tensor)))
    if not some or not _why_not(model, some, kept, samples):
        return {}
    wrong = {group.name: why for group in some if (why := _why_not(model, [group], kept, samples))}
    return wrong or {group.name: "they are right alone, but not together with the others" for group in some}


def with_random_weights(model: nn.Module) -> nn.Module:
    """A copy whose linear layers and convolutions have weights and biases drawn at random, so that what they compute is
    of the size of what they read: nothing of how the network is made hides behind small or equal weights.
    """
    other = copy_of(model)
    generator = torch.Generator().manual_seed(1)
    for module in other.modules():
        if type(module) in (nn.Linear, nn.Conv2d):
            for parameter in module.parameters(recurse=False):
                scale = max(1, parameter[0].numel()) ** -0.5
                numbers = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * scale
                parameter.data = numbers.to(parameter)
    return other


def refuse(wrong: Mapping[str, str], who: str) -> None:
    """Raise one line that names the groups, and the reason of the first."""
    name, why = next(iter(wrong.items()))
    others = [repr(other) for other in list(wrong)[1:]]
    also = f" (nor those of {listed(others, 4)})" if others else ""
    raise ValueError(f"{who}: the units of {name!r} cannot be taken out{also}: {why}. Name other layers with where=.")


def _random_like(x: Tensor) -> Tensor:
    """Random inputs of the same type, size and range."""
    generator = torch.Generator().manual_seed(0)
    if not x.is_floating_point():
        low, high = (int(x.min()), int(x.max())) if x.numel() else (0, 0)
        return torch.randint(low, high + 1, x.shape, generator=generator).to(x)
    spread, mean = (float(x.double().std(correction=0)), float(x.double().mean())) if x.numel() else (1.0, 0.0)
    return (torch.randn(x.shape, generator=generator, dtype=torch.float64) * (spread or 1.0) + mean).to(x)


def _why_not(model: nn.Module, groups: list[Units], kept: Mapping[str, Tensor], samples: list[Calibration]) -> str:
    """Why the network without these units would be another one; "" where it is the same."""
    if problem := next((group.problem for group in groups if group.problem), ""):
        return f"they {problem}"
    try:
        smaller = pruned(model, groups, kept)
        outputs = [_outputs(smaller, x) for x in samples]
    except Exception as error:  # whatever the model's own code says of fewer units
        return one_line(error, 160).removeprefix("pruning: ").removesuffix(".") or type(error).__name__
    masked = _masked(model, smaller, groups, kept)
    if isinstance(masked, str):
        return masked
    for x, output in zip(samples, outputs, strict=True):
        expected = _outputs(masked, x)
        if [tensor.shape for tensor in output] != [tensor.shape for tensor in expected]:
            return "the model's outputs would change their size"
        if not all(_close(*pair) for pair in zip(output, expected, strict=True)):
            return "what stands between them and their readers reorders or mixes them, or they are read elsewhere too"
    return ""


def _outputs(model: nn.Module, data: Calibration) -> list[Tensor]:
    with inference_context(model), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # noise that does not stop in eval mode
        return [tensor for output in data.outputs(model) for tensor in numbers_in(output, "pruning")]


def _close(output: Tensor, expected: Tensor) -> bool:
    """Equal but for rounding, on the scale of the largest number: a thousandth of it in float32."""
    if output.is_complex():
        output, expected = torch.view_as_real(output), torch.view_as_real(expected)
    tolerance = 3 * torch.finfo(expected.dtype).eps ** 0.5
    finite = expected[expected.isfinite()]
    largest = float(finite.abs().max()) if finite.numel() else 0.0
    return torch.allclose(output, expected, rtol=tolerance, atol=tolerance * largest + 1e-30, equal_nan=True)


def _masked(model: nn.Module, smaller: nn.Module, groups: list[Units], kept: Mapping[str, Tensor]) -> nn.Module | str:
    """The whole network in which nobody reads the units that went; or why there is none."""
    masked = copy_of(model)
    for group in groups:
        gone = torch.ones(group.count, dtype=torch.bool)
        gone[kept[group.name]] = False
        for reader in group.readers:
            _ignore(masked.get_submodule(reader.name), reader, gone)
    for (name, side, dim), columns in gone_channels(groups, kept).items():
        module: Any = masked.get_submodule(name) if dim is None else None
        if side == "out" and isinstance(module, nn.LayerNorm | nn.GroupNorm):
            width = module.num_channels if isinstance(module, nn.GroupNorm) else module.normalized_shape[-1]
            stay = torch.ones(width, dtype=torch.bool)
            stay[columns] = False
            blocks = getattr(module, "num_groups", 1)
            if blocks < width and stay.view(blocks, -1).sum(1).unique().numel() > 1:
                return f"the groups of {name!r} would be mixed"
            _normalise_only(module, smaller.get_submodule(name), stay.nonzero().squeeze(1))
    return masked


def _normalise_only(norm: nn.Module, smaller: nn.Module, stay: Tensor) -> None:
    """Let a norm over units compute on some of them alone, as the smaller network's does; the others become zero."""
    dim = -1 if isinstance(norm, nn.LayerNorm) else 1

    def forward(x: Tensor) -> Tensor:
        return torch.zeros_like(x).index_copy(dim, stay, smaller(x.index_select(dim, stay)))

    norm.forward = forward


def _ignore(layer: Any, reader: Reader, gone: Tensor) -> None:
    """Weights of 0 for what the layer reads of these units."""
    columns = reader.columns[gone[reader.units]]
    if hasattr(layer, "ignore_inputs_"):
        layer.ignore_inputs_(columns)
        return
    weight = layer.weight.detach().clone()  # what shares it keeps it
    outputs, each = len(weight) // getattr(layer, "groups", 1), weight.shape[1]
    for column in columns.tolist():
        first = column // each * outputs
        weight[first : first + outputs, column % each] = 0
    layer.weight = nn.Parameter(weight)
