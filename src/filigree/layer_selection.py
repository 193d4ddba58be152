"""Which layers a config is applied to, which are left as they are, and what is said of those."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from torch import nn

from filigree.computed_weights import why_computed, without_computed_weights
from filigree.config import Config, listed
from filigree.ties import why_tied

Where = Callable[[str, nn.Module], bool] | Sequence[str] | str | None


class ChangesLayers(Config):
    """Base of the configs of `convert_` and `compress_`: what `select` asks them.

    Layers whose weights are tied or computed (`filigree.ties`, `filigree.computed_weights`) are not offered to a method
    unless it says that it keeps that.
    """

    keeps_ties: ClassVar[bool] = False
    """Whether the method leaves a weight that another module holds too as it is, or gives both the same."""

    takes_chains: ClassVar[bool] = False
    """Whether the layers are taken together, one reading the other: then none between them can be left out."""

    def accepts(self, module: nn.Module) -> bool:
        """Whether the method can change this module."""
        raise NotImplementedError

    def keeps_computed_weights(self, module: nn.Module) -> bool:
        """Whether the method leaves this module in the model, so that what computes its weights goes on doing so."""
        return False


class Selection(NamedTuple):
    """The names of the modules that are to be changed, and lines about those that are left as they are."""

    names: list[str]
    left: list[str]


def select(model: nn.Module, config: ChangesLayers, where: Where, caller: str) -> Selection:
    """Choose the modules that `config` accepts and `where` wants, in the model's order; at least one.

    Args:
        config: a conversion or compression. Modules with tied or computed weights that it would not keep are left out.

    Raises:
        ValueError: by the name of `caller`: no module fits, a pattern matches none, or the model itself would have to
            be replaced.
    """
    fitting = [name for name, module in model.named_modules() if config.accepts(without_computed_weights(module))]
    wanted = _wanted(model, fitting, where, caller, config)
    reasons = _reasons_to_leave(model, config)
    left = [name for name in wanted if name in reasons]
    if left and (config.takes_chains or len(left) == len(wanted)):
        others = f" ({len(left) - 1} more like it)" if len(left) > 1 else ""
        hint = _behind(_conv1d(model, config))
        raise ValueError(f"{caller}: {left[0]!r} {reasons[left[0]]}, which cannot be kept{others}.{hint}")
    chosen = [name for name in wanted if name not in reasons]
    if "" in chosen:
        raise ValueError(
            f"{caller}: the model is itself a {type(model).__name__} and cannot be replaced in place. "
            "Put it into an nn.Sequential."
        )
    return Selection(chosen, _lines({name: reasons[name] for name in left}) + _conv1d(model, config))


def _lines(left: dict[str, str]) -> list[str]:
    """A line for each reason, with the names of the modules that are left as they are for it."""
    names_by_reason: dict[str, list[str]] = {}
    for name, reason in left.items():
        names_by_reason.setdefault(reason, []).append(repr(name))
    return [
        f"left as {f'it is: {names[0]}' if len(names) == 1 else f'they are: {listed(names, 12)}: each'} {reason}"
        for reason, names in names_by_reason.items()
    ]


def _wanted(model: nn.Module, fitting: list[str], where: Where, caller: str, config: ChangesLayers) -> list[str]:
    """Those of the fitting modules that `where` names; at least one."""
    if not fitting:
        kinds = list(dict.fromkeys(type(m).__name__ for m in model.modules() if not any(m.children())))
        hint = _behind(_conv1d(model, config) + _activations(config))
        raise ValueError(f"{caller}: no module was selected: none can be. There are {listed(kinds, 12)}.{hint}")
    able = {name: model.get_submodule(name) for name in fitting}
    return matching(able, where, caller, "module that can be converted")


def matching(able: Mapping[str, Any], where: Where, caller: str, what: str) -> list[str]:
    """Those of some modules by name that `where` wants; at least one. `what` they are is said in the `ValueError`."""
    if where is None:
        return list(able)
    if callable(where):
        wanted = [name for name, module in able.items() if where(name, module)]
    else:
        globs = [where] if isinstance(where, str) else where
        for glob in globs:
            if not fnmatch.filter(able, glob):
                raise ValueError(f"{caller}: where={glob!r} matches no {what}. Those are: {listed(list(able), 12)}.")
        wanted = [name for name in able if any(fnmatch.fnmatchcase(name, glob) for glob in globs)]
    if not wanted:
        raise ValueError(f"{caller}: no module was selected. Those that can be are: {listed(list(able), 12)}.")
    return wanted


def _reasons_to_leave(model: nn.Module, config: ChangesLayers) -> dict[str, str]:
    """Why modules are not to be changed, by their names, each to be put behind the name."""
    reasons = {} if config.keeps_ties else why_tied(model)
    for name, module in model.named_modules():
        if (reason := why_computed(module)) and not config.keeps_computed_weights(module):
            reasons[name] = reason
    return reasons


def _behind(hints: list[str]) -> str:
    return "".join(f" {hint}" for hint in hints)


def _conv1d(model: nn.Module, config: ChangesLayers) -> list[str]:
    """A line about linear layers of the class that GPT-2 and its kin in transformers have, if there are any."""
    kinds = [type(module) for module in model.modules()]
    count = sum(kind.__name__ == "Conv1D" and kind.__module__.startswith("transformers.") for kind in kinds)
    if not count or not config.accepts(nn.Linear(1, 1, device="meta")):
        return []
    call = "filigree.integrations.transformers.conv1d_to_linear_(model)"
    return [f"{count} Conv1D layers are linear, with a transposed weight: {call} makes them nn.Linear."]


def _activations(config: ChangesLayers) -> list[str]:
    return [ACTIVATION_HINT] if any(map(config.accepts, (nn.Tanh(), nn.ReLU()))) else []


ACTIVATION_HINT = (
    "Activations must be modules of torch.nn, such as nn.Tanh(), not functions in a forward or classes of transformers."
)
