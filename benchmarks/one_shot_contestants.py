"""Other methods for `test_one_shot.py`, in a few lines each from their publications; weights are rounded, biases stay.

All take the layers in their order, the scale of each row searched by the same rule, the largest inputs first. x are
the inputs of a layer in the original network, x' those in the network as rounded so far.

- "nearest": each weight to its nearest integer.
- "GPTQ" (Frantar et al. 2023): the error of each column goes to the columns behind it, by the inverse of E[x' x'^T].
  With weights that go: SparseGPT (Frantar and Alistarh 2023), which chooses and rounds together.
- "GPFQ" (Lybrand and Saab 2021): each integer makes up for what all columns up to it have lost, on x and x'.
- "Qronos" (Zhang et al. 2025): the first integer, and then all other weights, are what is best on x and x'; from there
  on as GPTQ.
"""

import copy

import torch

from filigree.calibration import Calibration
from filigree.compress.one_shot.moments import moments_of, order_of, parts_of
from filigree.compress.one_shot.products import products_of
from filigree.compress.one_shot.rounding import nearest_scale
from filigree.compress.one_shot.surgery import BLOCK, inverse_factor

DAMPING = 0.01  # of the mean variance, as in GPTQ


@torch.no_grad()
def rounded_by(how, original, x, bits, sparsity=0.0):
    """A copy of the network with integers times scales as weights, by the method of this name."""
    model, chunks = copy.deepcopy(original), parts_of(Calibration(x))
    names = [name for name, module in model.named_modules() if products_of(module)]
    for name, runs in order_of(model, names, chunks).items():
        module = model.get_submodule(name)
        for product in products_of(module).values():
            weight, parts = product.matrix(original.get_submodule(name)).double(), []
            before = original if how in ("GPFQ", "Qronos") else model
            for at, moments in moments_of(product, name, (before, model), chunks, runs, 0):
                own = moments.own + moments.mean.unsqueeze(2) * moments.mean.unsqueeze(1)  # biases stay as they are
                cross = moments.cross + moments.mean.unsqueeze(2) * moments.mean_before.unsqueeze(1)
                parts.append(METHODS[how](weight[..., at], own, cross, bits, sparsity))
            product.write_(module, torch.cat(parts, 2), None)
    return model


def nearest(weight, own, cross, bits, sparsity):
    kept = weight.flatten().abs().argsort(descending=True)[: round((1 - sparsity) * weight.numel())]
    weight = torch.zeros_like(weight).flatten().index_copy(0, kept, weight.flatten()[kept]).view_as(weight)
    scale = _scale(weight, bits)
    return _to_grid(weight, scale, bits)


def gptq(weight, own, cross, bits, sparsity):
    scale, out = _scale(weight, bits), torch.empty_like(weight)
    for group, damped in enumerate(_damped(own)):
        order = torch.arange(len(damped)) if sparsity else damped.diagonal().argsort(descending=True)
        upper, w = inverse_factor(damped[order][:, order].unsqueeze(0))[0], weight[group][:, order]
        out[group][:, order] = _diffused(w, upper, scale[group], bits, sparsity)
    return out


def qronos(weight, own, cross, bits, sparsity):
    scale, out, damped = _scale(weight, bits), torch.empty_like(weight), _damped(own)
    more = damped - own  # what is added to one is added to the other
    for group, h in enumerate(damped):
        order = h.diagonal().argsort(descending=True)
        h, g = h[order][:, order], (cross + more)[group][order][:, order]
        w = weight[group][:, order].clone()
        right = w @ g.T  # E[W x x'^T]
        first = _to_grid(((right[:, 0] - w[:, 1:] @ h[0, 1:]) / h[0, 0])[:, None], scale[group], bits)
        rest = torch.cholesky_solve((right[:, 1:] - first * h[0, 1:]).T, torch.linalg.cholesky(h[1:, 1:])).T
        upper = inverse_factor(h[1:, 1:].unsqueeze(0))[0]
        out[group][:, order] = torch.cat([first, _diffused(rest, upper, scale[group], bits, 0.0)], 1)
    return out


def gpfq(weight, own, cross, bits, sparsity):
    scale, out = _scale(weight, bits), torch.empty_like(weight)
    for group, h in enumerate(own):
        order = h.diagonal().argsort(descending=True)
        h, g, w = h[order][:, order], cross[group][order][:, order], weight[group][:, order]
        q = torch.zeros_like(w)
        for t in range(w.shape[1]):
            target = w[:, : t + 1] @ g[t, : t + 1] - q[:, :t] @ h[t, :t]
            q[:, t : t + 1] = _to_grid((target / h[t, t].clamp(min=1e-12))[:, None], scale[group], bits)
        out[group][:, order] = q
    return out


METHODS = {"nearest": nearest, "GPTQ": gptq, "GPFQ": gpfq, "Qronos": qronos}


def _scale(weight, bits):
    return nearest_scale(weight, weight.new_ones(len(weight), weight.shape[2]), bits)[..., None]


def _to_grid(weight, scale, bits):
    most = 2 ** (bits - 1) - 1
    return (weight / scale).round().clamp(-most, most) * scale


def _damped(own):
    size = own.diagonal(dim1=1, dim2=2).mean(1)
    return own + DAMPING * size[:, None, None] * torch.eye(own.shape[1], dtype=own.dtype)


def _diffused(w, upper, scale, bits, sparsity):
    """Column by column, errors to those behind; in each block of columns the cheapest weights go."""
    w, new = w.clone(), torch.empty_like(w)
    for j in range(w.shape[1]):
        if j % BLOCK == 0:
            costs = (w[:, j : j + BLOCK] / upper.diagonal()[j : j + BLOCK]).square()
            gone = torch.zeros_like(costs, dtype=torch.bool).flatten()
            gone[costs.flatten().argsort()[: round(sparsity * costs.numel())]] = True
            gone = gone.view_as(costs)
        new[:, j] = _to_grid(w[:, j : j + 1], scale, bits)[:, 0] * ~gone[:, j % BLOCK]
        w[:, j:] -= ((w[:, j] - new[:, j]) / upper[j, j])[:, None] * upper[j, j:]
    return new
