"""Layers whose weights something else computes: parametrisations, and the hooks of old weight norms and of masks."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm, SpectralNormLoadStateDictPreHook, remove_spectral_norm
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm

from filigree.modes import evaluating

M = TypeVar("M", bound=nn.Module)

_FOLDED_BY: dict[type, str] = {  # what takes a hook out and leaves the weight that it computed
    WeightNorm: "torch.nn.utils.remove_weight_norm",
    SpectralNorm: "torch.nn.utils.remove_spectral_norm",
    BasePruningMethod: "torch.nn.utils.prune.remove",
}


def computed_tensors(module: nn.Module) -> list[str]:
    """The names of a module's tensors that are computed from other parameters, by a parametrisation or by a hook.

    Hooks put what they compute into plain attributes, such as `weight` beside the parameter `weight_orig`.
    """
    if parametrize.is_parametrized(module):
        return list(module.parametrizations)  # type: ignore[arg-type]
    names = (name for name, value in vars(module).items() if isinstance(value, Tensor))
    return [name for name in names if name.startswith(("weight", "bias"))]


def why_computed(module: nn.Module) -> str | None:
    """What computes a module's weights, and how it is folded into them, to be put behind its name; None: nothing."""
    if not (names := computed_tensors(module)):
        return None
    which = " and ".join(names)
    if parametrize.is_parametrized(module):
        lists: Any = module.parametrizations
        steps = dict.fromkeys(type(step).__name__.lstrip("_") for name in names for step in lists[name])
        folded_by = "torch.nn.utils.parametrize.remove_parametrizations"
        return f"has its {which} computed by {', '.join(steps)} ({folded_by} folds it)"
    for hook in module._forward_pre_hooks.values():
        for kind, folded_by in _FOLDED_BY.items():
            if isinstance(hook, kind):
                return f"has its {which} computed by {type(hook).__name__} ({folded_by} folds it)"
    return f"has its {which} computed by a hook"


def without_computed_weights(module: nn.Module) -> Any:
    """What a module would be if its computed tensors were parameters, to ask what could be done with it then.

    The module itself where nothing is computed; else one that shares all other parts with it, and that is not to be
    run.
    """
    if not (names := computed_tensors(module)):
        return module
    parametrized = parametrize.is_parametrized(module)
    plain: Any = object.__new__(type(module).__bases__[0] if parametrized else type(module))
    own = {key: copy.copy(value) for key, value in vars(module).items() if isinstance(value, dict)}
    plain.__dict__ = {**vars(module), **own}
    plain._modules.pop("parametrizations", None)
    with torch.no_grad(), evaluating(module):  # a spectral norm goes on by a step in training mode
        tensors = {name: torch.empty_like(getattr(module, name), device="meta") for name in names}
    for name, tensor in tensors.items():
        plain.__dict__.pop(name, None)
        plain._parameters[name] = nn.Parameter(tensor, requires_grad=tensor.is_floating_point())
    return plain


def folded(module: M) -> M | None:
    """A module with the same other parts that holds the weights which parametrisations, weight norm or spectral norm
    compute; None: nothing computes its weights, or something that does more than that: a mask, a hook of somebody's."""
    plain: Any = object.__new__(type(module))
    own = {key: copy.copy(value) for key, value in vars(module).items() if isinstance(value, dict)}
    plain.__dict__ = {**vars(module), **own}
    fold_(plain)
    return plain if computed_tensors(module) and not computed_tensors(plain) else None


@torch.no_grad()
def fold_(module: nn.Module) -> None:
    """Let a module hold the weights that its parametrisations, weight norm or spectral norm compute in eval mode."""
    if parametrize.is_parametrized(module):  # torch would change the class, which copies of the module share
        lists: Any = module.parametrizations
        trains = {name: any(p.requires_grad for p in steps.parameters()) for name, steps in lists.items()}
        with evaluating(module):
            computed = {name: getattr(module, name).detach().clone() for name in trains}
        module._modules.pop("parametrizations")
        module.__class__ = type(module).__bases__[0]
        for name, tensor in computed.items():
            module._parameters[name] = nn.Parameter(tensor, trains[name])
        return
    with evaluating(module):
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, WeightNorm):
                remove_weight_norm(module, hook.name)
            elif isinstance(hook, SpectralNorm):
                remove_spectral_norm(module, hook.name)
                for number, other in list(
                    module._load_state_dict_pre_hooks.items()
                ):  # torch overlooks its wrapped hook
                    if isinstance(getattr(other, "hook", other), SpectralNormLoadStateDictPreHook):
                        del module._load_state_dict_pre_hooks[number]


@contextmanager
def copyable(model: nn.Module) -> Iterator[None]:
    """Let a model be copied meanwhile: `copy.deepcopy` takes no tensors that hooks computed with gradients.

    They are detached, and put back unless they have another shape by then. The next forward computes them anew.
    """
    computed: list[tuple[Any, str, Tensor]] = []
    for module in model.modules():
        if not parametrize.is_parametrized(module):
            computed += [(module, name, vars(module)[name]) for name in computed_tensors(module)]
    try:
        for module, name, tensor in computed:
            vars(module)[name] = tensor.detach()
        yield
    finally:
        for module, name, tensor in computed:
            now = vars(module).get(name)
            if isinstance(now, Tensor) and now.shape == tensor.shape:
                vars(module)[name] = tensor


def copied(model: M) -> M:
    """A copy of a model, by `copy.deepcopy`, whatever hooks compute its weights."""
    with copyable(model):
        return copy.deepcopy(model)
