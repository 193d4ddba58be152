"""What a program in C would do otherwise than a forward is refused; no name in C is given out twice."""

import re
from collections import Counter, OrderedDict

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from filigree import laid_out
from filigree.export.c import export_c as c_module
from filigree.export.c.compiler import compiler
from filigree.export.c.export_c import export_c


@pytest.fixture(autouse=True)
def without_compiler(monkeypatch):
    """What is wrong must be seen where nothing is compared with torch."""
    monkeypatch.setattr(c_module, "compiler", lambda: None)


class Forward(nn.Module):
    """Layers on six numbers, which `function(self, x)` calls."""

    def __init__(self, function):
        super().__init__()
        self.a, self.b, self.relu, self.flat = nn.Linear(6, 6), nn.Linear(6, 6), nn.ReLU(inplace=True), nn.Flatten()
        self.function = function

    def forward(self, x):
        return self.function(self, x)


class Moments(nn.Module):
    """An LSTM, in front of which a function is called on each of six moments of six features."""

    def __init__(self, function, after=lambda y: y[:, -1]):
        super().__init__()
        self.lstm, self.lstm_from_state = nn.LSTM(6, 6, batch_first=True), nn.Linear(6, 6)
        self.function, self.after = function, after

    def forward(self, x):
        return self.after(self.lstm_from_state(self.lstm(self.function(x))[0]))


def between(function):
    return Forward(lambda m, x: m.b(function(m.a(x))))


def adds_to_what_is_read(m, x):
    y = z = m.a(x)
    y += x
    return y + z


def changes_a_view(m, x):
    y = m.a(x)
    m.flat(y).relu_()
    return y + x


def changes_what_it_returns(m, x):
    y = m.a(x)
    torch.relu_(y)
    return y


FLAT, SERIES, IMAGES = (6,), (6, 6), (1, 6, 6)
REFUSED = {  # why: a model, and what it reads
    "'dropout' is a Dropout, which a program that trains": (lambda: between(F.dropout), None),
    "'elu' is a ELU, which a program that trains": (lambda: between(F.elu), None),
    "'softmax' is a Softmax, which a program that trains": (lambda: between(lambda y: y.softmax(1)), None),
    "needs (batch, classes). The model makes (2, 4, 4) a sample: flatten it, or give loss='mse'.": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()), IMAGES),
    "'relu' changes in place what 'add' reads later": (
        lambda: Forward(lambda m, x: m.relu(y := m.a(x)) + y), FLAT),
    "'relu_1' changes in place what 'add' reads later": (
        lambda: Forward(lambda m, x: F.relu(y := m.a(x).relu(), True) + y), FLAT),
    "'leaky_relu' changes in place what 'add' reads later": (
        lambda: Forward(lambda m, x: m.a(F.leaky_relu(x, inplace=True)) + x), FLAT),
    "'iadd' changes in place what 'add' reads later": (lambda: Forward(adds_to_what_is_read), FLAT),
    "'relu_' changes in place what 'add' reads later": (lambda: Forward(changes_a_view), FLAT),
    "'relu_' changes in place what 'output' reads later": (lambda: Forward(changes_what_it_returns), FLAT),
    "'function' does not work on one moment at a time": (lambda: Moments(nn.BatchNorm1d(6)), SERIES),
    "'softmax' does not work on one moment at a time": (lambda: Moments(lambda x: x.softmax(1)), SERIES),
    "'add' reads behind y[:, -1] what there was at each moment": (
        lambda: Moments(nn.Tanh(), lambda y: y[:, -1] + y), SERIES),
    "'lstm' must be followed by y[:, -1]": (lambda: Moments(nn.Tanh(), lambda y: y[:, -1][:, -1]), SERIES),
    "'dropout' in the model's forward drops in eval mode, too": (lambda: between(F.dropout), FLAT),
    "'view' must leave the batch as it is": (lambda: between(lambda y: y.view(-1, 3)), FLAT),
    "'reshape' must leave the batch as it is": (lambda: between(lambda y: y.reshape(y.shape[0], 3)), FLAT),
    "'view' in the model's forward makes another shape": (lambda: between(lambda y: y.view(y.size(0) * 2, -1)), FLAT),
    "'reshape' in the model's forward makes another": (lambda: between(lambda y: y.reshape(y.shape[1], -1)), FLAT),
    "'getitem' takes y[:, -1] of what no recurrent layer": (lambda: Forward(lambda m, x: m.relu(x[:, -1])), SERIES),
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
def test_what_c_would_do_otherwise_is_refused(tmp_path, message):
    make, shape = REFUSED[message]
    trains = "program that trains" in message or "classes" in message
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        export_c(make().eval(), tmp_path / "m.c", None if shape is None else torch.randn(2, *shape), training=trains)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_what_is_changed_in_place_and_not_read_again(tmp_path, monkeypatch):
    monkeypatch.undo()
    if compiler() is None:
        pytest.skip("there is no C compiler")

    def residual(m, x):  # each is changed in place when nobody reads it as it was
        y = m.relu(m.a(x))
        z = m.b(y.relu())
        z += y
        return m.relu(m.flat(z))

    assert export_c(Forward(residual), tmp_path / "m.c", torch.randn(5, 6)).relative < 1e-5


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "function",
    [
        lambda y: y.view(-1, 6),
        lambda y: y.view(y.size(0), -1),
        lambda y: y.view(y.size(dim=0), 6),
        lambda y: y.reshape(y.shape[0], 6),
        lambda y: y.reshape((y.size()[0], -1)),
    ],
)
def test_views_of_a_flat_sample(tmp_path, function, training):
    export_c(between(function).eval(), tmp_path / "m.c", training=training)


def test_a_model_that_is_laid_out_for_inference_is_written_as_it_was(tmp_path):
    class Runtime:
        tensors = 1

        def takes(self, args, named):
            return bool(args[0].isfinite().all())

        def is_current(self):
            return True

        def of_copy(self, model, memo):
            return self

    plain, model = between(torch.relu).eval(), between(torch.relu).eval()
    model.load_state_dict(plain.state_dict())
    laid_out.install(model, Runtime())
    for options in ({}, {"activations": "int8"}, {"training": True}):
        texts = []
        for each in (plain, model):
            export_c(each, tmp_path / "m.c", torch.linspace(-1, 1, 12).view(2, 6), **options)
            texts.append((tmp_path / "m.c").read_text())
        assert texts[0] == texts[1]
    assert laid_out.runtimes_of(model)


def test_what_a_program_can_do_is_written(tmp_path):
    export_c(Moments(lambda x: x + x.softmax(-1)), tmp_path / "m.c", torch.randn(5, *SERIES))
    export_c(between(F.relu6), tmp_path / "m.c", training=True)
    assert (tmp_path / "m.c").is_file()


def defined(text):
    """Names that the file defines outside of functions, constants and functions alike."""
    return re.findall(r"^(?:static )?(?:const )?\w+ (\w+)(?=[\[(; ])", text, flags=re.MULTILINE)


def named(*names):
    """A chain of frozen linear layers that are called so."""
    return nn.Sequential(OrderedDict((name, nn.Linear(6, 6)) for name in names)).requires_grad_(False)


@pytest.mark.parametrize(
    ("make", "shape", "training", "name"),
    [
        (lambda: named("update", "update_2", "m").append(nn.Linear(6, 2)), None, True, "update_2_bias"),
        (lambda: Moments(named("lstm", "gates", "copy")), SERIES, False, "lstm_from_state_2_bias"),
        (
            lambda: nn.Sequential(OrderedDict(parametric=nn.PReLU(6), update=nn.Linear(6, 2))),
            FLAT,
            False,
            "update_2_bias",
        ),
    ],
    ids=["update", "lstm", "parametric"],
)
def test_no_name_is_given_out_twice(tmp_path, make, shape, training, name):
    x = None if shape is None else torch.randn(2, *shape)
    export_c(make().eval(), tmp_path / "m.c", x, training=training)
    counts = Counter(defined((tmp_path / "m.c").read_text()))
    assert {"m_predict", name} <= set(counts)
    assert counts.most_common(1)[0][1] == 1
