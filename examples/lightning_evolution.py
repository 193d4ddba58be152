"""A sparse network that evolves, trained by Lightning on digits, interrupted and gone on with. Seconds on a CPU."""

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import filigree as fg
from filigree.integrations.lightning import Dynamics

EPOCHS = 6


class Digits(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.network = fg.models.mlp([64, 300, 300, 10])
        fg.convert_(self.network, fg.Sparse(fg.ErdosRenyi(epsilon=10)))

    def training_step(self, batch, index):
        x, y = batch
        loss = functional.cross_entropy(self.network(x), y)
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, index):
        x, y = batch
        self.log("val_accuracy", (self.network(x).argmax(1) == y).float().mean(), prog_bar=True)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def dynamics() -> Dynamics:
    """Connections move after each epoch, fewer and fewer; a function, since Lightning makes the optimizer."""
    return Dynamics(lambda model, optimizer: fg.LDV(model, optimizer, zeta_max=0.3, zeta_min=0.05))


def train(folder: str, epochs: int = EPOCHS, resume: str | None = None) -> lightning.Trainer:
    lightning.seed_everything(0, verbose=False)
    data = fg.data.load("digits")
    train = DataLoader(TensorDataset(data.train.x, data.train.y), batch_size=64)
    test = DataLoader(TensorDataset(data.test.x, data.test.y), batch_size=600)
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=[dynamics(), ModelCheckpoint(dirpath=folder, filename="{epoch}", save_top_k=-1)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Digits(), train, test, ckpt_path=resume)
    return trainer


if __name__ == "__main__":
    train("runs/lightning", epochs=3)
    trainer = train("runs/lightning", resume="runs/lightning/epoch=2.ckpt")
    evolution = trainer.callbacks[0].driver.callbacks.objects[0]
    print(f"validation accuracy {trainer.callback_metrics['val_accuracy']:.3f}")
    print(f"{evolution.epoch} rewirings, the last at zeta = {evolution.rate:.2f}")
