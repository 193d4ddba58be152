"""Multilayer perceptrons and LeNets as plain torch modules with readable names (`fc1`, `relu1`, `dropout1`, ...)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from torch import nn

_BUILDERS: dict[str, Any] = {}


def _builder(function: Any) -> Any:
    _BUILDERS[function.__name__] = function
    return function


def _made_by(model: nn.Module, name: str, **arguments: Any) -> nn.Module:
    model.__dict__["_filigree_model"] = {"name": name, **arguments}
    return model


@_builder
def mlp(sizes: Sequence[int], dropout: float = 0.0) -> nn.Module:
    """A multilayer perceptron: Linear, ReLU, Dropout for each hidden layer, Linear at the end (logits).

    Args:
        sizes: widths from input to output, `[784, 1000, 1000, 1000, 10]`.
        dropout: after each hidden layer, in [0, 1); no module is added at 0.

    Shape: `(batch, sizes[0])` to `(batch, sizes[-1])`.
    """
    if len(sizes) < 2 or min(sizes) < 1:
        raise ValueError(f"mlp: sizes must be at least two widths, each at least 1. Got {list(sizes)}.")
    if not 0 <= dropout < 1:
        raise ValueError(f"mlp: dropout must be in [0, 1). Got {dropout}.")
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i in range(1, len(sizes)):
        layers[f"fc{i}"] = nn.Linear(sizes[i - 1], sizes[i])
        if i < len(sizes) - 1:
            layers[f"relu{i}"] = nn.ReLU()
            if dropout:
                layers[f"dropout{i}"] = nn.Dropout(dropout)
    return _made_by(nn.Sequential(layers), "mlp", sizes=list(sizes), dropout=dropout)


@_builder
def lenet_300_100(inputs: int = 784, classes: int = 10) -> nn.Module:
    """LeNet-300-100 (LeCun et al. 1998): an MLP of 300 and 100 hidden units; 266,610 parameters on MNIST."""
    return _made_by(mlp([inputs, 300, 100, classes]), "lenet_300_100", inputs=inputs, classes=classes)


@_builder
def lenet5(channels: int = 1, classes: int = 10) -> nn.Module:
    """LeNet-5 (LeCun et al. 1998) with ReLU and max-pooling, for images of 28 x 28: `(batch, channels, 28, 28)`."""
    layers = OrderedDict(
        conv1=nn.Conv2d(channels, 6, 5, padding=2),
        relu1=nn.ReLU(),
        pool1=nn.MaxPool2d(2),
        conv2=nn.Conv2d(6, 16, 5),
        relu2=nn.ReLU(),
        pool2=nn.MaxPool2d(2),
        flatten=nn.Flatten(),
        fc1=nn.Linear(400, 120),
        relu3=nn.ReLU(),
        fc2=nn.Linear(120, 84),
        relu4=nn.ReLU(),
        fc3=nn.Linear(84, classes),
    )
    return _made_by(nn.Sequential(layers), "lenet5", channels=channels, classes=classes)


def build(name: str, **arguments: Any) -> nn.Module:
    """A network by its name, as recipes and files spell it. `ValueError` names what is unknown."""
    if name not in _BUILDERS:
        raise ValueError(f"models: name must be one of {', '.join(sorted(_BUILDERS))}. Got {name!r}.")
    try:
        return _BUILDERS[name](**arguments)
    except TypeError as error:
        raise ValueError(f"models: {error}.") from None
