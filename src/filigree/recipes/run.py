"""Runs of a recipe: each method and seed trained, saved and recorded in a folder of its own; then timed together."""

from __future__ import annotations

import dataclasses
import functools
import glob
import hashlib
import json
import math
import shutil
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pydantic
import torch
from rich.progress import Progress
from torch import nn

from filigree import data
from filigree.compress.compression import compress_
from filigree.config import clipped, listed, one_line
from filigree.data import DataSet
from filigree.data.preprocessing import set_preprocessing
from filigree.data.vocabulary import set_vocabulary
from filigree.dynamics import MollificationAnnealing, NoiseAnnealing, SelectionSchedule
from filigree.io import saving
from filigree.io.storage import remove_leftovers
from filigree.measure.energy import energy
from filigree.nn.sparse.sharding import shards_in
from filigree.ops import kernels
from filigree.ops.denormals import without_denormals
from filigree.ops.sparse_rows import as_dense, rows_of
from filigree.recipes.building import build, evolution_of, optimizer_of
from filigree.recipes.measuring import MODEL, measure_together
from filigree.recipes.recipe import DataSettings, MethodSettings, Recipe, RecipeError, TrainingSettings, searched_folder
from filigree.recipes.scores import add_rmse, score_on
from filigree.recipes.snapshots import Snapshots, Watch
from filigree.train import EarlyStopping, History, Record, Tracking, evaluate, fit, processes, seed_everything
from filigree.train.batches import batch_sizes
from filigree.train.checkpoints import FILE as CHECKPOINT
from filigree.train.history import score_of
from filigree.train.records import FILE as RECORD
from filigree.train.records import SEARCH, now

FILES = (MODEL, RECORD, CHECKPOINT)  # in the folder of a run


def run(
    recipe: Recipe,
    out: Path,
    *,
    methods: Sequence[str] | None = None,
    runs: Sequence[int] | None = None,
    source: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | bool | None = None,
    timed: bool = True,
) -> list[Path]:
    """Train the methods of a recipe, one folder `out/<method>-<seed>` each, and time them against one another.

    Args:
        methods, runs: only these; by default all of the recipe.
        source: a data file of the user's own in place of the recipe's data.
        resume: go on from checkpoints, and leave finished runs as they are.
        overwrite: train again what is there already, and replace it when its training begins.
        timed: False leaves all times out of the records, for a machine that does other work meanwhile; the same call
            with `resume` adds those of single steps later.

    Where a launcher started several processes (`torchrun`, `accelerate launch`), all of them train each network, by
    data parallel, and the first one writes; batches are over all processes, and times of single steps of one.

    Returns:
        The folders of the runs.

    Raises:
        RecipeError: no such run; an earlier run in the way, of other data or settings, or without `resume` or
            `overwrite`.
    """
    recipe = on(recipe, source)
    chosen, only_needed = _chosen(recipe, methods)
    folders: list[Path] = []
    numbers = list(recipe.runs() if runs is None else runs)
    refuse_earlier(recipe, out, methods, numbers, resume=resume, overwrite=overwrite)
    processes.wait()  # each has seen what was there
    chosen_settings = {method: _search(recipe, method, out, resume, progress) for method in chosen}
    for number in numbers:
        split = data_for_run(recipe.data, number, recipe.name)
        trained: dict[str, Path] = {}
        for method in chosen:
            folder = out / f"{method}-{number}"
            searched = bool(recipe.search) and number == recipe.runs()[0]  # that run is there already
            keep = resume or method in only_needed
            if not searched and not (keep and _is_finished(folder, recipe, method)):
                _train(recipe, method, number, split, folder, resume, progress, chosen_settings[method])
            if processes.is_main():
                _tidy(folder)
            trained[method] = folder
        dense = out / f"dense-{number}"  # what it costs is a ratio to dense, timed in turns with it
        record = _whole(dense) if "dense" in recipe.methods and "dense" not in trained else None
        beside = {"dense": dense} if record is not None and _difference_to(record, recipe, "dense") is None else {}
        if processes.is_main():
            measure_together(recipe, trained | beside, split, timed)
        processes.wait()
        folders += trained.values()
    return folders


def on(recipe: Recipe, source: str | Path | None) -> Recipe:
    """The recipe on other data: a set by its name, or a file. What it says of its own data is then not claimed."""
    if source is None or str(source) == recipe.data.name:
        return recipe
    return recipe.model_copy(update={
        "about": f"{recipe.about.strip()} Here on {source} in place of {recipe.data.name}.",
        "data": recipe.data.model_copy(update={"name": str(source)}),
        "expect": "", "published": {},
    })  # fmt: skip


def _chosen(recipe: Recipe, methods: Sequence[str] | None) -> tuple[list[str], set[str]]:
    """The methods that `run` trains, in their order, and those of them that are only needed by others: these are kept
    where they are there."""
    wanted = list(recipe.methods) if methods is None else list(methods)
    needed = [recipe.methods[method].after for method in wanted]
    chosen = [method for method in recipe.methods if method in (*wanted, *needed)]
    chosen.sort(key=lambda method: recipe.methods[method].after is not None)
    return chosen, {method for method in needed if method is not None and method not in wanted}


def refuse_earlier(
    recipe: Recipe, out: Path, methods: Sequence[str] | None = None, runs: Sequence[int] | None = None, *,
    resume: bool = False, overwrite: bool = False,
) -> None:  # fmt: skip
    """`RecipeError` where `run`, with the same arguments, would replace the work of an earlier run."""
    if resume and overwrite:
        raise RecipeError("--resume and --overwrite: one of both is expected.")
    chosen, _ = _chosen(recipe, methods)
    numbers = list(recipe.runs() if runs is None else runs)
    if resume:  # of an earlier one it goes on with, the settings are to be the same
        for folder, method in [(out / f"{method}-{number}", method) for number in numbers for method in chosen]:
            _is_finished(folder, recipe, method)
            _refuse_other_unfinished(folder, recipe, method)
    if resume or overwrite:
        return
    if earlier := runs_of(recipe, out, methods, numbers):
        shown = [f"{folder.name} ({'unfinished' if _whole(folder) is None else 'finished'})" for folder in earlier]
        raise RecipeError(
            f"{out} holds earlier runs: {listed(shown)}. --resume goes on with them and keeps those that are "
            "finished, --overwrite replaces them; or give another --out."
        )


def runs_of(recipe: Recipe, out: Path, methods: Sequence[str] | None, numbers: Sequence[int]) -> list[Path]:
    """The folders of earlier runs that `run`, with the same arguments, would replace."""
    chosen, only_needed = _chosen(recipe, methods)
    folders = [out / f"{method}-{number}" for number in numbers for method in chosen if method not in only_needed]
    folders += [
        folder for number in numbers for method in only_needed
        if not _is_finished(folder := out / f"{method}-{number}", recipe, method)
    ]  # fmt: skip
    tried = [folder for method in chosen for folder in (out / SEARCH).glob(f"{glob.escape(method)}-*")]
    return [folder for folder in (*folders, *tried) if any((folder / name).exists() for name in FILES)]


def finished(recipe: Recipe, out: Path, source: str | Path | None = None) -> list[Path]:
    """The folders in `out` of all runs of this recipe, as it is now, that are finished."""
    recipe, folders = on(recipe, source), []
    for method in recipe.methods:
        for folder in sorted(out.glob(f"{glob.escape(method)}-*")):
            record = _whole(folder) if folder.name.removeprefix(f"{method}-").isdigit() else None
            if record is not None and _difference_to(record, recipe, method) is None:
                folders.append(folder)
    return folders


def _search(recipe: Recipe, method: str, out: Path, resume: bool, progress: Progress | bool | None) -> dict[str, Any]:
    """The candidate of `recipe.search` with the best validation score in the first run; it is kept as that run.

    Candidates at which training diverges are passed over, and named in its record.
    """
    best: tuple[float, dict[str, Any], Path] | None = None
    diverged: list[str] = []
    number = recipe.runs()[0]
    for key, candidates in recipe.search.items():
        split = data_for_run(recipe.data, number, recipe.name)
        for candidate in candidates:
            folder = out / SEARCH / f"{method}-{number}-{searched_folder(key, candidate)}"
            if not (resume and _is_finished(folder, recipe, method)):
                try:
                    _train(recipe, method, number, split, folder, resume, progress, {key: candidate})
                except FloatingPointError as error:
                    diverged.append(f"At {key} {candidate} training diverged ({error})")
                    continue
            score = score_of(Record.load(folder).metrics, "val")
            if score is not None and (best is None or score[1] > best[0]):
                best = score[1], {key: candidate}, folder
    if best is None:
        if diverged:
            raise RecipeError(f"{method}: training diverges at every candidate of the search. {diverged[-1]}")
        return {}
    first = out / f"{method}-{number}"
    if processes.is_main() and not (resume and _is_finished(first, recipe, method)):
        whole = out / SEARCH / f"{first.name}.tmp"  # a copy that is cut off must not pass for the run
        shutil.rmtree(whole, ignore_errors=True)
        shutil.copytree(best[2], whole)
        shutil.rmtree(first, ignore_errors=True)
        whole.rename(first)
        record = Record.load(first)
        record.notes += diverged
        record.save()
    processes.wait()
    return best[1]


def data_of(record: Record) -> DataSet:
    """The data of a run, split as it was split for it. `ValueError`: its record does not say how."""
    known = record.config.get("data", {})
    try:
        settings = DataSettings(**{name: known[name] for name in DataSettings.model_fields if name in known})
    except pydantic.ValidationError as error:
        raise ValueError(
            f"{record.folder}: its record does not say what data it is of ({one_line(error, 100)})."
        ) from None
    return data_for_run(settings, record.seed, record.recipe)


def data_for_run(chosen: DataSettings, number: int, name: str) -> DataSet:
    """The data of a recipe `name`, split for its run (or fold) of this number."""
    if chosen.unit is not None:
        return data.load_text(chosen.name, unit=chosen.unit, length=chosen.length)
    settings = chosen.model_dump(exclude={"folds", "repeats", "name", "unit", "length"})
    if settings["standardize"] == "default":
        del settings["standardize"]
    if chosen.folds is None:
        return data.load(chosen.name, seed=number, **settings)
    if not 0 <= number < chosen.folds * chosen.repeats:
        raise RecipeError(f"{name}: its runs are the folds 0 to {chosen.folds * chosen.repeats - 1}. Got {number}.")
    settings.pop("test_size"), settings.pop("stratify")
    folds = data.cross_validation(chosen.name, folds=chosen.folds, repeats=chosen.repeats, seed=0, **settings)
    return next(split for i, split in enumerate(folds) if i == number)


def _train(
    recipe: Recipe, method: str, number: int, split: DataSet, folder: Path, resume: bool,
    progress: Progress | bool | None, chosen: dict[str, Any],
) -> None:  # fmt: skip
    if not resume and processes.is_main():
        for name in FILES:
            (folder / name).unlink(missing_ok=True)
    if resume:
        _refuse_other_unfinished(folder, recipe, method)
    interrupted = (folder / CHECKPOINT).exists()  # then the energy of the first part is not known
    processes.wait()
    if processes.is_main():
        _tidy(folder)
    arm, training = recipe.methods[method], recipe.training_of(method, **chosen)
    config = _config(recipe, method, **chosen)
    config["data"] |= {"input_shape": list(split.input_shape), "classes": split.classes}
    record = Record.start(
        recipe.name, method, number, config, folder, kernels.isa(), [*recipe.notes, *arm.notes, *split.notes]
    )
    loop = _taken_up if arm.after else _rebuilding if training.rebuild_every_epoch else _plain
    with without_denormals(), energy() as used:
        model, history = loop(recipe, method, arm, training, number, split, record, folder, resume, progress)
        if arm.compress:
            _compress(model, arm, training, split, number, history)
    if processes.is_main() or shards_in(model) is not None:  # which all save and evaluate together
        _finish(model, history, record, folder, split, None if interrupted else used.joules)
    processes.wait()


def _finish(
    model: nn.Module, history: History, record: Record, folder: Path, split: DataSet, joules: float | None
) -> None:
    """Save the model of a run and its record; `joules` is what this part of the training took, where that is known."""
    if joules is not None:
        history.metrics["train_joules"] = joules + float(history.metrics.get("train_joules") or 0)
    set_preprocessing(model, split.preprocessing)
    set_vocabulary(model, split.vocabulary)
    add_rmse(history.metrics, split)
    if split.vocabulary is not None:
        history.metrics["test_perplexity"] = math.exp(min(evaluate(model, split.test)["loss"], 700.0))
    saving.save(model, folder / MODEL)
    record.finished = record.finished or now()
    name, value = score_on(model, split.train)
    record.metrics |= {f"final_train_{name}": value} | history.metrics
    if not processes.is_main():
        return
    record.save()
    (folder / CHECKPOINT).unlink(missing_ok=True)  # last of all: the run is finished without it


def _compress(
    model: nn.Module, arm: MethodSettings, training: TrainingSettings, split: DataSet, seed: int, history: History
) -> None:
    """Compress after training; the accuracies and the training time are then those of the compressed network."""
    began = time.perf_counter()
    judge = split.train if split.validation is None else split.validation
    score, target = score_on(model, judge)
    history.metrics[f"trained_test_{score}"] = history.metrics.get(f"test_{score}")
    for step in arm.compress:
        config = dataclasses.replace(step.config, seed=seed) if hasattr(step.config, "seed") else step.config
        order = torch.randperm(len(split.train.x), generator=torch.Generator().manual_seed(seed))
        some = as_dense(rows_of(split.train.x, order[: step.samples])) if step.samples else None
        compress_(model, config, some, step.where)
    if arm.finetune is not None:
        history.metrics[f"compressed_test_{score}"] = score_on(model, split.test)[1]
        until = EarlyStopping(f"val_{score}", arm.finetune.epochs, "max", restore_best=True, target=target)
        tuned = fit(
            model, split.train, optimizer=optimizer_of(model, training.model_copy(update={"lr": arm.finetune.lr})),
            epochs=arm.finetune.epochs, batch_size=training.batch_size, validation=judge, early_stopping=until,
            augment=split.augment, seed=seed, progress=False,
        )  # fmt: skip
        history.metrics["finetune_epochs"] = len(tuned.rows)
        history.metrics["regained"] = int(until.reached(until.best))
    history.metrics["train_seconds"] += time.perf_counter() - began
    for part, samples in (("test", split.test), ("val", split.validation)):
        if samples is not None:
            means = evaluate(model, samples)
            history.metrics |= {
                f"{part}_{name}": value for name, value in means.items() if name != "loss" or score == "r2"
            }


def _plain(
    recipe: Recipe, method: str, arm: MethodSettings, training: TrainingSettings, number: int, split: DataSet,
    record: Record, folder: Path, resume: bool, progress: Progress | bool | None,
) -> tuple[nn.Module, History]:  # fmt: skip
    model = build(recipe, method, split, number)
    optimizer = optimizer_of(model, training)
    evolution = evolution_of(arm, training, model, optimizer, number)
    if arm.evolution is not None and evolution is None:
        record.notes.append(f"{method}: all layers stay dense at these widths and this density; nothing evolves.")
    callbacks: list[Any] = [Snapshots(evolution)] if evolution is None else [evolution, Snapshots(evolution)]
    if SelectionSchedule.is_needed(model):
        callbacks.append(SelectionSchedule(model))
    if (noise := arm.anneal) is not None:
        steps = training.epochs * len(batch_sizes(len(split.train.x), training.batch_size))
        every = {"steps": steps} if noise.every is None else {"every": noise.every}
        callbacks.append(NoiseAnnealing(model, noise.start, noise.end, **every))
    if arm.mollify is not None:
        callbacks.append(MollificationAnnealing(model, **arm.mollify.model_dump()))
    if training.tracker is not None:
        callbacks.append(Tracking(training.tracker, f"{recipe.name}/{method}-{number}", folder.parent / "track"))
    if recipe.watch:
        callbacks.append(Watch(split.classes if split.task == "classification" else None, evolution))
    history = fit(
        model, split.train, optimizer=optimizer, epochs=training.epochs, batch_size=training.batch_size,
        validation=split.validation, test=split.test, callbacks=callbacks, augment=split.augment,
        checkpoint=folder, resume=resume, seed=number,
        early_stopping=EarlyStopping(patience=training.early_stopping) if training.early_stopping else None,
        progress=progress, record=record,
    )  # fmt: skip
    return model, history


def _taken_up(
    recipe: Recipe, method: str, arm: MethodSettings, training: TrainingSettings, number: int, split: DataSet,
    record: Record, folder: Path, resume: bool, progress: Progress | bool | None,
) -> tuple[nn.Module, History]:  # fmt: skip
    """Take the network that another method has trained, and its history."""
    earlier = folder.parent / f"{arm.after}-{number}"
    folder.mkdir(parents=True, exist_ok=True)
    history = History(Record.load(earlier).history)
    history.summarise()
    record.history = history.rows
    if joules := Record.load(earlier).metrics.get("train_joules"):
        history.metrics["train_joules"] = joules
    seed_everything(number)
    return saving.load(earlier / MODEL), history


def _rebuilding(
    recipe: Recipe, method: str, arm: MethodSettings, training: TrainingSettings, number: int, split: DataSet,
    record: Record, folder: Path, resume: bool, progress: Progress | bool | None,
) -> tuple[nn.Module, History]:  # fmt: skip
    """Build the model again from its weights after every epoch, as SET's first Keras code (Chouliaras 2021, 4.7)."""
    model, rows, elapsed, rng = build(recipe, method, split, number), [], 0.0, None
    evolution = evolution_of(arm, training, model, None, number)
    for epoch in range(training.epochs):
        began = time.perf_counter()
        state = model.state_dict()
        model = build(recipe, method, split, number)
        model.load_state_dict(state)
        optimizer = optimizer_of(model, training)
        rebuilt = evolution_of(arm, training, model, optimizer, number)
        if rebuilt and evolution:
            rebuilt.load_state_dict(evolution.state_dict())
        evolution = rebuilt
        if rng is not None:
            torch.set_rng_state(rng)
        rebuilding = time.perf_counter() - began
        part = fit(
            model, split.train, optimizer=optimizer, epochs=1, batch_size=training.batch_size, test=split.test,
            validation=split.validation, augment=split.augment, seed=number * 100_003 + epoch, progress=False,
        )  # fmt: skip
        rng = torch.get_rng_state()
        row = part.rows[0] | {"epoch": epoch}
        row["seconds"] += rebuilding
        if evolution is not None:  # each epoch is a run of its own to `fit`, which rewires after no run's last
            began = time.perf_counter()
            evolution.step(row)
            row |= {"zeta": evolution.rate, "rewire_seconds": time.perf_counter() - began}
            row["seconds"] += row["rewire_seconds"]
        elapsed += row["seconds"]
        rows.append(row | {"elapsed": elapsed})
        record.history = rows
        if processes.is_main():
            record.save()
    history = History(rows)
    history.summarise()
    return model, history


def _tidy(folder: Path) -> None:
    """Remove the half-written files of a run that was killed while it wrote."""
    for name in FILES:
        remove_leftovers(folder / name)


def _config(recipe: Recipe, method: str, **chosen: Any) -> dict[str, Any]:
    """The settings that identify a run; a file of data by its checksum."""
    config = recipe.plain(method, **chosen)
    file = Path(recipe.data.name)
    if recipe.data.name not in data.names() and file.is_file():
        config["data"]["sha256"] = checksum(file)
    plain: dict[str, Any] = json.loads(json.dumps(config))  # as a record gives it back
    return plain


def checksum(file: Path) -> str:
    """The SHA-256 of a file of data, by which a record knows it."""
    return _checksum(file, file.stat().st_mtime_ns)


@functools.lru_cache(maxsize=1)  # one file, all runs
def _checksum(file: Path, changed: int) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _whole(folder: Path) -> Record | None:
    """The record of a run that is finished."""
    try:
        record = Record.load(folder)
    except (FileNotFoundError, ValueError):
        return None
    # with a checkpoint, the record may still lack what follows `fit`
    whole = record.finished is not None and (folder / MODEL).is_file() and not (folder / CHECKPOINT).exists()
    return record if whole else None


def _difference_to(record: Record, recipe: Recipe, method: str) -> tuple[str, Any, Any] | None:
    """Where a run differs from the recipe. Keys that only one of the two has, as of an older version, do not count, nor
    those that were searched."""
    return _difference(record.config, _config(recipe, method), {"about", "tracker", *recipe.search})


def _is_finished(folder: Path, recipe: Recipe, method: str) -> bool:
    """Whether the run is there, whole. `RecipeError` if it is, but of other data or settings."""
    if (record := _whole(folder)) is None:
        return False
    _refuse_other(record, folder, "a finished", recipe, method)
    return True


def _refuse_other_unfinished(folder: Path, recipe: Recipe, method: str) -> None:
    """`RecipeError` where an interrupted run is there, of other data or settings."""
    if not (folder / CHECKPOINT).exists():
        return
    begun = None
    with suppress(FileNotFoundError, ValueError):  # killed before its first record
        begun = Record.load(folder)
    if begun is not None:
        _refuse_other(begun, folder, "an interrupted", recipe, method)


def _refuse_other(record: Record, folder: Path, which: str, recipe: Recipe, method: str) -> None:
    if difference := _difference_to(record, recipe, method):
        key, recorded, wanted = difference
        raise RecipeError(
            f"{folder} holds {which} run of other settings: {key} is {clipped(recorded)} there, {clipped(wanted)} is "
            "asked for. Give another --out, or --overwrite it."
        )


def _difference(recorded: Any, wanted: Any, ignored: Collection[str], key: str = "") -> tuple[str, Any, Any] | None:
    """The first key at which two settings differ, and both values."""
    if isinstance(recorded, dict) and isinstance(wanted, dict):
        shared = [k for k in recorded if k in wanted and k not in ignored]
        parts = [(f"{key}.{k}" if key else k, recorded[k], wanted[k]) for k in shared]
    elif isinstance(recorded, list) and isinstance(wanted, list) and len(recorded) == len(wanted):
        parts = [(key, a, b) for a, b in zip(recorded, wanted, strict=True)]
    else:
        return (key, recorded, wanted) if recorded != wanted else None
    return next((inner for name, a, b in parts if (inner := _difference(a, b, ignored, name))), None)
