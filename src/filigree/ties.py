"""Parameters that several modules hold: tied weights."""

from __future__ import annotations

from torch import nn

from filigree.config import listed


def shared_parameters(model: nn.Module) -> dict[int, tuple[nn.Parameter, list[str]]]:
    """The parameters that more than one module holds, by `id`, each with its names, one for each module that holds it.

    A module that stands in several places is one module: its parameters are not shared by that.
    """
    held: dict[int, tuple[nn.Parameter, list[str]]] = {}
    for name, module in model.named_modules():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                held.setdefault(id(parameter), (parameter, []))[1].append(f"{name}.{key}".lstrip("."))
    return {key: (parameter, names) for key, (parameter, names) in held.items() if len(names) > 1}


def why_tied(model: nn.Module) -> dict[str, str]:
    """Of each module with a parameter that another one holds too: what it shares with which, to be put behind its name.

    A method that gives such a module other weights would break the tie; one that writes into them would change the
    other module.
    """
    reasons: dict[str, str] = {}
    for _, names in shared_parameters(model).values():
        for name in names:
            owner, _, key = name.rpartition(".")
            others = [repr(_owner(other)) for other in names if other != name]
            reasons.setdefault(owner, f"shares its {key} with {listed(others)} (a {key} of its own unties it)")
    return reasons


def _owner(name: str) -> str:
    return name.rpartition(".")[0]
