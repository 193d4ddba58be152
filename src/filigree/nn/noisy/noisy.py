"""The config `Noisy`, which makes saturating activations noisy, alone and in recurrent cells."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pydantic
import torch
from torch import nn

from filigree.config import config
from filigree.convert import Change, Conversion, replace_module, width_before
from filigree.nn.noisy.noisy_activations import Kind, NoiseName, NoisyHardSigmoid, NoisyHardTanh, NoisyReLU
from filigree.nn.noisy.noisy_rnn import (
    NoisyGRU,
    NoisyGRUCell,
    NoisyGRUGates,
    NoisyLSTM,
    NoisyLSTMCell,
    NoisyLSTMGates,
)
from filigree.nn.rnn import LoopedRNN, is_lstm, put_gates, refuse_projections, suffixes
from filigree.summary import Summary

_ACTIVATIONS: dict[type, type] = {
    nn.Tanh: NoisyHardTanh, nn.Hardtanh: NoisyHardTanh, nn.Sigmoid: NoisyHardSigmoid, nn.Hardsigmoid: NoisyHardSigmoid,
}  # fmt: skip
_CELLS: dict[type, tuple[Any, Any]] = {
    nn.LSTMCell: (NoisyLSTMCell, NoisyLSTMGates), nn.GRUCell: (NoisyGRUCell, NoisyGRUGates),
}  # fmt: skip


@config
class Noisy(Conversion):
    """Replace saturating activations by noisy ones (Moczulski 2019, 4.3).

    These are `nn.Tanh`, `nn.Sigmoid`, `nn.Hardtanh` and `nn.Hardsigmoid`, and those inside `nn.LSTM`, `nn.GRU`, their
    cells, and recurrent networks with structured, sparse or asymmetric products. Weights stay. The arithmetic and most
    arguments are those of `filigree.nn.NoisyHardTanh`; with alpha 1 and c 0 there is no noise, and the hard activations
    remain, the baseline to compare with.

    Args:
        form: the kind, "NAN", "NAH", "NANI", "NANIL" or "NANIS".
        p: "unit": a number for each unit, drawn from U[-1, 1] by `seed`; "layer": one for each activation; or a
            number, for all.
        learn_p: train p.
    """

    keeps_ties = True

    form: Kind = "NAH"
    alpha: Annotated[float, pydantic.Field(gt=0)] = 0.9
    c: Annotated[float, pydantic.Field(ge=0)] = 0.5
    sigma: Annotated[float, pydantic.Field(ge=0)] = 0.05
    learn_p: bool = True
    p: Literal["unit", "layer"] | float = "unit"
    noise: NoiseName = "normal"
    exact: bool = False
    seed: int = 0

    def accepts(self, module: nn.Module) -> bool:
        if type(module) is nn.Hardtanh:
            return (module.min_val, module.max_val) == (-1, 1)
        looped = isinstance(module, LoopedRNN) and not module.has_gates
        return looped or type(module) in (*_ACTIVATIONS, *_CELLS, nn.LSTM, nn.GRU)

    def apply(self, model: nn.Module, names: list[str]) -> list[Change]:
        replacements = {}
        like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            for name in names:  # all are built before the first is put in
                module = self._replacement(model, name)
                replacements[name] = module.to(like.dtype) if like.is_meta else module.to(like)
        changes = []
        for name, module in replacements.items():
            before = Summary.of(model.get_submodule(name))
            if isinstance(module, nn.ModuleDict):  # gates of a recurrent network
                module = put_gates(model, name, module, (NoisyLSTM, NoisyGRU))
            else:
                replace_module(model, name, module)
            changes.append(Change.of(name, before, module))
        return changes

    def _replacement(self, model: nn.Module, name: str) -> nn.Module:
        """The replacement of a module; of a recurrent network, its gates."""
        module: Any = model.get_submodule(name)
        options: dict[str, Any] = {
            "kind": self.form, "alpha": self.alpha, "c": self.c, "sigma": self.sigma, "learn_p": self.learn_p,
            "p": None if isinstance(self.p, str) else self.p, "noise": self.noise,
        }  # fmt: skip
        if self.exact and type(module) not in _ACTIVATIONS:
            raise ValueError(f"Noisy: exact expectations are of activations, not of gates. Got {name!r}.")
        per_unit = self.p == "unit"
        if type(module) in _ACTIVATIONS:
            each_own = per_unit and self.form in ("NAN", "NAH", "NANIL")  # the others have no p
            units, dim = width_before(model, name, "Noisy(p='unit')")[:2] if each_own else (1, -1)
            new: nn.Module = _ACTIVATIONS[type(module)](units=units, dim=dim, exact=self.exact, **options)
            return new.train(module.training)
        if type(module) in _CELLS:
            kind, gates = _CELLS[type(module)]
            own = gates(module.hidden_size, per_unit, **options)
            replacement: nn.Module = kind.like(module, own)
            return replacement
        refuse_projections(module, "Noisy")
        make = NoisyLSTMGates if is_lstm(module) else NoisyGRUGates
        return nn.ModuleDict({suffix: make(module.hidden_size, per_unit, **options) for suffix in suffixes(module)})


@config
class NoisyRectifier(Conversion):
    """Replace every `nn.ReLU` by `filigree.nn.NoisyReLU` with this sigma."""

    keeps_ties = True

    sigma: Literal["input"] | Annotated[float, pydantic.Field(ge=0)] = "input"

    def accepts(self, module: nn.Module) -> bool:
        return type(module) is nn.ReLU

    def apply(self, model: nn.Module, names: list[str]) -> list[Change]:
        changes = []
        for name in names:
            rectifier, noisy = model.get_submodule(name), NoisyReLU(self.sigma)
            replace_module(model, name, noisy)
            changes.append(Change.of(name, rectifier, noisy))
        return changes
