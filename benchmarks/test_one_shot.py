"""One-shot sparsity and rounding: what each method leaves of networks' outputs, on data that it was not fitted to."""

import copy
import time

import pytest
import torch
from one_shot_networks import CASES

import filigree as fg
from filigree.calibration import Calibration
from filigree.compress.one_shot.fitting import Fitted
from filigree.compress.one_shot.moments import moments_of, order_of, parts_of
from filigree.compress.one_shot.products import products_of
from filigree.compress.one_shot.rounding import nearest_scale
from filigree.compress.one_shot.surgery import BLOCK, inverse_factor
from filigree.compress.pruning.errors import OutputError
from filigree.modes import evaluating

SPARSITIES = (0.5, 0.7, 0.8, 0.9)
ALLOCATED = (0.7, 0.9)  # sparsities at which allocation="error" is tried, which takes ten times as long
METHODS = {
    "magnitude": {"method": "magnitude", "compensate": None},
    "Wanda": {"method": "wanda", "compensate": None},
    "magnitude, refitted": {"method": "magnitude"},
    "OneShot": {},
    'OneShot, allocation="error"': {"allocation": "error"},
}


@pytest.mark.parametrize("name", CASES)
def test_one_shot(suite, benchmark, name):
    try:
        case = CASES[name]()
    except SystemExit as error:  # the wheel was not downloaded
        pytest.skip(str(error))
    error_of = OutputError.of(case.model, Calibration(case.test))

    def decisions(model):
        with torch.no_grad(), evaluating(model):
            return case.decide(model(case.test))

    before = decisions(case.model)

    def judge(model, **row):
        agree = float((decisions(model) == before).double().mean())
        suite.add(network=name, error=error_of(model), agree=agree, **row)

    for bits in (4, 3):
        for sparsity in (0.0, 0.5):
            for how in ("nearest", "GPTQ"):
                judge(rounded_by(how, case.model, case.x, bits, sparsity), method=how, sparsity=sparsity, bits=bits)
            model = copy.deepcopy(case.model)
            report = fg.compress_(model, fg.OneShot(sparsity, bits=bits), case.x)
            stored = [float(c.note.split(",")[-1].split()[0]) for c in report.changes if "bits a weight" in c.note]
            judge(model, method="OneShot", sparsity=sparsity, bits=bits, stored_bits=sum(stored) / len(stored))
    for sparsity in SPARSITIES:
        for method, arguments in METHODS.items():
            if arguments.get("allocation") and sparsity not in ALLOCATED:
                continue
            model = copy.deepcopy(case.model)
            began = time.perf_counter()
            fg.compress_(model, fg.OneShot(sparsity, **arguments), case.x)
            judge(model, method=method, sparsity=sparsity, seconds=time.perf_counter() - began)
    benchmark.pedantic(lambda: None, rounds=1)


@torch.no_grad()
def rounded_by(how, original, x, bits, sparsity):
    """The baselines, scales searched, biases as they were.

    "GPTQ": the largest inputs first, each error to the columns behind; with weights that go: SparseGPT, which chooses
    and rounds together, in the columns' order. "nearest": the smallest weights go, the others to their nearest integer.
    """
    model, chunks = copy.deepcopy(original), parts_of(Calibration(x))
    names = [name for name, module in model.named_modules() if products_of(module)]
    for name, runs in order_of(model, names, chunks).items():
        module = model.get_submodule(name)
        (product,) = products_of(module).values()
        weight = product.matrix(module).double()
        parts = []
        for at, moments in moments_of(product, name, (model, model), chunks, runs, 0):
            raw = moments.own + moments.mean.unsqueeze(2) * moments.mean.unsqueeze(1)  # biases stay as they are
            parts.append(_rounded(how, weight[..., at], raw, bits, sparsity))
        product.write_(module, Fitted(torch.cat(parts, 2), weight != 0).weight, None)
    return model


def _rounded(how, weight, own, bits, sparsity):
    most, size = 2 ** (bits - 1) - 1, own.diagonal(dim1=1, dim2=2)
    if how == "nearest":
        kept = weight.flatten().abs().argsort(descending=True)[: round((1 - sparsity) * weight.numel())]
        weight = torch.zeros_like(weight).flatten().index_copy(0, kept, weight.flatten()[kept]).view_as(weight)
        scale = nearest_scale(weight, torch.ones_like(size), bits)[..., None]
        return (weight / scale).round().clamp(-most, most) * scale
    scale = nearest_scale(weight, torch.ones_like(size), bits)
    out = torch.empty_like(weight)
    for group in range(len(weight)):
        damped = own[group] + 0.01 * size[group].mean() * torch.eye(len(own[group]), dtype=own.dtype)
        order = torch.arange(len(size[group])) if sparsity else size[group].argsort(descending=True)
        upper = inverse_factor(damped[order][:, order].unsqueeze(0))[0]
        w, new = weight[group][:, order], torch.empty_like(weight[group])
        for j in range(w.shape[1]):
            if j % BLOCK == 0:
                scores = (w[:, j : j + BLOCK] / upper.diagonal()[j : j + BLOCK]).square()
                gone = torch.zeros_like(scores, dtype=torch.bool).flatten()
                gone[scores.flatten().argsort()[: round(sparsity * scores.numel())]] = True
                gone = gone.view_as(scores)
            new[:, j] = (w[:, j] / scale[group]).round().clamp(-most, most) * scale[group] * ~gone[:, j % BLOCK]
            w[:, j:] -= ((w[:, j] - new[:, j]) / upper[j, j])[:, None] * upper[j, j:]
        out[group][:, order] = new
    return out
