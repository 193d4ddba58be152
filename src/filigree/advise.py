"""The verb `advise`: which methods would pay on a network and on this machine, measured in a minute."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from filigree.calibration import Calibration
from filigree.compress import FitStructured, OneShot, RoundToNearest, SubsetPruning, compress_
from filigree.compress.passes import shown
from filigree.compress.pruning.errors import OutputError
from filigree.computed_weights import copied
from filigree.config import clipped, listed, one_line
from filigree.convert import convert_, inference_context
from filigree.laid_out import restore_, runtimes_of
from filigree.measure.cost import stored, training_step
from filigree.measure.timing import Timing, time_interleaved
from filigree.nn.asymmetric.asymmetric import Asymmetric
from filigree.nn.sparse.sparse import Sparse
from filigree.nn.structured.low_rank import LowRank
from filigree.nn.structured.structured import ACDC
from filigree.ops import kernels
from filigree.shrink.metrics import Judge, least_of
from filigree.shrink.samples import Samples
from filigree.shrink.speed import LayoutOptions, laid_out_, timings
from filigree.text_table import Tabular
from filigree.topology import ErdosRenyi
from filigree.wrappers import check_on_cpu

KEEP = 0.99  # of the metric: what a method must keep to be recommended
CLOSE = 0.1  # the error of the outputs up to which it is, where there are no targets
FASTER = 1.02  # times faster: less is no difference
TOLERANCE = 0.05  # of layers in int8
SAMPLES = 1024  # of the data, at most
STEP = 128  # samples of a training step
EACH = 0.2  # seconds of a measurement, at most


class Trial(NamedTuple):
    """A config that is tried, and how it is written in Python."""

    what: str
    text: str
    config: Any


SMALLER = (  # after training, what takes long last; connections by a rule that is not the best, but quick
    Trial("integers of 8 bits", "fg.RoundToNearest(bits=8)", RoundToNearest(bits=8)),
    Trial("a quarter of the rank", "fg.FitStructured(fg.LowRank(0.25))", FitStructured(LowRank(0.25))),
    Trial("half of the units", "fg.SubsetPruning(keep=0.5)", SubsetPruning(keep=0.5)),
    Trial("50% of the connections gone", 'fg.OneShot(0.5, method="wanda")', OneShot(0.5, method="wanda")),
    Trial("80% of the connections gone", 'fg.OneShot(0.8, method="wanda")', OneShot(0.8, method="wanda")),
    Trial("90% of the connections gone", 'fg.OneShot(0.9, method="wanda")', OneShot(0.9, method="wanda")),
    Trial(
        "structured layers", "fg.FitStructured(fg.ACDC(order=2), steps=300)", FitStructured(ACDC(order=2), steps=300)
    ),
)
TRAINED = (  # before training
    Trial(
        "sparse from scratch, 10%", "fg.Sparse(fg.ErdosRenyi(density=0.1))", Sparse(ErdosRenyi(density=0.1))
    ),
    Trial(
        "sparse from scratch, 2%", "fg.Sparse(fg.ErdosRenyi(density=0.02))", Sparse(ErdosRenyi(density=0.02))
    ),
    Trial("top-k gradients, 5%", "fg.Asymmetric.topk(0.05)", Asymmetric.topk(0.05)),
)  # fmt: skip


@dataclass(frozen=True)
class Advised:
    """A method that was measured.

    Attributes:
        what: in words. call: in Python, with the names of the arguments of `fg.advise`; "" for the network as it is.
        speed: the time of the network as it is over this one's, in turns. ms: of the batch (or training step).
        bytes: of its file. error: of the outputs, `|y' - y| / |y - mean y|`; None for what is yet to be trained.
        metric: on data that nothing was fitted to; None without targets.
    """

    what: str
    call: str
    speed: float
    ms: float
    bytes: int
    error: float | None = None
    metric: float | None = None


@dataclass(frozen=True)
class Advice(Tabular):
    """What `advise` measured. It prints as a table, with the calls that are recommended below it.

    Attributes:
        inference, training: the methods, the network as it is first. batch: samples of the example. metric: its name,
            "" without targets. seconds: how long it took. notes: what was left out, and why.
    """

    inference: list[Advised]
    training: list[Advised]
    batch: int
    metric: str
    seconds: float
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def heading(self) -> str:  # type: ignore[override]
        return (
            f"advise: batch {self.batch}, {torch.get_num_threads()} threads, {kernels.isa()}; times in turns with the "
            "network as it is"
        )

    def holds(self, row: Advised) -> bool:
        """Whether a method keeps 99% of the metric or, without targets, changes the outputs by a tenth at most."""
        first = self.inference[0]
        if row.metric is not None and first.metric is not None:
            return row.metric >= least_of(first.metric, KEEP)
        return row.error is not None and row.error <= CLOSE

    def fastest(self) -> Advised | None:
        """The fastest method that keeps the outputs; None where none is faster than the network as it is."""
        rows = [row for row in self.inference[1:] if self.holds(row) and row.speed > FASTER]
        return max(rows, key=lambda row: row.speed, default=None)

    def smallest(self) -> Advised | None:
        """The smallest file that keeps the outputs; None where none is smaller than the network as it is."""
        rows = [row for row in self.inference[1:] if self.holds(row) and row.bytes < self.inference[0].bytes]
        return min(rows, key=lambda row: (row.bytes, -row.speed), default=None)

    def table_rows(self) -> list[Sequence[str]]:
        rows: list[Sequence[str]] = [
            ("", "faster", "ms", "bytes", "error", *([self.metric] if self.metric else []), "")
        ]
        for row in (*self.inference, *self.training):
            numbers = f"x {row.speed:.2f}", f"{row.ms:.3g}", f"{row.bytes:,}"
            error = "" if row.error is None else f"{row.error:.2g}"
            metric = [] if not self.metric else ["" if row.metric is None else f"{row.metric:.4g}"]
            rows.append((row.what, *numbers, error, *metric, row.call))
        return rows

    def table_notes(self) -> list[str]:
        return [*self.notes, *self.recommended()]

    def recommended(self) -> list[str]:
        """Lines that say what to call."""
        kept = f"at least {KEEP:.0%} of the {self.metric}" if self.metric else f"outputs within {CLOSE:.0%}"
        fastest, smallest = self.fastest(), self.smallest()
        lines = [f"recommended: leave it as it is; nothing that keeps {kept} is faster here"]
        if fastest is not None:
            lines = [f"recommended: {fastest.call}  (x {fastest.speed:.2f}, {self._lost(fastest)})"]
        if smallest is not None and smallest is not fastest:
            share = smallest.bytes / self.inference[0].bytes
            lines.append(f"smallest: {smallest.call}  ({share:.0%} of the bytes, {self._lost(smallest)})")
        step = max(self.training[1:], key=lambda row: row.speed, default=None)
        if step is not None and step.speed > FASTER:
            lines.append(f"to train anew: {step.call}  (a step x {step.speed:.2f}; what it learns is seen by training)")
        return [*lines, "fg.shrink(model, data) combines methods layer by layer, to a target"]

    def _lost(self, row: Advised) -> str:
        if row.metric is not None:
            return f"{self.metric} {self.inference[0].metric:.4g} -> {row.metric:.4g}"
        return f"outputs differ by {row.error:.2g}"


def advise(
    model: nn.Module, example: Tensor | Mapping[str, Any], data: Any = None, seconds: float = 60, *, metric: Any = None,
    progress: bool | None = None,
) -> Advice:  # fmt: skip
    """Measure which methods would pay on a network and on this machine. The model is left as it was.

        print(fg.advise(model, x[:64], (x, y)))  # a table, and the calls to make

    Each method is applied to a copy, laid out by `fg.optimize_` where that is faster, and timed in turns with the
    network as it is: layouts, int8, integers, low rank, fewer units, fewer connections, structured layers. A training
    step is timed too, as it is and with layers that are sparse from scratch or with sparsified gradients. All layers
    are treated alike: `fg.shrink` combines methods layer by layer.

    Args:
        model: any torch module on the CPU; copies of it are tried, in evaluation mode.
        example: an input batch, or a mapping of the model's arguments: times are of its size.
        data: as of `fg.shrink`: what is fitted to, a quarter is held out to judge by. None: the example.
        seconds: after which nothing more is begun; a method may take longer.
        metric: as of `fg.shrink`, where data are given; None: "accuracy" or "r2" where there are targets.
        progress: whether a bar is shown; None: on a terminal.

    Returns:
        A printable table with `.fastest()`, `.smallest()`, `.inference` and `.training`; the lines below it say what is
        recommended: the fastest call that keeps 99% of the metric, or without targets the outputs within 10%.

    Raises:
        ValueError: the model does not run on the example or is not on the CPU; too few data.
        TypeError: a model or an example that is none.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"advise: model must be a torch module. Got a {type(model).__name__}.")
    if not isinstance(example, Tensor | Mapping):
        raise TypeError(f"advise: example must be a tensor or a mapping of arguments. Got {clipped(example)}.")
    if not seconds > 0:
        raise ValueError(f"advise: seconds must be above 0. Got {seconds!r}.")
    check_on_cpu(model, "advise")
    with torch.random.fork_rng(devices=[]), _in_its_name():
        original = copied(model).eval()
        restore_(original)
        return _Trials(original, example, data, seconds, metric).run(progress)


class _Trials:
    """The state of the measurements."""

    def __init__(self, model: nn.Module, example: Any, data: Any, seconds: float, metric: Any) -> None:
        self.began = time.monotonic()
        self.until, self.each = self.began + seconds, min(EACH, seconds / 100)
        self.model, self.size = model, stored(model).bytes_disk
        one = Samples.of(example, None, SAMPLES, model)
        self.batch = len(one)
        self.example = one.example(self.batch)
        self.notes: list[str] = []
        self.name = "example" if data is None else "data"
        self.fit, self.held = (one, one) if data is None else Samples.of(data, None, SAMPLES, model).split(0)
        if data is None:
            self.notes.append(
                "fitted to the example and judged on it: give data= to judge on samples that are held out"
            )
        self.error_of = OutputError.of(model, self.held.inputs)
        has_targets = any(target is not None for target in self.held.targets_of_chunks())
        self.judge = Judge(metric, model, self.held) if metric is not None or has_targets else None
        self.took: dict[type, float] = {}
        self.late: list[str] = []

    def run(self, progress: bool | None) -> Advice:
        value = self.judge(self.model) if self.judge is not None else None
        (time_as_it_is,) = timings([self.model], self.example, self.each)
        self.inference = [Advised("as it is", "", 1.0, time_as_it_is.median, self.size, 0.0, value)]
        self.training: list[Advised] = []
        steps = [
            partial(self._laid_out, "laid out", 0.0), partial(self._laid_out, "laid out, int8", TOLERANCE),
            *(partial(self._smaller, trial) for trial in SMALLER[:2]), self._training,
            *(partial(self._smaller, trial) for trial in SMALLER[2:]),
        ]  # fmt: skip
        for step in shown(steps, "advise", progress):
            step()
        if self.late:
            self.notes.append(f"no time was left for {listed(self.late, len(self.late))}: give more seconds=")
        name = "" if self.judge is None else self.judge.name
        seconds = time.monotonic() - self.began
        return Advice(self.inference, self.training, self.batch, name, seconds, self.notes)

    # -- inference -----------------------------------------------------------------------------------------------------

    def _laid_out(self, what: str, tolerance: float) -> None:
        network = copied(self.model)
        reason, _ = laid_out_(network, self.example, layout=LayoutOptions(tolerance))
        call = f"fg.optimize_(model.eval(), example{f', tolerance={tolerance}' if tolerance else ''})"
        if not runtimes_of(network):
            self.notes.append(f"{what}: {reason or 'not faster than the network as it is'}")
        elif not tolerance or self.error_of(network) > 1e-4:
            self._add(what, call, network)
        else:
            self.notes.append(f"{what}: no layer is faster in int8 within a tolerance of {tolerance}")

    def _smaller(self, trial: Trial) -> None:
        """Try a method, unless no time is left for it, by what the last one of this kind took."""
        kind, began = type(trial.config), time.monotonic()
        if began + self.took.get(kind, 0.0) > self.until:
            self.late.append(trial.what)
            return
        network = copied(self.model)
        try:
            compress_(network, trial.config, self.fit.inputs, progress=False)
            laid_out_(network, self.example)
            calls = [f"fg.compress_(model, {trial.text}, {self.name})"]
            if runtimes_of(network):
                calls.append("fg.optimize_(model.eval(), example)")
            self._add(trial.what, "; ".join(calls), network)
        except (ValueError, RuntimeError) as error:
            self.notes.append(f"{trial.what}: {one_line(error, 120)}")
        self.took[kind] = time.monotonic() - began

    def _add(self, what: str, call: str, network: nn.Module) -> None:
        before, after = timings([self.model, network], self.example, self.each)
        value = self.judge(network) if self.judge is not None else None
        size, error = stored(network).bytes_disk, self.error_of(network)
        self.inference.append(self._row(what, call, self.inference[0].ms, before, after, size, error, value))

    @staticmethod
    def _row(
        what: str, call: str, ms: float, before: Timing, after: Timing, size: int, error: float | None = None,
        value: float | None = None,
    ) -> Advised:  # fmt: skip
        """Its speed is measured in turns with the network as it is; its milliseconds are that network's first ones over
        it, so that they compare with each other's however the machine's speed changes."""
        speed = before.median / after.median
        return Advised(what, call, speed, ms / speed, size, error, value)

    # -- training ------------------------------------------------------------------------------------------------------

    def _training(self) -> None:
        batch = self.fit.example(STEP)
        x, labels = batch.chunks()[0], self._labels(batch)
        if labels is None:
            self.notes.append("training steps are not timed: they are of models that take a tensor and return logits")
            return
        try:
            as_it_is = training_step(self.model, x, labels)
            (first,) = time_interleaved([as_it_is], self.each)
        except (ValueError, RuntimeError) as error:
            self.notes.append(f"training steps are not timed: {one_line(error, 120)}")
            return
        self.training.append(Advised(f"training step of {STEP}, as it is", "", 1.0, first.median, self.size))
        for trial in TRAINED:
            if time.monotonic() > self.until:
                self.late.append(f"a training step, {trial.what}")
                continue
            network = copied(self.model)
            try:
                convert_(network, trial.config)
                before, after = time_interleaved([as_it_is, training_step(network, x, labels)], self.each)
            except (ValueError, RuntimeError) as error:
                self.notes.append(f"{trial.what}: {one_line(error, 120)}")
                continue
            what, call = f"training step, {trial.what}", f"fg.convert_(model, {trial.text})"
            self.training.append(self._row(what, call, first.median, before, after, stored(network).bytes_disk))

    def _labels(self, batch: Calibration) -> Tensor | None:
        """Classes of a batch, for the time that the loss takes: those that the model says; None where it says none."""
        x = batch.chunks()[0]
        if not isinstance(x, Tensor):
            return None
        with inference_context(self.model):
            output = batch.call(self.model, x)
        if not isinstance(output, Tensor) or output.dim() < 2 or not output.is_floating_point():
            return None
        return output.argmax(-1 if output.dim() == 3 else 1).clone()


@contextmanager
def _in_its_name() -> Iterator[None]:
    """Errors of data and metrics, which are read as `shrink` reads them, by the name of who was called."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise type(error)(str(error).replace("shrink: ", "advise: ", 1).replace("pruning: ", "advise: ", 1)) from error
