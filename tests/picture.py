"""All that a model is, to be compared before and after."""

import random
from collections import deque

import numpy as np
import torch
from torch import Tensor, nn


class Picture:
    """What a model is: objects by identity, numbers bit for bit."""

    def __init__(self, model: nn.Module) -> None:
        self.alive: list[object] = []  # so that no identity is used twice
        self.modules = {name: self._module(m) for name, m in model.named_modules(remove_duplicate=False)}
        self.generators = repr(random.getstate()), repr(np.random.get_state()), torch.get_rng_state().tolist()  # noqa: NPY002

    def differences(self, other: "Picture") -> list[str]:
        differences = [] if list(self.modules) == list(other.modules) else [f"modules: {list(other.modules)}"]
        for name, (kind, attributes) in self.modules.items():
            now_kind, now = other.modules.get(name, (None, {}))
            differences += [] if now_kind == kind else [f"{name}: {kind} became {now_kind}"]
            differences += [] if list(now) == list(attributes) else [f"{name}: attributes {list(now)}"]
            differences += [f"{name}.{key}" for key, value in attributes.items() if key in now and now[key] != value]
        return differences + ["generators"] * (self.generators != other.generators)

    def _module(self, module: nn.Module) -> tuple[object, dict[str, object]]:
        return (self._id(module), type(module)), {key: self._describe(v) for key, v in module.__dict__.items()}

    def _id(self, value: object) -> int:
        self.alive.append(value)
        return id(value)

    def _describe(self, value: object) -> object:
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, dict):
            return self._id(value), [(key, self._describe(item)) for key, item in value.items()]
        if isinstance(value, list | tuple | deque):
            return self._id(value), [self._describe(item) for item in value]
        if isinstance(value, set):
            return self._id(value), sorted(map(repr, value))
        if isinstance(value, str | int | float | None):
            return value
        return self._id(value)

    def _tensor(self, value: Tensor) -> object:
        who, attributes = (self._id(value), type(value)), self._describe(value.__dict__)
        if value.layout is not torch.strided:
            return who, attributes, value.to_dense().tolist()
        with torch._C.DisableTorchFunctionSubclass():  # a parameter that is not made yet refuses to say what it is
            form = value.dtype, value.device, value.size(), value.stride(), value.data_ptr(), value.requires_grad
            grad = value.grad if value.is_leaf else None
            numbers = None if value.is_meta else _bytes(value)
        return who, attributes, form, numbers, grad is not None and self._tensor(grad)


def _bytes(tensor: Tensor) -> bytes:
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage()).numpy().tobytes()
