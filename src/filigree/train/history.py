"""What a training run measured, one row an epoch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Row = dict[str, Any]  # "epoch": int, everything else float; only what was measured
SCORES = ("accuracy", "r2")  # of classes, and of a quantity: what a network is judged by


def score_of(metrics: Mapping[str, Any], part: str) -> tuple[str, float] | None:
    """The name of the score that a record's metrics hold for a part ("train", "val", "test") of the data, and it."""
    known = ((name, metrics.get(f"{part}_{name}")) for name in SCORES)
    return next(((name, value) for name, value in known if value is not None), None)


class History(Sequence[Row]):
    """The rows of a run, and its summary.

    A row holds `epoch` (from 0), `train_loss`, `train_accuracy`, `val_loss`, `val_accuracy`, `test_loss`,
    `test_accuracy` (where there are such data and integer labels), `train_r2`, `val_r2`, `test_r2` (of a quantity, by
    the default loss), `seconds` (training and rewiring in this epoch, no evaluation), `elapsed` (their sum so far),
    `lr` (of the first group of parameters at the end of the epoch's steps, before schedulers that step each epoch: that
    of its last step, or, where a scheduler steps each step, of the next), `zeta` (the rate applied after the epoch) and
    `rewire_seconds`. Losses and accuracies on the training data are means over the epoch, in training mode.

    Attributes:
        rows: the rows, plain dicts.
        stopped: why the run ended before its last epoch, or None.
        metrics: the final figures: losses and accuracies of the epoch whose weights the model holds (`best_epoch`),
            `train_seconds`, `rewire_seconds`, `rewire_share` (of `train_seconds`).
    """

    def __init__(self, rows: list[Row] | None = None) -> None:
        self.rows: list[Row] = rows if rows is not None else []
        self.stopped: str | None = None
        self.metrics: dict[str, Any] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __getitem__(self, index: Any) -> Any:
        """A row by its number, or a column by its name (None where a row lacks it)."""
        return [row.get(index) for row in self.rows] if isinstance(index, str) else self.rows[index]

    def summarise(self, best_epoch: int | None = None) -> None:
        """Fill `metrics` from the rows; `best_epoch` is the one whose weights were restored, by default the last."""
        if not self.rows:
            return
        row = next((row for row in self.rows if row["epoch"] == best_epoch), self.rows[-1])
        self.metrics = {key: row[key] for key in row if key.endswith(("_loss", "_accuracy", "_r2"))}
        self.metrics |= {
            "best_epoch": row["epoch"],
            "epochs": len(self.rows),
            "train_seconds": self.rows[-1]["elapsed"],
        }
        if any("rewire_seconds" in row for row in self.rows):
            rewiring = sum(row.get("rewire_seconds", 0.0) for row in self.rows)
            share = rewiring / self.metrics["train_seconds"] if self.metrics["train_seconds"] else 0.0
            self.metrics |= {"rewire_seconds": rewiring, "rewire_share": share}

    def __repr__(self) -> str:
        last = (
            ", ".join(f"{key}={value:.4g}" for key, value in self.rows[-1].items() if value is not None) if self else ""
        )
        return f"History({len(self)} epochs{'; ' if last else ''}{last})"
