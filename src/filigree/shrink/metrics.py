"""What of a network is to be kept: a metric of it on data that nothing was fitted to, the higher the better."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from filigree.calibration import Calibration
from filigree.compress.pruning.errors import OutputError
from filigree.config import check_choice, one_line
from filigree.convert import inference_context
from filigree.outputs import by_class, tensors_in
from filigree.shrink.samples import Samples

NAMES = ("accuracy", "agreement", "r2")

Metric = Callable[[nn.Module], float]


class Judge:
    """A metric of networks: `judge(network)`.

    Args:
        metric: one of `NAMES`; a function `(model) -> float`, called with gradients disabled; a function
            `(outputs, targets) -> float`, with the original's outputs where there are no targets; None: "accuracy" for
            targets that are classes, "r2" for others, and without targets "agreement" where outputs are probabilities,
            else "r2".

    Attributes:
        name: of the metric, as reports say it.
    """

    def __init__(self, metric: Any, original: nn.Module, held: Samples) -> None:
        self._held = held
        if callable(metric):
            self.name, self._run = getattr(metric, "__name__", type(metric).__name__), self._of_caller(metric, original)
            return
        if metric is not None:
            check_choice("shrink", "metric", metric, NAMES)
        outputs = _outputs(original, held.inputs)
        first = tensors_in(outputs[0])
        if not first:
            raise ValueError(f"shrink: the model must return tensors. Got a {type(outputs[0]).__name__}.")
        self.name = metric or _default(first[0], held)
        self._run = getattr(self, f"_{self.name}")(original, outputs)

    def __call__(self, network: nn.Module) -> float:
        return float(self._run(network))

    def _of_caller(self, metric: Callable[..., Any], original: nn.Module) -> Metric:
        count = _arguments(metric)
        if count == 1:
            return lambda network: _number(_without_gradients(metric, network), self.name)
        targets = self._held.targets_of_chunks()
        if self._held.targets is None:
            targets = _outputs(original, self._held.inputs)
        expected = _together(targets)
        return lambda network: _number(metric(_together(_outputs(network, self._held.inputs)), expected), self.name)

    def _accuracy(self, original: nn.Module, outputs: list[Any]) -> Metric:
        targets = self._held.targets_of_chunks()
        if self._held.targets is None:
            raise ValueError('shrink: metric="accuracy" needs targets: data=(x, y).')

        least = _least_of_yes(outputs)

        def accuracy(network: nn.Module) -> float:
            hits = total = 0
            for output, y in zip(_outputs(network, self._held.inputs), targets, strict=True):
                logits, labels = by_class(tensors_in(output)[0], y)
                several = logits.dim() > labels.dim() and logits.shape[1] > 1
                chosen = (logits.argmax(1) if several else logits > least).flatten()
                if chosen.numel() != labels.numel():
                    raise ValueError(
                        "shrink: accuracy needs outputs (batch, classes), or one number a label. "
                        f"Got {tuple(logits.shape)}, and labels {tuple(labels.shape)}."
                    )
                hits, total = hits + int((chosen == labels.flatten()).sum()), total + labels.numel()
            return hits / max(1, total)

        return accuracy

    def _agreement(self, original: nn.Module, outputs: list[Any]) -> Metric:
        least = _least_of_yes(outputs)
        expected = [_decisions(tensors_in(output)[0], least) for output in outputs]

        def agreement(network: nn.Module) -> float:
            same = total = 0
            for output, decisions in zip(_outputs(network, self._held.inputs), expected, strict=True):
                same += int((_decisions(tensors_in(output)[0], least) == decisions).sum())
                total += decisions.numel()
            return same / max(1, total)

        return agreement

    def _r2(self, original: nn.Module, outputs: list[Any]) -> Metric:
        targets = self._held.targets_of_chunks()
        firsts = [tensors_in(output)[0] for output in outputs]
        pairs = list(zip(firsts, targets, strict=True))
        if all(y is not None and (y.is_floating_point() or y.shape == first.shape) for first, y in pairs):
            for first, y in pairs:
                if len(first) != len(y) or first.numel() != y.numel():
                    raise ValueError(
                        f"shrink: r2 needs as many outputs as targets. Got {tuple(first.shape)} and {tuple(y.shape)}."
                    )
            expected = torch.cat([y.double().flatten(1) if y.dim() > 1 else y.double()[:, None] for y in targets])
            spread = float((expected - expected.mean(0)).square().sum()) or 1.0

            def r2(network: nn.Module) -> float:
                parts = [tensors_in(output)[0].double() for output in _outputs(network, self._held.inputs)]
                y = torch.cat([part.flatten(1) if part.dim() > 1 else part[:, None] for part in parts])
                return 1 - float((y - expected).square().sum()) / spread

            return r2
        error = OutputError(self._held.inputs)
        for output in outputs:
            error.add(output)
        return lambda network: 1 - error(network) ** 2


def least_of(original: float, keep: float) -> float:
    """What a network must reach: `keep` of the original's metric; of a negative one, as much below it."""
    return original - (1 - keep) * abs(original)


def _default(output: Tensor, held: Samples) -> str:
    target = next((y for y in held.targets_of_chunks() if y is not None), None)
    if target is not None:
        return "r2" if target.is_floating_point() else "accuracy"
    if not output.is_floating_point() or output.dim() < 2:
        return "r2"
    sums = [output.sum(dim) for dim in (1, -1)]
    probable = bool((output >= 0).all()) and any(bool((s - 1).abs().max() < 1e-3) for s in sums)
    return "agreement" if probable else "r2"


def _least_of_yes(outputs: list[Any]) -> float:
    """Above which number one output a sample says yes: 0 of a logit, a half where the network makes probabilities."""
    firsts = [tensors_in(output)[0] for output in outputs]
    return 0.5 if all(bool(((first >= 0) & (first <= 1)).all()) for first in firsts) else 0.0


def _decisions(output: Tensor, least: float) -> Tensor:
    """The largest of the classes, which lie second, in sequences `(batch, length, classes)` last; of one number a
    sample whether it says yes."""
    if output.dim() < 2 or output.shape[1] == 1:
        return output > least
    return output.argmax(-1 if output.dim() == 3 else 1)


def _outputs(network: nn.Module, data: Calibration) -> list[Any]:
    with inference_context(network):
        try:
            return list(data.outputs(network))
        except Exception as error:
            raise ValueError(f"shrink: the model does not run on the data: {one_line(error)}") from error


def _together(parts: list[Any]) -> Any:
    """The outputs of chunks as those of one."""
    first = parts[0]
    if len(parts) == 1:
        return first
    if isinstance(first, Tensor):
        return torch.cat(parts)
    if isinstance(first, dict):
        return {key: _together([part[key] for part in parts]) for key in first}
    if isinstance(first, tuple | list):
        return type(first)(_together(list(column)) for column in zip(*parts, strict=True))
    return parts


def _arguments(metric: Callable[..., Any]) -> int:
    """How many arguments a caller's function needs: 1 or 2."""
    try:
        parameters = inspect.signature(metric).parameters.values()
    except (TypeError, ValueError):  # of a builtin
        return 2
    by_position = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    needed = [p for p in by_position if p.default is p.empty]
    count = len(needed) if needed else min(2, len(by_position))
    if count not in (1, 2):
        raise TypeError(f"shrink: metric must take (model) or (outputs, targets). Got {metric!r} of {count} arguments.")
    return count


def _without_gradients(metric: Callable[..., Any], network: nn.Module) -> Any:
    """What is laid out runs where gradients are disabled."""
    with torch.no_grad():
        return metric(network)


def _number(value: Any, name: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"shrink: metric {name} must return a number. Got a {type(value).__name__}.") from error
