"""The callbacks: annealings step with every step of the optimizer, read its loss, and go on from checkpoints."""

import importlib
import sys

import pytest
import torch
from points import Points
from torch import nn
from torch.nn import functional
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader, IterableDataset

import filigree as fg
from filigree.integrations.driver import Driver

STEPS = 8  # 4 an epoch, 2 epochs


def network():
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))
    fg.convert_(made, fg.Noisy("NAN"), where="1")
    fg.convert_(made, fg.Mollified(), where="2")
    return made


def annealings():
    """They are functions of the model and its optimizer, which the trainers make."""
    return [
        lambda model, optimizer: fg.NoiseAnnealing(model, start=30.0, end=1.0, steps=STEPS + 1),
        lambda model, optimizer: fg.MollificationAnnealing(model, k=5.0, average=0.5),
    ]


def check(dynamics, losses):
    """Every step was counted, and the moving average is that of all losses."""
    noise, mollification = dynamics.driver.callbacks.objects
    assert noise.epoch == mollification.epoch == STEPS
    assert noise.scale == pytest.approx(1.0)
    value = losses[0]
    for loss in losses[1:]:
        value = 0.5 * value + 0.5 * loss
    assert mollification.value == pytest.approx(value, rel=1e-5)


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # Lightning uses what torch has deprecated
@pytest.mark.filterwarnings("ignore:.*does not have many workers")  # advice
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch")  # as it is meant
@pytest.mark.filterwarnings("ignore:.*exists and is not empty")
@pytest.mark.parametrize("batches", [1, 2])
def test_lightning(tmp_path, batches):
    lightning = pytest.importorskip("lightning", reason="Lightning is not installed")
    from lightning.pytorch.callbacks import ModelCheckpoint

    from filigree.integrations.lightning import Dynamics

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.network, self.losses = network(), []

        def training_step(self, batch, index):
            loss = functional.cross_entropy(self.network(batch["x"]), batch["labels"])
            self.losses.append(float(loss.detach()) / batches)  # Lightning shares it out between the batches
            return loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    def train(epochs, resume=None):
        dynamics, module = Dynamics(annealings()), Module()
        trainer = lightning.Trainer(
            max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
            accumulate_grad_batches=batches, callbacks=[dynamics, ModelCheckpoint(tmp_path)],
        )  # fmt: skip
        trainer.fit(module, DataLoader(Points(), batch_size=8 // batches), ckpt_path=resume)
        return module.losses[batches - 1 :: batches], dynamics, trainer

    losses, dynamics, _ = train(2)
    check(dynamics, losses)
    first, _, trainer = train(1)
    second, dynamics, _ = train(2, resume=trainer.checkpoint_callback.best_model_path)
    check(dynamics, first + second)


@pytest.mark.parametrize("batches", [1, 2])
def test_transformers(tmp_path, batches):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    from filigree.integrations.transformers import Dynamics

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.network, self.losses = network(), []

        def forward(self, x, labels):
            loss = functional.cross_entropy(self.network(x), labels)
            self.losses.append(float(loss.detach()))
            return transformers.modeling_outputs.SequenceClassifierOutput(loss=loss)

    def train(steps, resume=None):
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path), max_steps=steps, per_device_train_batch_size=8 // batches, learning_rate=0.01,
            gradient_accumulation_steps=batches, save_steps=3, report_to="none", disable_tqdm=True, use_cpu=True,
            dataloader_pin_memory=False,
        )  # fmt: skip
        dynamics = Dynamics(annealings())
        trainer = transformers.Trainer(Model(), arguments, train_dataset=Points(), callbacks=[dynamics])
        trainer.train(resume_from_checkpoint=resume)
        return trainer.model.losses[batches - 1 :: batches], dynamics

    losses, dynamics = train(STEPS)
    check(dynamics, losses)
    again, dynamics = train(STEPS, str(tmp_path / "checkpoint-3"))  # in the middle of an epoch
    check(dynamics, losses[:3] + again)


class Stream(IterableDataset):
    def __iter__(self):
        points = Points()
        return (points[i] for i in range(32))


def test_transformers_counts_the_epochs_of_data_without_a_length(tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    from filigree.integrations.transformers import Dynamics

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network()

        def forward(self, x, labels):
            loss = functional.cross_entropy(self.network(x), labels)
            return transformers.modeling_outputs.SequenceClassifierOutput(loss=loss)

    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), max_steps=12, per_device_train_batch_size=8, report_to="none", disable_tqdm=True,
        use_cpu=True, dataloader_pin_memory=False, save_strategy="no",
    )  # fmt: skip
    counter = Counter()
    callbacks = [Dynamics(counter)]
    transformers.Trainer(Model(), arguments, train_dataset=Stream(), callbacks=callbacks).train()
    assert len(counter.seen) == 3  # epochs, of four steps each


def test_gpt2s_layers_become_linear_ones():
    pytest.importorskip("transformers", reason="transformers is not installed")
    from transformers.pytorch_utils import Conv1D

    from filigree.integrations.transformers import conv1d_to_linear_

    model = nn.Sequential(Conv1D(5, 3), nn.ReLU(), Conv1D(2, 5))
    model[0].weight.requires_grad_(False)
    model[2].bias.requires_grad_(False)
    x = torch.randn(4, 3)
    expected, state = model(x), torch.get_rng_state()
    assert conv1d_to_linear_(model) == ["0", "2"]
    assert torch.equal(torch.get_rng_state(), state)
    assert isinstance(model[0], nn.Linear)
    torch.testing.assert_close(model(x), expected)
    assert [p.requires_grad for p in model.parameters()] == [False, True, True, False]
    with pytest.raises(ValueError, match="Got a Conv1D itself"):
        conv1d_to_linear_(Conv1D(5, 3))


# -- what they share --------------------------------------------------------------------------------------------------


class Counter:
    def __init__(self):
        self.seen = []

    def step(self, metrics=None):
        self.seen.append({name: value for name, value in (metrics or {}).items() if name != "epoch"})


def begun(callbacks, epochs=9):
    model = nn.Linear(2, 2)
    driver = Driver(callbacks)
    driver.begin(model, torch.optim.SGD(model.parameters(), 0.1), epochs, None, 0)
    return driver


def test_epochs_are_followed_once_by_a_step_that_reads_the_metrics():
    counter = Counter()
    driver = begun([counter, lambda model, optimizer: Counter()])
    for epoch in (0, 1, 1, 2):  # a trainer may begin an epoch again
        driver.begin_epoch(epoch, {"loss": epoch - 1})
    assert counter.seen == driver.callbacks.objects[1].seen == [{"loss": 0}, {"loss": 1}]


def test_a_plateau_reads_one_of_the_metrics():
    driver = begun(lambda model, optimizer: ReduceLROnPlateau(optimizer, patience=0))
    with pytest.raises(ValueError, match=r"needs one of val_loss, .*Got epoch, accuracy"):
        driver.end_epoch(0, {"accuracy": 1.0})
    for epoch in (1, 2):
        driver.end_epoch(epoch, {"train_loss": 3.0 - epoch, "val_loss": 1.0})
    assert driver.state.optimizer.param_groups[0]["lr"] == pytest.approx(0.01)


def test_what_cannot_be_stepped_is_refused_by_name():
    with pytest.raises(TypeError, match=r"Dynamics: callbacks: expected an object with \.step.*Got float"):
        Driver(0.3)
    with pytest.raises(TypeError, match=r"callbacks: expected .*Got Evolution"):
        Driver([fg.Evolution])
    with pytest.raises(ValueError, match=r"ReduceLROnPlateau: it follows the loss of an epoch"):
        begun(fg.each_step(lambda model, optimizer: ReduceLROnPlateau(optimizer)))


@pytest.mark.parametrize("name", ["lightning", "transformers"])
def test_a_missing_library_is_named_in_one_line(name, monkeypatch):
    for module in list(sys.modules):
        if module == name or module.startswith(f"{name}."):
            monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, f"filigree.integrations.{name}", raising=False)
    line = rf"filigree\.integrations\.{name}: {name} is needed\. pip install {name}"
    with pytest.raises(ImportError, match=line):
        importlib.import_module(f"filigree.integrations.{name}")
