"""Weight decay of weights only, sparse ones included."""

from __future__ import annotations

from typing import Any

from torch import nn


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return parameter groups for an optimizer: weights decay, biases and the scales of normalisation do not.

        optimizer = torch.optim.AdamW(fg.nn.decay_groups(model, 0.01), lr=1e-3)

    Weights are parameters of two dimensions or more, but for biases, and the connections of sparse layers, whose values
    lie in one dimension: the usual rule `p.ndim >= 2` alone would give those no decay. A parameter that several modules
    share is in one group, and decays if it is a weight in any of them. Frozen parameters are in neither.

    Args:
        weight_decay: of the first group; that of the second is 0. A group without parameters is left out.
    """
    weights: dict[int, nn.Parameter] = {}
    for module in model.modules():
        connections = getattr(module, "connections", None)
        for name, parameter in module.named_parameters(recurse=False):
            if parameter is connections or (parameter.ndim >= 2 and "bias" not in name):
                weights[id(parameter)] = parameter
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if id(p) in weights], "weight_decay": weight_decay},
        {"params": [p for p in trained if id(p) not in weights], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
