"""Single layers that `fg.optimize_` laid out: sparse ones of 4096 x 4096 at batch 1, and layers of small integers.

`times_torch` is against the dense layer as torch runs it, `times_torch_before` of the layer as it came in.
"""

import copy

import pytest
import torch
from torch import nn

import filigree as fg
from filigree.measure.timing import inference, time_interleaved

GOALS = {(0.5, False): 1.3, (0.2, False): 3, (0.1, False): 6}


@pytest.mark.parametrize("density", [1.0, 0.5, 0.2, 0.1])
@pytest.mark.parametrize("int8", [False, True])
def test_one_linear_layer_of_4096(density, int8, suite):
    dense = nn.Linear(4096, 4096).eval()
    model = nn.Sequential(copy.deepcopy(dense)).eval()
    if density < 1:
        fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=density), init="keep"))
    x = torch.randn(1, 4096)
    report = fg.optimize_(model, x, tolerance=0.05 if int8 else 0.0, seconds=0.3)
    times = [timing.median for timing in time_interleaved([inference(dense, x), inference(model, x)], seconds=1.0)]
    suite.add(
        network="Linear(4096, 4096)", batch=1, kind=f"ours {density}{' int8' if int8 else ''}",
        form=report.layers[0].form, ms=times[1], torch_ms=times[0], times_torch=times[0] / times[1],
        difference=report.difference, goal=GOALS.get((density, int8)),
    )  # fmt: skip


@pytest.mark.parametrize("batch", [1, 128])
def test_layers_of_integers(batch, suite):
    for name, layer, shape in [
        ("Conv2d(48, 64, 3x3)", nn.Conv2d(48, 64, 3), (48, 16, 16)),
        ("Linear(1024, 1024)", nn.Linear(1024, 1024), (1024,)),
    ]:  # fmt: skip
        dense, x = nn.Sequential(layer).eval(), torch.randn(batch, *shape)
        model = copy.deepcopy(dense)
        fg.compress_(model, fg.RoundToNearest(bits=8))
        plain = copy.deepcopy(model)
        report = fg.optimize_(model, x, seconds=0.3)
        works = [inference(each, x) for each in (dense, plain, model)]
        times = [timing.median for timing in time_interleaved(works, seconds=1.0)]
        suite.add(
            network=name, batch=batch, kind="ours, integers", form=report.layers[0].form, ms=times[2],
            torch_ms=times[0], times_torch=times[0] / times[2], times_torch_before=times[0] / times[1], goal=1,
        )  # fmt: skip
