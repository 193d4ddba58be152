"""What a change of layers keeps: which parameters train, modes, hooks and ties; what it cannot keep is said."""

from __future__ import annotations

import copy
import re
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from filigree.config import listed
from filigree.summary import numbers_of
from filigree.ties import shared_parameters

_HOOKS = (  # of a call; the dicts themselves are taken over, so that handles still remove their hooks
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks",
)  # fmt: skip
_STATE_HOOKS = (
    "_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
)  # fmt: skip


class Preserved:
    """What a model was before its layers are changed, to be given to the layers that take their place.

    - `requires_grad`: a parameter that stays keeps its own. A new one is frozen where the parameter in whose place it
      stands was: that of the same name; else the weights, or the biases, of the module that was there; else all of it.
    - `training`: a module that stays keeps its own mode, a new one has that of the module that was at its name.
    - Hooks of a module's forward and backward go to the module at its name, and their handles still remove them.
    - Parameters that were one and still are equal are one again.
    - Lists, tuples, dicts and attributes of the model's modules that hold a module hold the one at its name.
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules = dict(model.named_modules(remove_duplicate=False))
        self._training = {id(module): module.training for module in self._modules.values()}
        self._parameters = dict(model.named_parameters(remove_duplicate=False))
        self._trains = {id(parameter): parameter.requires_grad for parameter in self._parameters.values()}
        self._shared = shared_parameters(model)
        self._places = _places_by_module(model)
        self._numbers = _numbers_of(model) if self._shared else None

    def restore_(self, model: nn.Module, reported: tuple[int, int] = (0, 0)) -> list[str]:
        """Give the changed model what it was to keep; return a line about each thing that it could not.

        Args:
            reported: the numbers of parameters before and after that a report gives; where a tied parameter makes them
                differ from the model's own, a line gives those.
        """
        lines = self._restore_ties(model)
        lines += self._restore_trained(model)
        self._restore_modes(model)
        lines += self._restore_hooks(model)
        self._restore_references(model)
        now = None if self._numbers is None else _numbers_of(model)
        if self._numbers is not None and now is not None and now - self._numbers != reported[1] - reported[0]:
            lines.append(f"the whole model: {self._numbers:,} -> {now:,} parameters, tied ones counted once")
        return lines

    def _restore_ties(self, model: nn.Module) -> list[str]:
        lines = []
        now = shared_parameters(model)
        for key, (_, names) in self._shared.items():
            if key in now and len(now[key][1]) == len(names):
                continue
            held = dict(model.named_parameters(remove_duplicate=False))
            parts = [held.get(name) for name in names]
            first = parts[0]
            if first is not None and all(part is not None and _equal(first, part) for part in parts):
                for name in names[1:]:
                    owner, _, key_there = name.rpartition(".")
                    model.get_submodule(owner)._parameters[key_there] = first
            else:
                lines.append(f"no longer tied: {listed(names)}")
        return lines + [
            f"no longer the same module: {listed(names)}"
            for names in self._places
            if len({id(_module(model, name)) for name in names}) > 1
        ]

    def _restore_trained(self, model: nn.Module) -> list[str]:
        mixed = []
        for name, parameter in model.named_parameters(remove_duplicate=False):
            if id(parameter) in self._trains:
                trains = self._trains[id(parameter)]
            else:
                flags = self._flags_before(name)
                exact = len(flags) == 1 and self._is_same_kind(model, name)
                trains = any(flags) and (parameter.requires_grad or exact) if flags else parameter.requires_grad
                mixed += [name] if trains and len(set(flags)) > 1 else []
            if parameter.requires_grad != trains:
                parameter.requires_grad_(trains)
        return [f"of several parameters, some frozen, became one that trains: {listed(mixed)}"] if mixed else []

    def _flags_before(self, name: str) -> list[bool]:
        """Whether those parameters trained in whose place the one of this name is; [] where there was none."""
        if (before := self._parameters.get(name)) is not None:
            return [self._trains[id(before)]]
        owner = name.rpartition(".")[0]
        while owner not in self._modules:  # the model itself is, by the name ""
            owner = owner.rpartition(".")[0]
        if not owner:
            return []
        prefix, path = f"{owner}.", name[len(owner) :]
        inside = {key: self._trains[id(p)] for key, p in self._parameters.items() if key.startswith(prefix)}
        alike = [key for key in inside if _is_bias(key) == _is_bias(path)] or list(inside)
        common = {key: len(_words(key[len(owner) :]) & _words(path)) for key in alike}
        return [inside[key] for key in alike if common[key] == max(common.values())]

    def _is_same_kind(self, model: nn.Module, name: str) -> bool:
        owner = name.rpartition(".")[0]
        return name in self._parameters and type(self._modules.get(owner)) is type(model.get_submodule(owner))

    def _restore_modes(self, model: nn.Module) -> None:
        for name, module in model.named_modules():
            before = module if id(module) in self._training else self._modules.get(name)
            if before is not None and module.training != self._training[id(before)]:
                module.training = self._training[id(before)]

    def _restore_hooks(self, model: nn.Module) -> list[str]:
        lost, lost_of_files = [], []
        present = {id(module) for module in model.modules()}
        for name, before in self._modules.items():
            if id(before) in present:
                continue
            now = _module(model, name)
            if now is not None and id(now) not in self._training:
                _take_hooks(now, before)
            elif has_hooks(before):
                lost.append(name)
            ids = {key for kind in _STATE_HOOKS for key in vars(before)[kind]}
            if ids - {key for kind in _STATE_HOOKS for key in (vars(now)[kind] if now is not None else ())}:
                lost_of_files.append(name)
        parameters = {id(p) for p in model.parameters()}
        gone = [name for name, p in self._parameters.items() if id(p) not in parameters and _has_hooks(p)]
        lines = {"hooks": lost, "hooks of state_dict": lost_of_files, "hooks of the parameter": gone}
        return [f"{kind} are gone: {listed(list(dict.fromkeys(names)))}" for kind, names in lines.items() if names]

    def _restore_references(self, model: nn.Module) -> None:
        """What holds a module besides its parent, as `self.steps = [self.first, self.second]` does, follows."""
        pairs = [(before, _module(model, name)) for name, before in reversed(self._modules.items())]
        stays = {id(before) for before, now in pairs if now is before}  # under one of its names at least
        new: dict[int, nn.Module] = {
            id(before): now  # which may have the old one inside
            for before, now in pairs
            if now is not None and id(now) not in self._training and id(before) not in stays
        }
        for module in list(model.modules()) if new else ():
            if id(module) in self._training:  # a new one may hold that in whose place it is
                own = vars(module)
                own.update({key: _with_new(own[key], new, _IN_CONTAINERS) for key in own.keys() - {"_modules"}})


_IN_CONTAINERS = 4  # so deep containers are looked into


def _with_new(held: Any, new: dict[int, nn.Module], depth: int) -> Any:
    """The same thing, or an equal container with new modules in place of old ones."""
    if isinstance(held, nn.Module):
        return new.get(id(held), held)
    if not depth or not isinstance(held, list | tuple | dict):
        return held
    keys = list(held) if isinstance(held, dict) else list(range(len(held)))
    parts = [_with_new(held[key], new, depth - 1) for key in keys]
    if all(part is held[key] for key, part in zip(keys, parts, strict=True)):
        return held
    if isinstance(held, tuple):
        return held._make(parts) if hasattr(held, "_make") else type(held)(parts)
    changed = copy.copy(held)
    for key, part in zip(keys, parts, strict=True):
        changed[key] = part
    return changed


def _places_by_module(model: nn.Module) -> list[list[str]]:
    """The names of each module that stands in several places and has parameters or buffers of its own."""
    names: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if module._parameters or module._buffers:
            names.setdefault(id(module), []).append(name)
    return [several for several in names.values() if len(several) > 1]


def _module(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None


def _numbers_of(model: nn.Module) -> int | None:
    """Of the whole model; None where a lazy module does not know yet."""
    return None if any(map(is_lazy, model.parameters())) else numbers_of(model)


def _equal(one: nn.Parameter, other: nn.Parameter) -> bool:
    if is_lazy(one) or is_lazy(other) or one.is_meta:
        return one is other
    return one.shape == other.shape and torch.equal(one, other)


def _is_bias(name: str) -> bool:
    return "bias" in name


def _words(name: str) -> set[str]:
    return set(re.split(r"[._]", name)) - {""}


def has_hooks(module: nn.Module) -> bool:
    """Whether something is called before or after the module's forward or backward."""
    own = vars(module)  # the other dicts of hooks say more of some of these
    return bool(
        own["_forward_hooks"] or own["_forward_pre_hooks"] or own["_backward_hooks"] or own["_backward_pre_hooks"]
    )


def _take_hooks(now: nn.Module, before: nn.Module) -> None:
    for key in _HOOKS:
        own, hooks = vars(now)[key], vars(before)[key]
        hooks.update({number: hook for number, hook in own.items() if number not in hooks})
        vars(now)[key] = hooks
    if before._is_full_backward_hook is not None:
        now._is_full_backward_hook = before._is_full_backward_hook


def _has_hooks(parameter: Any) -> bool:
    return bool(parameter._backward_hooks) or bool(parameter._post_accumulate_grad_hooks)
