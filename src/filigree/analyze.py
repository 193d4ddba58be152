"""`analyze`: the network science of a model's sparse layers."""

from __future__ import annotations

import itertools

import numpy as np
import scipy
import torch
from torch import nn

from filigree.dynamics.evolution import Evolution, Evolvable
from filigree.topology import science


def patterns(model: nn.Module) -> dict[str, science.SparseMatrix]:
    """The sparse layers of a model in order: `(outputs, inputs)`, weights as data."""
    by_layer = {}
    for name, layer in model.named_modules():
        if isinstance(layer, Evolvable):
            flat_indices, weights = layer.flat_indices().numpy(), layer.weights()
            if weights.dtype in (torch.bfloat16, torch.float16):  # which scipy does not hold
                weights = weights.float()
            where = (flat_indices // layer.in_features, flat_indices % layer.in_features)
            by_layer[name] = scipy.sparse.csr_array(
                (weights.numpy(), where), shape=(layer.out_features, layer.in_features)
            )
    return by_layer


def analyze(model: nn.Module, seed: int = 0, nulls: int = 10) -> science.NetworkReport:
    """Degrees, power laws, clustering, path lengths and small-world index, each against the Erdos-Renyi null.

    Of every sparse layer, and of the network that they form together. Prints as a table.

    Raises:
        ValueError: the model has no sparse layers, or they do not follow one another.
    """
    by_layer = patterns(model)
    if not by_layer:
        raise ValueError("analyze: the model has no sparse layers. Call fg.convert_(model, fg.Sparse(...)) first.")
    for (a, first), (b, second) in itertools.pairwise(by_layer.items()):
        if first.shape[0] != second.shape[1]:
            raise ValueError(f"analyze: {b!r} reads {second.shape[1]} inputs, {a!r} has {first.shape[0]} outputs.")
    return science.analyze(list(by_layer.values()), list(by_layer), seed, nulls)


def connection_survival(evolution: Evolution, layer: str) -> tuple[np.ndarray, np.ndarray]:
    """The survival curve of a layer's connections under an `Evolution`: ages in epochs, the share outliving each."""
    births, deaths = evolution.births[layer].numpy(), evolution.deaths[layer].numpy()
    gone = np.repeat(deaths, deaths[:, 2], axis=0)
    born = np.concatenate([births, gone[:, 0]])
    died = np.concatenate([np.full(len(births), -1), gone[:, 1]])
    return science.survival_curve(born, died, evolution.epoch)


def feature_ranking(model: nn.Module) -> np.ndarray:
    """The inputs of the first sparse layer, strongest first (sum of |w|): which features matter."""
    by_layer = patterns(model)
    if not by_layer:
        raise ValueError("feature_ranking: the model has no sparse layers.")
    return science.rank_features(next(iter(by_layer.values())))
