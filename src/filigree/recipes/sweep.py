"""A search over any settings of a recipe for the best accuracy at the least cost, with a fixed budget of trials."""

from __future__ import annotations

import importlib.util
import json
import math
import multiprocessing
import os
import signal
import statistics
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from filigree.config import one_line
from filigree.io.storage import write_json
from filigree.optional import needed
from filigree.recipes.plain_yaml import as_yaml
from filigree.recipes.recipe import RecipeError, load, tree_of
from filigree.recipes.run import run
from filigree.train import Record
from filigree.train.history import score_of

fcntl: Any = importlib.import_module("fcntl") if importlib.util.find_spec("fcntl") else None  # Windows has no locks
COSTS = ("backward_ms", "train_step_ms", "single_ms", "train_seconds", "nonzeros", "bytes_disk", "macs_forward")
STUDY, SUMMARY, LOCK = "study.db", "sweep.json", "study.lock"
_WORST = -1e9  # the R2 of a run that diverged: those of others may be negative too


@dataclass(frozen=True)
class Domain:
    """What a setting may be: one of `choices`, or a number from `low` to `high`, whole if both are."""

    choices: tuple[Any, ...] = ()
    low: float = 0
    high: float = 0
    log: bool = False

    @classmethod
    def parse(cls, text: str) -> Domain:
        """`10:200`, `0.001:0.1:log`, or `relu,gelu`."""
        if ":" not in text:
            return cls(tuple(_value(part) for part in text.split(",")))
        parts = text.split(":")
        numbers = [_value(part) for part in parts[:2]]
        numeric = all(isinstance(n, int | float) and not isinstance(n, bool) and math.isfinite(n) for n in numbers)
        if len(parts) > 3 or not numeric or numbers[0] >= numbers[1] or parts[2:] not in ([], ["log"]):
            raise RecipeError(f"--over {text}: expected low:high, low:high:log, or values with commas between.")
        if parts[2:] and numbers[0] <= 0:
            raise RecipeError(f"--over {text}: a logarithmic range must begin above 0.")
        return cls((), numbers[0], numbers[1], bool(parts[2:]))

    def suggest(self, trial: Any, name: str) -> Any:
        """A value by an Optuna trial."""
        if self.choices:
            return trial.suggest_categorical(name, self.choices)
        whole = isinstance(self.low, int) and isinstance(self.high, int)
        return (trial.suggest_int if whole else trial.suggest_float)(name, self.low, self.high, log=self.log)


def _value(text: str) -> Any:
    """A value as YAML reads it, and numbers such as 1e-4, which PyYAML takes for text."""
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return yaml.safe_load(text)


@dataclass(frozen=True)
class Sweep:
    """What is searched.

    Attributes:
        recipe, settings, method, source: what a trial runs, as `filigree train` takes them.
        over: setting -> its domain as text; see `Domain.parse`. A setting is a path as of `--set`, or the end of one
            within the method's own (`k`, `sensitivity.k`, `topology.epsilon`): all that end so are set together.
        minimize: the cost beside the validation accuracy, one of `COSTS`. seed: of the search.
    """

    recipe: str
    over: dict[str, str]
    method: str
    minimize: str = "backward_ms"
    settings: tuple[str, ...] = ()
    source: str | None = None
    seed: int = 0

    def check(self) -> None:
        """Refuse what cannot be searched, by name, before anything runs."""
        recipe = load(self.recipe, self.settings)
        if self.method not in recipe.methods:
            raise RecipeError(f"--method {self.method}: the methods of {recipe.name} are {', '.join(recipe.methods)}.")
        if self.minimize not in COSTS:
            raise RecipeError(f"--minimize {self.minimize}: expected one of {', '.join(COSTS)}.")
        if not recipe.data.validation:
            raise RecipeError(f"sweep: {recipe.name} has no validation part. Add --set data.validation=0.1.")
        for key, text in self.over.items():
            domain = Domain.parse(text)
            for value in domain.choices or (domain.low, domain.high):
                load(self.recipe, self._overrides({key: value}))

    def _overrides(self, values: dict[str, Any]) -> list[str]:
        out = list(self.settings)
        for key, value in values.items():
            text = np.format_float_positional(value) if isinstance(value, float) else as_yaml(value)
            out += [f"{path}={text}" for path in self._paths(key)]  # which YAML reads: 1e-05 would be text
        return out

    def _paths(self, key: str) -> list[str]:
        tree = tree_of(self.recipe, self.settings)
        if key.split(".")[0] in tree:
            return [key]
        arm = (tree.get("methods") or {}).get(self.method) or {}
        inside = [f"methods.{self.method}.{path}" for path in _leaves(arm)]
        if "convert" not in arm:
            inside += [f"convert.{path}" for path in _leaves(tree.get("convert") or [])]
        matching = [path for path in inside if f".{path}".endswith(f".{key}")]
        if not matching:
            raise RecipeError(f"--over {key}: no setting of {self.recipe} or its method {self.method} ends so.")
        return matching

    def trial(self, values: dict[str, Any], folder: Path) -> dict[str, Any]:
        """Train with these values, in all of the recipe's runs.

        Returns:
            accuracy: the mean on the validation part; of a quantity R2. cost: the median, which one disturbed timing
            does not move. spread: the least and the largest cost.
        """
        recipe = load(self.recipe, self._overrides(values))
        label = ", ".join(f"{key}={_short(value)}" for key, value in values.items())
        recipe = recipe.model_copy(update={"name": f"{recipe.name}: sweep of {self.method}"})
        records = []
        for trained in run(recipe, folder, methods=[self.method], source=self.source, resume=True, progress=False):
            record = Record.load(trained)
            record.method = label
            record.config["sweep"] = {"values": values, "minimize": self.minimize}
            record.save(trained)
            records.append(record)
        costs = [_cost(record, self.minimize) for record in records]
        diverged = _WORST if recipe.data.task == "regression" else 0.0
        accuracies = [score[1] if (score := score_of(record.metrics, "val")) else diverged for record in records]
        return {
            "accuracy": statistics.fmean(accuracies), "cost": statistics.median(costs),
            "spread": [min(costs), max(costs)],
        }  # fmt: skip


def sweep(
    search: Sweep, out: Path, trials: int = 20, minutes: float | None = None, jobs: int = 1,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:  # fmt: skip
    """Search with Optuna; the study is `out/study.db` (SQLite), so it goes on where it stopped. Returns the summary.

    Args:
        trials: in the study in all, those of earlier calls included. minutes: the search ends after these.
        jobs: processes that search at once, with the cores shared out. report: called with a line after each trial.

    A trial whose process was killed is run again by the next call, from its last checkpoint, and counts once.

    Raises:
        RecipeError: settings that cannot be searched, a study of another search in `out`, or one at work there.
        ModuleNotFoundError: Optuna is not installed.
        RuntimeError: a process of the search failed or was killed; finished trials are kept.
    """
    _optuna()
    search.check()
    out.mkdir(parents=True, exist_ok=True)
    with _alone(out):
        return _search(search, out, trials, minutes, jobs, report)


def refuse_other_search(search: Sweep, out: Path) -> None:
    """`RecipeError` where `out` holds the trials of another search, before anything runs."""
    study, summary = out / STUDY, out / SUMMARY
    try:
        if study.is_file():
            theirs = _optuna().load_study(study_name="sweep", storage=_storage(out)).user_attrs.get("sweep")
        else:
            theirs = dict(json.loads(summary.read_text())["sweep"]) if summary.is_file() else None
    except Exception as error:  # of Optuna, SQLAlchemy or json
        raise RecipeError(
            f"{out} holds trials that cannot be read ({one_line(error, 100)}). Take another --out."
        ) from None
    if theirs is not None:
        _refuse_unless_equal(search, theirs, study if study.is_file() else summary)


def _search(
    search: Sweep, out: Path, trials: int, minutes: float | None, jobs: int, report: Callable[[str], None]
) -> dict[str, Any]:
    optuna, study = _optuna(), _open(search, out)
    for left in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(left.number, state=optuna.trial.TrialState.PRUNED)  # its process was killed: it does not count
        study.enqueue_trial(left.params, user_attrs={"folder": left.user_attrs.get("folder", left.number)})
    before = len(study.trials)
    threads = max(1, torch.get_num_threads() // jobs)
    context = multiprocessing.get_context("spawn")
    errors = context.SimpleQueue()
    helpers = [
        context.Process(target=_help, args=(errors, search, out, trials, minutes, threads, before + i), daemon=True)
        for i in range(1, jobs)
    ]
    for helper in helpers:
        helper.start()
    _work(search, out, trials, minutes, threads, before, report)
    for helper in helpers:
        helper.join()
    summary = summarise(search, out)
    if failed := [helper.exitcode for helper in helpers if helper.exitcode]:
        reason = "it was killed (out of memory?)" if errors.empty() else errors.get()
        raise RuntimeError(
            f"sweep: {len(failed)} of {jobs} processes ended with exit code {failed[0]}: {reason}. "
            f"{len(summary['trials'])} finished trials are kept in {out}."
        )
    return summary


def _help(errors: Any, *arguments: Any) -> None:
    """`_work` in a process of its own; an error there is passed to the first process, in one line. It ends, as at a
    SIGTERM, when the first one does."""
    if (parent := multiprocessing.parent_process()) is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    try:
        with _among_others(arguments[1]):
            _work(*arguments)
    except Exception as error:
        reason = one_line(error, 300).rstrip(".")
        errors.put(f"{type(error).__name__}{': ' if reason else ''}{reason}")
        sys.exit(1)


def _end_with(parent: Any) -> None:
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def _alone(out: Path, patience: float = 20.0) -> Iterator[None]:
    """Hold a search's folder; helpers of a search that was killed are given so many seconds to end."""
    with _locked(out) as file:
        end = time.monotonic() + patience
        while not _lock(file, "LOCK_EX", "LOCK_NB"):
            if time.monotonic() > end:
                raise RecipeError(f"{out}: another search is at work there. Use --jobs for several processes.")
            time.sleep(0.1)
        _lock(file, "LOCK_SH")  # helpers hold it too
        yield


@contextmanager
def _among_others(out: Path) -> Iterator[None]:
    with _locked(out) as file:
        _lock(file, "LOCK_SH")
        yield


def _locked(out: Path) -> Any:
    return (out / LOCK).open("a")


def _lock(file: Any, *how: str) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, sum(getattr(fcntl, each) for each in how))
    except BlockingIOError:
        return False
    return True


def summarise(search: Sweep, out: Path) -> dict[str, Any]:
    """The finished trials, the Pareto front among them, and the best; also written to `out/sweep.json`."""
    study = _open(search, out)
    done = [t for t in study.get_trials(deepcopy=False) if t.values is not None]
    rows = [
        {"trial": t.number, "values": t.params, "accuracy": t.values[0], "cost": t.values[1]}
        | {key: t.user_attrs[key] for key in ("spread",) if key in t.user_attrs}
        for t in done
    ]
    return summary_of(search, out, rows)


def summary_of(search: Sweep, out: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Rows of trials (`values`, `accuracy`, `cost`, `spread`) as the summary that `sweep` returns and writes."""
    front = pareto(rows)
    summary = {
        "sweep": asdict(search), "trials": rows, "front": front,
        "best": max(rows, key=lambda row: row["accuracy"], default=None),
    }  # fmt: skip
    write_json(out / SUMMARY, summary)
    return summary


def pareto(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that no other beats in both, cheapest first."""
    front: list[dict[str, Any]] = []
    for row in sorted(rows, key=lambda row: (row["cost"], -row["accuracy"])):
        if not front or row["accuracy"] > front[-1]["accuracy"]:
            front.append(row)
    return front


def _work(
    search: Sweep, out: Path, trials: int, minutes: float | None, threads: int, number: int,
    report: Callable[[str], None] = lambda line: None,
) -> None:  # fmt: skip
    """One process's part of the search."""
    optuna = _optuna()
    torch.set_num_threads(threads)
    states = optuna.trial.TrialState
    quantity = load(search.recipe, search.settings).data.task == "regression"
    counted = (states.COMPLETE, states.FAIL, states.RUNNING)
    study = _open(search, out, optuna.samplers.TPESampler(seed=search.seed * 100_003 + number, multivariate=True))

    def objective(trial: Any) -> tuple[float, float]:
        values = {key: Domain.parse(text).suggest(trial, key) for key, text in search.over.items()}
        result = search.trial(values, out / f"trial-{trial.user_attrs.get('folder', trial.number):04d}")
        trial.set_user_attr("spread", result["spread"])
        return result["accuracy"], result["cost"]

    def tell(study: Any, trial: Any) -> None:
        if trial.values is not None:
            values = ", ".join(f"{key}={_short(value)}" for key, value in trial.params.items())
            cost = cost_text(trial.values[1], trial.user_attrs.get("spread"))
            score = f"R2 {trial.values[0]:.3f}" if quantity else f"{100 * trial.values[0]:.2f}%"
            report(f"{trial.number}: {values}: {score}, {cost} {search.minimize}")

    if len(study.get_trials(deepcopy=False, states=counted)) >= trials:
        return
    study.optimize(
        objective, timeout=None if minutes is None else 60 * minutes, catch=(FloatingPointError,),
        callbacks=[tell, optuna.study.MaxTrialsCallback(trials, counted)],
    )  # fmt: skip


def _open(search: Sweep, out: Path, sampler: Any = None) -> Any:
    optuna = _optuna()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        storage=_storage(out), study_name="sweep", load_if_exists=True, sampler=sampler,
        directions=["maximize", "minimize"],
    )  # fmt: skip
    if (theirs := study.user_attrs.get("sweep")) is None:
        study.set_user_attr("sweep", asdict(search))
    else:
        _refuse_unless_equal(search, theirs, out / STUDY)
    return study


def _refuse_unless_equal(search: Sweep, theirs: dict[str, Any], file: Path) -> None:
    mine = json.loads(json.dumps(asdict(search)))
    if differs := [key for key in mine if mine[key] != theirs.get(key)]:
        raise RecipeError(
            f"{file} holds another search ({differs[0]}: {theirs.get(differs[0])}, now {mine[differs[0]]}). "
            "Take another --out."
        )


def _storage(out: Path) -> Any:
    """The file of a study; each connection is closed after its use."""
    from sqlalchemy.pool import NullPool  # comes with Optuna

    return _optuna().storages.RDBStorage(f"sqlite:///{(out / STUDY).resolve()}", {"poolclass": NullPool})


def _optuna() -> Any:
    optuna = needed("optuna", "sweep", "sweep")
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna


def _cost(record: Record, key: str) -> float:
    if key == "train_seconds":
        return float(record.metrics[key] or 0)
    value = record.cost[key]
    return float(value["median"] if isinstance(value, dict) else value)


def cost_text(cost: float, spread: Sequence[float] | None) -> str:
    """A cost with the least and the largest of its runs, where they differ."""
    low, high = spread or (cost, cost)
    return f"{cost:.4g}" if low == high else f"{cost:.4g} ({low:.4g} to {high:.4g})"


def _leaves(tree: Any, path: str = "") -> list[str]:
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    here = [path] if path else []
    return here + [leaf for key, value in pairs for leaf in _leaves(value, f"{path}.{key}" if path else str(key))]


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
