"""Half of the hidden units and heads of usual architectures: errors on unseen data, refitted and not; files; seconds.

`FILIGREE_NETWORKS="resnet18;BERT"` tries these; the rows of others stay as they are recorded. The record is written
after each network. Seconds are of a processor. Needs transformers, and timm: `pip install --no-deps timm torchvision`.
"""

import os
import time

import pytest
import torch
from architecture_networks import CASES, HALF
from torch import nn

import filigree as fg
from filigree.calibration import Calibration
from filigree.compress.pruning.errors import OutputError
from filigree.outputs import numbers_in

JUDGED = 200  # samples
METHODS = {"subset": fg.SubsetPruning, "magnitude": fg.MagnitudePruning}
CHOSEN = os.environ.get("FILIGREE_NETWORKS", ";".join(CASES)).split(";")


class Positional(nn.Module):
    """A model whose arguments are given by position, and which returns its first output."""

    def __init__(self, model, names):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs):
        return numbers_in(self.model(**dict(zip(self.names, inputs, strict=True))), "benchmark")[0]


@pytest.mark.parametrize("name", [name for name in CASES if name in CHOSEN])
def test_architecture(suite, benchmark, tmp_path, name):
    case, suite.networks = CASES[name], list(CASES)
    try:
        original = case.make()
    except ImportError as error:
        pytest.skip(str(error))
    error_of = OutputError.of(original, Calibration.of(test := case.data(JUDGED, 1)))
    expected = _outputs(original, test)
    for method in case.methods:
        config = METHODS[method]
        without, model = case.make(), case.make()
        fg.compress_(without, config(keep=HALF, compensate=None, measure=False), case.data(case.fitted, 0))
        began = time.process_time()
        fg.compress_(model, config(keep=HALF, measure=False), case.data(case.fitted, 0))
        seconds = time.process_time() - began
        suite.add(
            network=name, method=method, error=error_of(model), without=error_of(without),
            median=_median(model, test, expected), median_without=_median(without, test, expected),
            loads=_loads(model, case, test, tmp_path), exports=_exports(model, test, tmp_path), seconds=seconds,
        )  # fmt: skip
    suite.save()
    benchmark.pedantic(lambda: None, rounds=1)


def _median(model, test, expected):
    """The median over samples of the relative error of the first output: what a few large outputs do not decide."""
    y, z = expected[0], _outputs(model, test)[0]
    lost, size = ((part.flatten(1).norm(dim=1)) for part in (z - y, y - y.mean(0)))
    return float((lost / size).median())


def _loads(model, case, test, folder):
    """Whether a file of it gives the same outputs bit for bit."""
    fg.save(model, folder / "m.safetensors")
    again = fg.load(folder / "m.safetensors", into=case.make())
    return all(map(torch.equal, _outputs(model, test), _outputs(again, test)))


def _exports(model, test, folder):
    """Whether ONNX Runtime computes the same, which `fg.export` checks."""
    if isinstance(test, dict):
        model, test = Positional(model, list(test)), tuple(value[:4] for value in test.values())
    try:
        fg.export(model.eval(), folder / "m.onnx", test[:4], seconds=0.01)
    except (ValueError, RuntimeError) as error:
        print(f"  {error}")
        return False
    return True


@torch.no_grad()
def _outputs(model, test):
    return [numbers for y in Calibration.of(test).outputs(model) for numbers in numbers_in(y, "benchmark")]
