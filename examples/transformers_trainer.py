"""A small BERT with sparse feed-forward layers that evolve, trained by transformers' Trainer. Seconds on a CPU.

The task is made up, and nothing is downloaded: which of two tokens comes more often in a sequence?
"""

from functools import partial

import torch
import transformers
from torch.utils.data import Dataset

import filigree as fg
from filigree.integrations.transformers import Dynamics

TOKENS, LENGTH = 8, 9


class MoreOnes(Dataset):
    """Sequences of random tokens, and whether token 1 comes more often in them than token 2; never equally often."""

    def __init__(self, samples: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randint(1, TOKENS, (8 * samples, LENGTH), generator=generator)
        lead = (x == 1).sum(1) - (x == 2).sum(1)
        self.x, self.y = x[lead != 0][:samples], (lead[lead != 0] > 0).long()[:samples]

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.x[i], "labels": self.y[i]}


def build() -> torch.nn.Module:
    transformers.set_seed(0)
    config = transformers.BertConfig(
        vocab_size=TOKENS, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
        max_position_embeddings=LENGTH, num_labels=2,
    )  # fmt: skip
    model = transformers.BertForSequenceClassification(config)
    print(
        fg.convert_(
            model, fg.Sparse(fg.ErdosRenyi(density=0.25)), where=["*.intermediate.dense", "*.layer.?.output.dense"]
        )
    )
    return model


def make_trainer(folder: str, epochs: int = 4) -> transformers.Trainer:
    arguments = transformers.TrainingArguments(
        output_dir=folder, num_train_epochs=epochs, per_device_train_batch_size=32, learning_rate=1e-3,
        lr_scheduler_type="constant", save_strategy="epoch", logging_strategy="epoch", eval_strategy="epoch",
        report_to="none", disable_tqdm=True, use_cpu=True, seed=0, dataloader_pin_memory=False,
    )  # fmt: skip
    return transformers.Trainer(
        build(), arguments, train_dataset=MoreOnes(1024, 0), eval_dataset=MoreOnes(256, 1),
        callbacks=[Dynamics(partial(fg.SET, zeta=0.2))],
        compute_metrics=lambda given: {"accuracy": float((given.predictions.argmax(1) == given.label_ids).mean())},
    )  # fmt: skip


if __name__ == "__main__":
    trainer = make_trainer("runs/transformers")
    trainer.train()
    print(f"accuracy {trainer.evaluate()['eval_accuracy']:.3f}")
    fg.save(trainer.model, "runs/transformers/model.safetensors")
