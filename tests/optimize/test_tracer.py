"""Graphs of models whose code asks for the sizes of what it gets."""

import copy
import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import filigree as fg
from filigree.laid_out import runtimes_of
from filigree.optimize.tracing import NotTraceable, Traced


class Asking(nn.Module):
    """Two convolutions and a function of the model and the numbers between them."""

    def __init__(self, function):
        super().__init__()
        self.first, self.last, self.function = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 4, 1), function
        self.p, self.plain = nn.Parameter(torch.rand(16, 1, 1) + 1), torch.rand(16, 1, 1) + 1
        self.cache = {}

    def forward(self, x):
        return self.last(self.function(self, self.first(x)))

    def kept(self, y):
        if y.dtype not in self.cache:
            self.cache[y.dtype] = self.p * 2
        return self.cache[y.dtype] * y


def padded_to_eights(m, y):
    right, below = -y.shape[-1] % 8, -y.size(-2) % 8
    return F.pad(y, (0, right, 0, below)) if right or below else y


def unpacked(m, y):
    b, c, *sizes = y.shape
    return y.view(b, c, *sizes).reshape(b, c // 2, 2, *sizes).transpose(1, 2).reshape(b, c, *sizes)


def in_parts(m, y):
    return torch.cat([part * 2 for part in y.chunk(4, dim=1)], 1)


def with_a_frame(m, y):
    frame = y.new_zeros(y.shape[2:])
    frame[1:-1, 1:-1] = 2
    return y * frame


ASKING = {
    "numbers that it writes": with_a_frame,
    "as many as there are samples": lambda m, y: y + torch.full((y.size(0), 1, 1, 1), 2.0) * torch.ones(1),
    "a branch": padded_to_eights,
    "a size by name": lambda m, y: y if y.size(dim=1) == 16 and y.dim() == 4 == y.ndim and len(y[0]) == 16 else -y,
    "sizes unpacked": unpacked,
    "a loop over parts": in_parts,
    "a tensor of its sizes": lambda m, y: y * torch.ones(y.shape[1:2], dtype=y.dtype, device=y.device).view(-1, 1, 1),
    "how many pixels": lambda m, y: y / y.shape[2:].numel() + y.flatten(1).mean() * 0,
    "a rest with the batch": lambda m, y: y.reshape((*y.shape[:2], -1)).reshape(y.shape),
    "an assertion": lambda m, y: (torch._assert(y.shape[2] == 6, "six"), y)[1],
    "of a plain attribute": lambda m, y: y * (m.plain * 2),
    "what a call keeps for the next": lambda m, y: m.kept(y),
}


@pytest.mark.parametrize("name", ASKING)
def test_sizes_are_numbers(name):
    x = torch.randn(2, 3, 6, 6)
    model = Asking(ASKING[name]).eval()
    Traced(copy.deepcopy(model), [x])
    plain = copy.deepcopy(model)
    fg.optimize_(model, x, seconds=0.001)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "optimize_: the model's weights")
        for batch in (2, 1, 5):
            x = torch.randn(batch, 3, 6, 6)
            torch.testing.assert_close(model(x), plain(x), rtol=1e-4, atol=1e-5)
        if name != "an assertion":
            x = torch.randn(2, 3, 8, 7)
            torch.testing.assert_close(model(x), plain(x), rtol=1e-4, atol=1e-5)
        for each in (model, plain):
            each.plain.fill_(3.0)
        x = torch.randn(2, 3, 6, 6)
        torch.testing.assert_close(model(x), plain(x), rtol=1e-4, atol=1e-5)


BATCH = {
    "a branch": lambda m, y: y * 2 if y.shape[0] > 3 else y,
    "a number": lambda m, y: y * torch.ones(len(y), 1, 1, 1),
    "a loop": lambda m, y: torch.stack([each * (i + 1) for i, each in enumerate(y)]),
}


@pytest.mark.parametrize("name", BATCH)
def test_the_size_of_the_batch_is_none(name):
    x = torch.randn(2, 3, 6, 6)
    model = Asking(BATCH[name]).eval()
    with pytest.raises(NotTraceable):
        Traced(copy.deepcopy(model), [x])
    plain = copy.deepcopy(model)
    fg.optimize_(model, x, seconds=0.001)
    with torch.no_grad():
        for batch in (2, 1, 5):
            x = torch.randn(batch, 3, 6, 6)
            torch.testing.assert_close(model(x), plain(x), rtol=1e-4, atol=1e-5)


def test_hooks_do_not_run_while_a_model_is_traced():
    model, calls = Asking(lambda m, y: y).eval(), []
    model.first.register_forward_hook(lambda *_: calls.append(1))
    traced = Traced(model, [torch.randn(2, 3, 6, 6)])
    assert len(calls) == 4  # on the example, as one sample and as two, and the model by itself
    assert any(node.op == "call_module" for node in traced.graph.nodes)
    assert not runtimes_of(model)


def test_torch_is_left_as_it_was():
    program = """
import gc, weakref, torch, filigree as fg
from torch.nn import functional as F
class Model(torch.nn.Linear):
    def forward(self, x):
        return F.relu(super().forward(x)) + torch.ones(1)
before = torch.zeros
model = Model(4, 4).eval()
fg.optimize_(model, torch.randn(2, 4), seconds=0.001)
assert torch.zeros is before and torch.overrides.resolve_name(torch.zeros) == "torch.zeros"
gone = weakref.ref(model)
del model
gc.collect()
assert gone() is None
"""
    subprocess.run([sys.executable, "-c", program], check=True)
