"""Means of losses and accuracies, of whatever a model returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from filigree.outputs import tensors_in
from filigree.train import evaluate, fit
from filigree.train.meter import Meter


def test_the_meter_adds_up_batches_of_any_number_and_size() -> None:
    generator = torch.Generator().manual_seed(0)
    meter, losses, right, labels = Meter(), 0.0, 0, 0
    for size in [5] * 70 + [3, 5, 5]:
        output, y = torch.randn(size, 4, generator=generator), torch.randint(4, (size,), generator=generator)
        loss = F.cross_entropy(output, y)
        meter.add(loss, output.t().contiguous().t(), y)
        losses, right, labels = losses + loss.item() * size, right + int((output.argmax(1) == y).sum()), labels + size
    means = meter.means()
    assert means["loss"] == pytest.approx(losses / labels)
    assert means["accuracy"] == right / labels


def test_accuracy_of_maps_counts_every_place() -> None:
    meter, output = Meter(), torch.zeros(2, 3, 4, 4)
    output[:, 1] = 1
    y = torch.ones(2, 4, 4, dtype=torch.int64)
    y[0, 0, 0] = 2
    meter.add(torch.tensor(1.0), output, y)
    assert meter.means()["accuracy"] == 31 / 32


@dataclass
class Output:
    logits: Tensor


class Several(nn.Module):
    """Logits in whatever `wrap` puts them into."""

    def __init__(self, wrap: Any) -> None:
        super().__init__()
        self.body, self.wrap = nn.Linear(6, 3), wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(self.body(x))


@pytest.mark.parametrize(
    "wrap", [lambda z: (z, z.sum()), lambda z: {"logits": z}, Output], ids=["tuple", "dict", "data"]
)
def test_a_loss_reads_whatever_the_model_returns(wrap: Any) -> None:
    data = (torch.randn(75, 6), torch.randint(3, (75,)))

    def loss(output: Any, y: Tensor) -> Tensor:
        return F.cross_entropy(tensors_in(output)[0], y)

    model = Several(wrap)
    plain = evaluate(model.body, data)["loss"]
    assert evaluate(model, data, loss=loss, batch_size=32) == {"loss": pytest.approx(plain)}
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    history = fit(model, data, optimizer=optimizer, epochs=1, loss=loss, validation=data, progress=False)
    measured = {name: value for name, value in history[0].items() if name.startswith(("train_", "val_"))}
    assert measured == {"train_loss": pytest.approx(plain), "val_loss": pytest.approx(plain)}
    with pytest.raises(TypeError, match=r"evaluate: without loss= the model must return a tensor\. Got a"):
        evaluate(Several(wrap), data)


def test_outputs_without_classes_are_not_counted() -> None:
    x, y = torch.randn(75, 6), torch.randint(3, (75,))
    labels = y.unsqueeze(1).expand(-1, 2)

    def loss(output: Tensor, y: Tensor) -> Tensor:
        return output.mean() * len(y)

    for shape in ((), (5,), (5, 4), (75, 3, 7)):  # of one batch's outputs, whatever the batch's size
        output = torch.ones(shape)
        means = evaluate(Returning(output), (x, labels), loss=loss, batch_size=32)
        assert means == {"loss": pytest.approx((2 * 32**2 + 11**2) / 75)}
    assert "accuracy" in evaluate(nn.Linear(6, 3), (x, y), loss=F.cross_entropy)


class Returning(nn.Module):
    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self, x: Tensor) -> Tensor:
        return self.output
