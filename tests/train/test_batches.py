"""Batches of loaders with samplers of every kind, of streams, and of tensors that stay as they are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import scipy
import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, IterableDataset, RandomSampler, TensorDataset

from filigree.ops.sparse_rows import sparse_rows
from filigree.train import History, evaluate, fit
from filigree.train.batches import LoaderBatches


def samples(count: int = 48) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 6, generator=generator), torch.randint(3, (count,), generator=generator)


def run(train: object, model: nn.Module | None = None, **options: object) -> History:
    torch.manual_seed(1)
    model = model or nn.Linear(6, 3)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    return fit(model, train, optimizer=optimizer, batch_size=16, progress=False, **({"epochs": 3} | options))  # type: ignore[arg-type]


class Noting(DistributedSampler):
    """Notes the epochs that it is told of."""

    def set_epoch(self, epoch: int) -> None:
        self.told = [*getattr(self, "told", []), epoch]
        super().set_epoch(epoch)


def test_the_sampler_of_a_batch_sampler_hears_of_epochs() -> None:
    data = TensorDataset(*samples())
    for given in ("sampler", "batch_sampler", "sampler of batches"):
        sampler = Noting(data, 1, 0)
        batches = BatchSampler(sampler, 16, False)
        options = {"sampler": {"sampler": sampler, "batch_size": 16}, "batch_sampler": {"batch_sampler": batches}}
        run(DataLoader(data, **options.get(given, {"sampler": batches, "batch_size": None})))  # type: ignore[arg-type]
        assert sampler.told == [0, 1, 2]


def test_the_generator_of_a_batch_sampler_is_resumed(tmp_path: Path) -> None:
    def loader() -> DataLoader:
        data = TensorDataset(*samples())
        sampler = RandomSampler(data, generator=torch.Generator().manual_seed(3))
        return DataLoader(data, batch_sampler=BatchSampler(sampler, 16, False))

    assert len(LoaderBatches(loader(), "train", torch.device("cpu")).generators) == 1
    whole = run(loader())
    run(loader(), epochs=2, checkpoint=tmp_path)
    assert run(loader(), checkpoint=tmp_path, resume=True)["train_loss"] == whole["train_loss"]


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(*samples(), strict=True)


def test_a_stream_trains_in_its_own_order() -> None:
    x, y = samples()
    model = nn.Linear(6, 3)
    steps: list[int] = []
    run(Stream(), model, validation=Stream(), callbacks=lambda state: steps.append(state.step))
    assert steps == [3, 6, 9]
    assert evaluate(model, Stream()) == pytest.approx(evaluate(model, (x, y)))


class InPlace(nn.Module):
    """Works in place on what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        values = x.values() if x.layout is torch.sparse_csr else x
        values.sub_(0.5).div_(0.25)
        return self.linear(x)


@pytest.mark.parametrize("layout", ["dense", "CSR"])
def test_evaluation_leaves_the_data_as_they_are(layout: str) -> None:
    def loss(output: Tensor, y: Tensor) -> Tensor:
        return (output - y.mul_(2)).square().mean()

    x, y, model = samples()[0], torch.rand(48, 3), InPlace()
    data = (sparse_rows(scipy.sparse.csr_array(x), x.dtype) if layout == "CSR" else x.clone(), y.clone())
    first = evaluate(model, data, loss=loss)
    assert evaluate(model, data, loss=loss) == first
    run(data, model, validation=data, loss=loss)
    assert torch.equal(data[0].to_dense(), x)
    assert torch.equal(data[1], y)
