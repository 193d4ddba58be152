"""Parts of concatenations are written where they belong: nothing is copied, nothing written over."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from filigree.ops.inference import GATHER, MEAN
from filigree.optimize.graphs import graph_of, plans_of
from filigree.optimize.int8_errors import Int8Errors
from filigree.optimize.tracing import Traced


class Dense(nn.Module):
    """Each layer reads all before it; as in torchvision's DenseNet."""

    def __init__(self, width=16, last=16):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width * (i + 1)) for i in range(3))
        self.layers = nn.ModuleList(
            nn.Conv2d(width * (i + 1), last if i == 2 else width, 3, padding=1) for i in range(3)
        )

    def forward(self, x):
        parts = [self.stem(x)]
        for norm, layer in zip(self.norms, self.layers, strict=True):
            parts.append(layer(F.relu(norm(torch.cat(parts, 1)))))
        return torch.cat(parts, 1)


class Branches(nn.Module):
    """Of an Inception or a Fire module, the first one read with zeros around it, and by a layer of its own."""

    def __init__(self, widths=(32, 16, 16)):
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Conv2d(3, width, k, padding=k // 2) for width, k in zip(widths, (1, 3, 5), strict=True)
        )
        self.own = nn.Conv2d(widths[0], 4, 3, padding=1)
        self.last = nn.Conv2d(sum(widths), 4, 5, padding=2)

    def forward(self, x):
        first, second, third = (branch(x) for branch in self.branches)
        first, third = F.relu(first), F.hardswish(F.gelu(third))
        whole = torch.cat([first, F.max_pool2d(second, 3, 1, 1), third], 1)
        return self.last(whole) + self.own(first)


class Late(nn.Module):
    """A part that is made before another concatenation has its place, and one that goes to two."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 1), nn.Conv2d(48, 5, 3, padding=1)
        self.d = nn.Conv2d(37, 3, 1)

    def forward(self, x):
        a = self.a(x)
        b = self.b(a).relu()
        inner = torch.cat([b, a], 1)
        y = self.c(torch.cat([inner, a], 1))
        return self.d(torch.cat([inner, y], dim=-3))


class Over(nn.Module):
    """An activation of a concatenation goes to another; what it is made of is read later."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.z = (nn.Conv2d(3, 16, 1) for _ in range(3))
        self.c, self.d = nn.Conv2d(16, 48, 1), nn.Conv2d(48, 48, 1)

    def forward(self, x):
        a, b, z = self.a(x), self.b(x), self.z(x)
        joined = torch.cat([a, b], 1)
        return self.d(torch.cat([F.gelu(joined), z], 1)) + self.c(a)


class Permuted(nn.Module):
    """A part whose channels change places, and parts that are given by name."""

    def __init__(self):
        super().__init__()
        self.a, self.d, self.e = nn.Conv2d(3, 16, 1), nn.Conv2d(32, 16, 3), nn.Conv2d(16, 16, 3)

    def forward(self, x):
        permuted = self.a(x)[:, [*range(1, 16), 0]]
        y = self.d(torch.cat([permuted, self.a(x)], 1)) + self.e(permuted)
        return torch.cat(tensors=[y, y], dim=1)


class Gaps(nn.Module):
    """The last part is a concatenation that leaves gaps after its own."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 16, 1), nn.Conv2d(3, 5, 1), nn.Conv2d(3, 6, 1)
        self.d = nn.Conv2d(27, 4, 3)

    def forward(self, x):
        a = self.a(x)
        return self.d(torch.cat([a, torch.cat([self.b(x), self.c(x)], 1)], 1))


class Padded(nn.Module):
    """Branches that padded convolutions read, and a concatenation that is read without."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(3 if i == 0 else 16, 16, 3, padding=1) for i in range(3))
        self.last = nn.Conv2d(48, 4, 1)

    def forward(self, x):
        parts = [x]
        for layer in self.layers:
            parts.append(F.relu(layer(parts[-1])))
        return self.last(torch.cat(parts[1:], 1))


@torch.no_grad()
def fill_scratch_memory():
    """What steps leave in their memory, and the next ones find there, is no number."""
    model = nn.Sequential(nn.Conv2d(1, 64, 1), nn.Conv2d(64, 64, 1), nn.Conv2d(64, 8, 1)).eval()
    x = torch.full((2, 1, 40, 40), float("nan"))
    traced = Traced(model, [x])
    graph_of(traced, plans_of(traced, set(), Int8Errors(traced, 0)), chunk=2)(x)


def copies(plans):
    return sum(draft.step.kind == MEAN and draft.step.taps == 1 for plan in plans for draft in plan.drafts)


@pytest.mark.parametrize(
    ("model", "most"),
    [(Dense(), 3), (Dense(last=7), 3), (Dense(width=5), 12), (Branches(), 1), (Branches((32, 16, 9)), 1),
     (Branches((12, 16, 16)), 4), (Late(), 2), (Over(), 9), (Permuted(), 9), (Gaps(), 3), (Padded(), 0)],
)  # fmt: skip
@torch.no_grad()
def test_parts_are_written_where_they_belong(isa, model, most):
    """`most`: steps of norms that are read with others, of curves after curves, and of parts that are copied."""
    model.eval()
    x = torch.randn(3, 3, 6, 5)
    expected = model(x)
    traced = Traced(model, [x[:2]])
    for tolerance in (0, 1):
        plans = plans_of(traced, set(), Int8Errors(traced, tolerance))
        assert len(plans) == 1
        assert copies(plans) <= most
        if isinstance(model, Padded):  # all is written with the zeros around it that are wanted
            assert sum(draft.step.kind == GATHER for draft in plans[0].drafts) == 1  # of the input
        shared = [home.span for home in plans[0].homes.values()]
        for draft in plans[0].drafts:  # scales of bytes are of what a layer reads
            if draft.step.by_image and draft.step.source in shared:
                assert draft.node.args[0] in plans[0].homes
        for int8 in (False, True):
            for draft in plans[0].drafts:
                draft.form = "int8" if int8 and "int8" in draft.forms else "floats"
            graph = graph_of(traced, plans, chunk=2)
            fill_scratch_memory()
            for batch in (3, 1):
                error = (graph(x[:batch]) - expected[:batch]).abs().max() / expected.abs().max()
                assert error < (0.1 if int8 and tolerance else 1e-5)
