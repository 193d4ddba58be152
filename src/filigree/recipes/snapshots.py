"""Hooks that record the inside of a run: topologies, gradient norms, ages of connections."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from filigree.dynamics import Evolution
from filigree.dynamics.evolution import Evolvable
from filigree.topology.shards import part_of
from filigree.train import FitState


class Snapshots:
    """Adds to the record, for each sparse layer, degree histograms, the input layer's connectivity and ages; not for
    layers that are divided over processes."""

    def __init__(self, evolution: Evolution | None = None) -> None:
        self.evolution = evolution

    def on_epoch_end(self, state: FitState) -> None:
        if state.record is None or state.epoch not in (0, (state.epochs - 1) // 2, state.epochs - 1):
            return
        layers = [
            (name, layer)
            for name, layer in state.model.named_modules()
            if isinstance(layer, Evolvable) and part_of(layer).processes == 1
        ]  # else no process has it
        for number, (name, layer) in enumerate(layers):
            flat_indices = layer.flat_indices()
            inputs = (flat_indices % layer.in_features).bincount(minlength=layer.in_features)
            outputs = (flat_indices // layer.in_features).bincount(minlength=layer.out_features)
            snapshot: dict[str, Any] = {
                "epoch": state.epoch, "layer": name, "in_features": layer.in_features,
                "out_features": layer.out_features, "nnz": flat_indices.numel(),
                "fan_in": _histogram(outputs), "fan_out": _histogram(inputs),
            }  # fmt: skip
            if number == 0:
                snapshot["input_connectivity"] = inputs.tolist()
            if self.evolution is not None and name in self.evolution.births:
                snapshot["age"] = _histogram(self.evolution.epoch - self.evolution.births[name])
            state.record.topology.append(snapshot)  # type: ignore[arg-type]


def _histogram(numbers: Tensor) -> list[list[int]]:
    """`[[number, how often], ...]`, sorted."""
    values, counts = numbers.unique(return_counts=True)
    return [list(pair) for pair in zip(values.tolist(), counts.tolist(), strict=True)]


class Watch:
    """Adds to each row the layers' gradient norms (of the last batch) and the mean age of their connections, in epochs.

    After the run, `escape_epoch` is the first epoch whose test accuracy passes three times chance, or the number of
    epochs if none did (Chouliaras 2021, 5.3.4); of a quantity (`classes=None`) there is none.
    """

    def __init__(self, classes: int | None, evolution: Evolution | None = None) -> None:
        self.chance, self.evolution = None if classes is None else 1 / classes, evolution

    def on_epoch_end(self, state: FitState) -> None:
        row = state.history.rows[-1]
        for name, parameter in state.model.named_parameters():
            if parameter.grad is not None and not name.endswith("bias"):
                row[f"gradient_norm.{name.rpartition('.')[0]}"] = float(parameter.grad.norm())
        for name, births in self.evolution.births.items() if self.evolution is not None else ():
            row[f"age.{name}"] = float((self.evolution.epoch - births).double().mean())  # type: ignore[union-attr]

    def on_fit_end(self, state: FitState) -> None:
        if self.chance is None:
            return
        accuracies = state.history["test_accuracy"]
        escaped = (i for i, accuracy in enumerate(accuracies) if accuracy is not None and accuracy > 3 * self.chance)
        state.history.metrics["escape_epoch"] = next(escaped, len(accuracies))
