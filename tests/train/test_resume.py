"""Resume equals uninterrupted, bit for bit, and a checkpoint of another run is refused."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import filigree as fg
from filigree.io.storage import read_state, write_state
from filigree.train import EarlyStopping, FitState, fit, seed_everything
from picture import Picture

lr_scheduler = torch.optim.lr_scheduler


def blobs(n: int = 120, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(3, (n,), generator=generator)
    return torch.randn(n, 8, generator=generator) + F.one_hot(y, 8), y


class Annealing:
    """Steps like an evolution: has a rate, a generator and tensors of its own, and touches the weights."""

    def __init__(self, model: nn.Module, seed: int = 0) -> None:
        self.model, self.rate, self.count = model, 0.5, 0
        self.generator = torch.Generator().manual_seed(seed)
        self.ages: dict[int, Tensor] = {}

    @torch.no_grad()
    def step(self, metrics: dict[str, Any] | None = None) -> None:
        self.count += 1
        self.rate *= 0.9 if metrics is None else 1 / (1 + metrics["train_loss"])
        for p in self.model.parameters():
            p.add_(0.01 * self.rate * torch.randn(p.shape, generator=self.generator))
        shift = random.random() + np.random.random()  # noqa: NPY002
        self.ages[self.count] = torch.rand(2, generator=self.generator) + shift

    def state_dict(self) -> dict[str, Any]:
        return {
            "rate": self.rate,
            "count": self.count,
            "ages": dict(self.ages),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rate, self.count, self.ages = state["rate"], state["count"], dict(state["ages"])
        self.generator.set_state(state["generator"])


class Counting:
    """A hook with a state; `on_fit_start` clears it, as hooks do."""

    def on_fit_start(self, state: FitState) -> None:
        self.losses: list[float] = []
        torch.rand(5)  # whatever a hook draws at the start does not shift a resumed run

    def on_step_end(self, state: FitState) -> None:
        assert state.loss is not None
        self.losses.append(state.loss.item())

    def state_dict(self) -> dict[str, Any]:
        return {"losses": list(self.losses)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.losses = list(state["losses"])


class Interrupt:
    """Ctrl-C in the middle of an epoch."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_step_end(self, state: FitState) -> None:
        if state.step == self.at:
            raise KeyboardInterrupt


def dense(dropout: float = 0.3) -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(dropout), nn.Linear(12, 3))


Options = dict[str, Any]
Maker = Callable[[], tuple[nn.Module, torch.optim.Optimizer, Options]]


def sgd(model: nn.Module, **options: Any) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, **options)


def plain() -> tuple[nn.Module, torch.optim.Optimizer, Options]:
    model = dense()
    return model, sgd(model, nesterov=True), {}


def adam_and_schedulers() -> tuple[nn.Module, torch.optim.Optimizer, Options]:
    model = dense()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, amsgrad=True)
    schedulers = [lr_scheduler.MultiStepLR(optimizer, [1, 4]), lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)]
    return model, optimizer, {"callbacks": schedulers, "validation": blobs(50, 1)}


def one_cycle() -> tuple[nn.Module, torch.optim.Optimizer, Options]:
    model = dense()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    return model, optimizer, {"callbacks": [fg.each_step(lr_scheduler.OneCycleLR(optimizer, 0.05, 200)), Counting()]}


def annealed() -> tuple[nn.Module, torch.optim.Optimizer, Options]:
    model = dense()
    return model, sgd(model), {"callbacks": [Annealing(model), fg.each_step(Annealing(model, 1))], "drop_last": True}


def evolved() -> tuple[nn.Module, torch.optim.Optimizer, Options]:
    model = fg.models.mlp([8, 40, 40, 3], dropout=0.3)
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.3)), where=["fc1", "fc2"])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    evolution = fg.Evolution(model, optimizer, fg.ExponentialDecay(0.3, interest=0.1), epochs=6, regrow="initial")
    return model, optimizer, {"callbacks": [evolution]}


def stopped() -> tuple[nn.Module, torch.optim.Optimizer, Options]:
    model = fg.models.mlp([8, 20, 3])
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.3)), where=["fc1"])
    optimizer = sgd(model)
    evolution = fg.Evolution(model, optimizer, 0.3)
    stopping = EarlyStopping("val_accuracy", mode="max", patience=3)
    return model, optimizer, {"callbacks": [evolution], "early_stopping": stopping, "validation": blobs(30, 1)}


def augmented() -> tuple[nn.Module, torch.optim.Optimizer, Options]:
    def noisy(x: Tensor, generator: torch.Generator) -> Tensor:
        return x + torch.randn(x.shape, generator=generator) * torch.rand(1)

    model = dense()
    return model, sgd(model), {"augment": noisy}


def loader() -> tuple[nn.Module, torch.optim.Optimizer, Options]:
    model = dense()
    generator = torch.Generator().manual_seed(5)
    data = TensorDataset(*blobs(50, 1))
    shuffled = DataLoader(TensorDataset(*blobs()), 16, shuffle=True, generator=generator)
    return model, sgd(model), {"train": shuffled, "validation": DataLoader(data, 16, shuffle=True)}


def go(make: Maker, folder: Path, *, resume: bool = False, at: int = 0, epochs: int = 6, **more: Any) -> Any:
    seed_everything(0)
    model, optimizer, options = make()
    callbacks = [*options.pop("callbacks", ()), *more.pop("callbacks", ()), Interrupt(at)]
    options = options | more
    goes_on = resume and (folder / "checkpoint.safetensors").exists()
    seed_everything(17 if goes_on else 1)  # a resumed process finds its global generators anywhere
    train = options.pop("train", None) or blobs()
    history = fit(
        model, train, optimizer=optimizer, epochs=epochs, batch_size=16, checkpoint=folder, resume=resume,
        callbacks=callbacks, progress=False, **options,
    )  # fmt: skip
    return model, optimizer, history


def timeless(value: Any) -> Any:
    """Without what is measured by the clock."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k not in ("seconds", "elapsed", "rewire_seconds")}
    return [timeless(item) for item in value] if isinstance(value, list | tuple) else value


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b or (a != a and b != b)


MAKERS = [plain, adam_and_schedulers, one_cycle, annealed, evolved, stopped, augmented, loader]


@pytest.mark.parametrize("make", MAKERS)
def test_resume_equals_uninterrupted_bit_for_bit(tmp_path: Path, make: Maker) -> None:
    model, optimizer, history = go(make, tmp_path / "whole")
    for at in (20, 29):  # in the third, then in the fourth epoch of 8 (or 7) steps
        with pytest.raises(KeyboardInterrupt):
            go(make, tmp_path / "parts", resume=True, at=at)
    again, again_optimizer, again_history = go(make, tmp_path / "parts", resume=True)
    assert equal(dict(model.state_dict()), dict(again.state_dict()))
    assert equal(optimizer.state_dict(), again_optimizer.state_dict())
    assert equal(timeless(history.rows), timeless(again_history.rows))
    assert history.stopped == again_history.stopped
    assert equal(timeless(history.metrics) | {"train_seconds": 0, "rewire_share": 0},
                 timeless(again_history.metrics) | {"train_seconds": 0, "rewire_share": 0})  # fmt: skip
    whole, parts = (timeless(read_state(tmp_path / name / "checkpoint.safetensors")) for name in ("whole", "parts"))
    assert equal(whole, parts)
    assert [p.name for p in (tmp_path / "parts").iterdir()] == ["checkpoint.safetensors"]


def test_a_finished_run_resumes_to_the_same_end_or_to_a_later_one(tmp_path: Path) -> None:
    longer, _, _ = go(stopped, tmp_path / "whole", epochs=5)
    first, _, history = go(stopped, tmp_path / "parts", epochs=3)
    assert len(history) == 3
    same, _, _ = go(stopped, tmp_path / "parts", epochs=3, resume=True)
    assert equal(dict(first.state_dict()), dict(same.state_dict()))
    more, _, history = go(stopped, tmp_path / "parts", epochs=5, resume=True)
    assert equal(dict(longer.state_dict()), dict(more.state_dict()))
    assert history["epoch"] == [*range(5)]


def test_an_early_stop_stays_stopped(tmp_path: Path) -> None:
    noise = (torch.randn(60, 8), torch.randint(3, (60,)))
    options: Options = {
        "train": noise,
        "early_stopping": EarlyStopping(patience=1),
        "validation": blobs(30, 1),
        "epochs": 50,
    }
    model, _, history = go(plain, tmp_path, **options)
    assert history.stopped
    again, _, same = go(plain, tmp_path, resume=True, **options)
    assert equal(history.rows, same.rows)
    assert history.stopped == same.stopped
    assert equal(dict(model.state_dict()), dict(again.state_dict()))


def test_a_folder_without_a_checkpoint_starts_afresh_and_without_resume_it_is_begun_anew(tmp_path: Path) -> None:
    model, _, _ = go(plain, tmp_path / "a" / "b", epochs=2)
    with pytest.raises(KeyboardInterrupt):
        go(plain, tmp_path / "a" / "b", at=20)
    again, _, history = go(plain, tmp_path / "a" / "b", epochs=2)
    assert history["epoch"] == [0, 1]
    assert equal(dict(model.state_dict()), dict(again.state_dict()))


def wider() -> tuple[nn.Module, torch.optim.Optimizer, Options]:
    model = nn.Sequential(nn.Linear(8, 13), *list(dense())[1:3], nn.Dropout(), nn.Linear(13, 3))
    return model, sgd(model), {}


def adam() -> tuple[nn.Module, torch.optim.Optimizer, Options]:
    model = dense()
    return model, torch.optim.Adam(model.parameters()), {}


def biasless() -> tuple[nn.Module, torch.optim.Optimizer, Options]:
    model = dense()
    model[4] = nn.Linear(12, 3, bias=False)
    return model, sgd(model), {}


def instance_norm() -> tuple[nn.Module, torch.optim.Optimizer, Options]:
    model = dense()
    model[1] = nn.BatchNorm1d(12, track_running_stats=False)
    return model, sgd(model), {}


@pytest.mark.parametrize(
    ("make", "options", "words"),
    [
        (wider, {}, r"its parameter '0.weight' is \[12, 8\], this model's is \[13, 8\]"),
        (biasless, {}, "its model has a parameter '4.bias', this one has not"),
        (adam, {}, "its optimizer is SGD, this run's is Adam"),
        (plain, {"seed": 3}, "its seed is 0, this run's is 3"),
        (plain, {"train": blobs(100)}, "its samples is 120, this run's is 100"),
        (annealed, {}, r"its callbacks is \[\], this run's is \['Annealing', 'Annealing'\]"),
        (instance_norm, {}, "Sequential refuses this checkpoint .*Unexpected key"),
    ],
)
def test_the_checkpoint_of_another_run_is_refused(tmp_path: Path, make: Maker, options: Options, words: str) -> None:
    go(plain, tmp_path, epochs=1)
    before = (tmp_path / "checkpoint.safetensors").read_bytes()
    with pytest.raises(ValueError, match=words) as raised:
        go(make, tmp_path, resume=True, **options)
    assert str(raised.value).startswith(str(tmp_path / "checkpoint.safetensors"))
    assert "\n" not in str(raised.value)
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before


@pytest.mark.parametrize("part", ["optimizer", "callbacks", "history"])
def test_a_checkpoint_that_is_refused_changes_neither_model_nor_optimizer(tmp_path: Path, part: str) -> None:
    path = tmp_path / "checkpoint.safetensors"
    go(evolved, tmp_path)
    file = read_state(path)
    if part == "optimizer":
        file["content"]["optimizer"]["state"][0]["exp_avg"] = torch.zeros(2)
    else:
        file["content"][part] = {}
    write_state(path, file)
    model, optimizer, options = evolved()
    fit(model, blobs(), optimizer=optimizer, epochs=1, batch_size=16, progress=False)
    picture, state = Picture(model), copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match="refuses this checkpoint"):
        fit(
            model, blobs(), optimizer=optimizer, epochs=6, batch_size=16, checkpoint=tmp_path, resume=True,
            progress=False, **options,
        )  # fmt: skip
    assert not picture.differences(Picture(model))
    assert equal(optimizer.state_dict(), state)


def test_a_damaged_or_foreign_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    go(plain, tmp_path, epochs=1)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="safetensors: not a filigree file, or a damaged one"):
        go(plain, tmp_path, resume=True)
    write_state(path, {"model": {}})
    with pytest.raises(ValueError, match="not a checkpoint of fit"):
        go(plain, tmp_path, resume=True)


def test_a_sparse_models_checkpoint_brings_its_own_connections(tmp_path: Path) -> None:
    """Topologies are drawn: a fresh model may have another number of connections than the checkpoint's."""

    def make(seed: int) -> Maker:
        def made() -> tuple[nn.Module, torch.optim.Optimizer, Options]:
            model = fg.models.mlp([8, 30, 3])
            fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.2, replace=True), seed=seed), where=["fc1"])
            return model, sgd(model), {}

        return made

    first, _, _ = go(make(0), tmp_path, epochs=1)
    other, _, _ = make(1)()
    again, _, _ = go(make(1), tmp_path, epochs=1, resume=True)
    assert first.fc1.nnz != other.fc1.nnz  # type: ignore[union-attr]
    assert equal(dict(first.state_dict()), dict(again.state_dict()))
