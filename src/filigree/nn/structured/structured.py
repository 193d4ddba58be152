"""The configs of structured layers: in place of linear layers, of a span of them, and inside recurrent networks."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Annotated, Any, ClassVar, Literal, Self

import pydantic
import torch
from torch import nn

from filigree.config import config
from filigree.convert import Change, Conversion, replace_module
from filigree.nn.sparse.feature_major_linear import FeatureMajorLinear
from filigree.nn.structured.acdc import ACDCLinear
from filigree.nn.structured.fastfood import FastfoodLinear
from filigree.nn.structured.fourier import AFDFLinear, CirculantLinear, ToeplitzLinear
from filigree.nn.structured.phd import PHDLinear
from filigree.nn.structured.structured_rnn import StructuredRNN
from filigree.summary import macs_of, numbers_of

Order = Annotated[int, pydantic.Field(ge=1)]
Deviation = Annotated[float, pydantic.Field(gt=0)]


class Structured(Conversion):
    """Base of the configs of structured layers. Their fields are arguments of `layer`, or `build` is overridden."""

    layer: ClassVar[Any]
    seed: int

    def build(self, in_features: int, out_features: int, seed: int) -> nn.Module:
        """The layer in place of an `nn.Linear` of these sizes."""
        options = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        return self.layer(in_features, out_features, **options | {"seed": seed})

    def accepts(self, module: nn.Module) -> bool:
        return type(module) in (nn.Linear, FeatureMajorLinear, nn.LSTM, nn.GRU)

    def gains(self, module: nn.Module) -> bool:
        if not isinstance(module, nn.Linear):
            return True
        layer = self.build(module.in_features, module.out_features, 0)
        return numbers_of(layer) < module.weight.numel() and macs_of(layer) < module.weight.numel()

    def apply(self, model: nn.Module, names: list[str]) -> list[Change]:
        return [self._replace(model, name, number) for number, name in enumerate(names)]

    def _replace(self, model: nn.Module, name: str, number: int) -> Change:
        layer: Any = model.get_submodule(name)
        seed = self.seed + 7919 * number
        if isinstance(layer, nn.RNNBase):
            new: nn.Module = StructuredRNN(layer, lambda i, o, n: self.build(i, o, seed + n))
        else:
            new = self.build(layer.in_features, layer.out_features, seed)
        replace_module(model, name, _to_device_of(new, layer))
        change = Change.of(name, layer, new)
        pairs = {"larger": change.parameters, "more work": change.macs}
        notes = [what for what, (before, after) in pairs.items() if after >= before]
        return replace(change, note=" and ".join(notes) + " than dense" if notes else "")


@config
class Fastfood(Structured):
    """Linear layers become (Adaptive) Fastfood: `filigree.nn.FastfoodLinear` (Moczulski 2019, 3.9)."""

    layer = FastfoodLinear
    adaptive: bool = True
    sigma: Deviation | None = None
    bias: bool = False
    dropout: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.0
    seed: int = 0


@config
class ACDC(Structured):
    """Linear layers become ACDC cascades of order K: `filigree.nn.ACDCLinear` (Moczulski 2019, 3.10)."""

    layer = ACDCLinear
    order: Order = 1
    bias: bool = True
    relu: bool = False
    permute: bool = False
    sigma: Deviation = 0.061
    structure: Literal["diagonal", "band", "block"] = "diagonal"
    width: Annotated[int, pydantic.Field(ge=1)] = 3
    pad: bool = True
    seed: int = 0


@config
class AFDF(Structured):
    """Linear layers become AFDF cascades, real outside: `filigree.nn.AFDFLinear` (Moczulski 2019, 3.10.5)."""

    layer = AFDFLinear
    order: Order = 1
    unitary: bool = False
    sigma: Deviation = 0.061
    seed: int = 0


@config
class Circulant(Structured):
    """Linear layers become circulant matrices: `filigree.nn.CirculantLinear` (Moczulski 2019, eq. 3.23)."""

    layer = CirculantLinear
    random_signs: bool = True
    bias: bool = True
    seed: int = 0


@config
class Toeplitz(Structured):
    """Linear layers become Toeplitz matrices: `filigree.nn.ToeplitzLinear`."""

    layer = ToeplitzLinear
    bias: bool = True
    seed: int = 0


@config
class PHD(Structured):
    """Linear layers become fast Johnson-Lindenstrauss transforms: `filigree.nn.PHDLinear` (Moczulski 2019, 3.15)."""

    layer = PHDLinear
    density: Annotated[float, pydantic.Field(gt=0, le=1)] = 0.1
    adaptive: bool = True
    seed: int = 0


@config
class FuseLinears(Conversion):
    """Consecutive linear layers become one structured layer and a new classifier after it.

    Of the layers selected by `where`, in the model's order, all but the last become `by`, of `features` outputs, with
    what stood between them (ReLU, dropout) once after it; the last becomes an `nn.Linear` from those features. LeNet's
    800 -> 500 -> 10 with `FuseLinears(Fastfood(), features=1024)` is 800 -> Fastfood 1024 -> 10; CaffeNet's fc6 and fc7
    with `FuseLinears(ACDC(order=12, relu=True, permute=True), features=9216)` are 12 ACDC layers (Moczulski 2019, 3.9.5
    to 3.9.7 and 3.10.7.2).
    """

    takes_chains = True

    by: Any
    features: Annotated[int, pydantic.Field(ge=1)]

    @classmethod
    def examples(cls) -> dict[str, Self]:
        return {}  # of structured layers, for a span of a network

    def __post_init__(self) -> None:
        if not isinstance(self.by, Structured):
            raise ValueError(f"FuseLinears: by must be a structured layer such as fg.Fastfood(). Got {self.by!r}.")

    def accepts(self, module: nn.Module) -> bool:
        return type(module) in (nn.Linear, FeatureMajorLinear)

    def apply(self, model: nn.Module, names: list[str]) -> list[Change]:
        if len(names) < 2:
            raise ValueError(f"FuseLinears: at least two consecutive linear layers are needed. Got {', '.join(names)}.")
        layers: list[Any] = [model.get_submodule(name) for name in names]
        for one, two, name in zip(layers, layers[1:], names[1:], strict=False):
            if one.out_features != two.in_features:
                raise ValueError(
                    f"FuseLinears: {name!r} does not read the {one.out_features} outputs of the layer before it."
                )
        fused = _to_device_of(self.by.build(layers[0].in_features, self.features, self.by.seed), layers[0])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.by.seed)
            head = nn.Linear(self.features, layers[-1].out_features, layers[-1].bias is not None)
        _to_device_of(head, layers[-1])
        replace_module(model, names[0], fused)
        changes = [Change.of(names[0], layers[0], fused)]
        between = _between(model, names)
        for name, layer in zip(names[1:-1], layers[1:-1], strict=True):
            replace_module(model, name, nn.Identity())
            changes.append(Change.of(name, layer, nn.Identity()))
        for name in between:
            replace_module(model, name, nn.Identity())
        replace_module(model, names[-1], head)
        return [*changes, Change.of(names[-1], layers[-1], head)]


def sell_groups(
    model: nn.Module, lr: float, a: float = 24.0, d: float = 12.0, weight_decay: float = 0.0005
) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer (Moczulski 2019, 3.10.7.2).

    A has `a` times and D has `d` times the learning rate; neither they nor the biases of D have weight decay.
    """
    groups: dict[str, list[nn.Parameter]] = {"A": [], "D": [], "biases": [], "rest": []}
    seen = set()
    for module in model.modules():
        if isinstance(module, ACDCLinear | AFDFLinear):
            in_signal = True  # A comes first, D after the transform
            for kind, name in module.program:
                if kind in ("dct", "fft"):
                    in_signal = False
                elif kind in ("idct", "ifft"):
                    in_signal = True
                elif name is not None and name in module._parameters:
                    parameter = getattr(module, name)
                    groups["biases" if kind == "bias" else "A" if in_signal else "D"].append(parameter)
                    seen.add(id(parameter))
    groups["rest"] = [p for p in model.parameters() if id(p) not in seen]
    settings = {"A": (lr * a, 0.0), "D": (lr * d, 0.0), "biases": (lr, 0.0), "rest": (lr, weight_decay)}
    return [
        {"params": parameters, "lr": settings[name][0], "weight_decay": settings[name][1], "name": name}
        for name, parameters in groups.items()
        if parameters
    ]


def _between(model: nn.Module, names: list[str]) -> list[str]:
    """Names of activations and dropout after the inner layers of the span, of which one set is enough."""
    order = [name for name, module in model.named_modules() if not list(module.children())]
    inner = order[order.index(names[1]) : order.index(names[-1])] if len(names) > 2 else []
    return [name for name in inner if isinstance(model.get_submodule(name), nn.ReLU | nn.Dropout)]


def _to_device_of(new: nn.Module, layer: nn.Module) -> nn.Module:
    """Move a module to the layer's device and type; in place of a layer on the meta device it stays on the CPU."""
    example = next(layer.parameters())
    if not example.is_meta:
        new.to(example.device)
    if example.dtype.is_floating_point and example.dtype != torch.float32:
        new.to(example.dtype)
    return new
