"""Plain torch networks: MLPs, LeNets and residual networks with readable module names (`fc1`, `relu1`, ...)."""

from __future__ import annotations

import numbers
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from filigree.extensions import extensions

_BUILDERS: dict[str, Any] = {}


def builder(function: Any) -> Any:
    """Register a function that builds a network: files and recipes name the network by the function's name."""
    _BUILDERS[function.__name__] = function
    return function


def made_by(model: nn.Module, name: str, **arguments: Any) -> nn.Module:
    """Record on a network its builder and the arguments, so that `fg.load` can build it again."""
    model.__dict__["_filigree_model"] = {"name": name, **arguments}
    model.__dict__["_filigree_modules"] = modules_of(model)
    return model


def modules_of(model: nn.Module) -> dict[str, tuple[str, str, dict[str, Any]]]:
    """The module of the class, the class name and the plain attributes of each module, by name."""
    return {
        name: (type(module).__module__, type(module).__name__, {
            key: value for key, value in vars(module).items()
            if not key.startswith("_") and key != "training" and isinstance(value, bool | int | float | str)
        }) for name, module in model.named_modules()
    }  # fmt: skip


ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "hardtanh": nn.Hardtanh, "hardsigmoid": nn.Hardsigmoid,
}  # fmt: skip


@builder
def mlp(sizes: Sequence[int], dropout: float = 0.0, activation: str = "relu") -> nn.Module:
    """A multilayer perceptron: Linear, activation, Dropout for each hidden layer, Linear at the end (logits).

    Args:
        sizes: widths from input to output, `[784, 1000, 1000, 1000, 10]`.
        dropout: after each hidden layer, in [0, 1); no module is added at 0.
        activation: "relu", "tanh", "sigmoid", "hardtanh" or "hardsigmoid".

    Shape: `(batch, sizes[0])` to `(batch, sizes[-1])`.
    """
    if isinstance(sizes, str) or not all(isinstance(size, numbers.Integral) for size in sizes):
        raise TypeError(f"mlp: sizes must be whole numbers. Got {sizes!r}.")
    if len(sizes) < 2 or min(sizes) < 1:
        raise ValueError(f"mlp: sizes must be at least two widths, each at least 1. Got {list(sizes)}.")
    if not 0 <= dropout < 1:
        raise ValueError(f"mlp: dropout must be in [0, 1). Got {dropout}.")
    if activation not in ACTIVATIONS:
        raise ValueError(f"mlp: activation must be one of {', '.join(ACTIVATIONS)}. Got {activation!r}.")
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i in range(1, len(sizes)):
        layers[f"fc{i}"] = nn.Linear(sizes[i - 1], sizes[i])
        if i < len(sizes) - 1:
            layers[f"{activation}{i}"] = ACTIVATIONS[activation]()
            if dropout:
                layers[f"dropout{i}"] = nn.Dropout(dropout)
    other = {} if activation == "relu" else {"activation": activation}  # files of earlier versions stay the same
    return made_by(nn.Sequential(layers), "mlp", sizes=list(sizes), dropout=dropout, **other)


@builder
def lenet_300_100(inputs: int = 784, classes: int = 10) -> nn.Module:
    """LeNet-300-100 (LeCun et al. 1998): an MLP of 300 and 100 hidden units; 266,610 parameters on MNIST."""
    return made_by(mlp([inputs, 300, 100, classes]), "lenet_300_100", inputs=inputs, classes=classes)


@builder
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
    return made_by(nn.Sequential(layers), "lenet5", channels=channels, classes=classes)


@builder
def lenet_caffe(channels: int = 1, classes: int = 10) -> nn.Module:
    """The LeNet of Caffe's examples, without ReLU after its convolutions: `(batch, channels, 28, 28)` to logits.

    Convolutions of 20 and 50 filters of 5 x 5, each with max-pooling, then 800 -> 500 -> classes (Moczulski 2019, table
    3.1).
    """
    layers = OrderedDict(
        conv1=nn.Conv2d(channels, 20, 5),
        pool1=nn.MaxPool2d(2),
        conv2=nn.Conv2d(20, 50, 5),
        pool2=nn.MaxPool2d(2),
        flatten=nn.Flatten(),
        fc1=nn.Linear(800, 500),
        relu1=nn.ReLU(),
        fc2=nn.Linear(500, classes),
    )
    return made_by(nn.Sequential(layers), "lenet_caffe", channels=channels, classes=classes)


@builder
def alexnet_cifar(channels: int = 3, classes: int = 10, width: int = 1024) -> nn.Module:
    """A small AlexNet for 32 x 32 images: three convolutions and two large linear layers of `width` units.

    `(batch, channels, 32, 32)` to logits; nine tenths of its parameters are in fc1 and fc2, as in AlexNet itself.
    """
    layers = OrderedDict(
        conv1=nn.Conv2d(channels, 32, 5, padding=2),
        relu1=nn.ReLU(),
        pool1=nn.MaxPool2d(2),
        conv2=nn.Conv2d(32, 64, 5, padding=2),
        relu2=nn.ReLU(),
        pool2=nn.MaxPool2d(2),
        conv3=nn.Conv2d(64, 64, 3, padding=1),
        relu3=nn.ReLU(),
        pool3=nn.MaxPool2d(2),
        flatten=nn.Flatten(),
        fc1=nn.Linear(1024, width),
        relu4=nn.ReLU(),
        fc2=nn.Linear(width, width),
        relu5=nn.ReLU(),
        fc3=nn.Linear(width, classes),
    )
    return made_by(nn.Sequential(layers), "alexnet_cifar", channels=channels, classes=classes, width=width)


@builder
def cnn_cifar(channels: int = 3, classes: int = 10) -> nn.Module:
    """The 12-layer network of John 2019 (5.5) for 32 x 32 images: four convolutions with pooling, three linear layers.

    3x3 of 64 and 128 filters, 5x5 of 256 and 512; 128, 256 and 512 units: 4,604,426 parameters.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    before = channels
    for i, (filters, kernel) in enumerate(((64, 3), (128, 3), (256, 5), (512, 5)), 1):
        layers[f"conv{i}"] = nn.Conv2d(before, filters, kernel, padding=kernel // 2)
        layers[f"relu{i}"], layers[f"pool{i}"] = nn.ReLU(), nn.MaxPool2d(2)
        before = filters
    layers["flatten"] = nn.Flatten()
    before = 4 * 512
    for i, units in enumerate((128, 256, 512), 1):
        layers[f"fc{i}"], layers[f"relu{i + 4}"] = nn.Linear(before, units), nn.ReLU()
        before = units
    layers["fc4"] = nn.Linear(before, classes)
    return made_by(nn.Sequential(layers), "cnn_cifar", channels=channels, classes=classes)


@builder
def vgg16_cifar(channels: int = 3, classes: int = 10) -> nn.Module:
    """VGG-16 (Simonyan and Zisserman 2015) modified for 32 x 32 images, with batch norms and one hidden linear layer.

    13 convolutions of 3x3, 512 units: 14.98 million parameters (John 2019, 5.7).
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    before, number = channels, 0
    for block, (filters, count) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)), 1):
        for _ in range(count):
            number += 1
            layers[f"conv{number}"] = nn.Conv2d(before, filters, 3, padding=1)
            layers[f"bn{number}"], layers[f"relu{number}"] = nn.BatchNorm2d(filters), nn.ReLU()
            before = filters
        layers[f"pool{block}"] = nn.MaxPool2d(2)
    layers["flatten"] = nn.Flatten()
    layers["fc1"], layers["relu14"], layers["fc2"] = nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, classes)
    return made_by(nn.Sequential(layers), "vgg16_cifar", channels=channels, classes=classes)


class Pixels(nn.Module):
    """Images as bytes become floats of mean about 0 and deviation about 1, `(x / 255 - .45) / .225`; floats stay."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.is_floating_point() else (x.float() / 255 - 0.45) / 0.225


@builder
def caffenet(channels: int = 3, classes: int = 1000) -> nn.Module:
    """CaffeNet (Jia et al. 2014), AlexNet with its two groups: `(batch, channels, 227, 227)`, bytes or floats.

    60,954,656 weights, of which 58,621,952 are in fc6, fc7 and fc8 (Moczulski 2019, 3.9.6).
    """
    norm = {"alpha": 1e-4, "beta": 0.75}
    layers = OrderedDict(
        pixels=Pixels(),
        conv1=nn.Conv2d(channels, 96, 11, stride=4),
        relu1=nn.ReLU(),
        pool1=nn.MaxPool2d(3, 2),
        norm1=nn.LocalResponseNorm(5, **norm),
        conv2=nn.Conv2d(96, 256, 5, padding=2, groups=2),
        relu2=nn.ReLU(),
        pool2=nn.MaxPool2d(3, 2),
        norm2=nn.LocalResponseNorm(5, **norm),
        conv3=nn.Conv2d(256, 384, 3, padding=1),
        relu3=nn.ReLU(),
        conv4=nn.Conv2d(384, 384, 3, padding=1, groups=2),
        relu4=nn.ReLU(),
        conv5=nn.Conv2d(384, 256, 3, padding=1, groups=2),
        relu5=nn.ReLU(),
        pool5=nn.MaxPool2d(3, 2),
        flatten=nn.Flatten(),
        fc6=nn.Linear(9216, 4096),
        relu6=nn.ReLU(),
        dropout6=nn.Dropout(),
        fc7=nn.Linear(4096, 4096),
        relu7=nn.ReLU(),
        dropout7=nn.Dropout(),
        fc8=nn.Linear(4096, classes),
    )
    return made_by(nn.Sequential(layers), "caffenet", channels=channels, classes=classes)


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions with batch norm, and the input added: `relu(f(x) + shortcut(x))`.

    Attributes:
        survival: the probability that f is computed in a batch of training (stochastic depth); in eval mode f is
            multiplied by it.
    """

    survival: float = 1.0

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                OrderedDict(conv=nn.Conv2d(inputs, outputs, 1, stride, bias=False), bn=nn.BatchNorm2d(outputs))
            )

    @property
    def skips(self) -> bool:
        return self.survival < 1

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.survival < 1 and float(torch.rand(())) >= self.survival:
            return self.relu2(self.shortcut(x))
        y = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        if not self.training and self.survival < 1:
            y = self.survival * y
        return self.relu2(y + self.shortcut(x))


@builder
def resnet(blocks: Sequence[int] = (1, 1, 1), width: int = 64, channels: int = 3, classes: int = 10) -> nn.Module:
    """A residual network for small images (He et al. 2016, basic blocks): `(batch, channels, H, W)` to logits.

    Args:
        blocks: basic blocks of each stage; from stage to stage the width doubles and the sides halve. (3, 3, 3) and
            width 16 is ResNet-20 of the paper, with projections as shortcuts.
        width: channels of the first stage.
    """
    if not blocks or min(blocks) < 1 or width < 1:
        raise ValueError(f"resnet: blocks and width must be at least 1. Got {list(blocks)} and {width}.")
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv=nn.Conv2d(channels, width, 3, padding=1, bias=False), bn=nn.BatchNorm2d(width), relu=nn.ReLU()
    )
    inputs = width
    for stage, count in enumerate(blocks):
        for block in range(count):
            outputs = width * 2**stage
            layers[f"block{stage + 1}_{block + 1}"] = BasicBlock(inputs, outputs, 2 if stage and not block else 1)
            inputs = outputs
    layers["pool"], layers["flatten"] = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    layers["fc"] = nn.Linear(inputs, classes)
    arguments = {"blocks": list(blocks), "width": width, "channels": channels, "classes": classes}
    return made_by(nn.Sequential(layers), "resnet", **arguments)


def build(name: str, **arguments: Any) -> nn.Module:
    """Build a network by the name that recipes and files use. Raises `ValueError` for an unknown name or argument."""
    if name not in _BUILDERS:
        extensions()  # an installed package may bring it
    if name not in _BUILDERS:
        raise ValueError(f"models: name must be one of {', '.join(sorted(_BUILDERS))}. Got {name!r}.")
    try:
        return _BUILDERS[name](**arguments)
    except TypeError as error:
        raise ValueError(f"models: {error}.") from None
