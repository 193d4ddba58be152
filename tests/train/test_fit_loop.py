"""The loop: equal to a hand-written one, hooks and steppers in order, early stopping, bad input refused by name."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

import filigree as fg
from filigree.train import EarlyStopping, FitState, History, evaluate, fit, seed_everything


def blobs(n: int = 200, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(3, (n,), generator=generator)
    return torch.randn(n, 6, generator=generator) + 2 * F.one_hot(y, 6), y


def network(dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 3))


def sgd(model: nn.Module, lr: float = 0.1) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)


def run(model: nn.Module | None = None, train: Any = None, epochs: int = 3, **options: Any) -> History:
    model = model or network()
    optimizer = options.pop("optimizer", None) or sgd(model)
    return fit(model, train or blobs(), optimizer=optimizer, epochs=epochs, batch_size=32, progress=False, **options)


def test_it_is_a_hand_written_loop() -> None:
    x, y = blobs()
    by_hand, ours = network(0.5), network(0.5)
    optimizer, order = sgd(by_hand), torch.Generator().manual_seed(7)
    seed_everything(3)
    losses = []
    for _ in range(3):
        total = 0.0
        for rows in torch.randperm(len(x), generator=order).split([32, 32, 32, 32, 32, 40]):  # the 8 left over join in
            optimizer.zero_grad()
            loss = F.cross_entropy(by_hand(x[rows]), y[rows])
            loss.backward()
            optimizer.step()
            total += loss.item() * len(rows)
        losses.append(total / len(x))
    seed_everything(3)
    history = run(ours, (x, y), seed=7)
    for a, b in zip(by_hand.parameters(), ours.parameters(), strict=True):
        assert torch.equal(a, b)
    assert history["train_loss"] == pytest.approx(losses, rel=1e-6)
    assert history["epoch"] == [0, 1, 2]


def test_the_seed_orders_the_data_and_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    first, again, other = (run(seed=seed)["train_loss"] for seed in (1, 1, 2))
    assert first == again != other
    torch.set_rng_state(before)
    run(train=blobs(), model=(model := network()))
    after = torch.get_rng_state()
    network()
    assert torch.equal(after, torch.get_rng_state())
    assert model.training


class Objects(Dataset):
    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.inputs, self.labels = x, y

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.inputs[i], self.labels[i]


def test_every_kind_of_data_trains() -> None:
    x, y = blobs()
    pair = run(train=(x, y))
    kinds = [SimpleNamespace(x=x, y=y), TensorDataset(x, y), [x, y]]
    for kind in kinds:
        assert run(train=kind)["train_loss"] == pair["train_loss"]
    loader = DataLoader(Objects(x, y), 32, shuffle=True, generator=torch.Generator().manual_seed(0))
    for slow in (Objects(x, y), loader):
        history = run(train=slow, validation=slow, test=(x, y))
        assert history["train_loss"] == pytest.approx(pair["train_loss"], rel=0.2)
        assert history["val_loss"] == pytest.approx(history["test_loss"], rel=1e-5)


def test_a_loaders_own_batches_are_kept_and_samplers_hear_of_epochs() -> None:
    heard = []

    class Sampler(torch.utils.data.SequentialSampler):
        def set_epoch(self, epoch: int) -> None:
            heard.append(epoch)

    data = Objects(*blobs(50))
    steps: list[int] = []
    run(train=DataLoader(data, 20, sampler=Sampler(data)), callbacks=lambda state: steps.append(state.step))
    assert (heard, steps) == ([0, 1, 2], [3, 6, 9])


@pytest.mark.parametrize(
    ("samples", "drop_last", "sizes"),
    [
        (64, False, [32, 32]),
        (200, True, [32] * 6),
        (200, False, [32] * 5 + [40]),  # 8 are less than half a batch
        (80, False, [32, 32, 16]),
        (33, False, [33]),
        (7, False, [7]),
    ],
)
def test_a_small_remainder_joins_the_batch_before_it(samples, drop_last, sizes) -> None:
    seen: list[int] = []
    run(train=blobs(samples), epochs=1, drop_last=drop_last, augment=lambda x: seen.append(len(x)) or x)
    assert seen == sizes


def test_a_dataset_is_batched_as_a_data_loader_does() -> None:
    for drop_last, steps in ((False, 7), (True, 6)):
        seen: list[int] = []
        run(train=Objects(*blobs()), epochs=1, drop_last=drop_last, callbacks=lambda s, seen=seen: seen.append(s.step))
        assert seen == [steps]


class Listener:
    def __init__(self, name: str, heard: list[Any]) -> None:
        self.name, self.heard = name, heard

    def on_fit_start(self, state: FitState) -> None:
        self.heard.append((self.name, "start", len(state.history)))

    def on_epoch_start(self, state: FitState) -> None:
        self.heard.append((self.name, "epoch", state.epoch))

    def on_step_end(self, state: FitState) -> None:
        assert state.loss is not None
        assert not state.loss.requires_grad
        assert all(p.grad is not None for p in state.model.parameters())
        self.heard.append((self.name, "step", state.step))

    def on_epoch_end(self, state: FitState) -> None:
        self.heard.append((self.name, "end", state.history[-1]["epoch"]))

    def on_fit_end(self, state: FitState) -> None:
        self.heard.append((self.name, "done", len(state.history)))


def test_hooks_are_called_in_order() -> None:
    heard: list[Any] = []
    hooks = [Listener("a", heard), Listener("b", heard), lambda state: heard.append(("c", "end", state.epoch))]
    run(train=blobs(50), epochs=2, callbacks=hooks)
    both = lambda event, number: [("a", event, number), ("b", event, number)]  # noqa: E731
    expected = both("start", 0)
    for epoch in range(2):
        expected += both("epoch", epoch) + both("step", 2 * epoch + 1) + both("step", 2 * epoch + 2)
        expected += [*both("end", epoch), ("c", "end", epoch)]
    assert heard == expected + both("done", 2)


def test_a_hook_can_end_the_run_at_once_or_after_the_epoch() -> None:
    def stop(state: FitState) -> None:
        state.stop = state.epoch == 1

    history = run(epochs=9, callbacks=stop)
    assert (len(history), history.stopped) == (2, "a hook asked for it in epoch 1")
    seen: list[int] = []

    class AtStep:
        def on_step_end(self, state: FitState) -> None:
            seen.append(state.step)
            state.stop = state.step == 3

    assert len(run(epochs=9, callbacks=[AtStep()])) == 1
    assert seen == [1, 2, 3]


class Rewirer:
    def __init__(self) -> None:
        self.rate, self.seen = 0.5, []  # type: float, list[Any]

    def step(self, metrics: dict[str, Any] | None = None) -> None:
        self.seen.append(metrics)
        self.rate /= 2


def test_steppers_get_metrics_and_rates_are_recorded() -> None:
    model = network()
    optimizer = sgd(model)
    rewirer, every = Rewirer(), Rewirer()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=100)
    history = run(model, optimizer=optimizer, validation=blobs(seed=1), callbacks=[rewirer, scheduler, plateau])
    assert history["zeta"] == [0.25, 0.125, 0.0]  # none after the last epoch
    assert history["lr"] == [0.1, 0.05, 0.025]
    assert [metrics["val_loss"] for metrics in rewirer.seen] == history["val_loss"][:-1]
    assert plateau.best == min(history["val_loss"])
    assert all(0 < row["rewire_seconds"] < row["seconds"] for row in history.rows[:-1])
    assert 0 < history.metrics["rewire_share"] < 1
    history = run(callbacks=fg.each_step(every), epochs=1)
    assert (every.seen, history["zeta"]) == ([None] * 5, [0.5**6])  # none after the last step
    assert "zeta" not in run(epochs=1).rows[0]
    by_step = torch.optim.lr_scheduler.StepLR(optimizer := sgd(model), 1, 0.5)
    assert run(model, optimizer=optimizer, callbacks=fg.each_step(by_step), epochs=2)["lr"] == [0.1 / 2**6, 0.1 / 2**12]


def test_rows_and_metrics() -> None:
    history = run(validation=blobs(seed=1), test=blobs(seed=2))
    assert set(history[-1]) == {
        "epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "test_loss", "test_accuracy", "lr",
        "seconds", "elapsed",
    }  # fmt: skip
    assert history["elapsed"] == pytest.approx([sum(history["seconds"][: i + 1]) for i in range(3)])
    assert history.metrics["test_accuracy"] == history[-1]["test_accuracy"] > 0.8
    assert history.metrics["train_seconds"] == history[-1]["elapsed"]
    assert "epoch=2" in repr(history)
    assert "History(0 epochs" in repr(History())


def test_early_stopping_ends_the_run_and_restores_the_best() -> None:
    x, y = blobs()
    noise = (x, y[torch.randperm(len(y), generator=torch.Generator().manual_seed(0))])
    model, rewirer = network(), Rewirer()
    stopping = EarlyStopping(patience=2)
    history = run(
        model,
        noise,
        60,
        optimizer=sgd(model, 0.5),
        validation=blobs(50, 3),
        early_stopping=stopping,
        callbacks=rewirer,
    )
    losses = history["val_loss"]
    best = losses.index(min(losses))
    assert len(history) == best + 3 < 60
    assert history.stopped == "val_loss did not improve for 2 epochs"
    assert evaluate(model, blobs(50, 3))["loss"] == pytest.approx(min(losses), rel=1e-6)
    assert history.metrics["val_loss"] == min(losses)
    assert (history.metrics["best_epoch"], history[-1]["zeta"]) == (best, 0.0)
    assert len(rewirer.seen) == len(history) - 1  # the network stays as it was measured
    again = run(network(), noise, 60, optimizer=None, validation=blobs(50, 3), early_stopping=stopping)
    assert stopping.best == min(again["val_loss"])  # from a clean slate


def test_early_stopping_modes() -> None:
    stopping = EarlyStopping("val_accuracy", patience=2, mode="max", restore_best=False, min_delta=0.1)
    values = [math.nan, 0.5, 0.55, 0.65, 0.7, math.nan]
    ends = [stopping.update({"epoch": i, "val_accuracy": v}, nn.Identity()) for i, v in enumerate(values)]
    assert ends == [False, False, False, False, False, True]
    assert (stopping.best, stopping.best_epoch, stopping.weights) == (0.65, 3, None)


def test_early_stopping_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="metric 'val_loss' needs validation data"):
        run(early_stopping=EarlyStopping())
    with pytest.raises(ValueError, match=r"metric must be one of epoch, train_loss.* Got 'loss'"):
        run(early_stopping=EarlyStopping("loss"))
    for wrong in ({"patience": 0}, {"mode": "low"}, {"min_delta": -1}):
        with pytest.raises(ValueError, match=f"EarlyStopping: {next(iter(wrong))} must be"):
            EarlyStopping(**wrong)


@pytest.mark.parametrize("name", ["train", "validation", "test"])
@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda x, y: (x.index_fill(0, torch.tensor(3), math.nan), y), "x must be finite. 6 of 1200"),
        (lambda x, y: (x * math.inf, y), "x must be finite"),
        (lambda x, y: (x, y[:-1]), ".* as many rows"),
        (lambda x, y: (x[:0], y[:0]), "there are no samples"),
        (lambda x, y: (x.numpy(), y), "x must be a tensor. Got ndarray"),
        (lambda x, y: "digits", "expected a pair .* Got str"),
    ],
)
def test_bad_data_are_refused_by_name(name: str, spoil: Any, words: str) -> None:
    data: dict[str, Any] = {"train": blobs(), name: spoil(*blobs())}
    with pytest.raises((ValueError, TypeError), match=f"{name}: {words}"):
        run(train=data.pop("train"), **data)


class Small(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 1e-307


def test_large_finite_data_are_not_refused() -> None:
    x, y = blobs()
    large = x.double().abs() * 1e307
    assert large.sum().isinf()
    run(nn.Sequential(Small(), network()).double(), (large, y), epochs=1)


def test_bad_arguments_are_refused() -> None:
    model = network()
    stale = sgd(model)
    model[0] = nn.Linear(6, 16)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"epochs": 0}, "epochs must be at least 1. Got 0"),
        ({"resume": True}, "resume needs the folder"),
        ({"on_nan": "go"}, "on_nan must be"),
        ({"callbacks": [3]}, "callbacks: expected an object with .step.*, or a callable. Got int"),
        ({"callbacks": fg.Evolution}, "callbacks: expected .* Got Evolution"),
        ({"callbacks": fg.each_step(print)}, r"an object with .step\(\) in each_step.* Got print"),
        ({"model": model, "optimizer": stale}, "lacks '0.weight'.* after convert_"),
        ({"train": blobs(5), "drop_last": True}, "train: 5 samples make no batch for batch_size=32 with drop_last"),
        ({"train": DataLoader(TensorDataset(blobs()[0]), 10)}, "train: batches must be pairs"),
    ]  # fmt: skip
    for options, words in cases:
        with pytest.raises((ValueError, TypeError), match=words):
            run(**options)
    with pytest.raises(ValueError, match=r"batch_size must be at least 1\. Got 0"):
        evaluate(model, blobs(), batch_size=0)


@pytest.mark.parametrize("part", ["train", "validation", "test"])
@pytest.mark.parametrize("label", [-1, 3, 70])
def test_labels_that_have_no_output_are_refused_before_the_first_step(part: str, label: int) -> None:
    model, x, y = nn.Linear(4, 3), torch.randn(40, 4), torch.arange(40) % 3
    before = copy.deepcopy(model.state_dict())
    wrong = y.clone()
    wrong[37] = label
    data = {"train": (x, y), "validation": (x, y), "test": (x, y)} | {part: (x, wrong)}
    line = rf"^fit: {part}: labels must lie in \[0, 3\), one for each output of the model\. Got {min(0, label)} to"
    with pytest.raises(ValueError, match=line):
        fg.fit(model, optimizer=torch.optim.SGD(model.parameters(), 0.1), epochs=1, batch_size=4, **data)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(ValueError, match=r"^evaluate: data: labels must lie in \[0, 3\)"):
        fg.evaluate(model, (x, wrong))
    loader = DataLoader(TensorDataset(x, wrong), 4)
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 3\)"):
        fg.evaluate(model, loader)


def test_labels_that_cross_entropy_leaves_out_are_none() -> None:
    model, x, y = nn.Linear(4, 3), torch.randn(8, 4), torch.tensor([0, 1, -100, 2] * 2)
    loss = float(F.cross_entropy(model(x), y).detach())
    assert fg.evaluate(model, (x, y))["loss"] == pytest.approx(loss)


def test_mistaken_calls_say_what_to_call() -> None:
    model, x, y = nn.Linear(4, 3), torch.randn(8, 4), torch.zeros(8).long()
    with pytest.raises(TypeError, match=r"^fit: the data are one argument, such as a pair: fg\.fit\(model, \(x, y\)"):
        fg.fit(model, x, y, optimizer=torch.optim.SGD(model.parameters(), 0.1), epochs=1)
    for name in ("convert", "compress"):
        with pytest.raises(TypeError, match=rf"^fg\.{name} is a module\. Call fg\.{name}_, which"):
            getattr(fg, name)(model)


def test_a_loss_that_is_not_finite_is_an_error_or_an_end() -> None:
    with pytest.raises(FloatingPointError, match=r"training loss became (nan|inf) in epoch \d"):
        run(optimizer=None, model=(model := network()), callbacks=fg.each_step(Exploding(model)), epochs=3)
    assert model.training
    history = run(model=(model := network()), callbacks=fg.each_step(Exploding(model)), epochs=3, on_nan="stop")
    assert len(history) == 1
    assert history.stopped is not None
    assert "in epoch 1" in history.stopped


class Exploding:
    """Spoils the weights in the second epoch."""

    def __init__(self, model: nn.Sequential) -> None:
        self.model, self.steps = model, 0

    @torch.no_grad()
    def step(self) -> None:
        self.steps += 1
        if self.steps == 9:
            next(self.model.parameters()).fill_(math.nan)


def test_evaluate_restores_every_mode_and_needs_no_gradient() -> None:
    model = network(0.5)
    model[2].eval()
    x, y = blobs()
    result = evaluate(model, (x, y), batch_size=37)
    assert [module.training for module in model.modules()] == [True, True, True, False, True]
    with torch.no_grad():
        output = model.eval()(x)
    assert result["loss"] == pytest.approx(F.cross_entropy(output, y).item(), rel=1e-6)
    assert result["accuracy"] == (output.argmax(1) == y).double().mean()
    with pytest.raises(RuntimeError, match="shapes"):
        evaluate(model, (x[:, :2], y))
    squares = evaluate(nn.Linear(6, 1), (x, torch.zeros(len(x), 1)), loss=F.mse_loss)
    assert set(squares) == {"loss"}


class Merging(nn.Linear):
    """Does more than note its mode: in evaluation mode its weight is twice as large."""

    def train(self, mode: bool = True) -> Merging:
        if mode != self.training:
            self.weight.data.mul_(0.5 if mode else 2)
        return super().train(mode)


class NormFrozen(nn.Sequential):
    """Keeps its norm frozen by itself."""

    def train(self, mode: bool = True) -> NormFrozen:
        super().train(mode)
        self[1].eval()
        return self


def modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


def test_frozen_modules_stay_frozen() -> None:
    model = nn.Sequential(network(0.5), nn.BatchNorm1d(3), nn.Sequential(nn.BatchNorm1d(3), Merging(3, 3)))
    optimizer = sgd(model[0])
    for frozen in (model[1], model[2]):
        frozen.eval()
    model[2][0].train()  # a module that trains inside one that does not
    before, seen = copy.deepcopy(model.state_dict()), []

    class Measuring:
        def on_epoch_end(self, state: FitState) -> None:
            state.model.eval()
            state.model.train()

        def on_step_end(self, state: FitState) -> None:
            seen.append(modes(model))

    run(model, optimizer=optimizer, validation=blobs(20), callbacks=Measuring())
    assert all(each == modes(model) for each in seen)
    assert modes(model)[6:] == [False, False, True, False]
    after = model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before if name.startswith(("1.", "2.1.")))
    assert not torch.equal(after["2.0.running_mean"], before["2.0.running_mean"])


def test_a_model_in_evaluation_mode_trains_as_a_whole() -> None:
    model = nn.Sequential(network(0.5), nn.BatchNorm1d(3)).eval()
    model[0][2].train()
    before, seen = modes(model), []
    run(model, callbacks=lambda state: seen.append(modes(model)))
    assert seen == [[True] * 7] * 3
    assert modes(model) == before
    freezing = NormFrozen(nn.Linear(6, 3), nn.BatchNorm1d(3))
    run(freezing, validation=blobs(20))
    assert modes(freezing) == [True, True, False]
    assert float(freezing[1].num_batches_tracked) == 0


def test_augment_gets_its_own_generator_and_training_batches_only() -> None:
    seen: list[Tensor] = []

    def noisy(x: Tensor, generator: torch.Generator) -> Tensor:
        seen.append(x)
        return x + torch.randn(x.shape, generator=generator)

    def plain(x: Tensor) -> Tensor:
        return x + 1

    first, again = (run(augment=noisy, validation=blobs(), seed=4)["train_loss"] for _ in range(2))
    assert first == again != run(seed=4)["train_loss"]
    assert len(seen) == 2 * 3 * 6
    assert run(augment=plain)["train_loss"] == pytest.approx(run(train=(blobs()[0] + 1, blobs()[1]))["train_loss"])


def test_early_stopping_at_a_target():
    torch.manual_seed(0)
    data = fg.data.load("digits", validation=0.2)
    model = fg.models.mlp([64, 50, 10])
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    until = fg.EarlyStopping("val_accuracy", 50, "max", target=0.9)
    history = fg.fit(
        model, data.train, optimizer=optimizer, epochs=50, validation=data.validation, early_stopping=until,
        progress=False,
    )  # fmt: skip
    assert history.rows[-1]["val_accuracy"] >= 0.9
    assert all(row["val_accuracy"] < 0.9 for row in history.rows[:-1])
    assert until.reached(until.best)
    assert not fg.EarlyStopping("val_loss", target=0.1).reached(0.2)
