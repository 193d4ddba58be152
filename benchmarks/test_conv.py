"""Sparse 3x3 convolutions at 95%: forward and backward against oneDNN and SparseProp, results checked first."""

import copy

import pytest
import torch
from torch import nn

import filigree as fg
from filigree.measure.cost import training_step
from filigree.measure.timing import time_interleaved
from filigree.nn import SparseConv2d

GOAL = 2.5


@pytest.mark.parametrize("batch", [32, 64, 128])
@pytest.mark.parametrize(("channels", "side"), [(64, 32), (128, 16), (256, 8)])
def test_conv(channels, side, batch, suite, benchmark):
    conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
    size = conv.weight.numel()
    mask = torch.zeros(size, dtype=torch.bool)
    mask[torch.randperm(size)[: round(0.05 * size)]] = True
    layer = SparseConv2d.from_dense(conv, mask.view_as(conv.weight))
    dense = layer.dense()
    x = torch.randn(channels, batch, side, side).transpose(0, 1)
    rows = {"filigree": (layer, x), "dense": (dense, x.contiguous())}
    rows["dense, channels last"] = (
        dense.to(memory_format=torch.channels_last),
        x.to(memory_format=torch.channels_last),
    )
    try:
        import sparseprop.modules as theirs

        rows["SparseProp"] = (theirs.SparseConv2d.from_dense(layer.dense()), x.contiguous())
    except ImportError as error:
        print(f"  SparseProp: left out ({error})")
    dy = torch.randn(batch, channels, side, side)
    expected = _work(layer.dense(), x.contiguous(), dy)()
    works = {}
    for label, (module, inputs) in rows.items():
        works[label] = _work(module, inputs, dy)
        outputs = works[label]()
        torch.testing.assert_close(outputs[0], expected[0], rtol=1e-3, atol=1e-3, msg=lambda m, s=label: f"{s}: {m}")
    forward = {label: _forward(module, inputs) for label, (module, inputs) in rows.items()}
    timings = time_interleaved([*works.values(), *forward.values()], seconds=1)
    both, only = timings[: len(works)], timings[len(works) :]
    dense_ms = min(t.median for label, t in zip(works, both, strict=True) if label.startswith("dense"))
    dense_only = min(t.median for label, t in zip(works, only, strict=True) if label.startswith("dense"))
    for label, t, f in zip(works, both, only, strict=True):
        suite.add(
            channels=channels, side=side, batch=batch, contestant=label, ms=t.median, low=t.low, high=t.high,
            forward_ms=f.median, times_dense=dense_ms / t.median, forward_times_dense=dense_only / f.median,
            goal=GOAL if label == "filigree" else None,
        )  # fmt: skip
    benchmark.pedantic(works["filigree"], rounds=5, warmup_rounds=1)


def _work(module, x, dy):
    """Forward and backward, to the input and the weights; the gradient comes in the order of the output."""
    x = x.detach().requires_grad_()
    dy = torch.empty_like(module(x)).copy_(dy)
    parameters = [p for p in module.parameters() if p.requires_grad]
    return lambda: torch.autograd.grad(module(x), [x, *parameters], dy)


def _forward(module, x):
    def run():
        with torch.no_grad():
            module(x)

    return run


@pytest.mark.parametrize("batch", [32, 64, 128])
def test_resnet(batch, suite, benchmark):
    """A small residual network (64, 128, 256 channels) on 32 x 32 images, all 3x3 convolutions at 95%: goal 2x."""
    torch.manual_seed(0)
    model = fg.models.resnet((1, 1, 1), 64)
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.05)), lambda _, m: getattr(m, "kernel_size", None) == (3, 3))
    x, y = torch.randn(batch, 3, 32, 32), torch.randint(0, 10, (batch,))
    dense = fg.models.resnet((1, 1, 1), 64)
    last = copy.deepcopy(dense).to(memory_format=torch.channels_last)
    works = {
        "filigree": training_step(model, x, y), "dense": training_step(dense, x, y),
        "dense, channels last": training_step(last, x.to(memory_format=torch.channels_last), y),
    }  # fmt: skip
    timings = dict(zip(works, time_interleaved(list(works.values()), seconds=3), strict=True))
    dense_ms = min(t.median for label, t in timings.items() if label.startswith("dense"))
    for label, t in timings.items():
        suite.add(
            network="resnet 64-128-256", batch=batch, contestant=label, ms=t.median, low=t.low, high=t.high,
            times_dense=dense_ms / t.median, goal=2 if label == "filigree" else None,
        )  # fmt: skip
    benchmark.pedantic(works["filigree"], rounds=3, warmup_rounds=1)
