"""For models of transformers: the callbacks of `fg.fit` driven by its `Trainer`, GPT-2's layers as linear ones."""

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
from filigree.integrations.driver import Driver
from filigree.io.storage import read_state, write_state

FILE = "filigree.safetensors"


class Dynamics(TrainerCallback):
    """Steps `fg.Evolution`, annealings, schedulers and hooks while a `Trainer` trains, as `fg.fit` does.

    `Trainer(..., callbacks=[Dynamics(lambda model, optimizer: fg.SET(model, optimizer, 0.3))])`. Their states lie in
    each checkpoint's folder, in `filigree.safetensors`, and `train(resume_from_checkpoint=...)` goes on from them, as
    long as that folder is where the trainer made it: `output_dir/checkpoint-<step>`. A rewiring is done when the next
    epoch (or step) begins: a checkpoint that is written after an epoch holds the network as it was evaluated.

    Args:
        callbacks: one or a list, see `filigree.train.stepping`; the row of an epoch holds what the trainer logged last,
            its evaluation after the epoch included. The loss of a step is that of the last batch before it.

    Raises:
        FileNotFoundError: a run that goes on from a checkpoint without that file.
    """

    def __init__(self, callbacks: Any = ()) -> None:
        self.driver = Driver(callbacks)
        self._metrics: dict[str, float] = {}
        self._loss: Tensor | None = None
        self._epoch: int | None = None
        self._waits: str | None = None  # for the event that brings the figures of the epoch that is over
        self._handle: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._epoch, self._waits, self._metrics = None, None, {}
        if state.global_step:
            saved = read_state(_folder(args, state) / FILE)
            self._metrics = saved["metrics"]
            self.driver.load_state_dict(saved["driver"])
        model: nn.Module = kwargs["model"]
        self.driver.begin(model, kwargs["optimizer"], state.num_train_epochs, state.max_steps, state.global_step)
        self._handle = model.register_forward_hook(self._see)  # the trainer shows its callbacks no loss

    def _see(self, model: nn.Module, inputs: Any, output: Any) -> None:
        if model.training and getattr(output, "loss", None) is not None:
            self._loss = output.loss.detach()

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._end_epoch(control)
        if self._epoch is None:
            self._epoch = max(int((state.epoch or 0) + 1e-6), self.driver.callbacks.ended)
        else:  # counted, as of data of unknown length state.epoch is the fraction of all steps
            self._epoch += 1
        self.driver.begin_epoch(self._epoch, self._metrics)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.driver.begin_step()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.driver.end_step(state.global_step, self._loss)
        control.should_training_stop |= self.driver.state.stop

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._waits = "evaluate" if control.should_evaluate else "log" if control.should_log else "nothing"
        self._figures_of("nothing", control)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._metrics |= {name: value for name, value in kwargs["logs"].items() if isinstance(value, float)}
        self._figures_of("log", control)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._figures_of("evaluate", control)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._end_epoch(control)
        if state.is_world_process_zero:
            saved = {"driver": self.driver.state_dict(), "metrics": self._metrics}
            write_state(_folder(args, state) / FILE, saved)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._end_epoch(control)
        self.driver.end()
        self._handle.remove()

    def _figures_of(self, event: str, control: TrainerControl) -> None:
        if self._waits == event:
            self._end_epoch(control)

    def _end_epoch(self, control: TrainerControl) -> None:
        """End the epoch that is over, if it has not been yet."""
        if self._waits is not None and self._epoch is not None:
            self._waits = None
            self.driver.end_epoch(self._epoch, self._metrics)
            control.should_training_stop |= self.driver.state.stop


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
        linear = nn.Linear(inputs, outputs, device="meta")  # its own weights are never drawn
        linear.weight = nn.Parameter(old.weight.t().clone().contiguous(), old.weight.requires_grad)
        linear.bias = old.bias
        replace_module(model, name, linear.train(old.training))
    return names
