"""Records on their way to TensorBoard, MLflow and other trackers, through those of Accelerate."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filigree.measure.cost import stored
from filigree.optional import needed
from filigree.train.stepping import FitState

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker  # type: ignore[import-untyped]


class Tracking:
    """A hook of `fit` that tells a tracker the run's settings, each epoch's figures, and what came of it.

    `fg.fit(..., callbacks=Tracking("tensorboard", "digits", folder="runs/tensorboard"))`. Settings are those of the
    run's record, where it has one, and `config`; nested ones get names like `data.name`. Each epoch sends its history
    row, when the next one begins and the row is complete. The end sends `final/<name>` of `History.metrics` and
    `cost/parameters`, `cost/nonzeros`, `cost/bytes_memory`, `cost/bytes_disk`. A tracker started here is closed also
    where the run ends in an error: once this hook is gone, or Python ends.

    Args:
        tracker: a name that Accelerate knows ("tensorboard", "mlflow", ...), or a `GeneralTracker` that is started
            already (`accelerator.trackers[0]`) and that is left running.
        name: of the run, or what the tracker calls its project or experiment.
        folder: for the trackers that write files.
        config: settings to tell it, on top of those in the record.
        options: more arguments of the tracker's own class in Accelerate.

    Raises:
        ValueError: a name that Accelerate does not know. ImportError: the tracker's library is not installed.
    """

    def __init__(
        self, tracker: str | GeneralTracker, name: str = "filigree", folder: str | Path = "runs/track",
        config: Mapping[str, Any] | None = None, **options: Any,
    ) -> None:  # fmt: skip
        self.config, self._own = dict(config or {}), isinstance(tracker, str)
        self.tracker = _make(tracker, name, str(folder), options) if isinstance(tracker, str) else tracker
        self._finish: weakref.finalize[..., Tracking] | None = None
        self._logged = 0  # how many rows of the history

    def on_fit_start(self, state: FitState) -> None:
        if self._own:
            if self._finish is not None:
                self._finish()  # of a run before that ended in an error; else nothing
            self.tracker.start()
            self._finish = weakref.finalize(self, self.tracker.finish)
        known = {"epochs": state.epochs, "optimizer": type(state.optimizer).__name__}
        if state.record is not None:
            known |= {"recipe": state.record.recipe, "method": state.record.method, "seed": state.record.seed}
            known |= state.record.config
        self.tracker.store_init_configuration(flat(known | self.config))

        self._logged = max(0, len(state.history) - 1)  # a resumed run may have been ended before it sent its last row

    def on_epoch_start(self, state: FitState) -> None:
        self._log_rows(state)  # of the epochs before: now their rows are complete, with what the rewiring took

    def _log_rows(self, state: FitState) -> None:
        for row in state.history.rows[self._logged :]:
            self.tracker.log({name: value for name, value in row.items() if name != "epoch"}, step=row["epoch"])
        self._logged = len(state.history)

    def on_fit_end(self, state: FitState) -> None:
        self._log_rows(state)
        final = {f"final/{name}": value for name, value in state.history.metrics.items()}
        cost = {f"cost/{name}": value for name, value in asdict(stored(state.model)).items() if value is not None}
        self.tracker.log(final | cost, step=len(state.history))
        if self._finish is not None:
            self._finish()


def _make(tracker: str, name: str, folder: str, options: dict[str, Any]) -> GeneralTracker:
    """Accelerate's tracker of this name, not started yet."""
    tracking = needed("accelerate.tracking", "Tracking", "track")
    if tracker not in tracking.LOGGER_TYPE_TO_CLASS:
        known = ", ".join(tracking.LOGGER_TYPE_TO_CLASS)
        raise ValueError(f"Tracking: tracker must be one of {known}, or a GeneralTracker. Got {tracker!r}.")
    if tracker not in [str(available) for available in tracking.get_available_trackers()]:
        raise ModuleNotFoundError(f"Tracking: {tracker} is needed. pip install {tracker}")
    kind = tracking.LOGGER_TYPE_TO_CLASS[tracker]
    where = (name, folder) if kind.requires_logging_directory else (name,)
    return kind(*where, **options)


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """Nested settings as one level of names with dots; what is not a plain value becomes text."""
    leaves: dict[str, bool | int | float | str] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            leaves |= flat(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value if isinstance(value, bool | int | float | str) else str(value)
    return leaves
