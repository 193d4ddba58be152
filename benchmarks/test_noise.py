"""Noisy activations and noisy recurrent networks against torch's plain ones."""

import copy
import ctypes
import sys

import pytest
import torch
from torch import nn

import filigree as fg
from filigree.measure.timing import time_interleaved
from filigree.ops.noise import draw_seed, noisy_reference, normals

PLAIN = {"tanh": (nn.Tanh(), nn.Hardtanh()), "sigmoid": (nn.Sigmoid(), nn.Hardsigmoid())}


@pytest.fixture(autouse=True, scope="module")
def memory_is_kept():
    """For both sides: else glibc gives memory back after a step and takes it again in the next one, or not, by a few
    bytes more or less (it keeps twice the largest block), and that costs more than the activations."""
    if sys.platform == "linux":
        for threshold, size in ((-1, 1 << 30), (-3, 32 << 20)):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
            assert ctypes.CDLL(None).mallopt(threshold, size)


def step(layer, x, dy):
    def run():
        mine = x.detach().requires_grad_()
        y = layer(mine)
        y = y[0] if isinstance(y, tuple) else y
        return torch.autograd.grad(y, [mine, *layer.parameters()], dy)

    return run


@pytest.mark.parametrize("shape", [(20, 200), (128, 1000), (128, 8192), (32, 64, 32, 32)])
@pytest.mark.parametrize("name", ["tanh", "sigmoid"])
def test_activation(suite, benchmark, name, shape):
    x, dy = torch.randn(shape) * (1 if name == "tanh" else 2), torch.randn(shape)
    make = fg.nn.NoisyHardTanh if name == "tanh" else fg.nn.NoisyHardSigmoid
    dim = 1 if len(shape) == 4 else -1
    layers = {kind: make(kind, units=shape[dim], dim=dim) for kind in ("NAN", "NAH", "NANI", "NANIL", "NANIS")}
    layers["NAN, p fixed"] = make("NAN", units=shape[dim], dim=dim, learn_p=False)
    for layer in layers.values():
        torch.manual_seed(0)
        y = layer(x)
        torch.manual_seed(0)
        seed = draw_seed()
        torch.testing.assert_close(
            y, noisy_reference(x, layer._spread(x), normals(x, seed), layer.numbers, name == "tanh")
        )
    soft, hard = PLAIN[name]
    times = time_interleaved([step(m, x, dy) for m in (soft, hard, *layers.values())], seconds=0.3)
    for kind, timing in zip(layers, times[2:], strict=True):
        suite.add(
            activation=name, shape=list(shape), kind=kind, ms=timing.median, low=timing.low, high=timing.high,
            soft_ms=times[0].median, hard_ms=times[1].median, times_soft=timing.median / times[0].median,
            times_hard=timing.median / times[1].median, goal=3,
        )  # fmt: skip
    benchmark.pedantic(step(layers["NAN"], x, dy), rounds=10, warmup_rounds=2)


@pytest.mark.parametrize("size", [(35, 20, 200), (50, 64, 256), (26, 100, 64), (200, 32, 128)])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent(suite, benchmark, kind, size):
    time, batch, hidden = size
    plain = nn.Sequential(kind(hidden, hidden))
    x, dy = torch.randn(time, batch, hidden), torch.randn(time, batch, hidden)
    models = {"torch": plain}
    for form in ("NAN", "NAH", "NANI"):
        models[form] = copy.deepcopy(plain)
        fg.convert_(models[form], fg.Noisy(form))
    trained = time_interleaved([step(m[0], x, dy) for m in models.values()], seconds=1)

    def inference(model):
        def run():
            with torch.inference_mode():
                return model(x)

        return run

    evaluated = time_interleaved([inference(m.eval()) for m in models.values()], seconds=0.5)
    for form, timing, alone in zip(models, trained, evaluated, strict=True):
        suite.add(
            network=kind.__name__, time=time, batch=batch, hidden=hidden, gates=form, ms=timing.median, low=timing.low,
            high=timing.high, times_torch=timing.median / trained[0].median, eval_ms=alone.median,
            eval_times_torch=alone.median / evaluated[0].median, goal=3,
        )  # fmt: skip
    benchmark.pedantic(step(models["NAH"].train()[0], x, dy), rounds=3)
