"""The data that trained models are run on: what is taken, what is refused, and that they stay as they were."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import filigree as fg
from filigree.calibration import Calibration, owned
from filigree.convert import layer_inputs

X = torch.randn(5, 3)


@pytest.mark.parametrize(
    ("data", "count"),
    [
        (X, 5), ((X, X), 5), ((X, torch.arange(5)), 5), ([X, torch.arange(5)], 5), ([X, X, X], 15), (iter([X, X]), 10),
        (DataLoader(TensorDataset(X, X), 2), 5), ([(X, X), (X, X)], 10),
    ],
)  # fmt: skip
def test_what_data_are(data, count):
    assert len(Calibration.of(data)) == count


@pytest.mark.parametrize("data", [[X, X], (X, X, X), (X, torch.arange(5), X), ((X, X), (X, X))])
def test_tensors_that_may_as_well_be_batches_are_refused(data):
    with pytest.raises(ValueError, match=rf"data must be .* Got a {type(data).__name__} of {len(data)}:"):
        Calibration.of(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (X.clone().fill_(float("nan")), r"finite\. Got NaN or Inf in \(5, 3\)\."),
        (X.clone().fill_(-float("inf")), "finite"),
        ({"x": X, "y": X.clone().fill_(float("nan"))}, r"in \(5, 3\) as 'y'"),
        ({"x": X.clone().fill_(float("inf"))}, "as 'x'"),
        ({"x": torch.zeros(0, 3)}, r"at least one sample\. Got \(0, 3\) as 'x'"),
        (torch.zeros(0, 3), "at least one sample"),
        ([], "no batch"),
    ],
)
def test_bad_numbers(data, message):
    with pytest.raises(ValueError, match=message):
        Calibration.of(data)


def test_a_mask_that_is_added_is_no_bad_number():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)

        def forward(self, x, mask):
            return self.layer(x, mask)

    mask = nn.Transformer.generate_square_subsequent_mask(5)
    model = Masked()
    fg.compress_(model, fg.MagnitudePruning(), {"x": torch.randn(32, 5, 16), "mask": mask}, progress=False)
    assert model.layer.linear1.out_features < 32


class InPlace(nn.Module):
    """It normalises its input in place, as it may where batches are copies."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, 32), nn.Linear(32, 3)

    def forward(self, x):
        x.sub_(0.5).div_(0.25)
        return self.last(self.first(x).relu())


@pytest.mark.parametrize(
    "config", [fg.MagnitudePruning(), fg.MonteCarlo(), fg.OneShot(0.5), fg.FitStructured(fg.LowRank(0.5), steps=3)]
)
def test_a_model_may_work_in_place_on_its_input(config):
    torch.manual_seed(0)
    model, x = InPlace(), torch.rand(64, 8)
    before = x.clone()
    fg.compress_(model, config, x, progress=False)
    assert torch.equal(x, before)


def test_owned_copies_tensors_in_containers():
    inputs = {"a": X, "b": [X, (X, 3)], "c": "text"}
    copies = owned(inputs)
    assert copies["b"][1][1] == 3
    for mine, theirs in ((copies["a"], X), (copies["b"][0], X), (copies["b"][1][0], X)):
        assert mine is not theirs
        assert torch.equal(mine, theirs)


def test_what_a_layer_reads_is_what_was_there_when_it_ran():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.f = nn.Linear(4, 4)

        def forward(self, x):
            x = x * 1.0
            x += self.f(x)
            return x

    x = torch.randn(8, 4)
    assert torch.equal(layer_inputs(Residual(), ["f"], x)["f"], x)


def test_what_a_layer_reads_must_be_a_tensor():
    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.LSTM(4, 5, batch_first=True)

        def forward(self, x):
            packed = nn.utils.rnn.pack_padded_sequence(x, torch.full((len(x),), x.shape[1]), batch_first=True)
            return self.rnn(packed)[1][0]

    with pytest.raises(ValueError, match=r"filigree: 'rnn' must read a tensor\. Got a PackedSequence"):
        layer_inputs(Packed(), ["rnn"], torch.randn(3, 6, 4))
