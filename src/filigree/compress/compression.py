"""The verb `compress_`, which changes the layers of a trained model in place and reports what changed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from filigree.calibration import Calibration, Forward
from filigree.compress.layer_speed import Times, layer_times
from filigree.compress.resized import SizesBefore
from filigree.compress.speed import speed
from filigree.computed_weights import copied, copyable
from filigree.config import listed
from filigree.convert import Change, Conversion, Report, convert_, record, report_of, sums
from filigree.laid_out import restore_
from filigree.layer_selection import ChangesLayers, Where, select
from filigree.preserved import Preserved
from filigree.rollback import AllOrNothing
from filigree.wrappers import check_module


class Compression(ChangesLayers):
    """Base of the configs that `compress_` takes where a trained model and data are needed.

    Subclasses implement `accepts` and `compress`.

    `compress_` puts the model back as it was where a method fails. A method without data does not write into the
    tensors that the model holds, but gives it new ones: only where there are data are tensors copied before.

    What the new layers are to keep of the old ones is given to them, as of a `Conversion`.
    """

    def compress(
        self, model: nn.Module, names: list[str], data: Calibration | None
    ) -> tuple[list[Change], list[tuple[Conversion, list[str]]]]:
        """Change the modules; return the report's lines, and the conversions that replace the same ones on loading.

        Modules that stay, but of another size, are found by comparison (`filigree.compress.resized`).
        """
        raise NotImplementedError

    def gains(self, module: nn.Module) -> bool:
        """Whether a module gets cheaper; others are left as they are where `where` names none."""
        return True

    def most_samples(self) -> int | None:
        """How many samples are read of batches, at most; None: all."""
        return None

    def trial(self) -> Compression:
        """A config whose layers take as long as this one's: what `compress_(measure=)` tries on a copy."""
        return self

    def faster(self, model: nn.Module, names: list[str], times: Times, example: Calibration) -> list[str]:
        """Those of the layers that are worth it, of which it was measured how long they take before and after."""
        return [name for name in names if name in times and times[name][1] < times[name][0]]


def compress_(
    model: nn.Module, config: Compression | Conversion, data: Any = None, where: Where = None, *,
    forward: Forward | None = None, validation: Any = None, measure: bool | int | Tensor = False,
    progress: bool | None = None,
) -> Report:  # fmt: skip
    """Change the layers of a trained model in place, for instance `fg.compress_(model, fg.LowRank(0.5))`.

    Args:
        model: any torch module.
        config: what to do.
        data: for the configs that need some: inputs `(samples, ...)`, a pair of them and labels, an object with tensors
            `.x` and `.y`, a mapping of the model's arguments, a dataset, or batches of these (a list, a loader, any
            iterable), which are read as far as they are needed.
        where: which modules, as in `convert_`.
        forward: how the model runs on a batch, where that is not `model(batch)`: `forward(model, batch)`, for graphs,
            several inputs or recurrent calls; without data `forward(model)`, which brings its own. A layer that is
            called several times is calibrated on all its calls.
        validation: data like `data`, to which nothing is fitted: what errors are measured on, in a report and by
            searches (`fg.MaxError`, `fg.Budget`); beside a `forward` that brings its own data a function like it. None:
            an eighth of the samples (or batches) is split off, for searches a quarter.
        measure: a layer is compressed only where it is then faster on this machine, which is tried on a copy and timed
            in turns, layer by layer; the report names the others, and gives the time of the network before and after. A
            number of samples of the data (True: 128), or an example batch. Of a conversion as in `convert_`.
        progress: whether passes over the data show a bar; None: on a terminal, where they take long.

    Returns:
        A printable report: per layer, what changed, parameters and MACs before and after.

    Raises:
        ValueError: no module was selected, the model is on the meta device, or the config cannot do without data, or
            cannot use these.
        TypeError: the config is no compression, or the data hold no tensor.

    What the model keeps and what the report says of the rest is as in `convert_`.

    After any exception, and after Ctrl-C, the model is as it was before: modules, parameters, buffers, attributes and
    hooks, and the global random generators as well (`filigree.rollback`). With data that costs a copy of the model's
    tensors meanwhile, since the model is run on them.
    """
    check_module(model, "compress_")
    if isinstance(config, Conversion):
        return convert_(model, config, where, measure)
    if not isinstance(config, Compression):
        raise TypeError(f"compress_: config must be a compression such as fg.LowRank(0.5). Got {config!r}.")
    if empty := [name for name, parameter in model.named_parameters() if parameter.is_meta]:
        raise ValueError(f"compress_: the model must have weights. {empty[0]!r} is on the meta device.")
    samples = Calibration.of(data, forward, "compress_", config.most_samples(), progress)
    if samples is not None:
        samples.validation = _validation(validation, forward, config.most_samples(), progress)
    example = None if measure is False else _example(samples, measure)
    with AllOrNothing(model, values=samples is not None or example is not None):
        restore_(model)
        names, left = select(model, config, where, f"compress_({type(config).__name__})")
        if where is None:
            names = [name for name in names if config.gains(model.get_submodule(name))]
            if not names:
                raise ValueError(f"compress_: no layer would gain by {type(config).__name__}. Name them with where=.")
        before, sizes = Preserved(model), SizesBefore(model)
        with copyable(model):
            original = None
            if example is not None:
                names, slow = _faster(model, config, names, samples, example)
                left = [*left, *slow]
                if not names:
                    return report_of(config, names, [], left)
                original = copied(model)
            changes, steps = config.compress(model, names, samples)
            if original is not None and example is not None and all(change.name != "latency" for change in changes):
                changes = [*changes, Change.of("latency", None, None, speed(original, model, example))]
        for conversion, compressed_names in [*steps, *sizes.changes(model)]:
            record(model, conversion, compressed_names)
        return report_of(config, names, changes, [*left, *before.restore_(model, sums(changes))])


def _validation(data: Any, forward: Forward | None, most: int | None, progress: bool | None) -> Calibration | None:
    if callable(data):
        return Calibration(None, data, progress)
    return None if data is None else Calibration.of(data, forward, "compress_", most, progress)


def _example(samples: Calibration | None, measure: int | Tensor) -> Calibration:
    """What layers and networks are timed on."""
    if isinstance(measure, Tensor):
        return samples.with_inputs(measure) if samples is not None else Calibration(measure)
    if samples is None:
        raise ValueError("compress_: without data measure must be an example batch, as a tensor.")
    batch = 128 if measure is True else measure
    if batch < 1:
        raise ValueError(f"compress_: measure must be a batch size of at least 1, or an example. Got {batch}.")
    return samples[torch.arange(batch) % len(samples)] if samples.tensor is not None else samples[:1]


def _faster(
    model: nn.Module, config: Compression, names: list[str], samples: Calibration | None, example: Calibration
) -> tuple[list[str], list[str]]:
    """The layers that would be faster, and a line about the others."""
    who = type(config).__name__
    times = layer_times(model, lambda trial: config.trial().compress(trial, names, samples), names, example, who)
    faster = config.faster(model, names, times, example)
    slower = [
        f"{name} ({times[name][0]:.3g} -> {times[name][1]:.3g} ms)" if name in times else name
        for name in names
        if name not in faster
    ]
    note = f"left as they are, since they would not be faster: {listed(slower, len(slower))}"
    return faster, [note] if slower else []
