"""How long the runs of a recipe will take, by trial steps; and what each method gave for its time."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from filigree.measure.cost import training_step
from filigree.measure.timing import time_interleaved
from filigree.ops.sparse_rows import rows_of
from filigree.recipes.building import build, optimizer_of
from filigree.recipes.recipe import Recipe
from filigree.recipes.run import data_for_run
from filigree.text_table import aligned
from filigree.train import Record
from filigree.train.batches import batch_sizes

FORWARD = 1 / 3  # of a step's time: a batch that is only evaluated


def forecast(
    recipe: Recipe, methods: Collection[str] | None = None, runs: Sequence[int] | None = None, done: Iterable[Path] = ()
) -> dict[str, float]:
    """The seconds that training will take, method by method, by a few steps of each on a copy.

    Counted are all epochs with their evaluations, and the candidates of a search; not what interrupted runs have done
    already, rewiring, compression and early stopping. Methods that train nothing of their own are left out.

    Args:
        methods, runs: as of `fg.recipes.run`. done: folders of finished runs, which are not trained again.
    """
    numbers, names = list(recipe.runs() if runs is None else runs), {folder.name for folder in done}
    wanted = recipe.methods if methods is None else methods
    before = {recipe.methods[method].after for method in wanted if method in recipe.methods}
    chosen = [method for method in recipe.methods if method in wanted or method in before]
    ahead = {method: sum(f"{method}-{number}" not in names for number in numbers) for method in chosen}
    candidates = sum(len(values) for values in recipe.search.values())
    ahead = {
        method: count + max(0, candidates - 1) * (f"{method}-{recipe.runs()[0]}" not in names)
        for method, count in ahead.items()
        if count and recipe.methods[method].after is None
    }
    if not ahead:
        return {}
    split = data_for_run(recipe.data, numbers[0], recipe.name)
    seconds = {}
    for method, count in ahead.items():
        training = recipe.training_of(method)
        sizes = batch_sizes(len(split.train.x), training.batch_size)
        model = build(recipe, method, split, numbers[0])
        x, y = rows_of(split.train.x, slice(0, sizes[0])), split.train.y[: sizes[0]]
        work = training_step(model, x, y, optimizer=functools.partial(optimizer_of, training=training))
        (step,) = time_interleaved([work], 0.0, 2)
        judged = sum(len(part.x) for part in (split.validation, split.test) if part is not None)
        steps = len(sizes) + FORWARD * judged / sizes[0]
        seconds[method] = step.low / 1e3 * steps * training.epochs * count
    return seconds


def forecast_line(seconds: dict[str, float], what: str = "") -> str:
    """A forecast in words, `what` is trained; "" where nothing is."""
    if not seconds:
        return ""
    each = ", ".join(f"{method} {duration(time)}" for method, time in seconds.items())
    return f"about {duration(sum(seconds.values()))} of training ahead{what and f' for {what}'}, by trial steps: {each}"


def gains(records: Iterable[Record], classes: int) -> list[str]:
    """Lines on what each method gave for its time: its accuracy above chance, for each minute of training.

    Accuracy and seconds are means over its runs; runs without times or accuracy are left out.
    """
    by_method: dict[str, list[tuple[float, float]]] = {}
    for record in records:
        accuracy, seconds = (record.metrics.get(key) for key in ("test_accuracy", "train_seconds"))
        if accuracy is not None and seconds:
            by_method.setdefault(record.method, []).append((float(accuracy), float(seconds)))
    rows = []
    for method, runs in by_method.items():
        accuracy, seconds = (statistics.fmean(column) for column in zip(*runs, strict=True))
        above = 100 * (accuracy - 1 / classes)
        rows.append((method, f"{100 * accuracy:.2f}%", f"in {duration(seconds)}", f"{above / seconds * 60:,.0f}"))
    head = ("a minute of training", "accuracy", "", f"points above chance ({100 / classes:.3g}%) a minute")
    return aligned([head, *rows]) if rows else []


def duration(seconds: float) -> str:
    """A time in two digits: "8 s", "1.5 min", "12 h", "2.3 days"."""
    units = ((1, "s", 90), (60, "min", 90 * 60), (3600, "h", 48 * 3600), (86400, "days", float("inf")))
    size, unit = next((size, unit) for size, unit, most in units if seconds < most)
    return f"{seconds / size:.{1 if seconds < 10 * size else 0}f} {unit}"
