"""What optimizers keep of each weight, wherever they keep it: found by looking, moved or begun anew after a rewiring.

Wrappers (lookahead, sharpness-aware minimisation, Accelerate's) hold an optimizer in some attribute, and further
tensors of their own. So all that can be reached from the given object is looked at for mappings with the parameter (or
its id) as a key and for lists of tensors in the order of the parameters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

_LEAVES = (Tensor, nn.Module, str, bytes, int, float, complex, type, type(None))
_DEPTH = 2  # attributes of attributes of a wrapper are looked at, if they are no optimizers themselves
_STARTS_AT = {"step_size": "lr", "sum": "initial_accumulator_value"}  # by the option of that name: Rprop, Adagrad


class Kept(NamedTuple):
    """A tensor that goes with a parameter, weight by weight, and what it begins with at a new connection."""

    tensor: Tensor
    new: float


class Reset(NamedTuple):
    """A state that does not go weight by weight: it begins anew."""

    optimizer: str
    names: tuple[str, ...]
    state: MutableMapping[Any, Any]


def optimizers(given: Any) -> list[Any]:
    """All optimizers that can be reached: objects with parameter groups and a state."""
    return [value for value, _ in _reachable(given) if _is_optimizer(value)]


def held(given: Any) -> set[int]:
    """The ids of all parameters in the groups of these optimizers."""
    return {id(parameter) for optimizer in optimizers(given) for parameter in _parameters(optimizer.param_groups)}


def check_holds(optimizer: Any, layers: Mapping[str, Any], caller: str) -> None:
    """`ValueError` where the optimizer does not hold the weights of one of these sparse layers."""
    if optimizer is None:
        return
    known = held(optimizer)
    others = [name for name, layer in layers.items() if id(layer.connections) not in known]
    if others and len(others) == len(layers):
        raise ValueError(
            f"{caller}: the optimizer does not hold the weights of layer {others[0]!r}; made before convert_, it "
            "holds stale parameters. Make the optimizer after convert_."
        )
    if others:
        raise ValueError(
            f"{caller}: the optimizer does not hold the weights of layer {others[0]!r}. Freeze it "
            "(requires_grad_(False)), or choose the layers that evolve by where=."
        )


def find_state(given: Any, parameters: Sequence[nn.Parameter]) -> tuple[list[list[Kept]], list[Reset]]:
    """For each parameter what goes with it weight by weight, and the states that must begin anew if it is rewired.

    Raises:
        ValueError: an attribute of a wrapper holds tensors of other shapes for a parameter: nobody knows what it means.
    """
    kept_tensors: list[dict[int, Kept]] = [{} for _ in parameters]
    resets: dict[int, Reset] = {}
    number = {id(parameter): i for i, parameter in enumerate(parameters)}
    everything = list(_reachable(given))
    optimizing = [value for value, _ in everything if _is_optimizer(value)]
    states = {id(optimizer.state): optimizer for optimizer in optimizing}
    options = {id(p): group for o in optimizing for group in o.param_groups for p in group["params"]}

    def keep(parameter: nn.Parameter, tensor: Tensor, name: str) -> None:
        if tensor is not parameter and tensor is not parameter.grad:
            new = options.get(id(parameter), {}).get(_STARTS_AT.get(name, ""), 0.0)
            kept_tensors[number[id(parameter)]].setdefault(id(tensor), Kept(tensor, float(new)))

    for value, _ in everything:
        if isinstance(value, Mapping):
            for key, state in value.items():
                identity = id(key) if isinstance(key, Tensor) else key  # by id(parameter), where it is an int
                if type(identity) is not int or identity not in number:
                    continue
                parameter = parameters[number[identity]]
                follows, others = _sort(parameter, state)
                optimizer = states.get(id(value))
                if others and optimizer is not None and isinstance(state, MutableMapping):
                    resets[id(state)] = Reset(type(optimizer).__name__, others, state)
                elif others:
                    raise ValueError(
                        f"Evolution: {type(given).__name__} keeps {', '.join(others) or 'a tensor'} for a weight that "
                        "is to be rewired, not connection by connection. Freeze the layer, or leave it out by where=."
                    )
                for name, tensor in follows:
                    keep(parameter, tensor, name)
        elif isinstance(value, list):
            for owner, tensor in _in_order(value, optimizing):
                if id(owner) in number:
                    keep(parameters[number[id(owner)]], tensor, "")
    for optimizer in optimizing:  # LBFGS keeps vectors of all parameters together, in the state of the first
        members = _parameters(optimizer.param_groups)
        total = sum(parameter.numel() for parameter in members)
        if any(id(parameter) in number for parameter in members):
            for owner, state in optimizer.state.items():
                shape = getattr(owner, "shape", None)
                flat = [name for name, t in _tensors(state) if t.numel() == total and t.shape != shape and total > 1]
                if flat:
                    names = tuple(dict.fromkeys(name.partition("[")[0] for name in flat))
                    resets[id(state)] = Reset(type(optimizer).__name__, names, state)
    return [list(kept.values()) for kept in kept_tensors], list(resets.values())


def _in_order(tensors: list[Any], optimizing: list[Any]) -> list[tuple[Tensor, Tensor]]:
    """Pairs of a parameter and its tensor, where a list has one for each: of a group, of each group, or of all."""
    for optimizer in optimizing:
        groups = [group["params"] for group in optimizer.param_groups]
        for order, values in (
            (_parameters(optimizer.param_groups), tensors),
            (_parameters(optimizer.param_groups), _flat(tensors, groups)),
            *((group, tensors) for group in groups if _is_only(group, groups)),
        ):
            if not (values and all(isinstance(value, Tensor) for value in values)):
                continue
            if any(value is parameter for value in values for parameter in order):
                continue  # the parameters themselves
            if _shapes(values) == _shapes(order):
                return list(zip(order, values, strict=True))
    return []


def _flat(tensors: list[Any], groups: list[list[Tensor]]) -> list[Any]:
    nested = all(isinstance(part, list) for part in tensors)
    if not nested or [len(part) for part in tensors] != [len(group) for group in groups]:
        return []
    return [tensor for part in tensors for tensor in part]


def _is_only(group: list[Tensor], groups: list[list[Tensor]]) -> bool:
    return [_shapes(other) for other in groups].count(_shapes(group)) == 1


def _shapes(tensors: list[Any]) -> list[Any]:
    return [tensor.shape for tensor in tensors]


def _sort(parameter: nn.Parameter, state: Any) -> tuple[list[tuple[str, Tensor]], tuple[str, ...]]:
    """The tensors of a state that go weight by weight, and the names of those that do not."""
    follows, others = [], []
    for name, tensor in _tensors(state):
        if type(tensor) in (Tensor, nn.Parameter) and tensor.shape == parameter.shape and "[" not in name:
            follows.append((name, tensor))
        elif tensor.numel() > 1:
            others.append(name.partition("[")[0])
    return follows, tuple(dict.fromkeys(others))


def _tensors(state: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors of a state, by the keys that lead there; those in lists, a history say, have a number as well."""
    if isinstance(state, Tensor):
        yield name, state
    elif isinstance(state, Mapping):
        for key, value in state.items():
            yield from _tensors(value, str(key))
    elif isinstance(state, list | tuple):
        for i, value in enumerate(state):
            yield from _tensors(value, f"{name}[{i}]")


def _parameters(groups: list[dict[str, Any]]) -> list[Tensor]:
    return [parameter for group in groups for parameter in group["params"]]


def _is_optimizer(value: Any) -> bool:
    if isinstance(value, (*_LEAVES, Mapping, list, tuple)):
        return False
    return isinstance(getattr(value, "param_groups", None), list) and isinstance(getattr(value, "state", None), Mapping)


def _reachable(given: Any) -> Iterator[tuple[Any, int]]:
    waiting, seen = [(given, 0)], set[int]()
    while waiting:
        value, depth = waiting.pop()
        is_optimizer = _is_optimizer(value)
        if id(value) in seen or isinstance(value, _LEAVES) or (callable(value) and not is_optimizer):
            continue
        seen.add(id(value))
        yield value, depth
        if isinstance(value, Mapping):
            waiting += [(item, depth) for item in value.values()]
        elif isinstance(value, list | tuple):
            waiting += [(item, depth) for item in value]
        elif is_optimizer:  # its state may be a property, another optimizer's
            waiting += [
                (item, 0) for item in (value.state, value.param_groups, *getattr(value, "__dict__", {}).values())
            ]
        elif depth < _DEPTH:
            waiting += [(item, depth + 1) for item in getattr(value, "__dict__", {}).values()]
