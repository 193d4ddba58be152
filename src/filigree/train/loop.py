"""The training loop."""

from __future__ import annotations

import numbers
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from filigree.train.batches import Augment
from filigree.train.evaluation import Loss
from filigree.train.fit_run import FitRun
from filigree.train.history import History
from filigree.train.records import Record
from filigree.train.signals import stop_on_signals
from filigree.train.stopping import EarlyStopping

if TYPE_CHECKING:
    from accelerate import Accelerator  # type: ignore[import-untyped]
    from rich.progress import Progress


def fit(
    model: nn.Module,
    train: Any,
    *more: Any,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    batch_size: int = 128,
    loss: Loss | None = None,
    validation: Any = None,
    test: Any = None,
    callbacks: Any = (),
    augment: Augment | None = None,
    early_stopping: EarlyStopping | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    seed: int = 0,
    accelerator: Accelerator | None = None,
    progress: Progress | bool | None = None,
    drop_last: bool = False,
    record: Record | str | Path | None = None,
    on_nan: Literal["raise", "stop"] = "raise",
) -> History:
    """Train `model`, and return what was measured, a row an epoch.

        fg.fit(model, train, optimizer=optimizer, epochs=10, callbacks=[evolution, scheduler, hook])

    A step is what a hand-written loop does: `zero_grad`, forward, loss, backward, `optimizer.step()`; then come the
    callbacks that step with every step, then hooks on `on_step_end`. After the steps of an epoch come, in this order:
    evaluation on `validation` and `test`; early stopping; callbacks that step with every epoch; hooks on
    `on_epoch_end`; rewiring, if another epoch follows; checkpoint and record. So nothing is rewired after the last
    epoch, whether the number of epochs, early stopping or a hook makes it the last: the network stays as it was
    measured. An epoch that early stopping ends is followed by no step of a callback at all.

    Callbacks are told the horizon: `fg.Evolution` and annealings need no `epochs=`, and refuse one that contradicts. A
    second call of `fit` with the same objects goes on where the first ended: their horizon is what they have done plus
    the epochs of this call, so decreasing schedules decrease over both. A run that is resumed with more `epochs` first
    makes up the rewiring that the end of the shorter one left out. Where `fit` is called anew for each epoch, the
    caller rewires between the calls: `evolution.step()`.

    Args:
        model: any torch module; trained where it is, or where the `accelerator` puts it. Where it is in training mode,
            modules inside it that are in evaluation mode, such as a frozen norm, stay so; a model in evaluation mode
            trains as a whole, and each module is put back into its mode at the end.
        train, validation, test: a pair `(x, y)` of tensors, an object with tensors `.x` and `.y`, a Dataset (an
            IterableDataset keeps its order), or a DataLoader (which keeps its own batch size and order; all samplers in
            it are told the epoch by `set_epoch`). Tensors may lie on another device than the model. x may be a sparse
            matrix of scipy, which takes the dtype of the model's parameters, or a CSR tensor of torch `(n, features)`.
            It is never made dense: the layers that read it are `nn.Linear`, `SparseLinear` and `MaskedLinear`; those of
            `fg.Asymmetric` do in eval mode only. Tensors in COO or CSC form are refused.
        optimizer: holds the model's parameters.
        epochs: how many in all; those done before a resume count.
        batch_size: samples a step; with several processes, over all of them. Of tensors, a remainder of less than half
            a batch joins the last one.
        loss: `loss(output, y)`, a mean over the batch, of whatever the model returns (there is an accuracy only where
            that is a tensor); by default cross entropy, or the mean squared error where y is one number a sample,
            floats `(n, 1)`, of a tensor.
        callbacks: one or a list, in any mix (see `filigree.train.stepping`): objects with `.step()`, which step each
            epoch (lr_schedulers, `fg.Evolution`, `fg.SET`) or each step (`fg.RigL`, `fg.NoiseAnnealing`,
            `fg.each_step(scheduler)`); a `step` that takes `metrics` is given the epoch's row (torch's
            ReduceLROnPlateau its validation loss, else its training loss), one that takes `loss` the step's; one with
            a `rate` is timed as rewiring. Objects with any of `on_fit_start`, `on_epoch_start`, `on_step_end`,
            `on_epoch_end`, `on_fit_end`, each called with the `FitState`; a plain callable is an `on_epoch_end`.
            Functions `(model, optimizer)` that make one of these when training begins.
        augment: `augment(x)` or `augment(x, generator=...)`, applied to every training batch.
        early_stopping: an `EarlyStopping`.
        checkpoint: a folder; after every epoch its `checkpoint.safetensors` is replaced, atomically, by one with model,
            optimizer, the states of callbacks that have a `state_dict`, random generators, early
            stopping and history. A killed run leaves the last whole one. With a checkpoint, SIGINT and SIGTERM let the
            step in hand end and save the run there before they end it (of several processes: the epoch in hand); a
            second signal ends it at once. Without one they unwind at once; SIGTERM is `SystemExit(143)`.
        resume: go on from the folder's checkpoint, bit for bit as if never interrupted; from the start where it has
            none. The global random generators are put back as well.
        seed: of the order of the data and of `augment`'s generator, nothing else. Dropout and the like draw from
            torch's global generator, which is left as it is: see `seed_everything`.
        accelerator: an `accelerate.Accelerator`, for devices, mixed precision and several processes.
        progress: a rich `Progress` to show the run in, True, False, or None: a bar where there is a terminal.
        drop_last: leave out a last batch that is not full.
        record: a `Record` or a folder for one; `record.json` is written every epoch, so a killed run leaves one too.
        on_nan: what a loss that is not finite does: "raise" `FloatingPointError`, or "stop" the run, saying so in
            `History.stopped`. Either way the checkpoint stays that of the epoch before.

    Returns:
        The `History`: rows, `stopped`, `metrics`.

    Raises:
        ValueError, TypeError: data that are empty, of unequal lengths or not finite, or sparse where a layer does not
            read that; labels that have no output; an optimizer of another model; a checkpoint of another run; and
            whatever else is wrong with an argument, by name.
        FloatingPointError: the training loss is not finite.
    """
    if more:
        raise TypeError(
            f"fit: the data are one argument, such as a pair: fg.fit(model, (x, y), optimizer=..., epochs=...). "
            f"Got {len(more)} more without a name."
        )
    for name, number in (("epochs", epochs), ("batch_size", batch_size)):
        if not isinstance(number, numbers.Integral):
            raise TypeError(f"fit: {name} must be a whole number. Got {number!r}.")
    if epochs < 1:
        raise ValueError(f"fit: epochs must be at least 1. Got {epochs}.")
    if resume and checkpoint is None:
        raise ValueError("fit: resume needs the folder of the checkpoint. Give checkpoint=.")
    if on_nan not in ("raise", "stop"):
        raise ValueError(f"fit: on_nan must be 'raise' or 'stop'. Got {on_nan!r}.")
    run = FitRun(
        model, train, optimizer, epochs, batch_size, loss, validation, test, callbacks,
        augment, early_stopping, checkpoint, seed, accelerator, drop_last, record, on_nan,
    )  # fmt: skip
    with stop_on_signals(saves=checkpoint is not None) as request:
        run.start(resume)
        with run.bar(progress) as bar:
            run.to_the_end(bar, request)
    return run.history
