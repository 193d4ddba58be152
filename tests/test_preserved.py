"""Every method keeps which parameters train, modes, hooks, ties and parametrisations, or says what it did not."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import filigree as fg
from every_method import METHODS, apply
from filigree.compress.pruning.unit_pruning import UnitPruning
from filigree.computed_weights import copied
from filigree.config import config
from filigree.nn.mollified.mollified_block import MollifiedModule
from filigree.protocols import ResidualBlock
from filigree.summary import numbers_of

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*weight_norm.*is deprecated",
    "ignore:.*makes the outputs worse",  # few random samples, some held out
)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Nothing is timed."""
    monkeypatch.setattr("filigree.compress.pruning.unit_pruning.speed", lambda *_: "")


# -- networks ----------------------------------------------------------------------------------------------------------


def dense() -> nn.Module:
    return nn.Sequential(
        nn.Linear(16, 16), nn.Tanh(), nn.Dropout(0.2), nn.Linear(16, 16), nn.BatchNorm1d(16), nn.ReLU(),
        nn.Linear(16, 16),
    )  # fmt: skip


def plain() -> nn.Module:
    """A chain without a norm, as some methods need."""
    return nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Dropout(0.2), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), fg.models.BasicBlock(4, 6, 1), nn.Conv2d(6, 4, 3),
        nn.ReLU(), nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 4),
    )  # fmt: skip


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru = nn.LSTM(16, 16), nn.GRU(16, 16)
        self.cell = nn.LSTMCell(16, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.gru(self.lstm(x.transpose(0, 1))[0])[0]
        return self.head(self.cell(y[-1])[0])


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "dense": (dense, (24, 16)),
    "plain": (plain, (24, 16)),
    "convolutional": (convolutional, (8, 2, 4, 4)),
    "recurrent": (Recurrent, (6, 3, 16)),
}


def few(quick: set[str], every: Iterable[str]) -> list[Any]:
    """Values of a test's parameter, of which `make test` tries only some."""
    slow = pytest.mark.long("every method on every network")
    return [value if value in quick else pytest.param(value, marks=slow) for value in every]


def network(net: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    make, shape = NETWORKS[net]
    return make(), torch.randn(shape)


def changed(name: str, model: nn.Module, x: Tensor) -> fg.convert.Report | None:
    """What the report says; None where the method refuses the model, in one line."""
    try:
        return apply(name, model, x)
    except ValueError as error:
        message = str(error)
    assert "\n" not in message
    assert len(message) < 500
    return None


def is_bias(name: str) -> bool:
    return "bias" in name.rpartition(".")[2]


# -- which parameters train --------------------------------------------------------------------------------------------

FROZEN: dict[str, Callable[[str], bool]] = {  # whether the parameter of this name is frozen
    "all": lambda name: True,
    "but the biases": lambda name: not is_bias(name),
    "the biases": is_bias,
    "the first half": lambda name: name[:1] in "0123" or name.startswith("lstm"),
}


@pytest.mark.parametrize("net", few({"plain"}, NETWORKS))
@pytest.mark.parametrize("frozen", few({"but the biases"}, FROZEN))
@pytest.mark.parametrize("name", METHODS)
def test_what_is_frozen_stays_so_and_what_trains_too(name, frozen, net):
    (model, x), (free, _) = network(net), network(net)
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(not FROZEN[frozen](key))
    before = {key: parameter.requires_grad for key, parameter in model.named_parameters()}
    same = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    owners = {key for key, module in model.named_modules() if any(True for _ in module.parameters())}
    if changed(name, model, x) is None:
        return
    changed(name, free, x)  # a method may make parameters that never train
    fixed = {key for key, parameter in free.named_parameters() if not parameter.requires_grad}
    for key, parameter in model.named_parameters():
        kept = next((trains for other, trains in same if other is parameter), before.get(key))
        expected = _of_its_owner(key, before, owners) if kept is None else kept
        assert parameter.requires_grad == (expected and key not in fixed), key


def _of_its_owner(key: str, before: dict[str, bool], owners: set[str]) -> bool:
    """A parameter of another name: as those of its kind, weights or biases, in the module that stood there."""
    owner = key.rpartition(".")[0]
    while owner and owner not in owners:
        owner = owner.rpartition(".")[0]
    inside = {other: trains for other, trains in before.items() if owner and other.startswith(f"{owner}.")}
    kind = [trains for other, trains in inside.items() if is_bias(other) == is_bias(key)] or list(inside.values())
    return any(kind) if kind else True


# -- modes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("net", few({"dense"}, NETWORKS))
@pytest.mark.parametrize("name", METHODS)
def test_each_module_keeps_its_mode(name, net):
    model, x = network(net)
    model.train()
    before = dict(model.named_modules())
    for number, module in enumerate(before.values()):
        module.training = number % 3 != 1  # of norms and of what holds them too
    modes = {key: module.training for key, module in before.items()}
    if changed(name, model, x) is None:
        return
    for key, module in model.named_modules():
        kept = next((old for old, other in before.items() if other is module), key)
        if kept in modes:
            assert module.training == modes[kept], f"{name}: {key}"


# -- hooks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("net", few({"plain"}, NETWORKS))
@pytest.mark.parametrize("name", METHODS)
def test_hooks_are_called_and_removed_by_their_handles(name, net):
    model, x = network(net)
    called: set[tuple[str, str]] = set()
    handles = []
    for key, module in model.named_modules():
        for kind in ("forward_pre_hook", "forward_hook", "full_backward_hook"):
            hook = lambda *_, key=key, kind=kind: called.add((key, kind))  # noqa: E731 - must return nothing
            handles.append(getattr(module, f"register_{kind}")(lambda *a, hook=hook: hook(*a) and None))
    run(model, x)
    before = set(called)
    if (report := changed(name, model, x)) is None:
        return
    called.clear()
    run(model, x)
    lost = {key for key, _ in before - called}
    assert all(any(repr(key) in note or key in note for note in report.notes) for key in lost), (
        f"{lost}, {report.notes}"
    )
    for handle in handles:
        handle.remove()
    called.clear()
    run(model, x)
    assert not called


def run(model: nn.Module, x: Tensor) -> None:
    for module in model.modules():  # every part of it
        if isinstance(module, MollifiedModule):
            module.p = 0.5
        if isinstance(module, ResidualBlock):
            module.survival = 1.0
    y = model(x.clone().requires_grad_())
    y.square().sum().backward()


def test_what_cannot_move_is_said():
    model = plain()
    model[0].weight.register_hook(lambda grad: grad)
    model[3].bias.register_post_accumulate_grad_hook(lambda _: None)
    model[3].register_state_dict_pre_hook(lambda *_: None)
    report = fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.5)))
    assert report.notes == [
        "hooks of state_dict are gone: 3",
        "hooks of the parameter are gone: 0.weight, 3.bias",
    ]
    assert report.to_dict()["notes"] == report.notes


def test_loading_keeps_what_is_frozen(tmp_path):
    model, into = plain(), plain()
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.5)))
    fg.save(model, tmp_path / "m.safetensors")
    into[0].weight.requires_grad_(False)
    into[3].eval()
    again = fg.load(tmp_path / "m.safetensors", into)
    frozen = [key for key, parameter in again.named_parameters() if not parameter.requires_grad]
    assert frozen == ["0.values"]
    assert not again[3].training


# -- tied weights ------------------------------------------------------------------------------------------------------


class Tied(nn.Module):
    """Two layers of one weight, an embedding and a head of another, and a layer that stands in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(12, 16), nn.Linear(16, 12)
        self.head.weight = self.embedding.weight
        self.one, self.two, self.three = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.two.weight = self.one.weight
        self.again = self.three
        self.tanh, self.relu, self.dropout, self.free = nn.Tanh(), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 16)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tanh(self.one(self.embedding(tokens)))
        x = self.relu(self.three(self.dropout(self.two(x))))
        return self.head(self.again(self.relu(self.free(x))))


TIES = (("embedding.weight", "head.weight"), ("one.weight", "two.weight"), ("three", "again"))


def at(model: nn.Module, path: str) -> object:
    for part in path.split("."):
        model = getattr(model, part, None)
    return model


@pytest.mark.parametrize("name", METHODS)
def test_ties_are_kept_or_said_and_numbers_are_true(name):
    torch.manual_seed(0)
    model, tokens = Tied(), torch.randint(12, (24,))
    embedding, before = model.embedding.weight.detach().clone(), numbers_of(model)
    if (report := changed(name, model, tokens)) is None:
        return
    for one, other in TIES:
        tied = at(model, one) is at(model, other)
        assert tied or any(one in note and other in note for note in report.notes), (one, report.notes)
    difference = report.parameters[1] - report.parameters[0]
    after = numbers_of(model)
    assert after - before == difference or any(f"{before:,} -> {after:,}" in note for note in report.notes)
    if model.head.weight is model.embedding.weight and model.embedding.weight.shape == embedding.shape:
        torch.testing.assert_close(model.embedding.weight.detach(), embedding)


def test_a_tied_head_is_left_alone_and_named():
    model = Tied()
    report = fg.compress_(model, fg.LowRank(2))
    assert model.head.weight is model.embedding.weight
    assert report.notes == [
        "left as it is: 'head' shares its weight with 'embedding' (a weight of its own unties it)",
        "left as it is: 'one' shares its weight with 'two' (a weight of its own unties it)",
        "left as it is: 'two' shares its weight with 'one' (a weight of its own unties it)",
    ]
    assert str(report).endswith(report.notes[-1])
    with pytest.raises(ValueError, match=r"^convert_\(ACDC\): 'head' shares its weight .*which cannot be kept"):
        fg.convert_(model, fg.ACDC(), where="head")
    model.head.weight = nn.Parameter(model.head.weight.detach().clone())
    fg.convert_(model, fg.ACDC(), where="head")


@config
class Cut(fg.convert.Conversion):
    """Gives each layer a weight of its own; of `equal` numbers they can be tied again."""

    keeps_ties = True
    equal: bool = True

    def accepts(self, module: nn.Module) -> bool:
        return type(module) is nn.Linear

    def apply(self, model: nn.Module, names: list[str]) -> list[fg.convert.Change]:
        for number, name in enumerate(names):
            weight = model.get_submodule(name).weight
            model.get_submodule(name).weight = nn.Parameter(weight.detach() + number * (not self.equal))
        return []


def test_what_is_still_equal_is_tied_again():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    assert fg.convert_(model, Cut()).notes == []
    assert model[1].weight is model[0].weight
    report = fg.convert_(model, Cut(equal=False))
    assert report.notes == [
        "no longer tied: 0.weight, 1.weight",
        "the whole model: 15 -> 24 parameters, tied ones counted once",
    ]


# -- parametrisations and hooks that compute weights -------------------------------------------------------------------

COMPUTED: dict[str, Callable[[nn.Module], object]] = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "old weight_norm": nn.utils.weight_norm,
    "old spectral_norm": nn.utils.spectral_norm,
    "prune": lambda layer: prune.l1_unstructured(layer, "weight", 0.4),
}


@pytest.mark.parametrize("place", few({"plain 3"}, ["plain 0", "plain 3", "convolutional 0", "convolutional 4"]))
@pytest.mark.parametrize("how", few({"weight_norm", "prune"}, COMPUTED))
@pytest.mark.parametrize("name", METHODS)
def test_layers_with_computed_weights_stay_as_they_are(name, how, place):
    net, at = place.split()
    model, x = network(net)
    layer = COMPUTED[how](model[int(at)]) or model[int(at)]
    if isinstance(METHODS[name], UnitPruning) and METHODS[name].keeps_computed_weights(layer):
        return  # it folds them, and says so: tests/compress/test_pruning_apart.py
    model(x)  # hooks leave a tensor that is no leaf
    state = copy.deepcopy(layer.state_dict())
    if (report := changed(name, model, x)) is None:
        return
    assert any(module is layer for module in model.modules())
    for key, value in layer.state_dict().items():
        if not key.endswith(("_u", "_v")):  # the iteration of a spectral norm
            torch.testing.assert_close(value, state[key], atol=1e-5, rtol=0)
    rows = [change.name for change in report.changes]
    assert at not in rows or "Mollified" in name
    if at not in rows and METHODS[name].accepts(network(net)[0][int(at)]):
        assert any(repr(at) in note for note in report.notes), report.notes
    run(model, x)
    assert any(p.grad is not None for p in layer.parameters())


def test_what_computes_a_weight_is_named_with_what_folds_it():
    reasons = {
        "weight_norm": "has its weight computed by WeightNorm (torch.nn.utils.parametrize.remove_",
        "old weight_norm": "has its weight computed by WeightNorm (torch.nn.utils.remove_weight_norm folds it)",
        "old spectral_norm": "has its weight computed by SpectralNorm (torch.nn.utils.remove_spectral_norm folds it)",
        "prune": "has its weight computed by L1Unstructured (torch.nn.utils.prune.remove folds it)",
    }
    for how, reason in reasons.items():
        model = plain()
        COMPUTED[how](model[0])
        with pytest.raises(ValueError, match=re.escape(f"convert_(Sparse): '0' {reason}")):
            fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.5)), where="0")
        with pytest.raises(ValueError, match=re.escape(f"compress_(PathSampling): '0' {reason}")):
            fg.compress_(model, fg.PathSampling(9))  # a chain, of which it is one


def test_models_with_hooks_that_compute_weights_are_measured_and_exported(tmp_path):
    for how in ("old weight_norm", "old spectral_norm", "prune"):
        model = plain()
        COMPUTED[how](model[0])
        model(x := torch.randn(4, 16))
        weight = model[0].weight
        assert fg.measure(model, x, seconds=0.0).parameters > 0
        assert model[0].weight is weight
        expected = model.eval()(x)
        torch.testing.assert_close(copied(model)(x), expected)
        with pytest.raises(ValueError, match=r"^export: '0' \(Linear\) has its weight computed by \w+ .*C has no"):
            fg.export(model, tmp_path / "m.c", x)


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(16, 16))
        parametrizations.spectral_norm(self)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("how", ["weight_norm", "spectral_norm", "orthogonal", "own module", "read by its owner"])
def test_c_takes_parametrised_layers_or_refuses_them_in_a_line(how, training, tmp_path):
    model = nn.Sequential(Scaled() if "own" in how else nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    if how in COMPUTED:
        COMPUTED[how](model[0])
    try:
        fg.export(model, tmp_path / "m.c", torch.randn(4, 16), training=training)
    except ValueError as error:
        message = str(error)
        assert message.startswith("export: '0' is a Parametrized")
        assert "\n" not in message
        assert len(message) < 120
    else:
        assert not training or how == "read by its owner"


# -- refusals say what to do -------------------------------------------------------------------------------------------


def test_functions_in_a_forward_and_conv1d_of_transformers_are_named():
    conv1d = type("Conv1D", (nn.Module,), {"__module__": "transformers.pytorch_utils"})
    layers = [nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 4)) for _ in range(40)]
    model = nn.Sequential(conv1d(), *layers)
    hint = r"1 Conv1D layers are linear.*filigree\.integrations\.transformers\.conv1d_to_linear_\(model\)"
    with pytest.raises(ValueError, match=hint):
        fg.convert_(nn.Sequential(conv1d()), fg.Sparse(fg.ErdosRenyi(density=0.5)))
    assert re.search(hint, str(fg.convert_(copy.deepcopy(model), fg.Sparse(fg.ErdosRenyi(density=0.5)))))
    for method in (fg.Mollified(), fg.Noisy("NAH"), fg.NoisyRectifier()):
        with pytest.raises(ValueError, match=r"Activations must be modules of torch\.nn, such as nn\.Tanh") as caught:
            fg.convert_(model, method)
        assert len(str(caught.value)) < 320


class Lists(nn.Module):
    """Layers that plain lists, tuples, dicts and attributes hold besides."""

    def __init__(self):
        super().__init__()
        self.a, self.drop, self.b = nn.Linear(16, 64), nn.Dropout(0.5), nn.Linear(64, 4)
        self.steps = [self.a, (self.drop, {"last": self.b})]
        self.__dict__["first"] = self.a
        self.options = {"width": 64}

    def forward(self, x):
        drop, last = self.steps[1]
        return last["last"](drop(self.steps[0](x)))


def test_lists_of_layers_follow_a_conversion():
    model = Lists()
    options = model.options
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.2)))
    assert model.steps[0] is model.first is model.a
    assert model.steps[1][1]["last"] is model.b
    assert model.options is options
    model(torch.randn(3, 16)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_lists_of_layers_follow_pruning():
    model, x = Lists(), torch.randn(200, 16)
    options = model.options
    fg.compress_(model, fg.MagnitudePruning(keep=0.5), x, progress=False)
    assert model.a.out_features == 32
    assert model.steps[0] is model.first is model.a
    assert model.steps[1][0] is model.drop
    assert model.options is options
    model.eval()
    assert torch.equal(model(x), model(x))
    fg.compress_(model, fg.MagnitudePruning(keep=0.5), x, progress=False)
    assert model.a.out_features == 16


def test_lists_of_layers_follow_where_the_new_one_has_the_old_one_inside():
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
    model.steps = [model[0], model[1]]
    layer = model[0]
    fg.convert_(model, fg.Mollified())
    assert layer in list(model.modules())
    assert model.steps[0] is model[0] is not layer
    assert model.steps[1] is model[1]


def test_a_module_in_several_places_is_exchanged_only_where_the_method_does():
    shared, relu = nn.Linear(8, 8), nn.ReLU()
    model = nn.Sequential(shared, relu, shared, relu, nn.Sequential(shared, nn.Linear(8, 4)), relu)
    model.steps = [shared, relu]
    x = torch.randn(5, 8)
    expected = model(x)
    fg.convert_(model, fg.Asymmetric.topk(3))  # takes in some of the rectifiers
    assert torch.equal(model.eval()(x), expected)
    assert model.steps[0] is model[0]
    assert model.steps[1] is relu is model[5]
