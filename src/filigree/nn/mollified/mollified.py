"""The config `Mollified`, which makes networks that begin linear and shallow (Moczulski 2019, 4.4)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pydantic
import torch
from torch import nn

from filigree.config import config, listed
from filigree.convert import Change, Conversion, replace_module
from filigree.layer_selection import ACTIVATION_HINT
from filigree.nn.mollified.mollified_activation import FUNCTIONS, MollifiedActivation
from filigree.nn.mollified.mollified_block import MollifiedBlock
from filigree.nn.mollified.mollified_rnn import MollifiedGRU, MollifiedGRUGates, MollifiedLSTM, MollifiedLSTMGates
from filigree.nn.rnn import LoopedRNN, is_lstm, put_gates, refuse_projections, suffixes
from filigree.protocols import ResidualBlock
from filigree.summary import Summary

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)


@config
class Mollified(Conversion):
    """Make a mollifying network (Moczulski 2019, 4.4).

    Blocks become `filigree.nn.MollifiedBlock`s, and recurrent layers get `filigree.nn.MollifiedGates`. All start at
    p = 1, and `fg.MollificationAnnealing` takes them to 0.

    A block is a layer with units (linear, sparse, structured or a convolution), the norm that follows if there is one,
    and the activation after that, all in an `nn.Sequential`; or a `filigree.protocols.ResidualBlock`, which has its own
    residual connection and is always padded. Activations are sigmoid, tanh, hard sigmoid, hard tanh and ReLU. Layers
    that none of these follows, such as the last one, are not changed.

    Args:
        c: the scale of the noise: the larger, the more linear is a unit at p = 1. a: of Algorithm 2, a range from
            which it is drawn for each unit, or a number.
        skip: "pad" the input with zeros to the block's width, or "project" it by a learned linear map.
        residual: add the (padded or projected) input to the pre-activation.
        shift_back: at p = 0 the network is the plain one; without it its activations are shifted to be 0 at 0.
        expected: eval mode computes the expectation at the current level; without it the network at p = 0.
        deterministic, recurrent, time: for recurrent layers, see `filigree.nn.MollifiedGates`.
        seed: for a and for projections.
    """

    keeps_ties = True

    c: Annotated[float, pydantic.Field(ge=0)] = 1.0
    a: tuple[float, float] | float = (-2.0, 2.0)
    skip: Literal["pad", "project"] = "pad"
    residual: bool = False
    shift_back: bool = False
    expected: bool = False
    deterministic: bool = False
    recurrent: Literal["fade", "keep"] = "fade"
    time: Literal["position", "step"] = "position"
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.a, tuple) and self.a[0] > self.a[1]:
            raise ValueError(f"a must be a range (low, high) or a number. Got {self.a}.")

    def accepts(self, module: nn.Module) -> bool:
        if isinstance(module, LoopedRNN):
            return not module.has_gates
        if isinstance(module, ResidualBlock):
            return True
        return type(module) in (nn.LSTM, nn.GRU) or _units(module) is not None

    def keeps_computed_weights(self, module: nn.Module) -> bool:
        return not isinstance(module, nn.RNNBase)

    def apply(self, model: nn.Module, names: list[str]) -> list[Change]:
        blocks = {name: self._block(model, name) for name in names}
        chosen = [name for name in names if blocks[name] is not None]
        if not chosen:
            others = f" or the {len(names) - 1} other layers" if len(names) > 1 else ""
            raise ValueError(
                "Mollified: a block is a layer and the sigmoid, tanh or ReLU after it in an nn.Sequential. "
                f"None follows {names[0]!r}{others}. {ACTIVATION_HINT}"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return [self._mollified(model, name, blocks[name]) for name in chosen]

    def _block(self, model: nn.Module, name: str) -> Any:
        """The Sequential that holds a block and the keys of its parts; True if the module is a block by itself."""
        module = model.get_submodule(name)
        if _units(module) is None:
            refuse_projections(module, "Mollified")
            return True
        uses = [other for other, it in model.named_modules(remove_duplicate=False) if it is module]
        if len(uses) > 1:
            raise ValueError(f"Mollified: {name!r} is used in {len(uses)} places, {listed(uses)}: one block each.")
        parent_name, _, key = name.rpartition(".")
        parent = model.get_submodule(parent_name)
        if not isinstance(parent, nn.Sequential):
            return None
        if getattr(module, "relu", False):
            return parent, [key]
        keys = list(parent._modules)
        parts = [key]
        for other in keys[keys.index(key) + 1 :]:
            follower = parent._modules[other]
            if isinstance(follower, _NORMS):
                parts.append(other)
            elif type(follower) in FUNCTIONS and (
                not isinstance(follower, nn.Hardtanh) or (follower.min_val, follower.max_val) == (-1, 1)
            ):
                return parent, [*parts, other]
            elif not isinstance(follower, nn.Identity):
                break
        return None

    def _mollified(self, model: nn.Module, name: str, block_at: Any) -> Change:
        module: Any = model.get_submodule(name)
        before = Summary.of(module)
        if isinstance(module, nn.RNNBase | LoopedRNN):
            rnn: Any = module
            make = MollifiedLSTMGates if is_lstm(rnn) else MollifiedGRUGates
            options = self.c, self.a, self.deterministic, self.recurrent, self.time, self.expected
            gates = nn.ModuleDict({suffix: make(rnn.hidden_size, *options) for suffix in suffixes(rnn)})
            return Change.of(name, before, put_gates(model, name, gates, (MollifiedLSTM, MollifiedGRU)))
        if block_at is True:  # a residual block, its activations by themselves
            for inner in ("relu1", "relu2"):
                own = MollifiedActivation(getattr(module, inner), self.c, self.a, module.conv2.out_channels, -3)
                setattr(module, inner, own)
            block = MollifiedBlock(module, None, "pad", None, False, self.expected)
            replace_module(model, name, block)
            return Change.of(name, before, block)
        parent, keys = block_at
        parts = [parent._modules[key] for key in keys]
        if fused := getattr(module, "relu", False):
            module.relu = False
        activation = nn.ReLU() if fused else parts[-1]
        body = nn.Sequential(*(parts if fused else parts[:-1]))
        ins, outs, dim = _units(module)  # type: ignore[misc]
        psi = MollifiedActivation(activation, self.c, self.a, outs, dim, self.shift_back)
        projection = None
        if self.skip == "project":
            stride: Any = getattr(module, "stride", 1)
            projection = nn.Linear(ins, outs, bias=False) if dim == -1 else nn.Conv2d(ins, outs, 1, stride, bias=False)
            if (like := next((p for p in module.parameters() if p.is_floating_point()), None)) is not None:
                projection.to(like.device, like.dtype)  # integer layers have none
        block = MollifiedBlock(
            body[0] if len(body) == 1 else body, psi, self.skip, projection, self.residual, self.expected
        )
        parent._modules[keys[0]] = block.train(module.training)
        for key in keys[1:]:
            parent._modules[key] = nn.Identity()
        return Change.of(name, before, block)


def _units(module: Any) -> tuple[int, int, int] | None:
    """How many inputs and outputs a layer with units has, and their dimension; None for other modules."""
    if isinstance(getattr(module, "out_features", None), int) and isinstance(getattr(module, "in_features", None), int):
        return module.in_features, module.out_features, -1
    kernel = getattr(module, "kernel_size", None)
    if isinstance(getattr(module, "out_channels", None), int) and isinstance(kernel, tuple) and len(kernel) == 2:
        return module.in_channels, module.out_channels, -3
    return None
