"""The runs of a recipe on a Ray cluster: each seed, or fold of a cross-validation, as a task of its own."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from filigree.config import one_line
from filigree.optional import needed
from filigree.recipes.recipe import Recipe
from filigree.recipes.run import FILES, refuse_earlier, run, runs_of
from filigree.recipes.sweep_ray import RETRIES, start_ray


def run_ray(
    recipe: Recipe, out: Path, *, methods: Sequence[str] | None = None, runs: Sequence[int] | None = None,
    resume: bool = False, overwrite: bool = False,
) -> None:  # fmt: skip
    """Train the methods of a recipe as `run` does, on the Ray cluster that `RAY_ADDRESS` names, or on this machine.

    Each seed or fold takes one CPU and trains all methods; where the recipe searches settings, the first run comes
    before the others. `out`, the working folder and files of data must be there on all machines. A task whose worker
    dies is run again from its last checkpoint, up to `RETRIES` times. Times of single steps are left out: `run` with
    `resume` adds them, on one machine.

    Raises:
        ModuleNotFoundError: Ray is not installed. RecipeError: as `run`.
        RuntimeError: runs that failed nevertheless; finished ones are kept.
    """
    ray = needed("ray", "--engine ray", "ray")
    numbers = list(recipe.runs() if runs is None else runs)
    refuse_earlier(recipe, out, methods, numbers, resume=resume, overwrite=overwrite)
    if overwrite:
        for folder in runs_of(recipe, out, methods, numbers):
            for name in FILES:
                (folder / name).unlink(missing_ok=True)
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    start_ray(ray)
    task = ray.remote(num_cpus=1, max_retries=RETRIES)(_train)
    first = numbers[:1] if recipe.search else []
    failed: list[str] = []
    for together in (first, numbers[len(first) :]):
        if failed:  # without what the first run finds, each of the others would search
            break
        tasks = [task.remote(recipe, out, methods, number, str(Path.cwd())) for number in together]
        for number, waited in zip(together, tasks, strict=True):
            try:
                ray.get(waited)
            except Exception as error:
                failed.append(f"{number} ({one_line(str(error).strip().splitlines()[-1], 200)})")
    if failed:
        raise RuntimeError(
            f"--engine ray: {len(failed)} of {len(numbers)} runs failed: {', '.join(failed)}. Finished ones are kept "
            f"in {out}: go on with --resume."
        )


def _train(recipe: Recipe, out: Path, methods: Any, number: int, folder: str) -> None:
    """One run, in a worker."""
    os.chdir(folder)
    run(recipe, out, methods=methods, runs=[number], resume=True, progress=False, timed=False)
