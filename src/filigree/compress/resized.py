"""The config `Resized`: modules of other sizes, how `fg.load` rebuilds a pruned network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Self

import pydantic
from torch import Tensor, nn

from filigree.config import config
from filigree.convert import Change, Conversion
from filigree.summary import Summary, says
from filigree.wrappers import names_in, unwrapped

Shape = list[Annotated[int, pydantic.Field(ge=0)]]


@config
class Resized(Conversion):
    """Parameters and buffers of these shapes, zeros to be filled by `load_state_dict`, and the sizes that go with them.

    `SizesBefore` finds what changed by comparison, so that modules of any class are rebuilt.

    Args:
        tensors: module, name and shape of each parameter and buffer; None: there is none.
        numbers: module, name and value of each attribute that is a whole number or a sequence of them.
    """

    tensors: list[tuple[str, str, Shape | None]]
    numbers: list[tuple[str, str, int | list[int]]]

    @classmethod
    def examples(cls) -> dict[str, Self]:
        return {}  # how loading rebuilds what was pruned

    def accepts(self, module: nn.Module) -> bool:
        return True

    def apply(self, model: nn.Module, names: list[str]) -> list[Change]:
        modules = {name: model.get_submodule(name) for name in names}
        before = {name: Summary.of(module) for name, module in modules.items()}
        resized: dict[tuple[Tensor, str], Tensor | None] = {}  # one that several modules hold stays one, of one shape
        for name, key, shape in self.tensors:
            module = model.get_submodule(name)
            home: Any = module._parameters if key in module._parameters else module._buffers
            if key not in home:
                raise ValueError(f"{name!r} has no parameter or buffer {key!r}.")
            old = home[key]
            if old is None or (old, str(shape)) not in resized:
                new = None if shape is None else _zeros(model, module, key, shape)
                if old is not None:
                    resized[old, str(shape)] = new
            else:
                new = resized[old, str(shape)]
            setattr(module, key, new)
            module._non_persistent_buffers_set.discard(key)
        for name, key, number in self.numbers:
            module = model.get_submodule(name)
            if key not in _numbers(module):
                raise ValueError(f"{name!r} has no size {key!r}.")
            vars(module)[key] = type(vars(module)[key])(number)
        layers: list[Any] = [module for module in modules.values() if says(module)]
        for layer in layers:
            layer.resized_()
        return [Change.of(name, before[name], module) for name, module in modules.items()]


class SizesBefore:
    """The sizes that all modules of a model have now, to be compared with what becomes of them."""

    def __init__(self, model: nn.Module) -> None:
        self._sizes = {module: (_shapes(module), _numbers(module)) for module in model.modules()}

    def changes(self, model: nn.Module, within: Sequence[str] = ("",)) -> list[tuple[Conversion, list[str]]]:
        """The conversion that gives a fresh model's modules the sizes that they have now; [] where none has changed.

        From now on `fg.save` stores the buffers that changed, even those that a state dict leaves out: a fresh model
        has them in their old size only.

        Args:
            within: names of modules that are looked into; default: all.
        """
        tensors: list[tuple[str, str, Shape | None]] = []
        numbers: list[tuple[str, str, int | list[int]]] = []
        called = names_in(model)
        for path, module in unwrapped(model).named_modules():
            name = called(path)
            if not any(f"{path}.".startswith(f"{outer}.".lstrip(".")) for outer in within):
                continue
            shapes, sizes = self._sizes.get(module, ({}, {}))
            changed = {key: shape for key, shape in _shapes(module).items() if shapes.get(key, shape) != shape}
            tensors += [(name, key, shape) for key, shape in changed.items()]
            numbers += [(name, key, size) for key, size in _numbers(module).items() if sizes.get(key, size) != size]
            module._non_persistent_buffers_set -= changed.keys()
        names = list(dict.fromkeys(name for name, *_ in (*tensors, *numbers)))
        return [(Resized(tensors, numbers), names)] if names else []


def _shapes(module: Any) -> dict[str, Shape | None]:
    """The shape of each parameter and buffer, but for those that a layer of filigree makes anew when it is filled."""
    own = module._non_persistent_buffers_set if says(module) else ()
    tensors = {key: tensor for key, tensor in (module._parameters | module._buffers).items() if key not in own}
    return {key: None if tensor is None else list(tensor.shape) for key, tensor in tensors.items()}


def _numbers(module: nn.Module) -> dict[str, int | list[int]]:
    """The public attributes that are whole numbers, or sequences of them."""

    def is_number(value: Any) -> bool:
        return type(value) is int

    return {
        key: list(value) if isinstance(value, tuple | list) else value
        for key, value in vars(module).items()
        if not key.startswith("_")
        and (is_number(value) or (isinstance(value, tuple | list) and value and all(map(is_number, value))))
    }


def _zeros(model: nn.Module, module: nn.Module, key: str, shape: Shape) -> Tensor:
    """A parameter or buffer like the one that there is, or, where there is none, like the first of its neighbours."""
    old = module._parameters.get(key, module._buffers.get(key))
    tensors = (*module.parameters(), *module.buffers(), *model.parameters())
    like = next((tensor for tensor in tensors if tensor.is_floating_point()), None) if old is None else old
    if like is None:
        raise ValueError(f"there is no tensor that {key!r} could be like.")
    zeros = like.new_zeros(shape)
    return nn.Parameter(zeros, old is None or old.requires_grad) if key in module._parameters else zeros
