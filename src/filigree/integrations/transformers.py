"""For models of transformers: evolution and annealings driven by its `Trainer`, GPT-2's layers as linear ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from filigree.optional import absent

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
    from transformers.pytorch_utils import Conv1D
except ImportError as error:
    raise absent(error, __name__, "transformers") from None

import torch
from torch import Tensor, nn

from filigree.convert import replace_module
from filigree.integrations.steppers import Steppers
from filigree.io.storage import read_state, write_state

FILE = "filigree.safetensors"


class Dynamics(TrainerCallback):
    """Steps `fg.Evolution`, `fg.NoiseAnnealing`, `fg.MollificationAnnealing` and their kin while a `Trainer` trains.

    `Trainer(..., callbacks=[Dynamics(each_epoch=lambda model, optimizer: fg.Evolution(model, optimizer, 0.3))])`. Their
    states lie in each checkpoint's folder, in `filigree.safetensors`, and `train(resume_from_checkpoint=...)` goes on
    from them, as long as that folder is where the trainer made it: `output_dir/checkpoint-<step>`.

    Args:
        each_epoch, each_step: see `filigree.integrations.steppers.Steppers`; metrics are what the trainer logged last.
            The loss of a step is that of the last batch before it.

    Raises:
        FileNotFoundError: a run that goes on from a checkpoint without that file.
    """

    def __init__(self, each_epoch: Any = (), each_step: Any = ()) -> None:
        self.steppers = Steppers(each_epoch, each_step)
        self._loss: Tensor | None = None
        self._epoch: int | None = None
        self._handle: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step:
            self.steppers.load_state_dict(read_state(_folder(args, state) / FILE))
        model: nn.Module = kwargs["model"]
        self.steppers.begin(model, kwargs["optimizer"])
        self._epoch = None
        self._handle = model.register_forward_hook(self._see)  # the trainer shows its callbacks no loss

    def _see(self, model: nn.Module, inputs: Any, output: Any) -> None:
        if model.training and getattr(output, "loss", None) is not None:
            self._loss = output.loss.detach()

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._epoch is None:
            self._epoch = max(int((state.epoch or 0) + 1e-6), self.steppers.epochs)
        else:  # counted, as of data of unknown length state.epoch is the fraction of all steps
            self._epoch += 1
        self.steppers.begin_epoch(self._epoch)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.steppers.end_step(self._loss)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.steppers.metrics |= {name: value for name, value in kwargs["logs"].items() if isinstance(value, float)}

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            write_state(_folder(args, state) / FILE, self.steppers.state_dict())

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._handle.remove()


def _folder(args: TrainingArguments, state: TrainerState) -> Path:
    """Where the checkpoint of this step is."""
    return Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"


@torch.no_grad()
def conv1d_to_linear_(model: nn.Module) -> list[str]:
    """Put an `nn.Linear` in the place of each `Conv1D` of GPT-2 and its kin, a linear layer whose weight is transposed.

    `fg.convert_` changes linear layers only. The model computes the same; files of the changed model hold transposed
    weights.

    Returns:
        The names of the layers.

    Raises:
        ValueError: the model itself is such a layer, so that nothing can be put in its place.
    """
    if type(model) is Conv1D:
        raise ValueError("conv1d_to_linear_: expected a model that holds layers. Got a Conv1D itself.")
    names = [name for name, module in model.named_modules() if type(module) is Conv1D]
    for name in names:
        old: Any = model.get_submodule(name)
        inputs, outputs = old.weight.shape
        made = nn.Linear(inputs, outputs, device="meta")  # its own weights are never drawn
        made.weight = nn.Parameter(old.weight.t().clone().contiguous(), old.weight.requires_grad)
        made.bias = old.bias
        replace_module(model, name, made.train(old.training))
    return names
