"""Does a record still stand? One run of it is made again by today's code, and its figures are compared.

Most changes of the code change no figure, and a record that took hours need not be made again after each. So a check
makes one case with one seed again: of training step by step up to the first evaluation, of a recipe whose record has
the figures of the first epoch that epoch alone, else the whole run. It also notes which source files that run executed:
the record counts as checked as long as these stay the same, but for comments, docstrings and white space.

Figures agree within `margin` of the recorded mean; the check agrees when nine of ten of them do: training on another
processor, with other rounding, ends elsewhere, but not far away.
"""

from __future__ import annotations

import ast
import io
import math
import sys
import tempfile
import threading
import tokenize
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from filigree.io.storage import write_json
from filigree.recipes import RecipeError
from filigree.train import Record
from filigree.train.records import now
from filigree_papers.reproduce import provenance
from filigree_papers.reproduce.bars import Bars
from filigree_papers.reproduce.experiment import Experiment, Request
from filigree_papers.reproduce.run_summary import Check, RunSummary

ENOUGH = 0.9  # of the figures have to agree
NEAR, NEAR_ALONE = 0.02, 0.05  # relative margins: of a mean over runs, of a single run


def margin(mean: float, deviation: float | None, runs: int) -> float:
    """How far a run of today may lie from the recorded mean of `runs` runs.

    No one of n numbers is further from their mean than (n - 1) / sqrt(n) of their standard deviations. Twice that, and
    2% of the mean; of a single run 5% of its figure.
    """
    if deviation is None or runs < 2:
        return NEAR_ALONE * abs(mean)
    return 2 * deviation * (runs - 1) / math.sqrt(runs) + NEAR * abs(mean)


def check(experiment: Experiment, path: Path, bars: Bars) -> Check:
    """Make a run of the record in `path` again, and write beside its figures whether they agree.

    Raises:
        RecipeError: the record has no run or no figure that today's code makes too.
    """
    summary = RunSummary.load(path)
    request = Request(quick=summary.quick, settings=summary.settings, timed=False)
    pairs = [pair for pair in experiment.pairs(request) if pair[1] in summary.complete.get(pair[0], [])]
    if not pairs:
        raise RecipeError(f"{path}: none of its runs is one of today's {experiment.name}. Run it again.")
    case, seed = pairs[0]
    recorded, part = experiment.checked(summary.rows)
    with tempfile.TemporaryDirectory() as folder, executed_files() as executed:
        rows = experiment.make_again(Path(folder), case, seed, request, part, bars, summary.rows)
        ours, _ = experiment.checked(rows)
    runs, agree, worst = len(summary.complete[case]), 0, (-1.0, "")
    shared = [name for name in ours if name in recorded and recorded[name][0] is not None]
    if not shared:
        raise RecipeError(f"{path}: it has no figure that today's {experiment.name} gives too. Run it again.")
    for name in shared:
        (mean, deviation), value = recorded[name], ours[name][0]
        apart = abs(value - mean) / (margin(mean, deviation, runs) or 1e-9) if value is not None else math.inf
        agree += apart <= 1 + 1e-9
        if apart > worst[0]:
            worst = apart, f"{name}: {mean:.5g} recorded, {'none' if value is None else f'{value:.5g}'} now"
    files = sorted(name for name, file in provenance.sources().items() if str(file) in executed)
    start = Record.start()
    summary.check = Check(
        case=case, seed=seed, part=part, figures=len(shared), agree=agree, agrees=agree >= ENOUGH * len(shared),
        worst=worst[1], commit=start.commit, dirty=start.dirty, finished=now(), files=files, code=code_of(files),
        config=experiment.config(request),
    )  # fmt: skip
    write_json(path, summary.model_dump())
    return summary.check


@contextmanager
def executed_files() -> Iterator[set[str]]:
    """The source files of which a function is called meanwhile."""
    names: set[str] = set()

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            names.add(frame.f_code.co_filename)

    before = sys.getprofile()
    threading.setprofile(note)
    sys.setprofile(note)
    try:
        yield names
    finally:
        sys.setprofile(before)
        threading.setprofile(None)


def code_of(files: Collection[str]) -> str:
    """A hash of what the source files say, comments, docstrings and white space aside. A file that is gone counts."""
    known = provenance.sources()
    return provenance.digest({name: essence(known[name].read_text()) if name in known else None for name in files})


def essence(text: str) -> str:
    """The tokens of a Python file without comments, docstrings and white space."""
    tree = ast.parse(text)
    owners = [node for node in ast.walk(tree) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)]
    docstrings = {
        node.body[0].lineno for node in owners
        if node.body and isinstance(node.body[0], ast.Expr) and isinstance(node.body[0].value, ast.Constant)
    }  # fmt: skip
    left_out = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.ENCODING}
    tokens = [
        token.string for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type not in left_out and not (token.type == tokenize.STRING and token.start[0] in docstrings)
    ]  # fmt: skip
    return "\n".join(part for token in tokens if (part := " ".join(token.split())))
