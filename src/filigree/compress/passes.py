"""Passes over data, chunk by chunk, with a bar on a terminal."""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from torch import nn

from filigree.calibration import Calibration
from filigree.config import one_line
from filigree.convert import inference_context, run_on
from filigree.modes import DispatchMode
from filigree.outputs import tensors_in

CHUNK_BYTES = 1 << 25  # of the largest tensor that is computed of a chunk
WHOLE_BYTES = 1 << 28  # up to which all data are one chunk: a refit then takes one pass, else one to each layer
PATIENCE = 2.0  # seconds before a bar is shown


HELD = 1 / 8  # of the samples, the last ones: what is held out where few rows could be fitted too well


class Chunk(NamedTuple):
    """A part of the data that runs at once: its number, its share of the samples, the inputs, and the share before."""

    number: int
    share: float
    inputs: Any
    before: float = 0.0

    def held(self, rows: int) -> int:
        """How many of its rows, in the order of the samples, are of those that are held out: the last ones, of several
        rows at least one."""
        share = (self.before + self.share - (1 - HELD)) / self.share
        is_last = self.before + self.share > 1 - 1e-6
        return max(round(rows * min(1.0, max(0.0, share))), int(is_last and (rows > 1 or self.before > 0)))


Hook = Callable[[nn.Module, Any, Any, Chunk], Any]  # module, its first input, its output


def in_chunks(model: nn.Module, data: Calibration) -> Calibration:
    """The data in one chunk where no tensor that is computed of them, in a module or between modules, has more than
    `WHOLE_BYTES`, else in chunks of which none has more than `CHUNK_BYTES`, of at least one sample."""
    if data.tensor is None or len(data) < 2:
        return data
    largest = _largest(model, data)
    chunked = copy.copy(data)
    is_small = len(data) * largest <= WHOLE_BYTES
    chunked.chunk = max(1, len(data) if is_small else min(data.chunk, int(CHUNK_BYTES / largest)))
    return chunked


class _Sizes(DispatchMode):
    """The bytes of the tensors that operations allocate, and that modules return, in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: list[int] = []

    def note(self, output: Any) -> None:
        self.bytes += [tensor.numel() * tensor.element_size() for tensor in tensors_in(output)]

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = operation(*args, **(kwargs or {}))
        if not any(returned.alias_info for returned in operation._schema.returns):  # views and what works in place
            self.note(output)
        return output


def _largest(model: nn.Module, data: Calibration) -> float:
    """The bytes for each sample of the largest tensor that a forward pass computes.

    It is by how much tensors grow from one batch to another with one sample more: weights that are computed on the way,
    and masks, do not.
    """
    count = min(3, len(data))  # batches of one often take a path of their own
    few, more = _Sizes(), _Sizes()
    for samples, sizes in ((count - 1, few), (count, more)):
        handles = (module.register_forward_hook(_noting(sizes)) for module in model.modules())
        with inference_context(model, handles), sizes:
            run_on(model, data[:samples], "pruning")
    if len(few.bytes) == len(more.bytes):
        return max([1, *(b - a for a, b in zip(few.bytes, more.bytes, strict=True))])
    return max([1, *more.bytes]) / count


def _noting(sizes: _Sizes) -> Callable[..., None]:
    return lambda module, args, output: sizes.note(output)


def chunks_of(data: Calibration) -> list[Chunk]:
    shares = data.shares()
    before = [sum(shares[:number]) for number in range(len(shares))]
    return [Chunk(*numbers) for numbers in zip(range(len(shares)), shares, data.chunks(), before, strict=True)]


def run_hooked(
    model: nn.Module, data: Calibration, hooks: dict[str, Hook], what: str = "activations",
    returned: Callable[[Any], None] | None = None,
) -> None:  # fmt: skip
    """Run the model on all data in eval mode; at each call of a module hooks see it, its first input and its output.

    Args:
        returned: sees what the model returns for each chunk.

    Raises:
        ValueError: the model does not run on the data.
    """
    chunk = Chunk(0, 1.0, None)

    def seen(hook: Hook) -> Callable[..., None]:
        return lambda module, args, kwargs, y: hook(module, first_input(args, kwargs), y, chunk)

    handles = (
        model.get_submodule(name).register_forward_hook(seen(hook), with_kwargs=True) for name, hook in hooks.items()
    )
    with inference_context(model, handles):
        for chunk in shown(chunks_of(data), what, data.progress):
            try:
                output = data.call(model, chunk.inputs)
            except Exception as error:
                raise ValueError(f"pruning: the model does not run on the data: {one_line(error)}") from error
            if returned is not None:
                returned(output)


def first_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a module is called with, by position or by name."""
    return next(iter((*args, *kwargs.values())), None)


def shown(steps: Iterable[Any], what: str, progress: bool | None) -> Iterator[Any]:
    """The steps, with a bar on a terminal where they take long; `progress` False: without, True: everywhere."""
    steps = list(steps)
    bar, began = None, time.perf_counter()
    wanted = progress or (progress is None and sys.stderr.isatty())
    try:
        for number, step in enumerate(steps):
            yield step
            if wanted and bar is None and (progress or time.perf_counter() - began > PATIENCE):
                bar = _bar(what, len(steps))
            if bar is not None:
                bar.update(bar.task_ids[0], completed=number + 1)
    finally:
        if bar is not None:
            bar.stop()


def _bar(what: str, steps: int) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    bar = Progress(*columns, console=Console(file=sys.stderr), transient=True)
    bar.add_task(what, total=steps)
    bar.start()
    return bar
