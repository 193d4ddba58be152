"""All kernels on random matrices, of random instruction sets and numbers of threads, against plain torch.

Made for `fuzz/sanitize.sh`, which runs it on kernels built with AddressSanitizer and UndefinedBehaviorSanitizer:

    python fuzz/kernels.py --kernels build/_kernels.so --rounds 2000 --seed 0

Every tensor that a kernel reads or writes is of the exact size and in a block of memory of its own (index arrays are
taken out of numpy's pools), so that a step beyond its end is seen.
"""

from __future__ import annotations

import argparse
import collections
import importlib.util
import itertools
import os
import random
import sys
import time

import torch
from torch import Tensor

Counts = collections.Counter[str]
THREADS = (1,) if os.environ.get("OMP_NUM_THREADS") == "1" else (1, 1, 2, 3)


def load(path: str) -> None:
    """Put this build of the kernels in the place of the installed one."""
    spec = importlib.util.spec_from_file_location("filigree.ops._kernels", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules["filigree.ops._kernels"] = module


class Driver:
    def __init__(self, seed: int) -> None:
        from filigree.ops import (
            _load,
            addresses,
            chain,
            conv,
            dropout,
            inference,
            int8,
            integers,
            noise,
            noisy_rnn,
            panel_weights,
            reference,
            rows,
            selection,
            sell,
            sparse,
        )
        from filigree.ops.curves import SMOOTH
        from filigree.ops.linear_chain import linear_chain
        from filigree.topology import flat_indices

        self.kernels, self.addresses = _load.kernels, addresses
        self.link, self.chain, self.linear_chain, self.smooth = chain.Link, chain.Chain, linear_chain, SMOOTH
        self.conv, self.dropout, self.integers, self.noise, self.rnn = conv, dropout, integers, noise, noisy_rnn
        self.reference, self.rows, self.selection, self.sell, self.sparse, self.flat_indices = (
            reference, rows, selection, sell, sparse, flat_indices
        )  # fmt: skip
        self.inference, self.int8, self.panels = inference, int8, panel_weights
        self.random = random.Random(seed)
        self.cases = [getattr(self, name) for name in dir(self) if name.startswith("run_")]
        torch.manual_seed(seed)

    def round(self) -> str:
        self.kernels.set_isa(self.random.choice(self.kernels.isas()))
        torch.set_num_threads(self.random.choice(THREADS))
        self.kernels.set_level2_bytes(self.random.choice((1, 1 << 30)))  # narrow and wide panels
        self.dtype = self.random.choice((torch.float32, torch.float64))
        case = self.random.choice(self.cases)
        case()
        return f"{case.__name__.removeprefix('run_')}/{self.kernels.isa()}"

    # -- what the cases draw -----------------------------------------------------------------------------------------

    def side(self, least: int = 1) -> int:
        return max(least, self.random.choice((0, 1, 2, 3, 5, 8, 17, 31, 64, 129, self.random.randint(1, 200))))

    def matrix(self, rows: int, cols: int) -> Tensor:
        """`(rows, cols)` in some memory order: contiguous, transposed, a slice, strided, or expanded."""
        how = self.random.randrange(6)
        if how == 0:
            return torch.randn(cols, rows, dtype=self.dtype).t()
        if how == 1:
            return torch.randn(rows + 2, cols + 3, dtype=self.dtype)[1 : rows + 1, 2 : cols + 2]
        if how == 2:
            return torch.randn(rows, 2 * cols, dtype=self.dtype)[:, ::2]
        if how == 3:
            return torch.randn(1, cols, dtype=self.dtype).expand(rows, cols)
        if how == 4:
            return torch.randn(rows, 1, dtype=self.dtype).expand(rows, cols)
        return torch.randn(rows, cols, dtype=self.dtype)

    def vector(self, size: int) -> Tensor:
        if self.random.random() < 0.2:
            return torch.randn(size, 3, dtype=self.dtype)[:, 1]
        return torch.randn(size, dtype=self.dtype)

    def pattern(self, rows: int, cols: int) -> object:
        """A random pattern; now and then with empty rows, empty columns, or nothing at all."""
        density = self.random.choice((0.0, 0.01, 0.1, 0.5, 1.0, self.random.random()))
        places = self.flat_indices.distinct(rows * cols, round(density * rows * cols), torch.Generator().manual_seed(
            self.random.randrange(2**31)))  # fmt: skip
        if self.random.random() < 0.3 and rows and cols:
            places = places[(places // cols) % 2 == self.random.randrange(2)]
        if self.random.random() < 0.3 and cols:
            places = places[(places % cols) % 3 != 0]
        pattern = self.flat_indices.pattern_from_flat_indices(places, rows, cols)
        wide = self.random.random() < 0.3
        return self.sparse.Pattern(*(part.long() if wide else part.clone() for part in pattern))

    def close(self, mine: Tensor, expected: Tensor) -> None:
        tolerance = 1e-9 if self.dtype == torch.float64 else 2e-3
        torch.testing.assert_close(mine, expected, rtol=tolerance, atol=tolerance)

    # -- cases -------------------------------------------------------------------------------------------------------

    def run_products(self) -> None:
        rows, cols, batch = self.side(), self.side(), self.side(0)
        pattern, x, dy = self.pattern(rows, cols), self.matrix(cols, batch), self.matrix(rows, batch)
        values = self.vector(pattern.nnz)
        self.close(self.sparse.spmm(pattern, values, x), self.reference.spmm(pattern, values, x))
        self.close(self.sparse.spmm_t(pattern, values, dy), self.reference.spmm_t(pattern, values, dy))
        self.close(self.sparse.sddmm(pattern, dy, x), self.reference.sddmm(pattern, dy, x))

    def run_backward(self) -> None:
        """The kernel that convolutions use, on its own."""
        rows, cols, batch = self.side(), self.side(), self.side(0)
        pattern = self.pattern(rows, cols)
        x, dy = torch.randn(cols, batch, dtype=self.dtype), torch.randn(rows, batch, dtype=self.dtype)
        values, order = torch.randn(pattern.nnz, dtype=self.dtype), pattern.t_perm.long()
        ordered, dx, dvalues = values[order], torch.empty_like(x), torch.empty_like(values)
        self.kernels.backward(
            self.dtype is torch.float64, self.addresses.index(pattern)[1], ordered.data_ptr(),
            self.addresses.matrix(dy), self.addresses.matrix(x), self.addresses.matrix(dx), dvalues.data_ptr(), batch,
        )  # fmt: skip
        self.close(dx, self.reference.spmm_t(pattern, values, dy))
        self.close(dvalues, self.reference.sddmm(pattern, dy, x)[order])

    def run_linear(self) -> None:
        rows, cols, batch = self.side(), self.side(), self.side(0)
        pattern, x = self.pattern(rows, cols), self.matrix(batch, cols)
        values, bias = self.vector(pattern.nnz), self.vector(rows) if self.random.random() < 0.7 else None
        relu = self.random.random() < 0.5
        inputs = [t.detach().requires_grad_() for t in (values, bias, x) if t is not None]
        if self.random.random() < 0.3:
            inputs[-1].requires_grad_(False)
        leaves = iter(inputs)
        v, b, x = next(leaves), None if bias is None else next(leaves), next(leaves)
        mine = self.sparse.linear(pattern, v, b, x, relu)
        expected = self.reference.linear(pattern, v, b, x, relu)
        self.close(mine, expected)
        dy, wanted = self.matrix(batch, rows), [t for t in inputs if t.requires_grad]
        grads = [torch.autograd.grad(y, wanted, dy) for y in (mine, expected)]
        if not relu:  # a sum next to zero may fall on either side of it
            for a, b in zip(*grads, strict=True):
                self.close(a, b)

    def run_chain(self) -> None:
        """Layers in one call, with activations and dropout, stored in any type; gradients in float64 with ReLU, too."""
        batch, sides = self.side(0), [self.side() for _ in range(self.random.randint(2, 5))]
        links = []
        for cols, rows in itertools.pairwise(sides):
            pattern, relu = self.pattern(rows, cols), self.random.random() < 0.7
            curve = self.random.choice(("", *self.smooth)) if not relu and len(links) < len(sides) - 2 else ""
            drop = self.random.choice((0.0, 0.3, 0.5)) if relu or curve else 0.0
            bias = torch.randn(rows, dtype=self.dtype, requires_grad=True) if self.random.random() < 0.7 else None
            values = (self.vector(pattern.nnz) / (1 + pattern.nnz / rows) ** 0.5).detach().requires_grad_()
            links.append(self.link(pattern, values, bias, relu, drop, self.random.randrange(-(2**63), 2**63), curve))
        if len({link.pattern.indices.dtype for link in links}) > 1:
            links = [
                link._replace(pattern=self.sparse.Pattern(*(part.long() for part in link.pattern))) for link in links
            ]
        x = self.matrix(batch, sides[0])
        short = self.dtype is torch.float32 and self.random.random() < 0.5
        x = x.to(self.random.choice((torch.bfloat16, torch.float16))) if short else x
        x = x.detach().requires_grad_(self.random.random() < 0.7)
        mine, expected = self.linear_chain(self.chain(links), x, self.random.random() < 0.5), x.to(self.dtype)
        for link in links:
            expected = self.reference.linear(link.pattern, link.values, link.bias, expected, link.relu)
            expected = self.smooth[link.curve](expected) if link.curve else expected
            if link.drop:
                expected = self.dropout.dropout(expected.t().contiguous().t(), link.drop, link.seed)
        if short:
            assert (mine.double() - expected).norm() <= 0.03 * (1 + expected.detach().double().norm())
        else:
            self.close(mine, expected)
        dy, wanted = self.matrix(batch, sides[-1]), [t for link in links for t in link[1:3] if t is not None]
        wanted += [x] if x.requires_grad else []
        grads = torch.autograd.grad(mine, wanted, dy.to(mine.dtype))
        if self.dtype is torch.float64 or not (short or any(link.relu for link in links)):  # as in run_linear
            for a, b in zip(grads, torch.autograd.grad(expected, wanted, dy), strict=True):
                self.close(a, b)

    def run_rows(self) -> None:
        rows, cols, batch = self.side(), self.side(), self.side(0)
        pattern, x = self.pattern(rows, cols), self.matrix(batch, cols).detach().requires_grad_()
        values, bias = self.vector(pattern.nnz).detach().requires_grad_(), self.vector(rows).detach().requires_grad_()
        chosen = torch.randperm(rows)[: self.random.randint(0, rows)].sort().values
        mask = torch.zeros(rows, dtype=self.dtype).index_fill_(0, chosen, 1)
        leaves = (values, bias, x)
        mine = self.rows.rows_linear(pattern, chosen, values, bias, x)
        expected = self.reference.linear(pattern, values, bias, x, False) * mask
        self.close(mine, expected)
        dy = self.matrix(batch, rows)
        wanted = leaves if self.random.random() < 0.7 else leaves[:2]
        for a, b in zip(torch.autograd.grad(mine, wanted, dy), torch.autograd.grad(expected, wanted, dy), strict=True):
            self.close(a, b)
        few = torch.randn(len(chosen), batch, dtype=self.dtype)
        dx, dvalues = self.rows.rows_backward(pattern, chosen, values.detach(), few, x.detach().t())
        full = torch.zeros(rows, batch, dtype=self.dtype).index_copy_(0, chosen, few)
        self.close(dx, self.reference.spmm_t(pattern, values.detach(), full))
        self.close(dvalues, self.reference.sddmm(pattern, full, x.detach().t()))

    def run_conv(self) -> None:
        groups, pick = self.random.choice((1, 1, 2)), self.random.randint
        channels, outs = groups * pick(1, 6), groups * pick(1, 6)
        g = self.conv.Geometry(
            (pick(1, 4), pick(1, 4)), (pick(1, 3), pick(1, 3)), (pick(0, 2), pick(0, 2), pick(0, 2), pick(0, 2)),
            (pick(1, 2), pick(1, 2)), groups,
        )  # fmt: skip
        images, height, width = pick(0, 20), pick(8, 20), pick(8, 20)
        x = torch.randn(images, channels, height, width, dtype=self.dtype)
        how = pick(0, 3)
        if how == 0:
            x = x.transpose(0, 1).contiguous().transpose(0, 1)
        elif how == 1:
            x = x.contiguous(memory_format=torch.channels_last)
        elif how == 2:
            x = torch.randn(images, channels, height + 2, 2 * width, dtype=self.dtype)[:, :, 1:-1, ::2]
        pattern = self.pattern(outs, channels // groups * g.kernel[0] * g.kernel[1])
        values = self.vector(pattern.nnz).detach().requires_grad_()
        bias = self.vector(outs).detach().requires_grad_()
        x = x.detach().requires_grad_(self.random.random() < 0.7)
        mine = self.conv.conv2d(values, bias, x, pattern.indptr, pattern.indices, g)
        expected = self.conv._dense(values, bias, x, pattern.indptr, pattern.indices, g.flat())
        self.close(mine, expected)
        dy = torch.randn_like(expected)
        if pick(0, 1):
            dy = dy.transpose(2, 3).contiguous().transpose(2, 3)
        wanted = [t for t in (values, bias, x) if t.requires_grad]
        for a, b in zip(torch.autograd.grad(mine, wanted, dy), torch.autograd.grad(expected, wanted, dy), strict=True):
            self.close(a, b)

    def run_top(self) -> None:
        rows, width, cols = self.side(0), self.side(2), self.side()
        x, k = self.matrix(rows, width), self.random.randint(1, width - 1)
        if self.random.random() < 0.4:
            x = torch.where(torch.rand(rows, width) < 0.7, 0, x)
        if self.random.random() < 0.3:
            x = x.round()  # ties
        expected = self.selection.top_mask(x, k).to(x.dtype) * x
        for transposed in (True, False):
            kept = self.selection.top(x, k, transposed)
            self.close(self.selection.dense(kept), expected)
            self.close(self.selection.times(kept, w := self.matrix(width, cols)), expected @ w)
            if transposed:
                self.close(self.selection.t_times(kept, other := self.matrix(rows, cols)), expected.t() @ other)
                self.close(self.selection.sums(kept), expected.sum(0))
                few = self.selection.top(self.matrix(rows, width), 1)
                if isinstance(kept, self.selection.Rows) and isinstance(few, self.selection.Rows):
                    self.close(self.selection._outer(kept, few), expected.t() @ few.dense())

    def run_top_backward(self) -> None:
        batch, outs, ins = self.side(0), self.side(2), self.side()
        delta, x, w = self.matrix(batch, outs), self.matrix(batch, ins), self.matrix(outs, ins)
        k, unified = self.random.randint(1, outs - 1), self.random.random() < 0.5
        wanted = self.random.random() < 0.8, self.random.random() < 0.8
        dx, dw, db = self.selection.top_backward(delta, x, w, k, unified, *wanted)
        if unified:
            return  # sums of magnitudes in another order may choose another neuron
        kept = self.selection.top_mask(delta, k).to(delta.dtype) * delta
        self.close(db, kept.sum(0))
        if dx is not None:
            self.close(dx, kept @ w)
        if dw is not None:
            self.close(dw, kept.t() @ x)

    def run_integers(self) -> None:
        rows, cols, batch = self.side(), self.random.choice((self.side(), 2**15 + 5)), self.side(0)
        pattern = self.pattern(min(rows, 9) if cols > 1000 else rows, cols)
        counts = torch.randint(-300, 300, (pattern.nnz,), dtype=torch.int32)
        integers = self.integers.Integers.of(pattern.indptr.int(), pattern.indices.int(), counts, cols)
        integers = self.integers.Integers(*(part.clone() for part in integers))
        x, scale = self.matrix(batch, cols), self.vector(pattern.rows)
        bias = self.vector(pattern.rows) if self.random.random() < 0.5 else None
        mine = self.integers.integer_linear(integers, cols, x, scale / 300, bias, False)
        expected = self.integers._reference(integers, x, scale / 300, bias, False)
        tolerance = 1e-8 if self.dtype == torch.float64 else 2e-2
        torch.testing.assert_close(mine, expected, rtol=tolerance, atol=tolerance)

    def finish(self, outputs: int) -> object:
        """What follows sums, some of it; and `self.finished`, the same in plain torch."""
        scale, bias, slope, factor, shift = (
            torch.randn(outputs) if self.random.random() < 0.4 else None for _ in range(5)
        )
        shift = None if factor is None else torch.randn(outputs)
        curve = self.random.choice(("", "gelu", "gelu_tanh", "silu", "tanh", "relu6"))
        relu = not curve and self.random.random() < 0.5
        finish = self.inference.Finishing(scale, bias, None if curve else slope, factor, shift, relu, curve)

        def finished(sums: Tensor) -> Tensor:
            y = sums if scale is None else sums * scale
            y = y if bias is None else y + bias
            if finish.slope is not None:
                y = torch.where(y < 0, y * finish.slope, y)
            elif relu:
                y = y.relu()
            functional = torch.nn.functional
            y = {
                "": lambda v: v, "gelu": functional.gelu, "silu": functional.silu, "tanh": torch.tanh,
                "relu6": functional.relu6, "gelu_tanh": lambda v: functional.gelu(v, approximate="tanh"),
            }[curve](y)  # fmt: skip
            return y if factor is None else y * factor + shift

        self.finished = finished
        return finish.packed(outputs)

    def steps(self, step: object, sizes: list[int], tensors: list[Tensor], images: int) -> Tensor:
        """The numbers that a step writes; tensors are given, of `sizes` for each image."""
        y = torch.full((images, sizes[-1]), float("nan"))
        spans = [self.inference.Span(size) for size in sizes]
        self.inference.Steps(spans, [step], self.random.choice((1, 3, 64))).run(
            [*(t.contiguous().clone() for t in tensors), y], images
        )
        return y

    def run_inference(self) -> None:
        """Products of every coding, at inputs that lie anywhere."""
        outputs, depth, images = (
            self.side(),
            self.random.choice((self.side(), self.side(), 700)),
            self.random.randint(0, 9),
        )
        points = self.random.choice((1, 1, 2, 7, 70))
        coding = self.random.choice(self.panels.CODINGS)
        self.kernels.set_multiplies_fours(self.random.random() < 0.7)
        density = self.random.choice((0.0, 0.05, 0.3, 1.0))
        weight = torch.randint(-127, 128, (outputs, depth)) * (torch.rand(outputs, depth) < density)
        positions = torch.randperm(depth + self.random.choice((0, 9)))[:depth].sort().values
        if self.random.random() < 0.5:
            positions = positions[torch.randperm(depth)]
        positions = positions - positions.min()
        size, wide = int(positions.max()) + 1, self.panels.padded(outputs)
        by_image = coding in self.panels.INT8_CODINGS and self.random.random() < 0.5
        x = torch.randn(images, points, size)
        whole = weight.to(torch.int8) if coding == "bytes" or coding in self.panels.INT8_CODINGS else weight.float()
        step = self.inference.Step(
            self.inference.MULTIPLY, 0, 1, points, (torch.arange(points) * size).int(),
            (torch.arange(points) * wide).int(), weight=self.panels.pack(coding, whole, positions), by_image=by_image,
            finish=self.finish(outputs), clear=self.random.random() < 0.3, work=1 << 18,
        )  # fmt: skip
        y = self.steps(step, [points * size, points * wide], [x], images).view(images, points, wide)
        if coding in self.panels.INT8_CODINGS:
            rounded = self.int8.int8_inputs(x if by_image else x[..., positions].flatten(0, 1))
            x = rounded.dequantised().view(images, points, size if by_image else depth)
            x = x[..., positions] if by_image else x
        else:
            x = x[..., positions]
        expected = self.finished((x.double() @ weight.double().t()).float())
        self.kernels.set_multiplies_fours(True)
        scale = max(1.0, float(expected.abs().max())) if expected.numel() else 1.0
        torch.testing.assert_close(y[..., :outputs] / scale, expected / scale, rtol=1e-3, atol=1e-4)

    def run_inference_of_transformers(self) -> None:
        heads, tokens, images = self.random.randint(1, 3), self.side(), self.random.randint(0, 5)
        keys, width, of_value = self.side(), *(self.random.choice((1, 7, 16, 32, 80)) for _ in range(2))
        wide, counts, widths = self.panels.padded(of_value), (tokens, keys, keys), (width, width, of_value)
        reads = [
            (torch.arange(heads)[:, None] + torch.arange(n) * heads) * w for n, w in zip(counts, widths, strict=True)
        ]
        writes = ((torch.arange(heads)[:, None] + torch.arange(tokens) * heads) * wide).int()
        qkv = [torch.randn(images, n, heads, w) for n, w in zip(counts, widths, strict=True)]
        bias = torch.randn(self.random.choice((1, heads)), tokens, keys) if self.random.random() < 0.5 else None
        rows = None if bias is None else torch.nn.functional.pad(bias, (0, self.panels.padded(keys) - keys))
        step = self.inference.Step(
            self.inference.ATTENTION, 0, 3, tokens, reads[0].int(), writes, 1, 2, torch.cat(reads[1:]).int(),
            taps=heads, channels=width, number=0.2, work=1 << 18,
            attention=self.inference.Attention(keys, of_value, rows),
        )  # fmt: skip
        sizes = [n * heads * w for n, w in zip((*counts, tokens), (*widths, wide), strict=True)]
        y = self.steps(step, sizes, qkv, images).view(images, tokens, heads, wide)[..., :of_value]
        q, k, v = (each.transpose(1, 2) for each in qkv)
        weights = (0.2 * q @ k.transpose(-2, -1) + (0 if bias is None else bias)).softmax(-1)
        torch.testing.assert_close(y, (weights @ v).transpose(1, 2), rtol=1e-3, atol=1e-4)
        channels, places = 48, (torch.arange(tokens) * 48).int()
        x = torch.randn(images, tokens, channels)
        step = self.inference.Step(
            self.inference.NORM, 0, 1, tokens, places, places, taps=channels, channels=channels, number=1e-5,
            finish=self.inference.Finishing(factor=torch.ones(channels), shift=torch.zeros(channels)), work=1 << 18,
        )  # fmt: skip
        y = self.steps(step, [tokens * channels] * 2, [x], images).view(images, tokens, channels)
        torch.testing.assert_close(y, torch.nn.functional.layer_norm(x, (channels,)), rtol=1e-3, atol=1e-4)

    def run_inference_of_networks(self) -> None:
        """Whole networks, laid out as `optimize_` does: pools, sums, padding, loops over time."""
        from torch import nn

        from filigree.optimize.graphs import graph_of, plans_of
        from filigree.optimize.int8_errors import Int8Errors
        from filigree.optimize.tracing import Traced

        a, b, c = (self.random.randint(1, 40) for _ in range(3))
        model, shape = self.random.choice([
            lambda: (nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.PReLU(b), nn.MaxPool2d(2, 2, ceil_mode=True),
                                   nn.BatchNorm2d(b), nn.Conv2d(b, c, (2, 1)), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                                   nn.Linear(c, a)), (a, self.random.randint(4, 9), self.random.randint(1, 9))),
            lambda: (mixed(a, b, c), (a, self.random.randint(3, 8), self.random.randint(3, 9))),
            lambda: (nn.Sequential(nn.Linear(a, b), nn.LayerNorm(b), nn.GELU(), nn.Linear(b, c)), (c, a)),
            lambda: (nn.LSTM(a, b, self.random.randint(1, 2), batch_first=True,
                             bidirectional=self.random.random() < 0.5), (c, a)),
        ])()  # fmt: skip
        if isinstance(model, nn.LSTM):
            model = First(model)
        model.eval()
        images = self.random.randint(1, 5)
        x = torch.randn(images, *shape)
        with torch.no_grad():
            traced = Traced(model, [x])
            plans = plans_of(traced, set(), Int8Errors(traced, 0.5))
            is_int8 = False
            for plan in plans:
                for draft in plan.drafts:
                    if draft.forms:
                        draft.form = self.random.choice(sorted(draft.forms))
                        is_int8 |= draft.is_int8
            y, expected = graph_of(traced, plans, self.random.choice((1, 2, 64)))(x), model(x)
        if is_int8:  # a layer norm of few numbers makes much of a small error
            assert y.shape == expected.shape
            assert y.isfinite().all()
        else:
            torch.testing.assert_close(y, expected, rtol=1e-3, atol=1e-4)

    def run_transpose(self) -> None:
        rows, cols = self.side(), self.side()
        x = self.matrix(rows, cols)
        self.close(self.sparse.feature_major(x), x)

    def run_sell(self) -> None:
        size, batch = 2 ** self.random.randint(0, 8), self.side(0)
        ins, outs = self.random.randint(1, size), self.random.randint(1, size)
        steps, tensors = [], []
        for _ in range(self.random.randint(1, 6)):
            kind = self.random.choice(self.sell._NATIVE)
            if kind in ("diagonal", "bias", "permute"):
                integers = torch.randperm(size) if kind == "permute" else self.vector(size).detach().requires_grad_()
                tensors.append(integers)
            steps.append((kind, len(tensors) - 1 if kind in ("diagonal", "bias", "permute") else None))
        x = self.matrix(batch, ins).detach().requires_grad_(self.random.random() < 0.7)
        mine, expected = (
            self.sell.sell(x, steps, size, outs, tensors),
            self.sell.reference(x, steps, size, outs, tensors),
        )
        scale = 1 + expected.detach().abs().max().item() if expected.numel() else 1
        self.close(mine / scale, expected / scale)
        wanted = [t for t in (x, *tensors) if t.requires_grad]
        if wanted and mine.requires_grad:
            torch.autograd.grad(mine, wanted, self.matrix(batch, outs), allow_unused=True)

    def run_dropout(self) -> None:
        x = self.matrix(self.side(0), self.side(0)).detach().requires_grad_()
        y = self.dropout.dropout(x, p := self.random.choice((0.0, 0.3, 0.5, 1.0)), self.random.randrange(2**63))
        scale = 1 / (1 - p) if p < 1 else 0
        assert bool(((y == 0) | torch.isclose(y, x * scale)).all())
        y.backward(self.matrix(*x.shape))
        parts = self.random.randint(2, 9)
        seed, whole = torch.randint(-(2**63), 2**63 - 1, ()), torch.zeros_like(x)
        for part in range(parts):
            whole += self.dropout.partition_dropout(x.detach(), part, parts, seed)
        self.close(whole, x.detach() * parts)  # each is dropped once

    def run_noisy(self) -> None:
        units, dim = self.side(), self.random.choice((0, 1))
        x = self.matrix(units, self.side(0)) if dim == 0 else self.matrix(self.side(0), units)
        x = x.detach().requires_grad_()
        p = self.vector(self.random.choice((1, units))).contiguous().detach().requires_grad_()
        numbers = self.noise.Noise(self.random.choice(self.noise.KINDS), alpha=self.random.choice((0.9, 1.0, 1.1)))
        tanh, seed = self.random.random() < 0.5, self.noise.draw_seed()
        y = self.noise.noisy(x, p, numbers, tanh, seed, dim)
        torch.autograd.grad(y, [x, p], self.matrix(*x.shape))
        still = self.noise.noisy(x, p, numbers, tanh, 0.5, dim)
        spread = p if p.numel() == 1 else p[:, None] if dim == 0 else p
        self.close(still, self.noise.noisy_reference(x, spread, 0.5, numbers, tanh))
        self.noise.normals(x.detach(), seed)

    def run_cells(self) -> None:
        hidden, samples, steps = self.side(), self.random.randint(1, 9), self.random.randint(1, 5)
        sizes = sorted((self.random.randint(1, samples) for _ in range(steps)), reverse=True)
        numbers, seed = self.noise.Noise(self.random.choice(self.noise.KINDS)), self.noise.draw_seed()

        def leaf(*shape: int) -> Tensor:
            return (0.5 * torch.randn(*shape, dtype=self.dtype)).requires_grad_()

        total, first, back = sum(sizes), sizes[0], self.random.random() < 0.5
        pre, weight, h, c, p = (
            leaf(total, 4 * hidden), leaf(4 * hidden, hidden), leaf(first, hidden), leaf(first, hidden), leaf(5, hidden)
        )  # fmt: skip
        integers = self.rnn.lstm_steps(pre, weight, h, c, p, numbers, seed, sizes, back)
        torch.autograd.grad(sum(part.sum() for part in integers), (pre, weight, h, c, p))
        px, weight, h, p, bias = (
            leaf(total, 3 * hidden), leaf(3 * hidden, hidden), leaf(first, hidden), leaf(3, hidden), leaf(3 * hidden)
        )  # fmt: skip
        integers = self.rnn.gru_steps(px, weight, bias, h, p, numbers, seed, sizes, back)
        torch.autograd.grad(sum(part.sum() for part in integers), (px, weight, bias, h, p))
        px, ph, h = leaf(first, 3 * hidden), leaf(first, 3 * hidden), leaf(first, hidden)
        torch.autograd.grad(self.rnn.gru_step(px, ph, h, p, numbers, seed).sum(), (px, ph, h, p))


def mixed(a: int, b: int, c: int) -> torch.nn.Module:
    """Depthwise and other grouped convolutions, gates of channels, concatenations."""
    from torch import nn

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.widen, self.depth = nn.Conv2d(a, b, 1), nn.Conv2d(b, b, 3, padding=1, groups=b)
            self.gate, self.narrow = nn.Conv2d(b, b, 1), nn.Conv2d(b, 16 * (c % 3 + 1), 3, padding=1)
            self.groups = nn.Conv2d(self.narrow.out_channels, c * 2, 3, 2, groups=2)
            self.last = nn.Conv2d(2 * self.narrow.out_channels + a, c, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.depth(torch.nn.functional.relu6(self.widen(x)))
            z = self.narrow(y * self.gate(y.mean((2, 3), keepdim=True)).sigmoid()).relu()
            joined = torch.cat([z, torch.nn.functional.max_pool2d(z, 3, 1, 1), x], 1)
            return torch.cat([self.last(joined).flatten(1), self.groups(z).flatten(1)], 1)

    return Mixed()


class First(torch.nn.Module):
    """The outputs of a recurrent layer, without its last states."""

    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


def break_rules(seed: int) -> None:
    """Read beyond a matrix's end, and write one from two threads: what the two kinds of tools are for."""
    kernels, x = Driver(seed).kernels, torch.randn(7, 33)
    y = torch.empty(33, 7)
    kernels.transpose(False, 8, 33, (x.data_ptr(), 33), (y.data_ptr(), 7))
    x, y = torch.randn(512, 512), torch.zeros(512)
    kernels.transpose(False, 512, 512, (x.data_ptr(), 512), (y.data_ptr(), 0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernels", help="a build of the extension; by default the installed one")
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--broken", action="store_true", help="make one error on purpose: a sanitizer must report it")
    arguments = parser.parse_args()
    if arguments.kernels:
        load(arguments.kernels)
    if arguments.broken:
        return break_rules(arguments.seed)
    driver, done, began = Driver(arguments.seed), Counts(), time.monotonic()
    for number in range(arguments.rounds):
        try:
            done[driver.round()] += 1
        except BaseException:
            print(f"round {number} of seed {arguments.seed} failed on {driver.kernels.isa()}", file=sys.stderr)
            raise
    for name, count in sorted(done.items()):
        print(f"{name:28} {count}")
    print(f"{arguments.rounds} rounds, seed {arguments.seed}: no error; {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
