"""Every pair of methods on one small network: which compose, and what is refused. `python tests/composition.py` writes
docs/composition.md."""

from __future__ import annotations

import copy
import os
import runpy
import tempfile
from pathlib import Path

import torch
from rich.progress import track
from torch import nn

import filigree as fg

PAGE = Path(__file__).parent.parent / "docs" / "composition.md"
DENSE = fg.ErdosRenyi(density=0.3)
BEFORE = {
    "Sparse": fg.Sparse(DENSE),
    "Sparse, masked": fg.Sparse(DENSE, masked=True),
    "Paths": fg.Sparse(fg.Paths(64)),
    "OnlinePaths": fg.OnlinePaths(64),
    "top-k": fg.Asymmetric.topk(4),
    "partial": fg.Asymmetric.partial(4, 8),
    "complete": fg.Asymmetric.complete(8),
    "PartitionDropout": fg.PartitionDropout(2),
    "Dropout": fg.nn.Dropout(),
    "GaussianDropout": fg.nn.GaussianDropout(),
    "GuidedDropout": fg.nn.GuidedDropout(),
    "ACDC": fg.ACDC(2),
    "AFDF": fg.AFDF(2),
    "Fastfood": fg.Fastfood(),
    "Circulant": fg.Circulant(),
    "Toeplitz": fg.Toeplitz(),
    "PHD": fg.PHD(),
    "LowRank": fg.LowRank(4),
    "Noisy": fg.Noisy("NAH"),
    "NoisyRectifier": fg.NoisyRectifier(),
    "Mollified": fg.Mollified(),
}
AFTER = {
    "SubsetPruning": fg.SubsetPruning(keep=0.5),
    "ClusterPruning": fg.ClusterPruning(keep=0.5),
    "SubClustering": fg.SubClustering(initial=0.3),
    "MagnitudePruning": fg.MagnitudePruning(keep=0.5),
    "RandomPruning": fg.RandomPruning(keep=0.5),
    "RoundToNearest": fg.RoundToNearest(),
    "MonteCarlo": fg.MonteCarlo(samples=1.0),
    "PathSampling": fg.PathSampling(64),
    "FitStructured": fg.FitStructured(fg.ACDC(order=2), steps=3),
}
METHODS = BEFORE | AFTER
WIDTH = 16  # of every layer, so that each method has something to change


def network() -> nn.Sequential:
    torch.manual_seed(0)
    linear = [nn.Linear(WIDTH, WIDTH) for _ in range(3)]
    return nn.Sequential(linear[0], nn.Tanh(), nn.Dropout(0.2), linear[1], nn.ReLU(), linear[2])


def inputs(count: int = 24) -> torch.Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(1))


def apply(model: nn.Module, name: str) -> str:
    """Convert or compress; what the report says when nothing changed."""
    if name in AFTER:
        report = fg.compress_(model, AFTER[name], inputs())
    else:
        config = BEFORE[name]
        structured = isinstance(config, fg.ACDC | fg.AFDF | fg.Fastfood | fg.Circulant | fg.Toeplitz | fg.PHD)
        report = fg.convert_(model, config, where=_linear(model) if structured else None)
    return "" if report.changes else "nothing to change"


def _linear(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if hasattr(module, "in_features")]


def train(model: nn.Module, steps: int = 2) -> None:
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        return
    optimizer = torch.optim.SGD(parameters, lr=0.01, momentum=0.9)
    evolves = any(hasattr(module, "places") for module in model.modules())
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
    "names": ("matches no module", "the first has renamed the layers; the message lists those that there are"),
    "prune before": (
        "Prune before",
        "structured layers, and what has a number for each unit, are not pruned: prune before converting",
    ),
}


def reason(message: str) -> str:
    return next((name for name, (part, _) in REASONS.items() if part in message), message)


def page(cells: dict[tuple[str, str], str]) -> str:
    """docs/composition.md: the rules that explain these outcomes, a table, and the exceptions."""
    write = runpy.run_path(str(PAGE.with_name("composition_page.py")))["page"]
    outcomes = {pair: message and reason(message) for pair, message in cells.items()}
    return write(outcomes, {name: text for name, (_, text) in REASONS.items()})


if __name__ == "__main__":
    PAGE.write_text(page({pair: compose(*pair, exported(*pair)) for pair in track(pairs(), "pairs")}))
