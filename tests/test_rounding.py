"""Whether outputs differ by the order of sums: those that cancel do so by much for their size."""

import copy

import pytest
import torch
from torch import nn

import filigree as fg
from filigree.outputs import tensors_in
from filigree.rounding import is_rounding, relative_difference


def cancelling(units=256):
    """A network whose outputs are sums of numbers that all come twice, with opposite signs: zero but for rounding."""
    torch.manual_seed(0)
    first, last = nn.Linear(32, 2 * units), nn.Linear(2 * units, 3)
    order = torch.randperm(2 * units)
    with torch.no_grad():
        half = torch.randn(units, 32)
        first.weight.copy_(torch.cat([half, half])[order])
        first.bias.copy_(torch.cat([torch.ones(units)] * 2)[order])
        weights = torch.randn(3, units)
        last.weight.copy_(torch.cat([weights, -weights], 1)[:, order])
        last.bias.zero_()
    return nn.Sequential(first, nn.ReLU(), last).eval()


@torch.no_grad()
def test_outputs_that_cancel_may_differ_by_their_rounding_and_no_more():
    model, x = cancelling(), torch.randn(1, 32)
    expected = [model(x)]
    for error, allowed in ((1e-5, True), (1.0, False)):
        outputs = [expected[0] + error]
        assert relative_difference(outputs, expected) > 0.1
        assert is_rounding(outputs, expected, lambda: copy.deepcopy(model), [x], 1e-4) is allowed
        assert not is_rounding(outputs, expected, lambda: 1 / 0, [x], 1e-4)  # a model that cannot be copied


@torch.no_grad()
def test_outputs_that_do_not_cancel_are_judged_by_their_size():
    torch.manual_seed(0)
    model, x = nn.Linear(32, 3), torch.randn(4, 32)
    expected = [model(x)]
    size = float(expected[0].abs().max())
    for output, same in (
        (expected[0] + 0.9e-4 * size, True),
        (expected[0] + 1e-3 * size, False),
        (expected[0][:2], False),
    ):
        assert is_rounding([output], expected, lambda: copy.deepcopy(model), [x], 1e-4) is same


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_of_all_types_are_changed(dtype):
    model, x = cancelling().to(dtype), torch.randn(1, 32).to(dtype)
    expected = [model(x)]
    error = 1e-5 if dtype == torch.float32 else 1e-2
    assert is_rounding([expected[0] + error], expected, lambda: copy.deepcopy(model), [x], 1e-4)


class Chooses(nn.Module):
    """Its outputs are as many as its weights say."""

    def __init__(self, what):
        super().__init__()
        self.weight, self.what = nn.Parameter(torch.ones(1000)), what

    def forward(self, x):
        y = self.weight - 1
        if self.what == "several":
            return [y] * int(1 + (y >= 0).sum())
        return y[y >= 0] if self.what == "some" else y.argmax()


@torch.no_grad()
@pytest.mark.parametrize("what", ["some", "several", "largest"])
def test_outputs_that_depend_on_decisions_of_the_weights_are_judged_by_their_size(what):
    model = Chooses(what)
    expected = tensors_in(model(None))
    outputs = [y + 400 for y in expected]
    assert not is_rounding(outputs, expected, lambda: copy.deepcopy(model), [None], 1e-4)


@pytest.mark.parametrize(
    ("ours", "theirs", "same"),
    [
        (torch.inf, torch.inf, True),
        (torch.inf, -torch.inf, False),
        (torch.nan, torch.nan, True),
        (torch.nan, 1.0, False),
    ],
)
def test_what_is_not_finite_must_be_the_same(ours, theirs, same):
    outputs, expected = [torch.tensor([1.0, ours])], [torch.tensor([1.0, theirs])]
    assert (relative_difference(outputs, expected) == 0) is same


@pytest.mark.parametrize(
    ("ours", "theirs", "difference"),
    [
        (torch.tensor([True, True]), torch.tensor([True, True]), 0),
        (torch.tensor([True, True]), torch.tensor([True, False]), 1),
        (torch.tensor([127, 0], dtype=torch.int8), torch.tensor([-128, -128], dtype=torch.int8), 255 / 128),
        (torch.tensor([99], dtype=torch.uint8), torch.tensor([100], dtype=torch.uint8), 0.01),
        (torch.tensor([60000.0]).half(), torch.tensor([-60000.0]).half(), 2),
        (torch.tensor([3e38]), torch.tensor([-3e38]), 2),
        (torch.tensor([1 + 1j]), torch.tensor([1 + 0j]), 1),
    ],
)
def test_all_types_are_compared_as_numbers(ours, theirs, difference):
    assert relative_difference([ours], [theirs]) == pytest.approx(difference)


def test_optimize_keeps_a_layout_whose_outputs_cancel():
    model, x = cancelling(), torch.randn(1, 32)
    report = fg.optimize_(model, x, seconds=0.001)
    assert not any("differed" in note for note in report.notes)


def test_optimize_takes_a_model_that_returns_decisions():
    class Decides(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(64, 64)

        def forward(self, x):
            return self.layer(x), self.layer(x) > 0

    report = fg.optimize_(Decides().eval(), torch.randn(8, 64), seconds=0.001)
    assert report.difference < 1e-4


def test_export_compares_first_calls(tmp_path):
    class Remembers(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.last = nn.Linear(8, 8), None

        def forward(self, x):
            y = self.layer(x)
            y = y if self.last is None else y + self.last
            self.last = y.detach()
            return y

    pytest.importorskip("onnxruntime")
    report = fg.export(Remembers().eval(), tmp_path / "m.onnx", torch.randn(4, 8), dynamic=False, seconds=0.001)
    assert report.relative < 1e-4


def test_export_takes_a_network_whose_outputs_cancel(tmp_path):
    pytest.importorskip("onnxruntime")
    report = fg.export(cancelling(), tmp_path / "model.onnx", torch.randn(1, 32), seconds=0.001)
    assert report.difference < 1e-4 < report.relative
    with pytest.raises(ValueError, match="differs from torch"):
        fg.export(cancelling(), tmp_path / "other.onnx", torch.randn(1, 32), seconds=0.001, tolerance=1e-4)
    assert not (tmp_path / "other.onnx").exists()
