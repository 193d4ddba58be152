"""From the nodes of a graph to steps of one kernel: which can be taken, where their numbers lie, what is fused."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from filigree.nn.dropout.dropout import FastDropout
from filigree.nn.sparse.channel_major_batch_norm import ChannelMajorBatchNorm2d
from filigree.ops.curves import CURVE_OF
from filigree.ops.inference import GATHER, GRU, LSTM, MEAN, MULTIPLY, Finishing, Span, Step, Steps
from filigree.ops.panel_weights import PANEL, padded
from filigree.optimize.drafts import Draft, NotTaken, arranged
from filigree.optimize.homes import CONCATENATIONS, goal_of, parts, parts_of
from filigree.optimize.int8_errors import Int8Errors, int8_error
from filigree.optimize.layouts import Layout, by_pixel, is_affine, numbers_by_pixel, sums_of
from filigree.optimize.recurrent import Direction, recurrent_error
from filigree.optimize.tracing import Traced, is_indexed
from filigree.optimize.weights import LayerWeight
from filigree.optimize.windows import cut, padding_of, windows_of, zeros_around

_ELEMENTWISE = (  # what passes on a wish for zeros around its input
    *CURVE_OF, nn.GELU, nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d,
    nn.Dropout3d, FastDropout, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, ChannelMajorBatchNorm2d,
)  # fmt: skip

_FUNCTIONS = (
    F.relu, torch.relu, "relu", "relu_", F.leaky_relu, F.gelu, F.silu, F.relu6, F.hardswish, F.hardsigmoid,
    F.batch_norm, torch.tanh, F.tanh, "tanh", torch.sigmoid, F.sigmoid, "sigmoid",
)  # fmt: skip


class Plan:
    """Steps for a part of a graph with one input; spans are numbered, the first one is the input."""

    def __init__(self, traced: Traced, source: fx.Node, errors: Int8Errors) -> None:
        self.traced, self.source, self.errors = traced, source, errors
        self.sizes: list[int] = []
        self.drafts: list[Draft] = []
        self.layouts: dict[fx.Node, Any] = {}
        self.makers: dict[fx.Node, Draft] = {}  # whose outputs a node's are, while more can be fused into it
        self.nodes: list[fx.Node] = []
        self.homes: dict[fx.Node, Layout] = {}  # of concatenations, where their parts are written at once
        self.written: set[int] = set()  # spans
        self.constants: dict[int, Tensor] = {}  # spans that are the same for all samples
        value = traced.single[source]
        self.layouts[source] = Layout(self.span(value.numel()), torch.arange(value.numel()).view(value.shape))

    @classmethod
    def of(cls, traced: Traced, source: fx.Node, errors: Int8Errors) -> Plan | None:
        """None: what a node holds is no float32 tensor with samples along its first dimension."""
        is_input = traced.samples(source) == (0, 1) and traced.single[source].dtype is torch.float32
        return cls(traced, source, errors) if is_input else None

    # -- products ----------------------------------------------------------------------------------------------------

    def linear(self, node: fx.Node, source: fx.Node, dense: nn.Linear, weight: LayerWeight) -> Layout:
        layout = self.rows_first(source)
        positions = layout.positions.movedim(-1, 1)  # (1, inputs, ...)
        if (sums := sums_of(positions[0].flatten(1) if positions.dim() > 2 else positions[0][:, None])) is None:
            layout = self.gathered(layout, positions, dense.in_features)
            positions = layout.positions
            sums = sums_of(positions[0].flatten(1) if positions.dim() > 2 else positions[0][:, None])
        if sums is None:  # there are no numbers
            raise NotTaken
        sizes = positions.shape[2:]
        out = self.fresh(dense.out_features, sizes)
        self._multiply(node, layout, sums, out, weight, partial(int8_error, dense, weight))
        if not sizes:
            return out
        return Layout(out.span, out.positions.movedim(1, -1))

    def convolution(self, node: fx.Node, source: fx.Node, dense: Any, weight: LayerWeight) -> Layout:
        layout = self.batch_first(source)
        positions = layout.with_zeros(padding_of(dense))
        if not is_affine(positions):
            layout = self.gathered(layout, positions, positions.shape[1])
            positions = layout.positions
        sizes, taps, starts = windows_of(dense, positions.shape[2:])
        inputs = cut(positions[0], (slice(None), *taps)).reshape(-1)
        first = cut(positions[0, 0], starts).reshape(-1)
        out = self.pixels_for(node, dense.out_channels, sizes)
        error = partial(int8_error, dense, weight) if dense.groups == 1 else _never
        whole = self._is_whole(layout)
        self._multiply(node, layout, (first, inputs - inputs[0]), out, weight, error, by_image=whole)
        return out

    def _multiply(
        self, node: fx.Node, source: Layout, sums: tuple[Tensor, Tensor], out: Layout, weight: LayerWeight,
        error: Callable[[Tensor], float], part: str = "", by_image: bool = False,
    ) -> None:  # fmt: skip
        """`error`: of the outputs for some inputs, where products are of bytes."""
        first, inputs = sums
        least = int(inputs.min())
        reads, inputs = first + least, inputs - least
        outputs = len(weight.matrix)
        step = Step(
            MULTIPLY, source.span, out.span, len(reads), table(reads), table(out.positions[0, 0]),
            clear=self.clears(out), by_image=by_image,
            channels=padded(outputs), work=len(reads) * weight.matrix.numel(),
        )  # fmt: skip
        allowed = self.errors.allowed(node, weight, error, part)
        forms = weight.forms(inputs, len(reads) * self._images(), int8=allowed is not None)
        finish = Finishing(bias=weight.bias, relu=weight.relu)
        self.add(node, Draft(step, weight, node, finish, outputs, forms, part=part, error=allowed or 0.0))

    def recurrent(self, node: fx.Node, source: fx.Node, layers: list[list[Direction]], lstm: bool) -> Any:
        """An LSTM's results or, where only the outputs and some layers' last states are read, a GRU's."""
        layout, gates = self.batch_first(source), 4 if lstm else 3
        if layout.positions.dim() != 3 or not is_indexed(node, 3 if lstm else 2):
            raise NotTaken
        time, hidden, last, cells = layout.positions.shape[1], layers[0][0].hidden, [], []
        wide, error = padded(hidden), partial(recurrent_error, layers, lstm)
        for number, directions in enumerate(layers):
            span, row = self.span(time * len(directions) * wide), len(directions) * wide
            steps = torch.arange(time) * row
            columns = [side * wide + torch.arange(hidden) for side in range(len(directions))]
            for side, direction in enumerate(directions):
                rows = layout.positions[0].t()
                if (sums := sums_of(rows)) is None:
                    layout = self.gathered(layout, rows[None], len(rows))
                    sums = sums_of(layout.positions[0])
                if sums is None:
                    raise NotTaken
                suffix = f"_l{number}" + "_reverse" * side
                inputs = self.fresh(gates * wide, (time,))
                of_inputs = partial(error, rounded=direction.inputs)
                self._multiply(node, layout, sums, inputs, direction.inputs, of_inputs, f"ih{suffix}")
                order = torch.arange(time).flip(0) if side else torch.arange(time)
                state = self.span((2 + gates) * wide)
                step = Step(
                    LSTM if lstm else GRU, inputs.span, span, time, table(order * gates * wide),
                    table(steps[order] + side * wide), state, channels=wide,
                    work=time * direction.states.matrix.numel(),
                )  # fmt: skip
                weight = direction.states
                allowed = self.errors.allowed(node, weight, partial(error, rounded=weight), f"hh{suffix}")
                draft = Draft(step, weight, node, Finishing(bias=weight.bias), gates * wide, part=f"hh{suffix}")
                draft.forms = weight.forms(torch.arange(hidden), 1, int8=allowed is not None)
                draft.error = allowed or 0.0
                self.drafts.append(draft)
                last.append(Layout(span, (steps[order[-1]] + columns[side])[None]))
                cells.append(Layout(state, torch.arange(hidden)[None]))
            layout = Layout(span, (steps[:, None] + torch.cat(columns))[None])
        return (layout, (last, cells)) if lstm else (layout, last)

    # -- elementwise -------------------------------------------------------------------------------------------------

    def activation(self, node: fx.Node, source: fx.Node, slope: Tensor | None = None, curve: str = "") -> Layout:
        """ReLU, a slope below zero (one number, or one a channel), or another curve."""
        parts: dict[str, Any] = {"curve": curve} if curve else {"relu": True, "slope": slope}
        per_channel = slope is not None and slope.numel() > 1
        if per_channel:
            self.batch_first(source)
        draft = self.open_step(source, 1 if per_channel else None)
        if draft is not None and draft.finish.factor is None and not draft.finish.is_curved:
            self._finish(node, draft, **parts)
            return self.layouts[source]
        layout, draft = self._alone(node, source, 1 if per_channel else None)
        self._finish(node, draft, **parts)
        return layout

    def affine(self, node: fx.Node, source: fx.Node, factor: Tensor, shift: Tensor, dim: int = 1) -> Layout:
        """Times a factor plus a shift, by channel: what a batch norm is in eval mode; or along the last dimension."""
        draft, layout = self.open_step(source, dim), self.layouts[source]
        if draft is None:
            layout, draft = self._alone(node, source, dim)
        finish = draft.finish
        if finish.factor is not None and finish.shift is not None:
            factor, shift = factor * finish.factor, factor * finish.shift + shift
        elif not finish.is_curved:
            bias = shift if finish.bias is None else finish.bias * factor + shift
            self._finish(node, draft, scale=factor if finish.scale is None else finish.scale * factor, bias=bias)
            return layout
        self._finish(node, draft, factor=factor, shift=shift)
        return layout

    def _finish(self, node: fx.Node, draft: Draft, **parts: Any) -> None:
        replaced = Draft(**{**vars(draft), "finish": draft.finish._replace(**parts)})
        self.drafts[self.drafts.index(draft)] = replaced
        self.makers = {n: replaced if maker is draft else maker for n, maker in self.makers.items()}
        self.makers[node] = replaced

    def open_step(self, source: fx.Node, dim: int | None) -> Draft | None:
        """The step that makes a node's numbers, if nothing else reads them, and with its outputs along a dimension."""
        draft = self.makers.get(source)
        layout = self.layouts[source]
        if draft is None or len(source.users) != 1 or layout.positions.numel() != draft.step.points * draft.outputs:
            return None
        if dim is None or (dim == 1 and layout.is_by_pixel):
            return draft
        return draft if _are_channels(layout.positions.movedim(dim, 1), draft) else None

    def _alone(self, node: fx.Node, source: fx.Node, dim: int | None) -> tuple[Layout, Draft]:
        """A step that copies the numbers of a node, to be fused into, its outputs along a dimension (None: any)."""
        if dim not in (None, 1, len(self.shape(source)) - 1):
            raise NotTaken
        if dim == 1 or (dim is None and not self.has_vectors(source)):
            return self._pooled(node, source, MEAN, None, None)
        return self._vectors_alone(node, source)

    def _vectors_alone(self, node: fx.Node, source: fx.Node, mean: bool = False) -> tuple[Layout, Draft]:
        """The same for vectors along the last dimension; or the mean of them."""
        layout, reads = self.vectors(source)
        count, sizes = layout.positions.shape[-1], () if mean else layout.positions.shape[1:-1]
        out = self.fresh(count, sizes)
        step = Step(
            MEAN, layout.span, out.span, 1 if mean else len(reads), table(reads), table(out.positions[0, 0]),
            taps=len(reads) if mean else 1, channels=padded(count), work=len(reads) * count // 4,
        )  # fmt: skip
        draft = Draft(step, outputs=count)
        self.add(node, draft)
        return Layout(out.span, out.positions.movedim(1, -1)), draft

    def mean_of_vectors(self, node: fx.Node, source: fx.Node) -> Layout:
        """`(1, channels)` of `(1, ..., channels)`."""
        return self._vectors_alone(node, source, mean=True)[0]

    # -- pools, sums -------------------------------------------------------------------------------------------------

    def pool(
        self, node: fx.Node, source: fx.Node, kind: int, taps: Tensor, sizes: Sequence[int],
        divisors: Tensor | None = None,
    ) -> Layout:  # fmt: skip
        """Each pixel's maximum or mean over the pixels `taps` `(pixels, taps)`, flat indices of the input's pixels.

        With `divisors`, one a pixel, sums are divided by these; the last taps of a pixel may be -1, which are none.
        """
        return self._pooled(node, source, kind, taps, sizes, divisors)[0]

    def _pooled(
        self, node: fx.Node, source: fx.Node, kind: int, taps: Tensor | None, sizes: Sequence[int] | None,
        divisors: Tensor | None = None,
    ) -> tuple[Layout, Draft]:  # fmt: skip
        layout = self.pixels(source)
        channels = layout.positions.shape[1]
        sizes = layout.positions.shape[2:] if sizes is None else sizes
        pixels = layout.positions[0, 0].reshape(-1)
        reads = pixels[:, None] if taps is None else torch.where(taps < 0, taps, pixels[taps])
        out = self.pixels_for(node, channels, sizes)
        step = Step(
            kind, layout.span, out.span, len(reads), table(reads), table(out.positions[0, 0]), taps=reads.shape[1],
            others=None if divisors is None else table(divisors), channels=padded(channels), clear=self.clears(out),
            work=reads.numel() * channels // 4,
        )  # fmt: skip
        draft = Draft(step, outputs=channels)
        self.add(node, draft)
        return out, draft

    def _is_whole(self, layout: Layout) -> bool:
        """Whether a layout holds all numbers of its span that a node has: those of a part may be far larger."""
        others = [
            each
            for each in (*self.layouts.values(), *self.homes.values())
            if isinstance(each, Layout) and each.span == layout.span
        ]
        count = _count(layout)
        return all(_count(each) <= count for each in others)

    # -- memory ------------------------------------------------------------------------------------------------------

    def span(self, size: int) -> int:
        self.sizes.append(size)
        return len(self.sizes) - 1

    def fresh(self, channels: int, sizes: Sequence[int]) -> Layout:
        """New memory for `(1, channels, *sizes)`, pixel by pixel, with no zeros around."""
        halo = [(0, 0)] * len(sizes)
        return by_pixel(self.span(numbers_by_pixel(channels, sizes, halo)), channels, sizes, halo)

    def add(self, node: fx.Node, draft: Draft) -> None:
        self.drafts.append(draft)
        self.makers[node] = draft

    def shape(self, node: fx.Node) -> torch.Size:
        """For one sample; what has several rows a sample along its first dimension has these along the second one."""
        shape, samples = self.traced.single[node].shape, self.traced.samples(node)
        return torch.Size((1, *shape)) if samples is not None and samples[0] == 0 and samples[1] > 1 else shape

    def _images(self) -> int:
        return int(self.traced.values[self.source].shape[0])

    def rows_first(self, node: fx.Node) -> Layout:
        """The layout of a node with its samples along the first dimension, `(1, ...)`, or `(1, rows, ...)` where a
        sample has several rows there."""
        layout = self.layouts[node]
        if not isinstance(layout, Layout) or layout.batch_dim != 0:
            raise NotTaken
        return layout

    def batch_first(self, node: fx.Node) -> Layout:
        """The same with one row a sample, so that dimensions are those of the node."""
        layout = self.rows_first(node)
        if layout.merged:
            raise NotTaken
        return layout

    def gathered(self, layout: Layout, positions: Tensor, width: int) -> Layout:
        """The numbers `(1, channels, ...)` at these positions, copied pixel by pixel, `width` numbers each."""
        channels, sizes = positions.shape[1], positions.shape[2:]
        halo = [(0, 0)] * len(sizes)
        size = numbers_by_pixel(channels, sizes, halo, width)
        out = by_pixel(self.span(size), channels, sizes, halo, width)
        reads = torch.full((size,), -1)
        reads[out.positions.reshape(-1)] = positions.reshape(-1)
        self.drafts.append(Draft(Step(GATHER, layout.span, out.span, size, table(reads), work=size)))
        return out

    def pixels_for(self, node: fx.Node, channels: int, sizes: Sequence[int]) -> Layout:
        """A layout for what a node makes, pixel by pixel, with the zeros around that its readers want: a new one, or a
        part of that of a concatenation it goes to."""
        if (goal := goal_of(self.traced, node, self.passes_on)) is not None:
            concatenation, part = goal
            if concatenation not in self.homes:
                total = self.shape(concatenation)[1]
                self.homes[concatenation] = self.pixels_for(concatenation, total, sizes)
            within = parts_of(self.traced, concatenation, self.homes[concatenation])
            return within[parts(concatenation).index(part)]
        halo = self.halo(node, len(sizes))
        for part in parts(node) if node.target in CONCATENATIONS else ():  # which are read there
            wanted = self.halo(part, len(sizes))
            halo = [(max(a, c), max(b, d)) for (a, b), (c, d) in zip(halo, wanted, strict=True)]
        return by_pixel(self.span(numbers_by_pixel(channels, sizes, halo)), channels, sizes, halo)

    def clears(self, out: Layout, has_gaps: bool = False) -> bool:
        """Whether a step that writes there must write zeros first: around the pixels or in gaps, if it is the first."""
        is_first = out.span not in self.written
        self.written.add(out.span)
        return (out.has_halo or has_gaps) and is_first

    def pixels(self, node: fx.Node) -> Layout:
        """The layout of a node, pixel by pixel."""
        layout = self.batch_first(node)
        if layout.is_by_pixel:
            return layout
        return self.gathered(layout, layout.positions, padded(layout.positions.shape[1]))

    def has_vectors(self, node: fx.Node) -> bool:
        """Whether the numbers along the last of several dimensions are beside one another, in whole panels."""
        positions = self.rows_first(node).positions
        if positions.dim() < 3 or positions.shape[-1] % PANEL or not positions.numel() or int(positions.min()) < 0:
            return False
        return torch.equal(positions, positions[..., :1] + torch.arange(positions.shape[-1]))

    def vectors(self, node: fx.Node) -> tuple[Layout, Tensor]:
        """The layout of a node `(1, ..., channels)`, each vector's numbers beside one another up to a whole panel, and
        where the vectors begin."""
        layout = self.rows_first(node)
        if not self.has_vectors(node):
            positions = layout.positions.movedim(-1, 1)
            gathered = self.gathered(layout, positions, padded(positions.shape[1]))
            layout = Layout(gathered.span, gathered.positions.movedim(1, -1))
        return layout, layout.positions[0, ..., 0].reshape(-1)

    def halo(self, node: fx.Node, dims: int) -> list[tuple[int, int]]:
        """How many zeros those who read a node want around it."""
        most = [(0, 0)] * dims
        for user in node.users:
            module = self.traced.module_of(user)
            wanted: Sequence[tuple[int, int]] | None = None
            if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) or hasattr(module, "padding_mode"):
                wanted = padding_of(module) if getattr(module, "padding_mode", "") == "zeros" else None
            elif user.op == "call_function" and user.target is F.pad:
                around = zeros_around(user, dims + 2) or [(1, 1)]
                wanted = None if any(map(any, around[:2])) else around[2:]
            elif self.passes_on(user, node):
                wanted = self.halo(user, dims)
            if wanted is not None and len(wanted) == dims:
                most = [(max(a, c), max(b, d)) for (a, b), (c, d) in zip(most, wanted, strict=True)]
        return most

    def passes_on(self, user: fx.Node, node: fx.Node) -> bool:
        """Whether what reads a node makes each number from that one alone, and leaves it where it is."""
        if type(self.traced.module_of(user)) in _ELEMENTWISE or user.target in _FUNCTIONS:
            return True
        if user.target is not operator.getitem or self.traced.single[user].shape != self.shape(node):
            return False
        index: Any = user.args[1]
        return all(isinstance(each, slice) or each is ... for each in (index if isinstance(index, tuple) else (index,)))

    # -- forms -------------------------------------------------------------------------------------------------------

    def alone(self, draft: Draft, form: str, images: int) -> Callable[[], Any]:
        """A call of one step by itself, in a form, on random numbers."""
        step, sizes = replace(draft, form=form).built(), self.sizes
        spans = [Span(sizes[step.source]), Span(sizes[step.target]), Span(sizes[step.other], 0)]
        alone = Steps(spans, [replace(step, source=0, target=1, other=2, third=0)], images)
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
            drafts.append(Draft(Step(GATHER, layout.span, given[-1], len(positions), table(positions))))
        steps = [draft.built() for draft in drafts]
        return arranged(steps, sizes, given, self.constants, chunk)


def _count(layout: Layout) -> int:
    """How many numbers a layout holds, each counted once."""
    return len(layout.positions[layout.positions >= 0].unique())


def _are_channels(positions: Tensor, draft: Draft) -> bool:
    """Whether a view `(1, channels, ...)` holds the outputs of a step for all its points, in their order."""
    if positions.dim() < 2 or not positions.numel() or positions.shape[1] != draft.outputs or draft.step.writes is None:
        return False
    rows = positions[0].flatten(1) if positions.dim() > 2 else positions[0][:, None]
    whole = torch.equal(rows, rows[:1] + torch.arange(draft.outputs)[:, None])
    return whole and torch.equal(table(rows[0].sort().values), draft.step.writes.sort().values)


def table(positions: Tensor) -> Tensor:
    return positions.reshape(-1).to(torch.int32).contiguous()


def _never(x: Tensor) -> float:
    """The error of what is not to be rounded."""
    return float("inf")
