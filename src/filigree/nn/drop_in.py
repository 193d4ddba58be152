"""Layers that replace one of torch's, with its settings and parameters, and torch's layers made of ours."""

from __future__ import annotations

import copy
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn

from filigree.nn.capabilities import Capabilities

M = TypeVar("M", bound=nn.Module)

_SETTINGS: dict[type[nn.Module], tuple[str, ...]] = {  # arguments of the constructors, and attributes of the layers
    nn.Linear: ("in_features", "out_features", "bias"),
    nn.Conv2d: (
        "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "bias", "padding_mode",
    ),
    nn.BatchNorm2d: ("num_features", "eps", "momentum", "affine", "track_running_stats"),
    nn.RNNBase: ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional"),
    nn.RNNCellBase: ("input_size", "hidden_size", "bias"),
}  # fmt: skip


class DropIn(Capabilities):
    """Mixin, before the torch class, of a layer that computes what the torch layer does in another way.

    Its constructor takes the torch class's arguments, and it has the same parameters, buffers and `state_dict`.
    """

    @classmethod
    def like(cls, module: nn.Module) -> Self:
        """This layer with the settings of a torch layer, and with the same parameter and buffer objects."""
        return share_parameters(cls, module)  # type: ignore[type-var]

    def dense(self: Any) -> Any:
        """The equivalent torch layer, with a copy of the parameters and buffers."""
        return copy.deepcopy(share_parameters(_torch_class(self), self))

    def onnx_form(self: Any) -> nn.Module:
        """The torch layer that this one is in eval mode, with the same parameter objects."""
        return recast(_torch_class(self), self)


def _torch_class(module: nn.Module) -> type[nn.Module]:
    """The class of torch's that a layer extends."""
    return next(base for base in type(module).__mro__ if base.__module__.startswith("torch."))


def share_parameters(kind: type[M], module: nn.Module) -> M:
    """A layer of another kind with the settings, the mode, and the parameter and buffer objects of `module`.

    Args:
        kind: the torch class of the module, or a class that extends it and takes the same arguments.
    """
    layer = kind(**_settings(next(base for base in _SETTINGS if isinstance(module, base)), module), device="meta")
    for name in (*layer._parameters, *layer._buffers):
        setattr(layer, name, getattr(module, name))
    return layer.train(module.training)


def recast(kind: type[M], module: nn.Module) -> M:
    """A module of another class with all that this one holds: attributes, parameters, buffers, submodules and hooks.

    The objects are the same; what is added to the new module or taken out of it does not change the old one.
    """
    new = object.__new__(kind)
    own = {key: copy.copy(value) for key, value in module.__dict__.items() if isinstance(value, dict)}
    new.__dict__ = {**module.__dict__, **own}
    return new


def dense_linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """An `nn.Linear` with a copy of these numbers: `weight` `(out, in)`, `bias` `(out,)` or None."""
    return _filled(nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta"), weight, bias)


def dense_conv2d(like: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Conv2d:
    """An `nn.Conv2d` with the settings of `like`, read under torch's names, and a copy of these numbers.

    Args:
        weight: `(out, in / groups, kh, kw)`, in any shape of as many numbers. bias: `(out,)` or None.
    """
    return _filled(nn.Conv2d(**_settings(nn.Conv2d, like), device="meta"), weight, bias)


class ConvSettings:
    """Mixin of a layer in place of an `nn.Conv2d`: it has the convolution's settings under torch's names."""

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: str | tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    padding_mode: str
    transposed, output_padding = False, (0, 0)

    def take_settings_(self, conv: nn.Module) -> None:
        for name, value in _settings(nn.Conv2d, conv).items():
            if name != "bias":
                setattr(self, name, value)


def _filled(layer: M, weight: Tensor, bias: Tensor | None) -> M:
    for name, numbers in (("weight", weight), ("bias", bias)):
        if numbers is not None:
            copied = numbers.detach().clone(memory_format=torch.contiguous_format)
            setattr(layer, name, nn.Parameter(copied.view(getattr(layer, name).shape)))
    return layer


def _settings(kind: type[nn.Module], module: nn.Module) -> dict[str, Any]:
    settings = {name: getattr(module, name, None) for name in _SETTINGS[kind]}
    if isinstance(settings.get("bias", False), Tensor | None):  # recurrent layers hold a bool
        settings["bias"] = settings["bias"] is not None
    return settings
