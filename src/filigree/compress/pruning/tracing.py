"""Running a model to find which channels belong together, or as if some of them were not there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from filigree.compress.pruning.label_maps import LabelMaps, aligned, varying
from filigree.compress.pruning.labels import Labels
from filigree.compress.pruning.operations import (
    PRODUCTS,
    STATISTICS,
    arguments,
    fix_all,
    follow,
    name_of,
    reduced_dims,
    tensors_of,
)
from filigree.modes import DispatchMode, without_shortcuts
from filigree.nn.drop_in import DropIn
from filigree.nn.resizing import cuts_itself
from filigree.outputs import tensors_in
from filigree.summary import says

OUTPUTS = "are outputs of the model"
Node = tuple[str, int | str]  # a parameter or buffer and one of its dimensions; a layer of filigree, "out" or "in"


class Trace(DispatchMode):
    """Follows channels through all that a model computes.

    Each channel of each dimension of each parameter and buffer of real numbers has a label. What moves elements moves
    their labels; what adds or multiplies element by element unites labels; a sum of products over a dimension unites
    those of both sides there, and its result has them no longer. Whatever else is computed of labelled elements fixes
    their labels: these channels stay.

    Args:
        gone: from nodes to channels: the model computes as if these were not there: they are read as zero, and means,
            norms and the like are over the others.
        last: of channels that are split, slices along the last dimension are units, instead of along the first.
        known: labels of the same model, whose classes are known.
    """

    def __init__(
        self, model: nn.Module, gone: Mapping[Node, Tensor] | None = None, last: Mapping[Node, Tensor] | None = None,
        known: Labels | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.model, self.maps = model, LabelMaps()
        self.used: dict[str, dict[int, Tensor]] = {}  # maps met in the code of a module, which may know their sizes
        self._modules, self._asleep = [""], 0
        with torch.no_grad():
            self.nodes: dict[Node, Tensor] = {
                (name, dim): labels.flatten()
                for name, tensor in _numbers(model)
                for dim, labels in enumerate(self.maps.label_sides(tensor))
            }
        for name, layer in model.named_modules():
            if cuts_itself(layer):
                for side, size in zip(("out", "in"), layer.sizes(), strict=False):
                    self.nodes[name, side] = self.maps.labels.new(size)
        if known is not None:
            self.maps.labels.begin_with(known)
        self.gone, self.maps.last = self._labels(gone), self._labels(last)

    def _labels(self, channels: Mapping[Node, Tensor] | None) -> Tensor:
        chosen = [self.nodes[node][which] for node, which in (channels or {}).items()]
        return torch.cat(chosen) if chosen else torch.zeros(0, dtype=torch.long)

    def run(self, call: Callable[[], Any]) -> Any:
        """Run the model by this call, in evaluation mode. What its outputs are made of has to stay."""
        hooks: list[Any] = []
        in_place = [module for module in self.model.modules() if isinstance(module, DropIn)]
        try:
            for name, module in self.model.named_modules():
                hooks += self._hooks(name, module)
            for module in in_place:  # torch's operations, which can be followed
                vars(module)["forward"] = module.onnx_form().forward
            with torch.no_grad(), without_shortcuts(), sdpa_kernel(SDPBackend.MATH), self:
                output = call()
        finally:
            for hook in hooks:
                hook.remove()
            for module in in_place:
                vars(module).pop("forward", None)
        for tensor in tensors_in(output):
            for labels in self.maps.of(tensor):
                self.maps.labels.fix(labels, OUTPUTS, first=True)
        self._settle_all()
        return output

    def _settle_all(self) -> None:
        """What was split has to be rectangular when it is smaller: whole slices, until nothing changes."""
        waiting = [labels for maps in self.used.values() for labels in maps.values()]
        while waiting := [labels for labels in map(self.maps.compact, waiting) if len(varying(labels)) > 1]:
            before = self.maps.labels.count()
            for labels in waiting:
                self.maps.settle(labels)
            if self.maps.labels.count() == before:
                return  # what still varies has numbers among it that are no units, and is fixed

    def _hooks(self, name: str, module: nn.Module) -> list[Any]:
        if cuts_itself(module):
            return [
                module.register_forward_pre_hook(lambda _, args: self._enter(args)),
                module.register_forward_hook(lambda _, args, y: self._leave(name, args[0], y), always_call=True),
            ]
        if says(module) and not isinstance(module, DropIn) and not any(True for _ in module.children()):
            return [
                module.register_forward_pre_hook(lambda *_: self._sleep()),
                module.register_forward_hook(lambda _, args, y: self._elementwise(args, y), always_call=True),
            ]
        return [
            module.register_forward_pre_hook(lambda *_: self._modules.append(name)),
            module.register_forward_hook(lambda *_: self._left(), always_call=True),
        ]

    def _left(self) -> None:
        self._modules.pop()

    def _sleep(self) -> None:
        self._asleep += 1

    def _elementwise(self, args: tuple[Any, ...], y: Any) -> None:
        """What another layer of filigree computes, which may be compiled, is taken to be element by element."""
        self._asleep -= 1
        if args and isinstance(args[0], Tensor) and isinstance(y, Tensor):
            if args[0].shape == y.shape:
                self.maps.put(y, self.maps.of(args[0]))
            else:
                fix_all(self.maps, {"x": args[0]}, "are read by a layer of filigree")

    def _enter(self, args: tuple[Any, ...]) -> Any:
        self._asleep += 1
        without = self._without(args[0])
        if without is not args[0]:
            self.maps.put(without, self.maps.of(args[0]))
        return (without, *args[1:])

    def _leave(self, name: str, x: Tensor, y: Any) -> None:
        """A layer of filigree reads the last dimension and writes it anew; the others stay what they are."""
        self._asleep -= 1
        if isinstance(y, Tensor):
            maps, side = self.maps, x.dim() - 1
            settled = [maps.settle(labels) for labels in maps.of(x)]
            last = [labels for labels in settled if varying(labels) == [side]]
            maps.meet([(x, last), (x, [aligned(self.nodes[name, "in"], x.dim())])], x.dim())
            if not last and x.shape[-1] > 1:
                maps.labels.fix(self.nodes[name, "in"], "read the input")
            others = [labels for labels in settled if varying(labels) != [side] and labels.dim() == y.dim()]
            maps.put(y, [*others, aligned(self.nodes[name, "out"], y.dim())])

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._asleep:
            return func(*args, **kwargs)
        given = arguments(func, args, kwargs)
        result = self._as_if_gone(func, given) if len(self.gone) else func(*args, **kwargs)
        follow(self.maps, func, given, result)
        used = self.used.setdefault(self._modules[-1], {})
        for tensor in (*tensors_of(given), *tensors_in(result)):
            used.update((id(labels), labels) for labels in self.maps.of(tensor))
        return result

    # -- as if channels were not there ---------------------------------------------------------------------------------

    def _as_if_gone(self, func: Any, given: dict[str, Any]) -> Any:
        name = name_of(func)
        if name in PRODUCTS:
            return func(**{key: self._without(value) for key, value in given.items()})
        if name in STATISTICS:
            return self._over_the_rest(func, given)
        return func(**given)

    def _without(self, value: Any) -> Any:
        """Zeros in place of what is gone."""
        for labels in self.maps.of(value) if isinstance(value, Tensor) else ():
            if bool((gone := self._is_gone(labels)).any()):
                value = value.masked_fill(gone, 0)
        return value

    def _is_gone(self, labels: Tensor) -> Tensor:
        return self.maps.labels.among(labels, self.gone)

    def _over_the_rest(self, func: Any, given: dict[str, Any]) -> Any:
        """A mean, a norm or the like of those channels only that stay; of a norm the others become zero."""
        x = next(value for value in given.values() if isinstance(value, Tensor))
        of_groups, of_last = "group" in given, "normalized_shape" in given
        first = x.dim() - len(given["normalized_shape"]) if of_last else 0
        dims = [1] if of_groups else list(range(first, x.dim())) if of_last else reduced_dims(given, x.dim())
        for labels in self.maps.of(x):
            over = varying(labels := self.maps.settle(labels))
            if len(over) != 1 or over[0] not in dims or not bool((gone := self._is_gone(labels)).any()):
                continue
            dim, stay = over[0], (~gone).flatten().nonzero().squeeze(1)
            rest = {key: value.index_select(dim, stay) if value is x else value for key, value in given.items()}
            if not (of_groups or of_last):
                return func(**rest)
            for key in ("weight", "bias"):
                if rest.get(key) is not None:
                    rest[key] = rest[key].index_select(dim - first if of_last else 0, stay)
            if of_last:
                rest["normalized_shape"] = list(rest["input"].shape[first:])
            else:
                rest["C"] = len(stay)
                rest["group"] = len(stay) if given["group"] == given["C"] else given["group"]
            result = func(**rest)
            many = not isinstance(result, Tensor)
            y = torch.zeros_like(x).index_copy(dim, stay, result[0] if many else result)
            return (y, *result[1:]) if many else y
        return func(**given)


def _numbers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers of real or complex numbers, under each of their names; not those of filigree's layers."""
    own = tuple(f"{name}." for name, layer in model.named_modules() if cuts_itself(layer))
    for name, module in model.named_modules():
        if not f"{name}.".startswith(own):
            for key, tensor in (*module._parameters.items(), *module._buffers.items()):
                if tensor is not None and (tensor.is_floating_point() or tensor.is_complex()):
                    yield f"{name}.{key}" if name else key, tensor
