"""One list of callbacks sees the same events, in the same order, whether `fit`, Lightning or a Trainer drives it."""

from __future__ import annotations

import itertools

import pytest
import torch
from points import Points
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader

import filigree as fg

EPOCHS, STEPS = 3, 4  # and steps an epoch


def network():
    torch.manual_seed(0)
    model = fg.models.mlp([6, 30, 30, 2], activation="tanh")  # every new weight gets a gradient
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.3)), where=["fc1", "fc2"])
    return model


class LossModel(nn.Module):
    """What a Trainer trains: a network that returns its loss."""

    def __init__(self):
        super().__init__()
        self.network = network()

    def forward(self, x, labels):
        from transformers.modeling_outputs import SequenceClassifierOutput

        return SequenceClassifierOutput(loss=functional.cross_entropy(self.network(x), labels))


def by_fit(callbacks, folder):
    model, data = network(), Points()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    fg.fit(
        model, (data.x, data.y), optimizer=optimizer, epochs=EPOCHS, batch_size=8, callbacks=callbacks, progress=False
    )
    return model


def by_lightning(callbacks, folder):
    lightning = pytest.importorskip("lightning", reason="Lightning is not installed")
    from filigree.integrations.lightning import Dynamics

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.network = network()

        def training_step(self, batch, index):
            loss = functional.cross_entropy(self.network(batch["x"]), batch["labels"])
            self.log("train_loss", loss, on_step=False, on_epoch=True)
            return loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    module = Module()
    trainer = lightning.Trainer(
        max_epochs=EPOCHS, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, callbacks=[Dynamics(callbacks)],
    )  # fmt: skip
    trainer.fit(module, DataLoader(Points(), batch_size=8))
    return module.network


def by_trainer(callbacks, folder):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    from filigree.integrations.transformers import Dynamics

    arguments = transformers.TrainingArguments(
        output_dir=str(folder), num_train_epochs=EPOCHS, per_device_train_batch_size=8, report_to="none",
        disable_tqdm=True, use_cpu=True, dataloader_pin_memory=False, save_strategy="no", logging_strategy="epoch",
    )  # fmt: skip
    trainer = transformers.Trainer(LossModel(), arguments, train_dataset=Points(), callbacks=[Dynamics(callbacks)])
    trainer.train()
    return trainer.model.network


DRIVERS = pytest.mark.parametrize("drive", [by_fit, by_lightning, by_trainer])
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),  # Lightning uses what torch has deprecated
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),  # advice
]


class Hook:
    """Writes all events down."""

    def __init__(self, heard, stop_at=None):
        self.heard, self.stop_at = heard, stop_at

    def on_fit_start(self, state):
        self.heard.append(("start", state.epochs))

    def on_epoch_start(self, state):
        self.heard.append(("epoch", state.epoch))

    def on_step_end(self, state):
        assert bool(state.loss > 0)
        self.heard.append(("step", state.step))

    def on_epoch_end(self, state):
        self.heard.append(("end", state.history[-1]["epoch"]))
        state.stop = state.epoch == self.stop_at

    def on_fit_end(self, state):
        self.heard.append(("done", len(state.history)))


class Steps:
    """Writes down when it steps, and the horizon."""

    def __init__(self, name, heard):
        self.name, self.heard = name, heard

    def set_horizon(self, calls):
        self.heard.append((self.name, "horizon", calls))

    def step(self):
        self.heard.append(self.name)


class ReadsMetrics(Steps):
    def step(self, metrics):
        self.heard.append((self.name, metrics["epoch"], any("loss" in name for name in metrics)))


class ReadsLoss(Steps):
    interval = "step"

    def step(self, loss):
        self.heard.append((self.name, bool(loss > 0)))


class Rewires(Steps):
    rate = 0.5


def listeners(heard, stop_at=None):
    return [
        Hook(heard, stop_at), lambda state: heard.append("callable"), ReadsMetrics("metrics", heard),
        ReadsLoss("loss", heard), Rewires("rewire", heard), fg.each_step(Rewires("rewire by step", heard)),
        fg.each_step(lambda model, optimizer: Steps("made", heard)),
    ]  # fmt: skip


def expected(epochs=EPOCHS):
    """Steps before hooks; rewiring last, and only where a step of the optimizer follows."""
    heard = [("metrics", "horizon", 3), ("loss", "horizon", 12), ("rewire", "horizon", 3),
             ("rewire by step", "horizon", 12), ("made", "horizon", 12), ("start", 3)]  # fmt: skip
    for epoch in range(epochs):
        heard.append(("epoch", epoch))
        for step in range(1, STEPS + 1):
            heard += [("loss", True), "made", ("step", epoch * STEPS + step)]
            heard += ["rewire by step"] if step < STEPS else []
        heard += [("metrics", epoch, True), ("end", epoch), "callable"]
        heard += ["rewire by step", "rewire"] if epoch < epochs - 1 else []
    return [*heard, ("done", epochs)]


@DRIVERS
def test_the_same_callbacks_see_the_same_events(drive, tmp_path):
    heard = []
    drive(listeners(heard), tmp_path)
    assert heard == expected()


@DRIVERS
def test_a_hook_that_ends_the_run_is_not_followed_by_a_rewiring(drive, tmp_path):
    heard = []
    drive(listeners(heard, stop_at=1), tmp_path)
    assert heard == expected(epochs=2)


class Rewirings:
    """Remembers the connections at the end of each epoch, before they are rewired."""

    def __init__(self):
        self.flat_indices = []

    def on_epoch_end(self, state):
        layer = state.model.get_submodule("fc1" if hasattr(state.model, "fc1") else "network.fc1")
        self.flat_indices.append(layer.flat_indices())


@DRIVERS
@pytest.mark.parametrize(
    "preset", [fg.SET, fg.LDV, lambda model, optimizer: fg.RigL(model, optimizer, alpha=0.9, delta_t=STEPS, t_end=1.0)]
)
def test_no_run_ends_on_connections_that_were_never_trained(drive, preset, tmp_path):
    """Growth is at exactly zero: after training no value is zero, while rewiring did take place between the epochs."""
    seen = Rewirings()
    model = drive([preset, seen], tmp_path)
    layers = [layer for layer in model.modules() if isinstance(layer, fg.nn.SparseLinear)]
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(seen.flat_indices))
    assert torch.equal(seen.flat_indices[-1], layers[0].flat_indices())
    assert [int((layer.weights() == 0).sum()) for layer in layers] == [0] * len(layers)
    fg.measure(model)  # warnings are errors here


@DRIVERS
def test_a_horizon_that_contradicts_the_run_is_refused(drive, tmp_path):
    with pytest.raises(ValueError, match=r"Evolution: epochs must be that of the run, 3\. Got 10: leave it out"):
        drive(lambda model, optimizer: fg.SET(model, optimizer, epochs=10), tmp_path)


def lightning_module(**methods):
    """The network as Lightning trains it, with these methods besides."""
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.network = network()

        def training_step(self, batch, index):
            return functional.cross_entropy(self.network(batch["x"]), batch["labels"])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    return type("Validated", (Module,), methods)()


@pytest.mark.filterwarnings("ignore:.*exists and is not empty")
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch")
def test_growth_by_gradient_goes_on_from_a_lightning_checkpoint(tmp_path):
    """The rewiring comes after the checkpoint, and reads a backward pass before it."""
    lightning = pytest.importorskip("lightning", reason="Lightning is not installed")
    from lightning.pytorch.callbacks import ModelCheckpoint

    from filigree.integrations.lightning import Dynamics

    def train(resume=None):
        module = lightning_module()
        dynamics = Dynamics(lambda model, optimizer: fg.LDV(model, optimizer, grow="gradient"))
        trainer = lightning.Trainer(
            max_epochs=EPOCHS, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
            callbacks=[dynamics, ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)],
        )  # fmt: skip
        trainer.fit(module, DataLoader(Points(), batch_size=8), ckpt_path=resume)
        return module.network.state_dict()

    whole, resumed = train(), train(tmp_path / "epoch=0.ckpt")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_second_fit_of_a_lightning_trainer_steps_for_its_own_epochs(tmp_path):
    """And a checkpoint may be written before the first one, when nothing has stepped yet."""
    lightning = pytest.importorskip("lightning", reason="Lightning is not installed")
    from filigree.integrations.lightning import Dynamics

    heard = []
    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, callbacks=[Dynamics(Steps("step", heard))],
    )  # fmt: skip
    module, loader = (
        lightning_module(validation_step=lambda module, batch, index: None),
        DataLoader(Points(), batch_size=8),
    )
    trainer.validate(module, loader, verbose=False)
    trainer.save_checkpoint(tmp_path / "before.ckpt")
    for epochs in (2, 5):
        trainer.fit_loop.max_epochs = epochs
        trainer.fit(module, loader, loader)
    assert heard == [("step", "horizon", 2), *["step"] * 2, ("step", "horizon", 3), *["step"] * 3]
    trainer.fit_loop.max_epochs = 6
    trainer.fit(module, loader, loader, ckpt_path=tmp_path / "before.ckpt")
    assert heard[7:] == [("step", "horizon", 6), *["step"] * 6]
