"""One-shot sparsity and rounding: what each method leaves of networks' outputs, on data that it was not fitted to.

`FILIGREE_NETWORKS="digits;pitch (CREPE tiny)"` tries these, `FILIGREE_METHODS="OneShot;Wanda"` these methods,
`FILIGREE_SETTINGS="0.5;4 bits"` these sparsities and numbers of bits; other rows stay as they are recorded. The record
is written after each row.
"""

import copy
import importlib.util
import os
import time
import warnings

import pytest
import torch
from one_shot_contestants import METHODS as CONTESTANTS
from one_shot_contestants import rounded_by
from one_shot_networks import CASES

import filigree as fg
from filigree.calibration import Calibration
from filigree.compress.pruning.errors import OutputError
from filigree.modes import evaluating

SPARSITIES = (0.5, 0.7, 0.8, 0.9)
ALLOCATED = (0.7, 0.9)  # sparsities at which allocation="error" is tried, which takes ten times as long
LARGE = 50_000  # weights, from which on it is not tried
METHODS = {
    "magnitude": {"method": "magnitude", "compensate": None},
    "Wanda": {"method": "wanda", "compensate": None},
    "magnitude, refitted": {"method": "magnitude"},
    "Wanda, refitted": {"method": "wanda"},
    "OneShot": {},
    'OneShot, allocation="error"': {"allocation": "error"},
}


def chosen(kind, name):
    names = os.environ.get(f"FILIGREE_{kind}")
    return names is None or name in names.split(";")


@pytest.mark.parametrize("name", [name for name in CASES if chosen("NETWORKS", name)])
def test_one_shot(suite, benchmark, name):
    try:
        case = CASES[name]()
    except SystemExit as error:  # the wheel was not downloaded
        pytest.skip(str(error))
    suite.networks, suite.keys = list(CASES), ("network", "method", "sparsity", "bits")
    error_of = OutputError.of(case.model, Calibration(case.test))

    def decisions(model):
        with torch.no_grad(), evaluating(model):
            return case.decide(model(case.test))

    before = decisions(case.model)

    def judge(model, **row):
        agree = float((decisions(model) == before).double().mean())
        suite.add(network=name, error=error_of(model), agree=agree, **row)
        suite.save()

    for bits in [bits for bits in (4, 3, 2) if chosen("SETTINGS", f"{bits} bits")]:
        for sparsity in (0.0, 0.5) if bits > 2 else (0.0,):
            for how in CONTESTANTS:
                if chosen("METHODS", how) and (not sparsity or how in ("nearest", "GPTQ")):
                    judge(rounded_by(how, case.model, case.x, bits, sparsity), method=how, sparsity=sparsity, bits=bits)
            if not chosen("METHODS", "OneShot"):
                continue
            model = copy.deepcopy(case.model)
            report = fg.compress_(model, fg.OneShot(sparsity, bits=bits), case.x)
            stored = [float(c.note.split(",")[-1].split()[0]) for c in report.changes if "bits a weight" in c.note]
            judge(model, method="OneShot", sparsity=sparsity, bits=bits, stored_bits=sum(stored) / len(stored))
    size = sum(parameter.numel() for parameter in case.model.parameters())
    for sparsity in [sparsity for sparsity in SPARSITIES if chosen("SETTINGS", str(sparsity))]:
        for method, arguments in METHODS.items():
            if not chosen("METHODS", method):
                continue
            if arguments.get("allocation") and (sparsity not in ALLOCATED or size > LARGE):
                continue
            model = copy.deepcopy(case.model)
            began = time.perf_counter()
            fg.compress_(model, fg.OneShot(sparsity, **arguments), case.x)
            judge(model, method=method, sparsity=sparsity, seconds=time.perf_counter() - began)
        for method in ("low rank", "low rank, fitted"):
            if chosen("METHODS", method) and (model := of_low_rank(case, sparsity, method == "low rank, fitted")):
                judge(model, method=method, sparsity=sparsity)
        units = case.units and chosen("METHODS", "torch-pruning (units)")
        if importlib.util.find_spec("torch_pruning") and units:
            judge(without_units(case, sparsity), method="torch-pruning (units)", sparsity=sparsity)
    benchmark.pedantic(lambda: None, rounds=1)


def of_low_rank(case, sparsity, fitted):
    """Linear layers and convolutions at one share of their ranks, at which so many parameters are gone.

    Those that would not get smaller, and those that make the outputs, stay. None: there are no others.
    """
    whole = sum(parameter.numel() for parameter in case.model.parameters())
    low, high, best = 0.0, 1.0, None
    for _ in range(10):
        share, model = (low + high) / 2, copy.deepcopy(case.model)
        config, modules = fg.LowRank(share), dict(model.named_modules())
        names = [n for n, module in modules.items() if config.accepts(module) and config.gains(module)]
        if not (names := [name for name in names if name not in case.units]):
            high = share
            continue
        fg.compress_(model, config, where=names)
        gone = 1 - sum(parameter.numel() for parameter in model.parameters()) / whole
        low, high, best = (low, share, best) if gone < sparsity else (share, high, (model, config, names))
    if best is None or not fitted:
        return best and best[0]
    model = copy.deepcopy(case.model)
    fg.compress_(model, fg.FitStructured(best[1]), case.x, where=best[2])
    return model


def without_units(case, sparsity):
    """torch-pruning's smallest units taken out, the same share of each layer, until so many parameters are gone."""
    import torch_pruning

    whole = sum(parameter.numel() for parameter in case.model.parameters())
    low, high, best = 0.0, 1.0, None
    for _ in range(10):
        share, model = (low + high) / 2, copy.deepcopy(case.model)
        kept = [model.get_submodule(name) for name in case.units]
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            torch_pruning.pruner.MagnitudePruner(
                model, case.x[:2], importance=torch_pruning.importance.MagnitudeImportance(p=2), pruning_ratio=share,
                ignored_layers=kept,
            ).step()  # fmt: skip
        gone = 1 - sum(parameter.numel() for parameter in model.parameters()) / whole
        low, high, best = (share, high, best) if gone < sparsity else (low, share, model)
    return best
