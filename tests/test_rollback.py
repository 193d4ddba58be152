"""A method that fails or is interrupted, at whatever step, leaves the model and the random generators as they were."""

import copy
import functools
import random
import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import filigree as fg
from composition import AFTER
from every_method import METHODS, WITHOUT_DATA, apply, is_conversion
from filigree import modes, rollback
from filigree.rollback import AllOrNothing
from picture import Picture

DENSE = fg.ErdosRenyi(density=0.3)

SOURCE = str(Path(fg.__file__).parent)
OURS = {rollback.__file__}  # what undoes is not made to fail
VERBS = {"convert_", "compress_"}  # nor the lines of the verbs themselves: the last one comes when all is done


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


pytestmark = pytest.mark.filterwarnings("ignore:.*makes the outputs worse")  # few random samples, some held out

NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "plain": (plain, (24, 16)),
    "dense": (dense, (24, 16)),
    "convolutional": (convolutional, (8, 2, 4, 4)),
    "recurrent": (Recurrent, (6, 3, 16)),
    "meta": (unmade, ()),
}


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    make, _ = NETWORKS[name]
    return _lived(make()) if name != "meta" else make()


def applied(name: str, model: nn.Module, shape: tuple[int, ...]) -> object:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)) if shape else None
    return apply(name, model, x)


# -- failing at a step -------------------------------------------------------------------------------------------------


def on_its_own(call: Callable[..., object], *args: object) -> object:
    """The result of a call. An error raised at a line that leaves an `except` block keeps CPython (3.11) believing that
    the block's exception is still handled: every later exception would show it. A generator has that state of its own.
    """

    def run():
        yield call(*args)

    return next(run())


@functools.cache
def _with_lines(file: str) -> set[int]:
    return {number for number, line in enumerate(Path(file).read_text().split("\n"), 1) if line.lstrip()[:5] == "with "}


class Steps:
    """Counts the lines of filigree that run, and raises an error at one of them."""

    def __init__(self, at: int | None = None, error: type[BaseException] = RuntimeError, within: str = SOURCE) -> None:
        self.at, self.error, self.within, self.count = at, error, within, 0

    def __enter__(self) -> "Steps":
        self._before = sys.gettrace()  # of a measurement of coverage
        sys.settrace(self._call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _call(self, frame, event, arg):
        code = frame.f_code
        if not code.co_filename.startswith(self.within) or code.co_filename in OURS or code.co_name in VERBS:
            return None
        return self._line

    def _line(self, frame, event, arg):
        # a `with` line comes again when its block ends, where an error would keep the end from being called
        if event == "line" and frame.f_lineno not in _with_lines(frame.f_code.co_filename):
            self.count += 1
            if self.count == self.at:
                raise self.error(f"at step {self.at}")
        return self._line


def _changed(report: object) -> list[str]:
    """The layers that a report names as changed."""
    return sorted(change.name for change in getattr(report, "changes", []))


def check_every(name: str, net: str, spread: int, last: int) -> int:
    """Fail at steps evenly spread over a method and at each of its last; how many there were, 0 where it is refused."""
    model, shape = network(net), NETWORKS[net][1]
    before = Picture(model)
    try:
        for trial in copy.deepcopy(model), copy.deepcopy(model):  # once for what a config keeps, once to count
            with Steps() as steps:
                whole = _changed(applied(name, trial, shape))
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
        try:
            with Steps(at, error):
                report = on_its_own(applied, name, model, shape)
        except errors:
            pass
        else:  # a network without some units that fails when it is tried out: they stay, and the report says why, or
            assert error is RuntimeError  # others are tried, and go in their place
            shows = "left whole" in str(report) or _changed(report) == whole
            assert shows, f"{name} on {net} hides a failure at step {at} of {steps.count}"
            model = network(net)
            before = Picture(model)
        differences = before.differences(Picture(model))
        assert differences == [], f"{name} on {net}, failed at step {at} of {steps.count}: {differences}"
        assert sys.exc_info()[1] is None  # or later tests would find it in their exceptions
    return steps.count


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Nothing is timed: how often that runs would hang on the machine."""
    monkeypatch.setattr("filigree.compress.pruning.unit_pruning.speed", lambda *_: "")


@pytest.mark.parametrize("name", METHODS)
def test_a_failure_changes_nothing(name):
    tried = [check_every(name, net, spread=2, last=1) for net in NETWORKS if net != "plain"]
    assert any(tried) or check_every(name, "plain", spread=2, last=1), "refused by every network"


@pytest.mark.long("some 15 failures for each of 38 methods on each of 5 networks")
@pytest.mark.parametrize("net", NETWORKS)
@pytest.mark.parametrize("name", METHODS)
def test_a_failure_at_any_step_changes_nothing(name, net):
    check_every(name, net, spread=10, last=5)


@pytest.mark.parametrize("config", [fg.LowRank(4), fg.Sparse(DENSE)], ids=lambda config: type(config).__name__)
def test_a_failure_while_a_mode_is_set_changes_nothing(config):
    """Layers with computed weights are put into evaluation mode for a moment already when layers are chosen."""
    model = network("dense")
    with Steps(within=modes.__file__) as steps:
        fg.compress_(copy.deepcopy(model), config)
    before = Picture(model)
    assert steps.count > 0
    for at in range(1, steps.count):
        with suppress(KeyboardInterrupt), Steps(at, KeyboardInterrupt, within=modes.__file__):
            on_its_own(fg.compress_, model, config)
        assert before.differences(Picture(model)) == [], f"failed at step {at} of {steps.count}"


# -- what a method may do, and what is beyond the networks above -------------------------------------------------------


@pytest.mark.parametrize("net", NETWORKS)
@pytest.mark.parametrize("name", [name for name in METHODS if is_conversion(name) or name in WITHOUT_DATA])
def test_no_method_writes_into_tensors_that_the_model_holds(name, net):
    """They are copied only where the model is run on data, so a failure could not undo it."""
    model, shape = network(net), NETWORKS[net][1]
    held = [tensor for module in model.modules() for tensor in vars(module).values() if isinstance(tensor, Tensor)]
    held += [*model.parameters(), *model.buffers()]
    before = [(t._version, t.data_ptr(), t.dtype, t.grad, None if t.is_meta else t.detach().clone()) for t in held]
    with suppress(ValueError):
        applied(name, model, shape)
    for tensor, (version, *form, values) in zip(held, before, strict=True):
        assert (tensor._version, [tensor.data_ptr(), tensor.dtype, tensor.grad]) == (version, form)
        assert values is None or torch.equal(tensor.detach(), values)


class Odd(nn.Module):
    """What attributes a model may have besides the usual."""

    def __init__(self) -> None:
        super().__init__()
        self.lazy, self.old = nn.LazyLinear(4), nn.utils.weight_norm(nn.Linear(4, 4))
        self.new = parametrizations.weight_norm(nn.Linear(4, 4))
        self.tied = nn.Linear(4, 4)
        self.tied.weight = self.new.parametrizations.weight.original1
        self.wide = nn.Buffer(torch.arange(3.0).expand(5, 3), persistent=False)
        self.part = nn.Buffer(torch.arange(12.0).view(3, 4)[:, 1])  # its neighbours are not its own
        self.sparse, self.nan = torch.eye(3).to_sparse(), torch.tensor([float("nan")])
        self.named = torch.zeros(2).as_subclass(Named)
        self.queue, self.tags, self.pair = deque([1, 2]), {"a", "b"}, (torch.zeros(2), [1])
        self.nothing = nn.Linear(2, 2, device="meta")


class Named(Tensor):
    """A subclass of another's."""


def _disturb(model: Odd) -> None:
    """Change everything that can be changed."""
    model.lazy(torch.ones(2, 3))
    model.eval().requires_grad_(False)
    model.old(torch.ones(2, 4))
    parametrize.remove_parametrizations(model.new, "weight")
    for module in model.modules():
        module.register_forward_hook(lambda *_: None)
        module._state_dict_hooks.clear()
        module.extra = 1
    model.part.mul_(2)
    model.nan.zero_()
    model.named.add_(1)
    model.tied.weight.data = torch.zeros(3, dtype=torch.float16)
    model.tied.bias.grad = torch.ones(4)
    model.pair[0].add_(1)
    model.pair[1].append(2)
    model.queue.append(3)
    model.tags.clear()
    model.wide = torch.ones(2)
    del model.nothing
    model.__class__ = nn.Sequential
    torch.rand(1), random.random(), np.random.rand()  # noqa: NPY002
    torch.set_grad_enabled(False)


def _fail(model: nn.Module, change: Callable[[nn.Module], object], error: BaseException, values: bool = True) -> None:
    with AllOrNothing(model, values):
        change(model)
        raise error


def _same_after(model: Odd, before: Picture) -> None:
    assert before.differences(Picture(model)) == []
    assert type(model.lazy.weight) is nn.UninitializedParameter
    assert model.part.tolist() == [1, 5, 9]
    assert bool(model.nan.isnan())


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
def test_everything_is_restored():
    model = Odd()
    before = Picture(model)
    with pytest.raises(RuntimeError, match="stop"):
        _fail(model, _disturb, RuntimeError("stop"))
    _same_after(model, before)
    assert torch.is_grad_enabled()
    assert model.lazy(torch.ones(2, 3)).shape == (2, 4)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
def test_a_second_interruption_does_not_stop_it(monkeypatch):
    model = Odd()
    before = Picture(model)
    restore, calls = rollback._Tensor.restore, []

    def interrupted(tensor):
        calls.append(tensor)
        if len(calls) in (1, 5, 9):
            raise KeyboardInterrupt("again")
        restore(tensor)

    monkeypatch.setattr(rollback._Tensor, "restore", interrupted)
    with pytest.raises(KeyboardInterrupt, match="first"):
        _fail(model, _disturb, KeyboardInterrupt("first"))
    _same_after(model, before)


def test_values_are_copied_only_where_asked_for():
    model = nn.Linear(3, 2)
    with pytest.raises(RuntimeError, match="stop"):
        _fail(model, lambda linear: linear.weight.data.fill_(7), RuntimeError("stop"), values=False)
    assert bool((model.weight == 7).all())


def test_success_keeps_what_was_done():
    model = dense()
    state = torch.get_rng_state()
    fg.convert_(model, fg.Sparse(DENSE))
    picture = Picture(model)
    with AllOrNothing(model, values=True):
        pass
    assert picture.differences(Picture(model)) == []
    assert torch.equal(torch.get_rng_state(), state)


def test_an_interruption_when_all_is_done_undoes_nothing_later():
    """Python may leave a `with` block without its end being called: nothing is undone then, or ever after."""
    model = dense()
    guard = AllOrNothing(model, values=True)
    guard.__enter__()
    model.epochs = 4
    del guard
    assert model.epochs == 4


class Failing(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        self.weight.data.zero_()
        self.ran = True
        raise KeyError("mine")


@pytest.mark.parametrize("name", ["measured", *(name for name in AFTER if name not in WITHOUT_DATA)])
def test_a_model_that_fails_as_it_runs(name):
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), Failing(16, 16)).train()
    x = torch.randn(24, 16)
    before = Picture(model)
    call, config = (fg.convert_, fg.Sparse(DENSE)) if name == "measured" else (fg.compress_, AFTER[name])
    data = {"measure" if name == "measured" else "data": x}
    with pytest.raises((KeyError, ValueError), match=r"mine|cannot be traced"):
        call(model, config, where=["0", "2"], **data)
    assert before.differences(Picture(model)) == []


@pytest.mark.parametrize("at", range(1, 40, 3))
def test_measuring_is_undone_too(at, monkeypatch):
    monkeypatch.setattr("filigree.nn.sparse.sparse._is_faster", lambda sparse, layer, x: (len(x) > 0, "measured"))
    model, x = plain(), torch.randn(6, 16)
    before = Picture(model)
    with pytest.raises(KeyboardInterrupt), Steps(at, KeyboardInterrupt):
        fg.convert_(model, fg.Sparse(DENSE), measure=x)
    assert before.differences(Picture(model)) == []


@pytest.mark.parametrize(
    "call",
    [
        lambda model, x: fg.convert_(model, fg.Sparse(DENSE), where="nowhere"),
        lambda model, x: fg.convert_(model, fg.Sparse(DENSE), where=lambda *_: False),
        lambda model, x: fg.convert_(model, fg.Noisy("NAH"), where=["0"]),
        lambda model, x: fg.convert_(model, fg.GaussianDropout(), measure=True),
        lambda model, x: fg.compress_(model, fg.SubsetPruning(), x, "nowhere"),
        lambda model, x: fg.compress_(model, fg.SubsetPruning()),
        lambda model, x: fg.compress_(model, fg.SubsetPruning(), x / 0),
        lambda model, x: fg.compress_(model, fg.RoundToNearest(), "data"),
        lambda model, x: fg.compress_(model, "config"),
    ],
)
def test_what_is_refused_changes_nothing(call):
    model, x = plain(), torch.randn(4, 16)
    before = Picture(model)
    with pytest.raises((ValueError, TypeError)):
        call(model, x)
    assert before.differences(Picture(model)) == []


def test_a_model_without_weights_is_not_compressed():
    with pytest.raises(ValueError, match=r"compress_: the model must have weights\. '0.weight' is on the meta"):
        fg.compress_(unmade(), fg.RoundToNearest())


@pytest.mark.parametrize("part", ["_keep", "_copy"])
def test_the_picture_sees_what_is_left_behind(part, monkeypatch):
    """Without one part of what is remembered, the check above fails."""
    monkeypatch.setattr(AllOrNothing, part, lambda *_: None)
    with pytest.raises(AssertionError, match="failed at step"):
        check_every("SubsetPruning", "plain", 3, 5)
