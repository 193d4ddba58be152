"""The same search with Ray Tune as the engine: for many machines."""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path
from typing import Any

from filigree.optional import needed
from filigree.recipes.sweep import SUMMARY, Domain, Sweep, refuse_other_search, summary_of

RETRIES = 3  # of a trial whose worker died


def sweep_ray(search: Sweep, out: Path, trials: int = 20, minutes: float | None = None) -> dict[str, Any]:
    """Search on the Ray cluster that `RAY_ADDRESS` names, or on this machine; each trial takes one CPU.

    `out` must be a folder that all machines share. Goes on where it stopped; a trial whose worker dies is run again,
    from its last checkpoint, up to `RETRIES` times. Returns the summary, as `sweep` does.

    Raises:
        ModuleNotFoundError: Ray Tune or Optuna is not installed.
        RuntimeError: trials that failed nevertheless; finished ones are kept.
    """
    ray, tune = needed("ray", "--engine ray", "ray"), needed("ray.tune", "--engine ray", "ray")
    optuna_search = needed("ray.tune.search.optuna", "--engine ray", "ray").OptunaSearch
    search.check()
    out = out.resolve()
    refuse_other_search(search, out)
    out.mkdir(parents=True, exist_ok=True)
    if not (out / SUMMARY).exists():  # says whose trials these are, also after an interruption
        summary_of(search, out, [])

    train: Any = functools.partial(_train, search=search, out=out)
    start_ray(ray)
    where = out / "ray"
    if tune.Tuner.can_restore(str(where / "sweep")):
        tuner = tune.Tuner.restore(str(where / "sweep"), train, resume_unfinished=True, resume_errored=True)
    else:
        algorithm = optuna_search(
            functools.partial(_space, search), metric=["accuracy", "cost"], mode=["max", "min"], seed=search.seed
        )
        tuner = tune.Tuner(
            tune.with_resources(train, {"cpu": 1}),
            tune_config=tune.TuneConfig(
                search_alg=algorithm, num_samples=trials, time_budget_s=None if minutes is None else 60 * minutes
            ),
            run_config=tune.RunConfig(
                name="sweep", storage_path=str(where), verbose=0,
                failure_config=tune.FailureConfig(max_failures=RETRIES),
            ),
        )  # fmt: skip
    results = tuner.fit()
    rows = [
        {"trial": i} | {key: r.metrics[key] for key in ("values", "accuracy", "cost", "spread")}
        for i, r in enumerate(results)
        if r.metrics and "accuracy" in r.metrics
    ]
    summary = summary_of(search, out, rows)
    if results.errors:
        last = str(results.errors[0]).strip().splitlines()[-1]
        raise RuntimeError(
            f"sweep: {len(results.errors)} of {len(results)} trials failed, the first one by: {last.rstrip('.')}. "
            f"{len(rows)} finished ones are kept in {out}."
        )
    return summary


def start_ray(ray: Any) -> None:
    """Join the cluster that `RAY_ADDRESS` names, or begin one of this machine; where that is done already, nothing."""
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")


def _train(values: dict[str, Any], search: Sweep, out: Path) -> None:
    from ray import tune

    name = tune.get_context().get_trial_id()
    with contextlib.suppress(FloatingPointError):  # these values diverge, and would again
        tune.report(search.trial(values, out / f"trial-{name}") | {"values": values})


def _space(search: Sweep, trial: Any) -> None:
    for key, text in search.over.items():
        Domain.parse(text).suggest(trial, key)
