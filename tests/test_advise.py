"""`fg.advise`: it recommends what was measured, its calls do what its rows say, the model stays as it was."""

import copy
import importlib
import sys

import pytest
import torch
from torch import nn

import filigree as fg
from command_line import call
from filigree.advise import Advice, Advised

module = importlib.import_module("filigree.advise")


@pytest.fixture(autouse=True)
def _brief(monkeypatch):
    monkeypatch.setattr(module, "EACH", 0.001)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 4))


def test_each_call_does_what_its_row_says():
    model, x, y = network(), torch.randn(64, 12), torch.randint(4, (64,))
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    advice = fg.advise(model, x[:8], (x, y), seconds=600)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training
    assert [type(layer) for layer in model] == [nn.Linear, nn.ReLU, nn.Dropout, nn.Linear]
    assert [trial.text for trial in module.SMALLER] == [
        row.call.removeprefix("fg.compress_(model, ").partition(", data)")[0]
        for row in advice.inference if "compress_" in row.call
    ]  # fmt: skip
    for row in (*advice.inference, *advice.training):
        changed = copy.deepcopy(model).eval()
        exec(row.call, {"fg": fg, "model": changed, "example": x[:8], "data": (x, y)})
        assert fg.measure(changed).bytes_disk == row.bytes, row.what
    assert len(advice.training) == 1 + len(module.TRAINED)
    assert (advice.inference[0].error, advice.metric, advice.batch) == (0.0, "accuracy", 8)
    assert "<table>" in advice._repr_html_()
    assert "fg.Sparse(fg.ErdosRenyi(density=0.02))" in str(advice)
    assert advice.to_dict()["inference"][1]["call"] == advice.inference[1].call


def test_without_targets_without_time_and_with_arguments_by_name():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(12, 4)

        def forward(self, ids, scale):
            return {"y": self.layer(ids) * scale}

    advice = fg.advise(Named(), {"ids": torch.randn(6, 12), "scale": torch.ones(6, 1)}, seconds=600)
    assert (advice.metric, advice.training) == ("", [])
    text = str(advice)
    assert "laid out: its input is no tensor" in text
    assert "fitted to the example and judged on it" in text
    assert "of models that take a tensor and return logits" in text
    advice = fg.advise(network(), torch.randn(3, 12), seconds=1e-9)
    assert "no time was left for integers of 8 bits" in str(advice)
    assert "accuracy" not in str(advice)


def row(what, speed, size, metric=None, error=0.0):
    return Advised(what, what, speed, 1 / speed, size, error, metric)


def test_what_is_recommended_keeps_the_metric():
    rows = [
        row("", 1.0, 100, 0.9), row("lost", 9.0, 10, 0.8), row("fast", 3.0, 80, 0.895), row("small", 1.5, 20, 0.9),
        row("slow", 0.5, 90, 0.9),
    ]  # fmt: skip
    steps = [row("step", 1.0, 100), row("sparse", 4.0, 10)]
    advice = Advice(rows, steps, 8, "accuracy", 1.0)
    assert advice.recommended()[:3] == [
        "recommended: fast  (x 3.00, accuracy 0.9 -> 0.895)",
        "smallest: small  (20% of the bytes, accuracy 0.9 -> 0.9)",
        "to train anew: sparse  (a step x 4.00; what it learns is seen by training)",
    ]
    rows = [row("", 1.0, 100), row("far", 9.0, 100, error=0.2), row("same", 1.01, 100, error=0.0)]
    advice = Advice(rows, [], 8, "", 1.0)
    assert (advice.fastest(), advice.smallest()) == (None, None)
    assert "nothing that keeps outputs within 10% is faster here" in str(advice)
    near = Advice([*rows, row("near", 2.0, 100, error=0.05)], [], 8, "", 1.0).fastest()
    assert near is not None
    assert near.what == "near"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((3, torch.randn(2, 12)), TypeError, "advise: model must be a torch module. Got a int"),
        ((network(), [1]), TypeError, "advise: example must be a tensor or a mapping of arguments"),
        ((network(), torch.randn(2, 12), None, 0), ValueError, "advise: seconds must be above 0. Got 0"),
        ((network(), torch.randn(2, 5)), ValueError, "advise: the model does not run on the data"),
        ((network(), torch.randn(2, 12), torch.randn(3, 12)), ValueError, "advise: at least 8 samples are needed"),
        ((nn.Linear(3, 3, device="meta"), torch.randn(2, 3)), ValueError, "the model must be on the CPU. 'weight' is"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        fg.advise(*arguments)


def test_on_the_command_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "nets_to_advise.py").write_text(
        "import torch\n"
        "def build():\n"
        "    return torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 3))\n"
        "def data():\n"
        "    return torch.randn(40, 8), torch.randint(3, (40,))\n"
    )
    monkeypatch.chdir(tmp_path)
    code, out, err = call(
        monkeypatch, capsys, "advise", "python:nets_to_advise:build", "--data", "python:nets_to_advise:data",
        "--seconds", "0.5", "--batch", "4",
    )  # fmt: skip
    sys.modules.pop("nets_to_advise")
    assert (code, err) == (0, "")
    assert "advise: batch 4" in out
    assert "accuracy" in out
    assert "recommended: " in out
