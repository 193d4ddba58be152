"""A method that fails or is interrupted, at whatever step, leaves the model and the random generators as they were."""

import copy
import random
import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import filigree as fg
from composition import AFTER, BEFORE, DENSE
from filigree import rollback
from filigree.rollback import AllOrNothing

SOURCE = str(Path(fg.__file__).parent)
OURS = {rollback.__file__}  # what undoes is not made to fail
VERBS = {"convert_", "compress_"}  # nor the lines of the verbs themselves: the last one comes when all is done


# -- what a model is ---------------------------------------------------------------------------------------------------


class Picture:
    """All that a model is, to be compared: objects by identity, numbers bit for bit."""

    def __init__(self, model: nn.Module, values: bool = True) -> None:
        self.alive: list[object] = []  # so that no identity is used twice
        self.values = values
        self.modules = {name: self._module(m) for name, m in model.named_modules(remove_duplicate=False)}
        self.generators = repr(random.getstate()), repr(np.random.get_state()), torch.get_rng_state().tolist()  # noqa: NPY002

    def differences(self, other: "Picture") -> list[str]:
        found = [] if list(self.modules) == list(other.modules) else [f"modules: {list(other.modules)}"]
        for name, (kind, attributes) in self.modules.items():
            now_kind, now = other.modules.get(name, (None, {}))
            found += [] if now_kind == kind else [f"{name}: {kind} became {now_kind}"]
            found += [] if list(now) == list(attributes) else [f"{name}: attributes {list(now)}"]
            found += [f"{name}.{key}" for key, value in attributes.items() if key in now and now[key] != value]
        return found + ["generators"] * (self.generators != other.generators)

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
        form = value.dtype, value.device, value.shape, value.stride(), value.requires_grad
        grad = value.grad if value.is_leaf else None
        numbers = None
        if self.values and not value.is_meta:
            numbers = value.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        memory = None if value.is_meta else value.data_ptr()
        attributes = self._describe(value.__dict__)
        return self._id(value), type(value), form, memory, numbers, grad is not None and self._tensor(grad), attributes


# -- networks ----------------------------------------------------------------------------------------------------------


class Restless(nn.Module):
    """Changes whenever it runs, in evaluation mode too: what a method runs is not only what it changes itself."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64), persistent=False)
        self.level = nn.Parameter(torch.ones(()), requires_grad=False)
        self.seen: dict[str, list[int]] = {"sizes": []}
        self.count = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.level.data.mul_(0.5)
        self.count += 1
        self.seen["sizes"].append(len(x))
        return x


def _lived(model: nn.Module) -> nn.Module:
    """With gradients, a frozen layer, hooks of every kind, attributes of its own, and mixed modes."""
    parameters = list(model.parameters())
    for parameter in parameters[::2]:
        parameter.grad = torch.randn_like(parameter)
    parameters[1].requires_grad_(False)
    parameters[0].tag = "mine"
    first = next(m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.LSTM))
    first.register_state_dict_pre_hook(lambda *_: None)
    first.register_load_state_dict_post_hook(lambda *_: None)
    model.register_forward_hook(lambda *_: None)
    model.register_forward_pre_hook(lambda *_: None)
    model.register_full_backward_hook(lambda *_: None)
    model.notes, model.epochs = {"best": [1, 2]}, 3
    model.train()
    first.eval()
    return model


def dense() -> nn.Module:
    """Composition's network with shared weights, a parametrised layer, and one that changes as it runs."""
    linear = [nn.Linear(16, 16) for _ in range(5)]
    linear[3].weight = linear[2].weight
    parametrizations.weight_norm(linear[4])
    return nn.Sequential(
        linear[0], nn.Tanh(), nn.Dropout(0.2), linear[1], nn.ReLU(), Restless(), linear[2], nn.ReLU(), linear[3],
        linear[4], nn.ReLU(), nn.Linear(16, 16),
    )  # fmt: skip


def plain() -> nn.Module:
    """Layers one after another, twice the same dropout: what wants a chain gets one."""
    dropout = nn.Dropout(0.2)
    linear = [nn.Linear(16, 16) for _ in range(3)]
    return nn.Sequential(linear[0], nn.Tanh(), dropout, linear[1], nn.ReLU(), dropout, Restless(), linear[2])


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), fg.models.BasicBlock(4, 6, 1), nn.Conv2d(6, 4, 3),
        nn.ReLU(), Restless(), nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 4),
    )  # fmt: skip


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru = nn.LSTM(16, 16, bidirectional=True), nn.GRU(32, 16)
        self.cell = nn.LSTMCell(16, 16)
        self.head, self.restless = nn.Linear(16, 4), Restless()

    def forward(self, x: Tensor) -> Tensor:
        y = self.gru(self.lstm(x.transpose(0, 1))[0])[0]
        return self.head(self.restless(self.cell(y[-1])[0]))


def unmade() -> nn.Module:
    """On the meta device."""
    with torch.device("meta"):
        return nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.Dropout(), nn.LSTM(16, 16))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "plain": (plain, (24, 16)),
    "dense": (dense, (24, 16)),
    "convolutional": (convolutional, (8, 2, 4, 4)),
    "recurrent": (Recurrent, (6, 3, 16)),
    "meta": (unmade, ()),
}
MORE = {
    "FuseLinears": fg.nn.FuseLinears(fg.Fastfood(), features=16),
    "StochasticDepth": fg.nn.StochasticDepth(),
    "Mollified, projected": fg.Mollified(skip="project"),
    "DropConnect": fg.PartitionDropout(2, connect=True),
    "connections": fg.MagnitudePruning(keep=0.5, of="connections"),
    "correlation": fg.RandomPruning(keep=0.5, compensate="correlation", measure=False),
    "budget": fg.MagnitudePruning(keep=fg.Budget(macs=0.6), measure=False),
    "from weights alone": fg.MonteCarlo(samples=1.0),
}
METHODS = BEFORE | AFTER | MORE
WITHOUT_DATA = {"from weights alone", "RoundToNearest", "PathSampling"}


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    make, _ = NETWORKS[name]
    return _lived(make()) if name != "meta" else make()


def applied(name: str, model: nn.Module, shape: tuple[int, ...]) -> object:
    config = METHODS[name]
    if not isinstance(config, fg.compress.Compression):
        wanted = config.accepts if not name.startswith("FuseLinears") else lambda m: m.in_features == m.out_features
        return fg.convert_(model, config, lambda _, module: wanted(module))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)) if shape else None
    return fg.compress_(model, config, None if name in WITHOUT_DATA else x)


# -- failing at a step -------------------------------------------------------------------------------------------------


class Steps:
    """Counts the lines of filigree that run, and raises an error at one of them."""

    def __init__(self, at: int | None = None, error: type[BaseException] = RuntimeError) -> None:
        self.at, self.error, self.count = at, error, 0

    def __enter__(self) -> "Steps":
        self._before = sys.gettrace()  # of a measurement of coverage
        sys.settrace(self._call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _call(self, frame, event, arg):
        code = frame.f_code
        if not code.co_filename.startswith(SOURCE) or code.co_filename in OURS or code.co_name in VERBS:
            return None
        return self._line

    def _line(self, frame, event, arg):
        if event == "line":
            self.count += 1
            if self.count == self.at:
                raise self.error(f"at step {self.at}")
        return self._line


def check_every(name: str, net: str, spread: int, last: int) -> int:
    """Fail at steps evenly spread over a method and at each of its last; how many there were, 0 where it is refused."""
    model, shape = network(net), NETWORKS[net][1]
    before = Picture(model)
    try:
        for trial in copy.deepcopy(model), copy.deepcopy(model):  # once for what a config keeps, once to count
            with Steps() as steps:
                applied(name, trial, shape)
    except ValueError:  # what is refused leaves everything as it was
        before = Picture(model)
        with suppress(ValueError):
            applied(name, model, shape)
        assert before.differences(Picture(model)) == [], f"{name} refuses {net}"
        return 0
    before = Picture(model)
    ends = range(max(1, steps.count - last), steps.count)
    for number, at in enumerate(sorted({1 + i * (steps.count - 1) // spread for i in range(spread)} | set(ends))):
        error = (RuntimeError, KeyboardInterrupt)[number % 2]
        errors = (error, ValueError) if error is RuntimeError else error  # pruning says some by its own words
        with pytest.raises(errors), Steps(at, error):
            applied(name, model, shape)
        differences = before.differences(Picture(model))
        assert differences == [], f"{name} on {net}, failed at step {at} of {steps.count}: {differences}"
    return steps.count


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Nothing is timed: how often that runs would hang on the machine."""
    monkeypatch.setattr("filigree.compress.pruning.unit_pruning._latencies", lambda *_: "")


@pytest.mark.parametrize("name", METHODS)
def test_a_failure_changes_nothing(name):
    assert sum(check_every(name, net, spread=3, last=2) for net in NETWORKS) > 0


@pytest.mark.long  # some 60 failures for each of 38 methods on each of 5 networks
@pytest.mark.parametrize("net", NETWORKS)
@pytest.mark.parametrize("name", METHODS)
def test_a_failure_at_any_step_changes_nothing(name, net):
    check_every(name, net, spread=60, last=20)
