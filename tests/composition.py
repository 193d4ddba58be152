"""Every pair of methods on one small network: which compose, and what is refused. `python tests/composition.py` writes
docs/composition.md."""

from __future__ import annotations

import copy
import dataclasses
import os
import runpy
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import nn

import filigree as fg
from filigree.compress.compression import Compression
from filigree.config import Config
from filigree.convert import Conversion

PAGE = Path(__file__).parent.parent / "docs" / "composition.md"
WIDTH = 16  # of every layer, so that each method has something to change


def examples(base: type[Config]) -> dict[str, Any]:
    """What the configs of this base give as examples of themselves, and can change something in the small network."""
    modules = list(network().modules())
    given: list[tuple[str, Any]] = [pair for kind in base.by_kind().values() for pair in kind.examples().items()]
    useful = [(label, config) for label, config in given if any(config.accepts(module) for module in modules)]
    return dict(sorted(useful, key=lambda pair: pair[0].lower()))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    linear = [nn.Linear(WIDTH, WIDTH) for _ in range(3)]
    return nn.Sequential(linear[0], nn.Tanh(), nn.Dropout(0.2), linear[1], nn.ReLU(), linear[2])


def inputs(count: int = 24) -> torch.Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(1))


BEFORE, AFTER = examples(Conversion), examples(Compression)
METHODS = BEFORE | AFTER


def apply(model: nn.Module, name: str) -> str:
    """Convert or compress all that a method accepts; what the report says when nothing changed."""
    if name in AFTER:
        report = fg.compress_(model, AFTER[name], inputs())
    else:
        report = fg.convert_(model, BEFORE[name], where=lambda name, module: True)
    return "" if report.changes else "nothing to change"


def train(model: nn.Module, steps: int = 2) -> None:
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        return
    optimizer = torch.optim.SGD(parameters, lr=0.01, momentum=0.9)
    evolves = any(hasattr(module, "rewire_") for module in model.modules())
    evolution = fg.Evolution(model, optimizer, fg.Constant(0.3), steps) if evolves else None
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model.train()(inputs()), torch.arange(24) % WIDTH)
        if loss.requires_grad:
            loss.backward()
            optimizer.step()
        if evolution is not None:
            evolution.step()
        assert bool(loss.isfinite())


def compose(first: str, second: str, export: bool = True) -> str:
    """ "" where the pair works through training, saving, loading, measuring and exporting; else the refusal."""
    model = network()
    try:
        for name in (first, second):
            before = copy.deepcopy(model.state_dict())
            if nothing := apply(model, name):
                return f"{name}: {nothing}"
            train(model)
    except ValueError as error:
        same = model.state_dict()
        assert before.keys() == same.keys(), "what is refused leaves the model as it was"
        assert all(torch.equal(value, same[key]) for key, value in before.items())
        return str(error)
    model.eval()
    expected = model(inputs())
    with tempfile.TemporaryDirectory() as folder:
        fg.save(model, Path(folder) / "m.safetensors")
        again = fg.load(Path(folder) / "m.safetensors", into=network()).eval()
        assert torch.equal(again(inputs()), expected)
        assert fg.measure(model, inputs(), seconds=0.0).bytes_disk > 0
        if export:
            fg.export(model, Path(folder) / "m.onnx", inputs())
    return ""


def pairs() -> list[tuple[str, str]]:
    """All that follow one another in a network's life: nothing is converted after it was compressed."""
    return [(a, b) for a in METHODS for b in METHODS if a != b and not (a in AFTER and b in BEFORE)]


def exported(first: str, second: str) -> bool:
    """Exporting takes a second: one pair in forty, or with FILIGREE_EVERY_EXPORT=1 each."""
    at = list(METHODS)
    return os.environ.get("FILIGREE_EVERY_EXPORT") == "1" or (at.index(first) + at.index(second)) % 40 == 1


REASONS = {
    "nothing left": ("no module was selected", "the first leaves no layer that the second can change"),
    "prune before": (
        "Prune before",
        "the first leaves layers that keep their inputs and outputs, and says why: prune before converting",
    ),
}


def reason(message: str) -> str:
    return next((name for name, (part, _) in REASONS.items() if part in message), message)


WRITER = runpy.run_path(str(PAGE.with_name("composition_page.py")))  # what writes the page, and its rules


def outcomes_of(cells: dict[tuple[str, str], str]) -> dict[tuple[str, str], str]:
    """For each pair "" where it works, or why it is refused: a key of `REASONS`."""
    return {pair: message and reason(message) for pair, message in cells.items()}


def page(outcomes: dict[tuple[str, str], str]) -> str:
    """docs/composition.md: the rules that explain these outcomes, a table, the exceptions, and the methods."""
    methods = {name: f"`{_short(config)}`" for name, config in METHODS.items()}
    return WRITER["page"](outcomes, {name: text for name, (_, text) in REASONS.items()}, methods)


def _short(config: Config) -> str:
    """The config with those of its arguments that are not the defaults."""
    defaults = {field.name: field.default for field in dataclasses.fields(config)}  # type: ignore[arg-type]
    given = {name: value for name, value in vars(config).items() if name in defaults and value != defaults[name]}
    parts = [f"{name}={_short(value) if isinstance(value, Config) else repr(value)}" for name, value in given.items()]
    return f"{type(config).__name__}({', '.join(parts)})"


if __name__ == "__main__":
    PAGE.write_text(page(outcomes_of({pair: compose(*pair, exported(*pair)) for pair in track(pairs(), "pairs")})))
