"""The verb `optimize_`: a model is laid out for inference on this machine and for the batch of an example."""

from __future__ import annotations

import fnmatch
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from filigree.computed_weights import copied
from filigree.config import clipped, listed, one_line
from filigree.convert import inference_context
from filigree.laid_out import install, restore_, runtimes_of
from filigree.measure.timing import Timing, time_interleaved
from filigree.ops import compiled
from filigree.optimize.arguments import NOTHING, Fixed, taken_apart
from filigree.optimize.graphs import graph_of, plans_of
from filigree.optimize.int8_errors import Int8Errors, path_of
from filigree.optimize.planning import Draft, Plan
from filigree.optimize.runtime import Runtime
from filigree.optimize.tracing import NotTraceable, Traced
from filigree.optimize.weights import dense_reference
from filigree.outputs import tensors_in
from filigree.rollback import AllOrNothing
from filigree.rounding import is_rounding, relative_difference
from filigree.summary import label_of
from filigree.text_table import aligned

_TORCH, _DENSE = "as it was", "dense, by torch"
_GROSS = 0.01  # of the largest output: more is no rounding
_BEYOND = 3.0  # times the fastest: what is slower in one block is not looked at again
_ORDER = 1e-4  # of the largest output: what may differ by the order of sums


@dataclass(frozen=True)
class OptimizedLayer:
    """A layer in the report: the form that was chosen, and the milliseconds of each form that was tried, alone.

    `error`: of a layer in int8 by how much its outputs on the example change, as a share of their size (norms).
    """

    name: str
    layer: str
    form: str
    milliseconds: dict[str, float]
    error: float = 0.0


@dataclass(frozen=True)
class OptimizeReport:
    """What `optimize_` did. It prints as a table.

    `before` and `after` are times of the whole model for a batch of `batch`, measured in turns; `after` is `before`
    where nothing was changed. `difference` is the largest one of the outputs, over the largest magnitude among them.
    """

    batch: int
    before: Timing
    after: Timing
    difference: float
    layers: list[OptimizedLayer] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def speedup(self) -> float:
        return self.before.median / self.after.median

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "speedup": self.speedup}

    def __str__(self) -> str:
        rows = [("layer", "", "form", "error", "ms alone")]
        for layer in self.layers:
            times = ", ".join(f"{name} {time:.3g}" for name, time in layer.milliseconds.items())
            rows.append((layer.name, layer.layer, layer.form, f"{layer.error:.1e}" if layer.error else "", times))
        title = (
            f"optimize_: batch {self.batch}: {self.before.median:.3g} -> {self.after.median:.3g} ms, "
            f"x {self.speedup:.2f}, outputs differ by {self.difference:.1e}"
        )
        return "\n".join([title, *(aligned(rows) if self.layers else []), *self.notes])


def optimize_(
    model: nn.Module, example: Tensor | Sequence[Tensor], *, tolerance: float = 0.0,
    floats: str | Iterable[str] = (), seconds: float = 0.1,
) -> OptimizeReport:  # fmt: skip
    """Lay a model out for inference on this machine and for the batch size of an example.

    Convolutions, linear layers, norms, activations and pools that follow one another become one call of a compiled
    kernel: norms and activations are fused into the layers before them, flattening and padding cost nothing, and each
    weight is held in the form that is fastest on its input, measured in turns: dense floats, a bitmap with the
    nonzeros, the nonzeros by rows or by windows of 32 or 8 inputs, or bytes where the weights are small integers
    (`IntegerLinear`, `IntegerConv2d`); sparse and integer layers also as torch's dense ones. All these compute the same
    up to the order of sums. What is not faster that way runs as before, and the whole model is left as it was where the
    result is not faster than it.

    With a `tolerance` also int8 is tried, which approximates: a layer's weights are rounded to integers of -127 to 127
    with a scale for each output, its inputs, when it runs, to integers of 0 to 255 with a scale for each vector (of a
    convolution, each sample), and products are sums of whole numbers. Layers are in int8 where that is fastest and
    changes their outputs by no more than the tolerance, |y_int8 - y| / |y| on the example; of recurrent layers each
    product is judged by what it alone changes. Where the outputs of the whole model differ by more, the layers with the
    largest errors are floats again.

    The original modules stay in the model, and parameters, `state_dict`, `fg.save` and `fg.export` are theirs. They run
    in training mode, with gradients enabled, under autocast, with hooks, and for inputs of other shapes (the batch size
    may differ). After a change of weights or modules the model runs as before, and warns; only numbers that are
    written past autograd (`weight.data.copy_(...)`) are not noticed. `filigree.optimize.restore_` undoes it, and so do
    `fg.convert_` and `fg.compress_`. It costs the memory of the weights once more.

    Args:
        model: any torch module on the CPU, in eval mode. example: an input batch, or a tuple of the model's inputs; the
            model is run on it, and on its first sample. tolerance: by how much the outputs of the model on the example
            may differ, the largest difference over the largest magnitude; 0: by the order of sums only, no layer is in
            int8. Errors are those on the example: it should be real data, and several samples. floats: layers that are
            not to be in int8, by glob patterns on the names that the report has; what is inside them is not either.
            Products of recurrent layers and of attention have names of their own, such as "lstm.ih_l0" and
            "self_attn.out". seconds: of each measurement.

    Returns:
        A printable report: the form of each layer and the times of all, the times of the whole model.

    Raises:
        ValueError: the model is in training mode, does not run on the example, or changes it in place; the tolerance is
            not between 0 and 1, or seconds are not above 0; a pattern in `floats` matches no layer that can be in int8;
            samples do not lie along the first dimension. The model is as it was before.
        TypeError: the model is no torch module, or `floats` are no patterns.
    """
    inputs = _checked(model, example)
    if not (isinstance(tolerance, int | float) and 0 <= tolerance < 1):
        raise ValueError(f"optimize_: tolerance must be between 0 and 1. Got {clipped(tolerance)}.")
    if not (isinstance(seconds, int | float) and seconds > 0):
        raise ValueError(f"optimize_: seconds must be a number above 0. Got {clipped(seconds)}.")
    globs = [floats] if isinstance(floats, str) else list(floats) if isinstance(floats, Iterable) else [None]
    if not all(isinstance(glob, str) for glob in globs):
        raise TypeError(f"optimize_: floats must be a glob pattern or several. Got {clipped(floats)}.")
    is_float = _Floats(globs)
    with AllOrNothing(model, values=True):
        restore_(model)
        with inference_context(model):
            versions = [x._version for x in inputs]
            try:
                expected = [t.clone() for t in tensors_in(model(*inputs))]
            except Exception as error:
                raise ValueError(f"optimize_: the model does not run on the example: {one_line(error)}") from error
        if versions != [x._version for x in inputs]:
            raise ValueError("optimize_: the model must leave its input as it is. It changes it in place.")
        work, allowed = _running(model, inputs), max(tolerance, _ORDER)
        most = tolerance
        for rounds in itertools.count():
            gathered = _Work(seconds, most, is_float)
            with torch.no_grad():
                gathered.optimize(model, "", inputs)
                is_float.check(model)
                difference = relative_difference(tensors_in(model(*inputs)), expected)
            layers, notes = gathered.layers, gathered.notes
            errors = [layer.error for layer in layers if layer.error]
            if difference <= allowed or not errors:
                break
            worst = sorted(errors, reverse=True)  # first one layer fewer in int8, then more and more
            most = worst[min(len(worst) * rounds // 8, len(worst) - 1)] * (1 - 1e-6)
            most = most if most >= worst[-1] else 0.0
            restore_(model)
        if not runtimes_of(model):
            (before,) = time_interleaved([work], seconds)
            return OptimizeReport(len(inputs[0]), before, before, difference, layers, notes)
        before, after = time_interleaved([_as_before(model, inputs), work], seconds * 3)
        if not difference <= allowed and not errors:
            with torch.no_grad():
                if is_rounding(tensors_in(model(*inputs)), expected, lambda: _exact(model), inputs, allowed):
                    allowed = difference
        if not after.median < before.median or not difference <= allowed:
            why = "it was not faster" if difference <= allowed else f"its outputs differed by {difference:.1e}"
            restore_(model)
            return OptimizeReport(len(inputs[0]), before, before, 0.0, layers, [*notes, f"left as it was: {why}"])
    return OptimizeReport(len(inputs[0]), before, after, difference, layers, notes)


def _checked(model: nn.Module, example: Any) -> list[Tensor]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"optimize_: model must be a torch module. Got a {type(model).__name__}.")
    inputs = [example] if isinstance(example, Tensor) else list(example) if isinstance(example, tuple | list) else []
    if not inputs or not all(isinstance(x, Tensor) for x in inputs):
        raise ValueError(f"optimize_: example must be a tensor or a tuple of tensors. Got {clipped(example)}.")
    if not inputs[0].dim():
        raise ValueError("optimize_: samples must lie along the first dimension of the first tensor. Got one of none.")
    if model.training:
        raise ValueError("optimize_: the model must be in eval mode: model.eval().")
    return [x.clone() for x in inputs]  # a model that works in place on them is refused


class _Floats:
    """Whether the product of a name is not to be in int8. It keeps the names that it was asked for."""

    def __init__(self, globs: list[str]) -> None:
        self.globs, self.names = globs, dict[str, None]()

    def __call__(self, name: str) -> bool:
        self.names[name] = None
        return any(_matches(name, glob) for glob in self.globs)

    def check(self, model: nn.Module) -> None:
        """Refuse a glob that matches nothing, unless it names what is inside a module that was not laid out."""
        modules = {name for name, _ in model.named_modules() if name}
        for glob in self.globs:
            outer = glob.rpartition(".")[0]
            left = glob not in modules and outer in modules and not any(_matches(name, outer) for name in self.names)
            if self.names and not left and not any(_matches(name, glob) for name in self.names):
                raise ValueError(
                    f"optimize_: floats={glob!r} matches no layer that can be in int8. Those are: "
                    f"{listed(list(self.names), 12)}."
                )


def _matches(name: str, glob: str) -> bool:
    """Whether a name is this, or of something inside this."""
    return fnmatch.fnmatchcase(name, glob) or fnmatch.fnmatchcase(name, f"{glob}.*")


def _running(model: nn.Module, inputs: Sequence[Tensor], fixed: Fixed = NOTHING) -> Callable[[], Any]:
    def run() -> Any:
        with torch.inference_mode():
            return model(*inputs, *fixed.args, **fixed.named)

    return run


def _exact(model: nn.Module) -> nn.Module:
    """A copy of the model as it was before."""
    exact = copied(model)
    restore_(exact)
    return exact


def _as_before(model: nn.Module, inputs: Sequence[Tensor]) -> Callable[[], Any]:
    runtimes, work = runtimes_of(model), _running(model, inputs)

    def run() -> Any:
        for runtime in runtimes:
            runtime.enabled = False
        try:
            return work()
        finally:
            for runtime in runtimes:
                runtime.enabled = True

    return run


# -- a module whose graph is known, or those inside it -----------------------------------------------------------------


class _Work:
    """What `optimize_` gathers while it goes through a model."""

    def __init__(self, seconds: float, most: float, is_float: Callable[[str], bool]) -> None:
        self.seconds, self.most = seconds, most  # the error that a layer in int8 may have
        self.is_float = is_float
        self.layers: list[OptimizedLayer] = []
        self.notes: list[str] = []
        self._rows: dict[Draft, OptimizedLayer] = {}

    def optimize(self, module: nn.Module, name: str, inputs: Sequence[Tensor], fixed: Fixed = NOTHING) -> None:
        """Optimise a module by its graph or, where that is not known, those inside it."""
        if not compiled:
            self.notes.append("left as it was: filigree's kernels are not there")
            return
        try:
            traced = Traced(module, inputs, fixed)
            errors = Int8Errors(traced, self.most, self.is_float, name)
            plans = plans_of(traced, set(), errors)
            if plans and not _agrees(module, graph_of(traced, plans, 1), inputs, fixed):
                raise NotTraceable("its outputs for two or three samples differ")
        except NotTraceable as error:
            children = _inputs_of_children(module, inputs, fixed)
            if not children:
                self.notes.append(f"left as it was: {name or 'the model'}: its graph is not known: {error}")
            for key, given in children.items():
                self.optimize(module.get_submodule(key), f"{name}.{key}".lstrip("."), *given)
            return
        slower = [node for plan in plans for node in self._choose_forms(traced, plan, name)]
        graphs = [graph_of(traced, plans, chunk) for chunk in _chunks(len(inputs[0]))] if plans else []
        fewer = plans_of(traced, set(slower), errors) if slower else []
        for plan in fewer:
            plan.take_forms(plans)
        if fewer or traced.dense:
            graphs += [graph_of(traced, fewer, chunk) for chunk in (_chunks(len(inputs[0])) if fewer else [1])]
        if not graphs:
            if not name or any(True for _ in module.children()):
                self.notes.append(f"left as it was: {name or 'the model'}: no layer in it can be laid out anew")
            return
        works = [_running(module, inputs, fixed), *(_running(graph, inputs) for graph in graphs)]
        times = [timing.median for timing in time_interleaved(works, self.seconds, beyond=_BEYOND)]
        best = times.index(min(times))
        if best:
            examples = [(x.dtype, x.shape[1:]) for x in inputs]
            install(module, Runtime(graphs[best - 1], examples, module, fixed, traced.held()))
        kept = {node.name for node in graphs[best - 1].graph.nodes} if best else None
        rows, self._rows = self._rows, {}
        self.layers += [
            replace(layer, form=_form_outside(draft, traced, bool(best)), error=0.0)
            if kept is None or (draft.node and draft.node.name in kept)
            else layer
            for draft, layer in rows.items()
        ]

    def _choose_forms(self, traced: Traced, plan: Plan, name: str) -> list[fx.Node]:
        """Give each layer its fastest form; returns the nodes of those that are faster as they are."""
        ours: dict[fx.Node, float] = {}
        as_it_was: dict[fx.Node, float] = {}
        for draft in plan.drafts:
            if (node := draft.node) is None:
                continue
            source = traced.values[node.all_input_nodes[0]]
            dense = dense_reference(traced.module_of(node)) if node not in ours else None
            works: dict[str, Callable[[], Any]] = {} if dense is None else {_DENSE: _running(dense, [source])}
            works |= {form: plan.alone(draft, form, len(source)) for form in draft.forms}
            if node not in ours:
                works[_TORCH] = _running(traced.module_of(node), [source])
            timings = time_interleaved(list(works.values()), self.seconds, beyond=_BEYOND)
            times = {form: timing.median for form, timing in zip(works, timings, strict=True)}
            draft.form = min(draft.forms, key=lambda form: times[form])
            ours[node] = ours.get(node, 0.0) + times[draft.form]
            as_it_was[node] = min(times[_TORCH], times.get(_DENSE, torch.inf)) if _TORCH in times else as_it_was[node]
            if dense is not None and times[_DENSE] < min(times[_TORCH], ours[node]):
                traced.dense[str(node.target)] = dense
            label = label_of(traced.module_of(node))
            error = draft.error if draft.is_int8 else 0.0
            self._rows[draft] = OptimizedLayer(path_of(name, node, draft.part), label, draft.form, times, error)
        return [node for node in ours if as_it_was[node] < ours[node]]


def _agrees(module: nn.Module, graph: nn.Module, inputs: Sequence[Tensor], fixed: Fixed) -> bool:
    """Whether a graph computes what a module does for two and for three samples, which differ, as far as the module
    takes so many; what is wrong differs by far more than what is rounded."""
    for count in (2, 3):
        batch = [_some(x, count) for x in inputs]
        try:
            expected = [t.clone() for t in tensors_in(module(*(x.clone() for x in batch), *fixed.args, **fixed.named))]
        except Exception:
            continue
        try:
            ours = tensors_in(graph(*batch))
        except Exception:
            return False
        if len(ours) != len(expected) or any(a.shape != b.shape for a, b in zip(ours, expected, strict=True)):
            return False
        finite = all(bool(t.isfinite().all()) for t in expected)
        if finite and not relative_difference(ours, expected) <= _GROSS:
            return fixed == NOTHING and is_rounding(ours, expected, lambda: copied(module), batch, _GROSS)
    return True


def _some(x: Tensor, count: int) -> Tensor:
    """So many samples, the first ones of an example, and then the same again with their numbers moved."""
    samples = [x[i % len(x)][None] for i in range(count)]
    return torch.cat([sample.roll(i // len(x), -1) if x.dim() > 1 else sample for i, sample in enumerate(samples)])


def _form_outside(draft: Draft, traced: Traced, changed: bool) -> str:
    """What a layer is that no step stands for."""
    return _DENSE if changed and draft.node is not None and str(draft.node.target) in traced.dense else _TORCH


def _chunks(images: int) -> list[int]:
    return sorted({min(images, chunk) for chunk in (1, 8, 64)})


def _inputs_of_children(
    module: nn.Module, inputs: Sequence[Tensor], fixed: Fixed
) -> dict[str, tuple[list[Tensor], Fixed]]:  # fmt: skip
    """What the modules inside one are called with, where that is once, with tensors and plain values after them.

    In place of those that are called otherwise stand the modules inside them.
    """
    calls: dict[str, list[Any]] = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda child, args, named: calls.setdefault(name, []).append((args, named))

    children = [
        (name, child) for name, child in module.named_modules() if name and any(True for _ in child.parameters())
    ]
    with inference_context(
        module, (child.register_forward_pre_hook(keep(name), with_kwargs=True) for name, child in children)
    ):
        module(*inputs, *fixed.args, **fixed.named)
    taken: dict[str, tuple[list[Tensor], Fixed]] = {}
    for name, _ in children:  # outer ones first
        if any(name.startswith(f"{outer}.") for outer in taken) or len(calls.get(name, ())) != 1:
            continue
        if (given := taken_apart(*calls[name][0])) is not None:
            taken[name] = given
    return taken
