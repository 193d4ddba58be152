"""From the nodes of a graph to steps of one kernel: which can be taken, where their numbers lie, what is fused."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from filigree.nn.dropout.dropout import FastDropout
from filigree.nn.sparse.channel_major_batch_norm import ChannelMajorBatchNorm2d
from filigree.ops.inference import ADD, GATHER, GRU, LSTM, MAXIMUM, MEAN, MULTIPLY, Finishing, Span, Step, Steps, padded
from filigree.optimize.layouts import Layout, by_pixel, is_affine, numbers_by_pixel, sums_of
from filigree.optimize.tracing import Traced
from filigree.optimize.recurrent import Direction, layers_of
from filigree.optimize.weights import LayerWeight, scaled, weight_of
from filigree.preserved import has_hooks


class NotTaken(Exception):
    """A node that steps cannot stand for."""


@dataclass(eq=False)
class Draft:
    """A step whose weight is not chosen yet; what follows it may still be fused into it."""

    step: Step
    layer: LayerWeight | None = None
    node: fx.Node | None = None
    finish: Finishing = field(default_factory=Finishing)
    outputs: int = 0
    forms: dict[str, Any] = field(default_factory=dict)
    form: str = "floats"
    part: str = ""  # of a layer that has several weights

    def built(self) -> Step:
        finish = self.finish
        weight = None
        if self.layer is not None:
            weight, scale = self.forms[self.form]
            finish = scaled(finish, scale)
        return Step(**{**vars(self.step), "weight": weight, "finish": finish.packed(self.outputs)})


class Plan:
    """Steps for a part of a graph with one input; spans are numbered, the first one is the input."""

    def __init__(self, traced: Traced, source: fx.Node) -> None:
        self.traced, self.source = traced, source
        self.sizes: list[int] = []
        self.drafts: list[Draft] = []
        self.layouts: dict[fx.Node, Any] = {}
        self.made: dict[fx.Node, Draft] = {}  # the step whose outputs a node's are, as long as more can be fused into it
        self.nodes: list[fx.Node] = []
        if traced.batch_dim(source) != 0 or traced.single[source].dtype is not torch.float32:
            raise NotTaken
        value = traced.single[source]
        self.layouts[source] = Layout(self._span(value.numel()), torch.arange(value.numel()).view(value.shape))

    # -- nodes -------------------------------------------------------------------------------------------------------

    def take(self, node: fx.Node) -> None:
        """Add a node. `NotTaken`, and nothing is changed, where it cannot be."""
        before = list(self.sizes), list(self.drafts), dict(self.layouts), dict(self.made)
        try:
            self.layouts[node] = self._laid_out(node)
            self._check(node)
        except (NotTaken, RuntimeError, IndexError, TypeError) as error:
            self.sizes, self.drafts, self.layouts, self.made = before
            raise NotTaken from error
        self.nodes.append(node)

    def _check(self, node: fx.Node) -> None:
        layout, value = self.layouts[node], self.traced.single[node]
        if isinstance(layout, Layout) and (layout.positions.shape != value.shape or value.dtype is not torch.float32):
            raise NotTaken

    def _laid_out(self, node: fx.Node) -> Any:
        first = node.args[0] if node.args else None
        if not isinstance(first, fx.Node) or first not in self.layouts:
            raise NotTaken
        module = self.traced.module_of(node)
        if module is not None:
            if module.training or has_hooks(module):
                raise NotTaken
            return self._module(node, first, module)
        handler = FUNCTIONS.get(node.target) if node.op == "call_function" else METHODS.get(str(node.target))
        if node.op not in ("call_function", "call_method") or handler is None:
            raise NotTaken
        return handler(self, node, first)

    def _module(self, node: fx.Node, source: fx.Node, module: Any) -> Any:
        if len(node.args) != 1 or node.kwargs:
            raise NotTaken
        if type(module) in MODULES:
            return MODULES[type(module)](self, node, source, module)
        if (layers := layers_of(module)) is not None:
            return self._recurrent(node, source, layers, isinstance(module, nn.LSTM) or module.mode == "LSTM")
        if (found := weight_of(module)) is None:
            raise NotTaken
        dense, weight = found
        return (self._linear if isinstance(dense, nn.Linear) else self._convolution)(node, source, dense, weight)

    # -- products ----------------------------------------------------------------------------------------------------

    def _linear(self, node: fx.Node, source: fx.Node, dense: nn.Linear, weight: LayerWeight) -> Layout:
        layout = self._batch_first(source)
        positions = layout.positions.movedim(-1, 1)  # (1, inputs, ...)
        if (sums := sums_of(positions[0].flatten(1) if positions.dim() > 2 else positions[0][:, None])) is None:
            layout = self._gathered(layout, positions, dense.in_features)
            positions = layout.positions
            sums = sums_of(positions[0].flatten(1) if positions.dim() > 2 else positions[0][:, None])
        assert sums is not None
        sizes = positions.shape[2:]
        halo = [(0, 0)] * len(sizes)
        span = self._span(numbers_by_pixel(dense.out_features, sizes, halo))
        out = by_pixel(span, dense.out_features, sizes, halo)
        self._multiply(node, layout, sums, out, weight)
        if not sizes:
            return out
        return Layout(out.span, out.positions.movedim(1, -1))

    def _convolution(self, node: fx.Node, source: fx.Node, dense: Any, weight: LayerWeight) -> Layout:
        layout = self._batch_first(source)
        padding = _padding(dense)
        positions = layout.with_zeros(padding)
        if not is_affine(positions):
            layout = self._gathered(layout, positions, positions.shape[1])
            positions = layout.positions
        sizes = [
            (size - d * (k - 1) - 1) // s + 1
            for size, k, s, d in zip(positions.shape[2:], dense.kernel_size, dense.stride, dense.dilation, strict=True)
        ]
        taps = tuple(slice(0, d * (k - 1) + 1, d) for k, d in zip(dense.kernel_size, dense.dilation, strict=True))
        starts = tuple(slice(0, (size - 1) * s + 1, s) for size, s in zip(sizes, dense.stride, strict=True))
        inputs = positions[(0, slice(None), *taps)].reshape(-1)
        first = positions[(0, 0, *starts)].reshape(-1)
        halo = self._halo(node, len(sizes))
        out = by_pixel(self._span(numbers_by_pixel(dense.out_channels, sizes, halo)), dense.out_channels, sizes, halo)
        self._multiply(node, layout, (first, inputs - inputs[0]), out, weight)
        return out

    def _multiply(
        self, node: fx.Node, source: Layout, sums: tuple[Tensor, Tensor], out: Layout, weight: LayerWeight,
        part: str = "",
    ) -> None:  # fmt: skip
        first, inputs = sums
        least = int(inputs.min())
        reads, inputs = first + least, inputs - least
        outputs = len(weight.matrix)
        step = Step(
            MULTIPLY, source.span, out.span, len(reads), _table(reads), _table(out.positions[0, 0]),
            clear=any(map(any, out.halo)), channels=padded(outputs), work=len(reads) * weight.matrix.numel(),
        )  # fmt: skip
        forms = weight.forms(inputs, alone=len(reads) * self._images() <= 8)
        finish = Finishing(bias=weight.bias, relu=weight.relu)
        self._add(node, Draft(step, weight, node, finish, outputs, forms, part=part))

    def _recurrent(self, node: fx.Node, source: fx.Node, layers: list[list[Direction]], lstm: bool) -> Any:
        """An LSTM's results or, where only the outputs and some layers' last states are read, a GRU's."""
        layout, gates = self._batch_first(source), 4 if lstm else 3
        if layout.positions.dim() != 3 or not _is_indexed(node, 3 if lstm else 2):
            raise NotTaken
        time, hidden, last, cells = layout.positions.shape[1], layers[0][0].hidden, [], []
        wide = padded(hidden)
        for number, directions in enumerate(layers):
            span, row = self._span(time * len(directions) * wide), len(directions) * wide
            steps = torch.arange(time) * row
            columns = [side * wide + torch.arange(hidden) for side in range(len(directions))]
            for side, direction in enumerate(directions):
                rows = layout.positions[0].t()
                if (sums := sums_of(rows)) is None:
                    layout = self._gathered(layout, rows[None], len(rows))
                    sums = sums_of(layout.positions[0])
                assert sums is not None
                suffix = f"_l{number}" + "_reverse" * side
                sizes, halo = (time,), [(0, 0)]
                inputs = by_pixel(self._span(time * gates * wide), gates * wide, sizes, halo)
                self._multiply(node, layout, sums, inputs, direction.inputs, f"ih{suffix}")
                order = torch.arange(time).flip(0) if side else torch.arange(time)
                state = self._span((1 + gates) * wide)
                step = Step(
                    LSTM if lstm else GRU, inputs.span, span, time, _table(order * gates * wide),
                    _table(steps[order] + side * wide), state, channels=wide, work=time * direction.states.matrix.numel(),
                )  # fmt: skip
                forms = direction.states.forms(torch.arange(hidden), alone=self._images() <= 8)
                finish = Finishing(bias=direction.states.bias)
                self.drafts.append(Draft(step, direction.states, node, finish, gates * wide, forms, part=f"hh{suffix}"))
                last.append(Layout(span, (steps[order[-1]] + columns[side])[None]))
                cells.append(Layout(state, torch.arange(hidden)[None]))
            layout = Layout(span, (steps[:, None] + torch.cat(columns))[None])
        return (layout, (last, cells)) if lstm else (layout, last)

    # -- elementwise -------------------------------------------------------------------------------------------------

    def activation(self, node: fx.Node, source: fx.Node, slope: Tensor | None = None) -> Layout:
        """ReLU, or a slope below zero: one number, or one a channel."""
        per_channel = slope is not None and slope.numel() > 1
        draft = self._open(source, per_channel)
        if draft is not None and draft.finish.factor is None and not (draft.finish.relu or draft.finish.slope is not None):
            self._finish(node, draft, relu=True, slope=slope)
            return self.layouts[source]
        layout, draft = self._alone(node, source)
        self._finish(node, draft, relu=True, slope=slope)
        return layout

    def affine(self, node: fx.Node, source: fx.Node, factor: Tensor, shift: Tensor) -> Layout:
        """Times a factor plus a shift, by channel: what a batch norm is in eval mode."""
        draft, layout = self._open(source, True), self.layouts[source]
        if draft is None:
            layout, draft = self._alone(node, source)
        finish = draft.finish
        if finish.factor is not None and finish.shift is not None:
            factor, shift = factor * finish.factor, factor * finish.shift + shift
        elif not finish.relu:
            bias = shift if finish.bias is None else finish.bias * factor + shift
            self._finish(node, draft, scale=factor if finish.scale is None else finish.scale * factor, bias=bias)
            return layout
        self._finish(node, draft, factor=factor, shift=shift)
        return layout

    def _finish(self, node: fx.Node, draft: Draft, **parts: Any) -> None:
        replaced = Draft(**{**vars(draft), "finish": draft.finish._replace(**parts)})
        self.drafts[self.drafts.index(draft)] = replaced
        self.made = {n: replaced if made is draft else made for n, made in self.made.items()}
        self.made[node] = replaced

    def _open(self, source: fx.Node, by_channel: bool) -> Draft | None:
        """The step that makes a node's numbers, if nothing else reads them."""
        draft = self.made.get(source)
        layout = self.layouts[source]
        if draft is None or len(source.users) != 1 or layout.positions.numel() != draft.step.points * draft.outputs:
            return None
        is_by_channel = layout.is_by_pixel or layout.positions.dim() == 2
        return draft if is_by_channel or not by_channel else None

    def _alone(self, node: fx.Node, source: fx.Node) -> tuple[Layout, Draft]:
        """A step that copies the numbers of a node, to be fused into."""
        return self._pooled(node, source, MEAN, None, None)

    # -- pools, sums -------------------------------------------------------------------------------------------------

    def pool(self, node: fx.Node, source: fx.Node, kind: int, taps: Tensor, sizes: Sequence[int]) -> Layout:
        """Each pixel's maximum or mean over the pixels `taps` `(pixels, taps)`, flat indices of the input's pixels."""
        return self._pooled(node, source, kind, taps, sizes)[0]

    def _pooled(
        self, node: fx.Node, source: fx.Node, kind: int, taps: Tensor | None, sizes: Sequence[int] | None
    ) -> tuple[Layout, Draft]:
        layout = self._pixels(source)
        channels = layout.positions.shape[1]
        sizes = layout.positions.shape[2:] if sizes is None else sizes
        pixels = layout.positions[0, 0].reshape(-1)
        reads = pixels[:, None] if taps is None else pixels[taps]
        halo = self._halo(node, len(sizes))
        out = by_pixel(self._span(numbers_by_pixel(channels, sizes, halo)), channels, sizes, halo)
        step = Step(
            kind, layout.span, out.span, len(reads), _table(reads), _table(out.positions[0, 0]), taps=reads.shape[1],
            channels=padded(channels), clear=any(map(any, halo)), work=reads.numel() * channels // 4,
        )  # fmt: skip
        draft = Draft(step, outputs=channels)
        self._add(node, draft)
        return out, draft

    def sum(self, node: fx.Node, source: fx.Node) -> Layout:
        other = node.args[1] if len(node.args) == 2 else None
        if not isinstance(other, fx.Node) or other not in self.layouts or node.kwargs:
            raise NotTaken
        if self._shape(source) != self._shape(other):
            raise NotTaken
        a, b = self._pixels(source), self._pixels(other)
        channels, sizes = a.positions.shape[1], a.positions.shape[2:]
        halo = self._halo(node, len(sizes))
        out = by_pixel(self._span(numbers_by_pixel(channels, sizes, halo)), channels, sizes, halo)
        step = Step(
            ADD, a.span, out.span, out.positions[0, 0].numel(), _table(a.positions[0, 0]), _table(out.positions[0, 0]),
            b.span, _table(b.positions[0, 0]), channels=padded(channels), clear=any(map(any, halo)),
            work=a.positions.numel() // 4,
        )  # fmt: skip
        self._add(node, Draft(step, outputs=channels))
        return out

    # -- views -------------------------------------------------------------------------------------------------------

    def view(self, node: fx.Node, source: fx.Node) -> Any:
        """What only changes the order and the shape of numbers: done to their positions."""
        layout = self.layouts[source]
        if not isinstance(layout, Layout):  # of a recurrent layer's results
            return layout[operator.index(node.args[1])]  # type: ignore[arg-type]
        args, kwargs = fx.node.map_arg((node.args[1:], node.kwargs), lambda n: self.traced.single[n])
        if any(isinstance(arg, Tensor) for arg in args):
            raise NotTaken
        if node.op == "call_method":
            positions = getattr(layout.positions, str(node.target))(*args, **kwargs)
        else:
            positions = node.target(layout.positions, *args, **kwargs)  # type: ignore[operator]
        batch_dim = self.traced.batch_dim(node)
        if batch_dim is None:
            raise NotTaken
        if source in self.made and len(source.users) == 1:
            self.made[node] = self.made[source]
        return layout.viewed(positions, batch_dim)

    def flattened(self, node: fx.Node, source: fx.Node, module: nn.Flatten) -> Layout:
        layout = self._batch_first(source)
        if source in self.made and len(source.users) == 1:
            self.made[node] = self.made[source]
        return layout.viewed(module(layout.positions), 0)

    def same(self, node: fx.Node, source: fx.Node) -> Any:
        if source in self.made and len(source.users) == 1:
            self.made[node] = self.made[source]
        return self.layouts[source]

    def contiguous(self, node: fx.Node, source: fx.Node) -> Layout:
        layout = self._batch_first(source)
        return layout if layout.positions.is_contiguous() else layout.viewed(layout.positions.contiguous(), 0)

    def pad(self, node: fx.Node, source: fx.Node) -> Layout:
        layout = self._batch_first(source)
        around = _around(node, len(self._shape(source)))
        if around is None:
            raise NotTaken
        return layout.viewed(layout.with_zeros(around), 0)

    # -- memory ------------------------------------------------------------------------------------------------------

    def _span(self, size: int) -> int:
        self.sizes.append(size)
        return len(self.sizes) - 1

    def _add(self, node: fx.Node, draft: Draft) -> None:
        self.drafts.append(draft)
        self.made[node] = draft

    def _shape(self, node: fx.Node) -> torch.Size:
        return self.traced.single[node].shape

    def _images(self) -> int:
        return int(self.traced.values[self.source].shape[0])

    def _batch_first(self, node: fx.Node) -> Layout:
        layout = self.layouts[node]
        if not isinstance(layout, Layout) or layout.batch_dim != 0 or self.traced.batch_dim(node) != 0:
            raise NotTaken
        return layout

    def _gathered(self, layout: Layout, positions: Tensor, width: int) -> Layout:
        """The numbers `(1, channels, ...)` at these positions, copied pixel by pixel, a pixel's `width` numbers apart."""
        channels, sizes = positions.shape[1], positions.shape[2:]
        halo = [(0, 0)] * len(sizes)
        size = numbers_by_pixel(channels, sizes, halo, width)
        out = by_pixel(self._span(size), channels, sizes, halo, width)
        reads = torch.full((size,), -1)
        reads[out.positions.reshape(-1)] = positions.reshape(-1)
        self.drafts.append(Draft(Step(GATHER, layout.span, out.span, size, _table(reads), work=size)))
        return out

    def _pixels(self, node: fx.Node) -> Layout:
        """The layout of a node, pixel by pixel."""
        layout = self._batch_first(node)
        if layout.is_by_pixel:
            return layout
        return self._gathered(layout, layout.positions, padded(layout.positions.shape[1]))

    def _halo(self, node: fx.Node, dims: int) -> list[tuple[int, int]]:
        """How many zeros those who read a node want around it."""
        most = [(0, 0)] * dims
        for user in node.users:
            module = self.traced.module_of(user)
            wanted: Sequence[tuple[int, int]] | None = None
            if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) or hasattr(module, "padding_mode"):
                wanted = _padding(module) if getattr(module, "padding_mode", "") == "zeros" else None
            elif user.op == "call_function" and user.target is F.pad:
                wanted = _around(user, dims + 2)
            elif type(module) in ELEMENTWISE or user.target in (F.relu, torch.relu, "relu"):
                wanted = self._halo(user, dims)
            if wanted is not None and len(wanted) == dims:
                most = [(max(a, c), max(b, d)) for (a, b), (c, d) in zip(most, wanted, strict=True)]
        return most

    # -- forms -------------------------------------------------------------------------------------------------------

    def alone(self, draft: Draft, form: str, images: int) -> Callable[[], Any]:
        """A call of one step by itself, in a form, on random numbers."""
        step, sizes = replace(draft, form=form).built(), self.sizes
        spans = [Span(sizes[step.source]), Span(sizes[step.target]), Span(sizes[step.other], 0)]
        alone = Steps(spans, [replace(step, source=0, target=1, other=2)], images)
        tensors = [torch.randn(images, sizes[step.source]), torch.empty(images, sizes[step.target])]
        return lambda: alone.run(tensors, images)

    def take_forms(self, plans: Sequence[Plan]) -> None:
        """Give each layer the form that it has in other plans."""
        forms = {(draft.node, draft.part): draft.form for plan in plans for draft in plan.drafts}
        for draft in self.drafts:
            draft.form = forms.get((draft.node, draft.part), draft.form)

    # -- what comes of it --------------------------------------------------------------------------------------------

    def program(self, outputs: Sequence[fx.Node], chunk: int) -> Steps:
        """The steps, with copies of what these nodes hold for the caller."""
        drafts, sizes = list(self.drafts), list(self.sizes)
        given = [0]
        for node in outputs:
            layout = self.layouts[node]
            positions = layout.positions.movedim(layout.batch_dim, 0).reshape(-1)
            given.append(len(sizes))
            sizes.append(len(positions))
            drafts.append(Draft(Step(GATHER, layout.span, given[-1], len(positions), _table(positions))))
        steps = [draft.built() for draft in drafts]
        return _arranged(steps, sizes, given, chunk)


def _arranged(steps: list[Step], sizes: list[int], given: list[int], chunk: int) -> Steps:
    """Give spans their memory, where those that are no longer read make room, and number them anew."""
    last: dict[int, int] = {}
    for number, step in enumerate(steps):
        for span in (step.source, step.other, step.target):
            last[span] = number
    offsets: dict[int, int] = {}
    for number, step in enumerate(steps):
        for span in (step.target, step.other):
            if span in given or span in offsets:
                continue
            busy = sorted((offsets[s], offsets[s] + _room(sizes[s])) for s in offsets if last[s] >= number)
            at = 0
            for low, high in busy:
                if low >= at + _room(sizes[span]):
                    break
                at = max(at, high)
            offsets[span] = at
    order = [*given, *offsets]
    numbers = {span: number for number, span in enumerate(order)}
    spans = [Span(sizes[span], offsets.get(span)) for span in order]
    renamed = [
        Step(**{**vars(step), "source": numbers[step.source], "target": numbers[step.target],
                "other": numbers.get(step.other, 0)})
        for step in steps
    ]  # fmt: skip
    return Steps(spans, renamed, chunk)


def _is_indexed(node: fx.Node, depth: int) -> bool:
    """Whether all that read a tuple take one of its parts, and of those that are tuples again likewise."""
    for user in node.users:
        if user.op != "call_function" or user.target is not operator.getitem or not isinstance(user.args[1], int):
            return False
        is_tensor = depth == 1 or (user.args[1] == 0 and node.op == "call_module")
        if not is_tensor and not _is_indexed(user, depth - 1):
            return False
    return True


def _room(size: int) -> int:
    return -(-size // 16) * 16


def _table(positions: Tensor) -> Tensor:
    return positions.reshape(-1).to(torch.int32).contiguous()


def _padding(conv: Any) -> list[tuple[int, int]]:
    flat = list(getattr(conv, "_around", None) or conv._reversed_padding_repeated_twice)
    return list(zip(flat[::2], flat[1::2], strict=True))[::-1]


def _around(node: fx.Node, dims: int) -> list[tuple[int, int]] | None:
    """What `F.pad` puts around the dimensions after the second one; None: not zeros, or not only there."""
    names = ("pad", "mode", "value")
    given = {**dict(zip(names, node.args[1:], strict=False)), **node.kwargs}
    pads: Any = given.get("pad")
    if given.get("mode", "constant") != "constant" or given.get("value") not in (None, 0, 0.0):
        return None
    if not all(isinstance(p, int) and p >= 0 for p in pads) or len(pads) > 2 * (dims - 2):
        return None
    pairs = list(zip(pads[::2], pads[1::2], strict=True))[::-1]
    return [(0, 0)] * (dims - 2 - len(pairs)) + pairs


# -- which modules and functions are which ---------------------------------------------------------------------------


def _norm(plan: Plan, node: fx.Node, source: fx.Node, norm: Any) -> Layout:
    if norm.running_mean is None or norm.running_var is None or plan._shape(source)[1] != norm.num_features:
        raise NotTaken
    factor = (norm.running_var + norm.eps).rsqrt()
    factor = factor if norm.weight is None else factor * norm.weight
    shift = -norm.running_mean * factor
    shift = shift if norm.bias is None else shift + norm.bias
    return plan.affine(node, source, factor.detach(), shift.detach())


def _max_pool(plan: Plan, node: fx.Node, source: fx.Node, kernel: Any, stride: Any = None, padding: Any = 0,
              dilation: Any = 1, ceil_mode: bool = False, return_indices: bool = False) -> Layout:  # fmt: skip
    if return_indices or any(d != 1 for d in _many(dilation, 1)):
        raise NotTaken
    taps = _windows(plan, node, source, kernel, stride, padding, clamp=True)
    return plan.pool(node, source, MAXIMUM, taps, plan._shape(node)[2:])


def _mean_pool(plan: Plan, node: fx.Node, source: fx.Node, kernel: Any, stride: Any = None, padding: Any = 0,
               ceil_mode: bool = False, count_include_pad: bool = True, divisor_override: Any = None) -> Layout:  # fmt: skip
    if ceil_mode or divisor_override is not None or any(_many(padding, 1)):
        raise NotTaken
    taps = _windows(plan, node, source, kernel, stride, padding, clamp=False)
    return plan.pool(node, source, MEAN, taps, plan._shape(node)[2:])


def _adaptive(plan: Plan, node: fx.Node, source: fx.Node, module: Any) -> Layout:
    sizes = plan._shape(source)[2:]
    if any(size != 1 for size in plan._shape(node)[2:]):
        raise NotTaken
    return plan.pool(node, source, MEAN, torch.arange(sizes.numel())[None], plan._shape(node)[2:])


def _windows(plan: Plan, node: fx.Node, source: fx.Node, kernel: Any, stride: Any, padding: Any, clamp: bool) -> Tensor:
    """The pixels of each window, flat; beyond a border its own pixel again, which a maximum does not notice."""
    sizes, outs = plan._shape(source)[2:], plan._shape(node)[2:]
    dims = len(sizes)
    if not dims:
        raise NotTaken
    kernels, paddings = _many(kernel, dims), _many(padding, dims)
    strides = kernels if stride in (None, [], ()) else _many(stride, dims)
    flat = torch.zeros([1] * 2 * dims, dtype=torch.int64)
    for d in range(dims):
        along = (torch.arange(outs[d]) * strides[d] - paddings[d])[:, None] + torch.arange(kernels[d])
        if clamp:
            along = along.clamp(0, sizes[d] - 1)
        shape = [1] * 2 * dims
        shape[d], shape[dims + d] = along.shape
        flat = flat * sizes[d] + along.view(shape)
    return flat.expand(*outs, *kernels).reshape(outs.numel(), -1)


def _many(value: Any, dims: int) -> list[int]:
    return list(value) if isinstance(value, tuple | list) else [value] * dims


def _call(handler: Callable[..., Layout]) -> Callable[..., Layout]:
    """A function of torch with further arguments that are plain numbers."""

    def handle(plan: Plan, node: fx.Node, source: fx.Node) -> Layout:
        named = {{"kernel_size": "kernel"}.get(key, key): value for key, value in node.kwargs.items()}
        return handler(plan, node, source, *node.args[1:], **named)

    return handle


def _relu(plan: Plan, node: fx.Node, source: fx.Node, *_: Any, **__: Any) -> Layout:
    return plan.activation(node, source)


def _dropout(plan: Plan, node: fx.Node, source: fx.Node) -> Any:
    given = {**dict(zip(("p", "training"), node.args[1:], strict=False)), **node.kwargs}
    if given.get("training", True):
        raise NotTaken
    return plan.same(node, source)


def _same(plan: Plan, node: fx.Node, source: fx.Node, *_: Any) -> Any:
    return plan.same(node, source)


def _pools(handler: Any) -> Callable[..., Layout]:
    names = ("padding", "dilation", "ceil_mode", "return_indices", "count_include_pad", "divisor_override")

    def handle(plan: Plan, node: fx.Node, source: fx.Node, module: Any) -> Layout:
        settings = {name: getattr(module, name) for name in names if hasattr(module, name)}
        return handler(plan, node, source, module.kernel_size, module.stride, **settings)

    return handle


MODULES: dict[type, Callable[..., Any]] = {
    nn.ReLU: _relu,
    nn.LeakyReLU: lambda p, n, s, m: p.activation(n, s, torch.tensor([m.negative_slope])),
    nn.PReLU: lambda p, n, s, m: p.activation(n, s, m.weight.detach()),
    **dict.fromkeys((nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, FastDropout), _same),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, ChannelMajorBatchNorm2d), _norm),
    **dict.fromkeys((nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d), _pools(_max_pool)),
    **dict.fromkeys((nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d), _pools(_mean_pool)),
    **dict.fromkeys((nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d), _adaptive),
    nn.Flatten: lambda p, n, s, m: p.flattened(n, s, m),
}

ELEMENTWISE = {
    kind for kind, handler in MODULES.items() if handler in (_relu, _norm, _same) or kind in (nn.LeakyReLU, nn.PReLU)
}

FUNCTIONS: dict[Any, Callable[..., Any]] = {
    F.relu: _relu, torch.relu: _relu, F.dropout: _dropout, F.pad: Plan.pad,
    F.leaky_relu: _call(lambda p, n, s, negative_slope=0.01, inplace=False: p.activation(n, s, torch.tensor([negative_slope]))),
    **dict.fromkeys((F.max_pool1d, F.max_pool2d, F.max_pool3d, torch.max_pool1d, torch.max_pool2d), _call(_max_pool)),
    **dict.fromkeys((F.avg_pool1d, F.avg_pool2d, F.avg_pool3d), _call(_mean_pool)),
    **dict.fromkeys((operator.add, operator.iadd, torch.add), Plan.sum),
    **dict.fromkeys((torch.flatten, torch.permute, torch.transpose, torch.squeeze, torch.unsqueeze, torch.reshape,
                     operator.getitem), Plan.view),
}  # fmt: skip

METHODS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("view", "reshape", "flatten", "permute", "transpose", "squeeze", "unsqueeze", "t"), Plan.view),
    "contiguous": Plan.contiguous, "detach": Plan.same,
    "relu": _relu, "relu_": _relu, "add": Plan.sum, "add_": Plan.sum,
}  # fmt: skip
