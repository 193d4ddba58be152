"""Pruning proves itself: a network without units computes what the whole one does when nobody reads these units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from filigree.calibration import Calibration
from filigree.compress.pruning.graph import Units
from filigree.compress.pruning.removal import copy_of, gone_channels, pruned
from filigree.compress.pruning.tracing import Node, Trace
from filigree.config import listed, one_line
from filigree.convert import inference_context
from filigree.nn.resizing import cuts_itself, has_units
from filigree.outputs import numbers_in

DIFFERS = "what stands between them and their readers reorders or mixes them, or they are read elsewhere too"


def wrong_groups(
    model: nn.Module, groups: Sequence[Units], kept: Mapping[str, Tensor], data: Calibration
) -> dict[str, str]:
    """The groups from which these units cannot be taken, each with the reason; empty where the network is right.

    All outputs of the smaller network, on the data and on random ones like them, must be those of the whole network
    where all that is read of the units that went is zero, and where means and norms over units leave these out. No list
    of modules decides: whatever reorders, mixes, counts or reads units elsewhere changes an output
    (`with_random_weights` shows it even where the network's own are small).
    """
    some = [group for group in groups if len(kept[group.name]) < group.count]
    samples = _samples(data)
    if not some or not _why_not(model, some, kept, samples):
        return {}
    wrong = {group.name: why for group in some if (why := _why_not(model, [group], kept, samples))}
    return wrong or {group.name: "they are right alone, but not together with the others" for group in some}


def why_not(model: nn.Module, group: Units, kept: Mapping[str, Tensor], data: Calibration) -> str:
    """Why all but these units cannot be taken from the group; "" where they can."""
    return _why_not(model, [group], kept, _samples(data))


def _samples(data: Calibration) -> list[Calibration]:
    """The data, and random ones like them; what other batches than tensors hold may be indices and masks."""
    return [data] if data.tensor is None else [data, data.with_inputs(_random_like(data.tensor))]


def with_random_weights(model: nn.Module) -> nn.Module:
    """A copy whose linear layers and convolutions have weights and biases drawn at random, so that what they compute is
    of the size of what they read: nothing of how the network is made hides behind small or equal weights.
    """
    other = copy_of(model)
    generator = torch.Generator().manual_seed(1)
    for module in other.modules():
        if has_units(module) and not cuts_itself(module):
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
    if x.is_complex():
        return torch.view_as_complex(_random_like(torch.view_as_real(x)))
    if not x.is_floating_point():
        low, high = (int(x.min()), int(x.max())) if x.numel() else (0, 0)
        return torch.randint(low, high + 1, x.shape, generator=generator).to(x)
    spread, mean = (float(x.double().std(correction=0)), float(x.double().mean())) if x.numel() else (1.0, 0.0)
    return (torch.randn(x.shape, generator=generator, dtype=torch.float64) * (spread or 1.0) + mean).to(x)


def _why_not(model: nn.Module, groups: list[Units], kept: Mapping[str, Tensor], samples: list[Calibration]) -> str:
    """Why the network without these units would be another one; "" where it is the same."""
    why = _why_not_as_it_is(model, groups, kept, samples)
    if why == DIFFERS and (precise := _in_float64(model, samples)) is not None:
        return why if _why_not_as_it_is(precise[0], groups, kept, precise[1]) else ""
    return why


def _in_float64(model: nn.Module, samples: list[Calibration]) -> tuple[nn.Module, list[Calibration]] | None:
    """The network and the data in float64: rounding that grows from layer to layer is no difference there; None where
    it does not run so."""
    if any(data.forward is not None for data in samples):
        return None
    inputs = [data.with_inputs(_doubled(data.inputs)) for data in samples]
    try:
        precise = copy_of(model).double()
        for data in inputs:
            _outputs(precise, data)
    except Exception:  # whatever the model's own code says of another type
        return None
    return precise, inputs


def _doubled(inputs: Any) -> Any:
    if isinstance(inputs, Tensor):
        return inputs.double() if inputs.is_floating_point() else inputs
    if isinstance(inputs, list):
        return [_doubled(part) for part in inputs]
    return {key: _doubled(part) for key, part in inputs.items()} if isinstance(inputs, Mapping) else inputs


def _why_not_as_it_is(
    model: nn.Module, groups: list[Units], kept: Mapping[str, Tensor], samples: list[Calibration]
) -> str:
    """The same, in the types that the network has."""
    try:
        smaller = pruned(model, groups, kept)
        outputs = [_outputs(smaller, x) for x in samples]
    except Exception as error:  # whatever the model's own code says of fewer units
        return one_line(error, 160).removeprefix("pruning: ").removesuffix(".") or type(error).__name__
    gone = gone_channels(groups, kept)
    last: dict[Node, Any] = {}
    for group in groups:
        last |= {member.node: member.columns for member in group.members} if group.last else {}
    known = groups[0].labels if len({id(group.labels) for group in groups}) == 1 else None
    for x, output in zip(samples, outputs, strict=True):
        expected = _outputs(model, x, Trace(model, gone, last, known))
        if [tensor.shape for tensor in output] != [tensor.shape for tensor in expected]:
            return "the model's outputs would change their size"
        if not all(_close(*pair) for pair in zip(output, expected, strict=True)):
            return DIFFERS
    return ""


def _outputs(model: nn.Module, data: Calibration, trace: Trace | None = None) -> list[Tensor]:
    with inference_context(model), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # noise that does not stop in eval mode
        outputs = list(data.outputs(model)) if trace is None else trace.run(lambda: list(data.outputs(model)))
        return [tensor for output in outputs for tensor in numbers_in(output, "pruning")]


def _close(output: Tensor, expected: Tensor) -> bool:
    """Equal but for rounding, on the scale of the largest number: a thousandth of it."""
    if output.is_complex():
        output, expected = torch.view_as_real(output), torch.view_as_real(expected)
    tolerance = 3 * max(torch.finfo(expected.dtype).eps, torch.finfo(torch.float32).eps) ** 0.5
    finite = expected[expected.isfinite()]
    largest = float(finite.abs().max()) if finite.numel() else 0.0
    return torch.allclose(output, expected, rtol=tolerance, atol=tolerance * largest + 1e-30, equal_nan=True)
