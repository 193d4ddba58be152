"""Modules with packed, transposed or computed weights, in whose place plain layers stand while units are taken out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from torch import nn

from filigree.compress.resized import SizesBefore
from filigree.computed_weights import computed_tensors, fold_, folded, why_computed, without_computed_weights
from filigree.config import config
from filigree.convert import Change, Conversion, replace_module
from filigree.nn.layered_attention import LayeredAttention
from filigree.nn.resizing import has_units, is_conv1d
from filigree.nn.structured.structured_rnn import StructuredRNN
from filigree.summary import Summary
from filigree.ties import shared_parameters


@config
class TakeApart(Conversion):
    """Attention of torch's has a layer for each projection, and layers hold the weights that something has computed:
    what `fg.load` rebuilds before it gives the layers of a pruned network their sizes."""

    @classmethod
    def examples(cls) -> dict[str, Self]:
        return {}  # how loading rebuilds what was pruned

    def accepts(self, module: nn.Module) -> bool:
        return _stays_apart(module)

    def keeps_computed_weights(self, module: nn.Module) -> bool:
        return True

    def apply(self, model: nn.Module, names: list[str]) -> list[Change]:
        changes = []
        for name in names:
            module = model.get_submodule(name)
            before = Summary.of(module)
            if why_computed(module):
                fold_(module)
            else:
                replace_module(model, name, _plain(module))
            changes.append(Change.of(name, before, model.get_submodule(name)))
        return changes


class TakenApart:
    """The plain layers in a model, which stand there in place of other modules until `put_together_`.

    Attributes:
        names: those of layers that were named, as they are called now. gain_biases: False where a layer of the original
            could not hold a bias that it does not have.
    """

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        self._model, self._originals, self.gain_biases = model, dict[str, nn.Module](), True
        shared = shared_parameters(model)
        for name, module in list(model.named_modules()):
            tied = not isinstance(module, nn.RNNBase) and any(id(p) in shared for p in module.parameters())
            if name and not tied and self.outer(name) == name and can_be_apart(module):
                plain = _plain(module)
                if isinstance(module, nn.RNNBase) and not module.bias:
                    self.gain_biases = False
                replace_module(model, name, plain)
                self._originals[name] = module
        self.names = [now for name in names for now in self._now(name)]
        self._sizes = SizesBefore(model)

    def _now(self, name: str) -> list[str]:
        owner, _, key = name.rpartition(".")
        if owner in self._originals and key == "out_proj":
            return [f"{owner}.out"]
        plain = self._model.get_submodule(name)
        if isinstance(plain, LayeredAttention):
            return [f"{name}.{part}" for part in "qkv"]
        return [f"{name}.products.{key}" for key in plain.products] if isinstance(plain, StructuredRNN) else [name]

    def outer(self, name: str) -> str:
        """What a layer, or the module that it was a part of, is called in the original."""
        return next((outer for outer in self._originals if f"{name}.".startswith(f"{outer}.")), name)

    def put_together_(self, changes: Sequence[Change]) -> tuple[list[Change], list[tuple[Conversion, list[str]]]]:
        """Give the model its modules back, smaller, or where torch has none of that size leave what stands for them.

        Returns:
            The report's lines, one for a module; and what does the same to a model into which a file is loaded.
        """
        model, parts = self._model, {change.name: self.outer(change.name) for change in changes}
        own = {name: [change for change in changes if parts[change.name] == name] for name in self._originals}
        apart = [name for name, original in self._originals.items() if own[name] and _stays_apart(original)]
        steps: list[tuple[Conversion, list[str]]] = []
        if apart:
            steps = [(TakeApart(), apart), *self._sizes.changes(model, apart)]
        merged: dict[str, Change] = {}
        for name, original in self._originals.items():
            before, note, plain = Summary.of(original), "", model.get_submodule(name)
            if name in apart and why_computed(original):
                note = f"its {' and '.join(computed_tensors(original))} no longer computed, but folded"
                fold_(original)
            if not isinstance(plain, LayeredAttention) or name not in apart:
                if own[name]:
                    _fill_(original, plain)
                replace_module(model, name, original)
            if own[name]:
                merged[name] = _merged(name, before, model.get_submodule(name), own[name], note)
        lines: dict[str, Change] = {}
        for change in changes:
            lines.setdefault(parts[change.name], merged.get(parts[change.name], change))
        return list(lines.values()), steps


def can_be_apart(module: nn.Module) -> bool:
    """Whether plain layers can stand in its place, whose units then can be taken out."""
    if type(module) in (nn.LSTM, nn.GRU):
        return not module.proj_size and not why_computed(module)
    return is_conv1d(module) or _stays_apart(module)


def can_be_folded(module: nn.Module) -> bool:
    """Whether it is a layer with units and weights that something computes, which it can hold itself."""
    return bool(why_computed(module)) and has_units(without_computed_weights(module)) and folded(module) is not None


def _stays_apart(module: nn.Module) -> bool:
    """Whether it is left apart once it is smaller: there is no such module, or it would not compute its weights."""
    if type(module) is nn.MultiheadAttention:
        return LayeredAttention.why_not(module) is None and not any(map(why_computed, module.modules()))
    return can_be_folded(module)


def _plain(module: Any) -> nn.Module:
    if isinstance(module, nn.MultiheadAttention):
        return LayeredAttention(module)
    if isinstance(module, nn.RNNBase):
        return _Unfolded(module)
    if is_conv1d(module):
        layer = nn.Linear(module.weight.shape[0], module.weight.shape[1], device="meta")
        layer.weight = nn.Parameter(module.weight.detach().t(), module.weight.requires_grad)
        layer.bias = module.bias
        return layer
    plain = folded(module)
    assert plain is not None
    return plain


class _Unfolded(StructuredRNN):
    """An LSTM or GRU whose products are linear layers, biases included, and whose sizes are those of these layers."""

    def __init__(self, rnn: Any) -> None:
        super().__init__(rnn, lambda i, o, n: nn.Linear(i, o, bias=rnn.bias, device="meta"))
        for key, product in self.products.items():
            product.weight = getattr(rnn, f"weight_{key}")
            if rnn.bias:
                product.bias = getattr(rnn, f"bias_{key}")
        self._parameters.clear()
        self.bias = False
        self.train(rnn.training)

    @property
    def input_size(self) -> int:
        return self._product_of("ih").in_features

    @input_size.setter
    def input_size(self, size: int) -> None:
        """The products know."""

    @property
    def hidden_size(self) -> int:
        return self._product_of("hh").in_features

    @hidden_size.setter
    def hidden_size(self, size: int) -> None:
        """The products know."""

    def _product_of(self, part: str) -> Any:
        return self.products[f"{part}_l0"]


def _fill_(original: Any, plain: Any) -> None:
    """Give a module the numbers of the plain layers that stood for it; one that cannot hold them is as it was."""
    if isinstance(original, nn.RNNBase):
        original.input_size, original.hidden_size = plain.input_size, plain.hidden_size
        for key, product in plain.products.items():
            setattr(original, f"weight_{key}", product.weight)
            if original.bias:
                setattr(original, f"bias_{key}", product.bias)
        for side, product in (("kept_inputs", plain.products["ih_l0"]), ("kept_outputs", plain.products["hh_l0"])):
            original.__dict__[side] = product.kept_inputs
    elif is_conv1d(original):
        original.nx, original.nf = plain.in_features, plain.out_features
        original.weight = nn.Parameter(plain.weight.detach().t().contiguous(), plain.weight.requires_grad)
        original.bias = plain.bias
        original.__dict__.update({key: getattr(plain, key) for key in ("kept_inputs", "kept_outputs")})
    else:
        original._parameters.update(plain._parameters)
        original.__dict__.update({key: value for key, value in vars(plain).items() if not key.startswith("_")})


def _merged(name: str, before: Summary, module: nn.Module, changes: Sequence[Change], note: str) -> Change:
    """One line of those of a module's parts."""
    macs = tuple(sum(change.macs[i] for change in changes) for i in (0, 1))
    notes = dict.fromkeys(text for text in (*(change.note for change in changes), note) if text)
    return Change.of(name, before._replace(macs=macs[0]), Summary.of(module)._replace(macs=macs[1]), "; ".join(notes))
