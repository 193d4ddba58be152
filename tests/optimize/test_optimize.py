"""`optimize_`: what is laid out anew computes what it was, and stands in for it only where it may."""

import copy
import io
import operator

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import filigree as fg
from filigree.laid_out import runtimes_of
from filigree.measure.timing import Timing
from filigree.nn import IntegerLinear, SparseConv2d, SparseLinear
from filigree.optimize import optimization, restore_
from filigree.optimize.graphs import graph_of, plans_of
from filigree.optimize.int8_errors import Int8Errors
from filigree.optimize.tracing import Traced


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(5, 20, 3, padding=1, bias=False), nn.Conv2d(20, 20, 3, padding=1)
        self.norm, self.relu = nn.BatchNorm2d(20), nn.ReLU(inplace=True)
        self.shortcut, self.pool = nn.Conv2d(5, 20, 1), nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(20, 7)

    def forward(self, x):
        y = self.second(self.relu(self.norm(self.first(x))))
        y += self.shortcut(x)
        return self.head(torch.flatten(self.pool(F.relu(y)), 1)).softmax(-1)


class Pitch(nn.Module):
    """Padding by a function, norms after ReLU, heads that read the same."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 9, (8, 1), stride=(4, 1)), nn.Conv2d(9, 6, (5, 1))
        self.norms = nn.ModuleList([nn.BatchNorm2d(9), nn.BatchNorm2d(6)])
        self.a, self.b = nn.Linear(6 * 8, 3), nn.Linear(6 * 8, 2)

    def forward(self, x, embed=False):
        x = x[:, None, :, None]
        for conv, norm, pad in zip((self.first, self.second), self.norms, ((0, 0, 3, 2), (0, 0, 2, 2)), strict=True):
            x = F.max_pool2d(norm(F.relu(conv(F.pad(x, pad)))), (2, 1), (2, 1))
        x = x.permute(0, 2, 1, 3).reshape(-1, 6 * 8)
        return {"a": self.a(x), "b": torch.sigmoid(self.b(x))}


class Mobile(nn.Module):
    """What networks for small devices have: depthwise and grouped convolutions, gates, norms by function."""

    def __init__(self):
        super().__init__()
        self.widen, self.depth = nn.Conv2d(3, 21, 1), nn.Conv2d(21, 21, (5, 3), (2, 1), (2, 1), (1, 2), groups=21)
        self.narrow, self.wide = nn.Conv2d(21, 12, 1), nn.Conv2d(12, 24, 3, padding=1, groups=12)
        self.groups, self.last = nn.Conv2d(24, 8, 3, 2, 1, groups=4), nn.Conv2d(8, 8, 3, padding=2, groups=8)
        self.norm, self.act, self.gate = nn.BatchNorm2d(21), nn.Hardswish(), nn.Hardsigmoid()
        self.squeeze, self.excite, self.relu6 = nn.Conv2d(21, 5, 1), nn.Conv2d(5, 21, 1), nn.ReLU6()

    def forward(self, x):
        y = self.depth(F.relu6(self.widen(x)))
        torch._assert(y.dim() == 4, "images are needed")  # which reads no numbers
        y = F.batch_norm(y, self.norm.running_mean, self.norm.running_var, self.norm.weight, self.norm.bias)
        y = self.act(y)
        y = y * self.gate(self.excite(F.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        y = self.relu6(self.wide(self.narrow(y)))
        y = self.groups(torch.sigmoid(y.mean(dim=[-2, -1], keepdim=True)).mul(y))
        return self.last(F.hardswish(y) * F.hardsigmoid(y)).mean((-1, -2)).sigmoid()


class Concatenated(nn.Module):
    """Parts of odd and of even numbers of channels, of images and of vectors."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 5, 1), nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(3, 2, 1)
        self.norm, self.mixed = nn.BatchNorm2d(26), nn.Conv2d(26, 26, 3, padding=1, groups=26)
        self.even, self.last = nn.Conv2d(26, 32, 1), nn.Conv2d(58, 6, 3, padding=1)
        self.again, self.head = nn.Conv2d(58, 58, 1), nn.Linear(6 + 58, 3)

    def forward(self, x):
        y = torch.cat((self.a(x), x, self.b(x), self.c(x)), 1)
        y = self.mixed(F.relu(self.norm(y)))
        y = torch.concat([self.even(y), y], dim=-3)
        y = torch.cat((y, y), 1)[:, :58]
        z = self.again(F.relu(y).amin((2, 3), keepdim=True)).flatten(1)  # read by another call
        return self.head(torch.cat([self.last(y).mean((2, 3)), F.relu(y).amax((2, 3)) + z], -1))


class Shuffled(nn.Module):
    """Channels that are split, and shuffled after they were put together again."""

    def __init__(self):
        super().__init__()
        self.stem, self.depth = nn.Conv2d(3, 32, 1), nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.third, self.last = nn.Conv2d(10, 10, 1), nn.Conv2d(42, 4, 1)

    def forward(self, x):
        a, b = self.stem(x).chunk(2, dim=1)
        y = torch.cat([a, self.depth(F.relu(b))], 1)
        y = y.view(-1, 2, 16, y.size(2), y.size(3)).transpose(1, 2).flatten(1, 2)
        parts = torch.split(y, [10, 22], 1)
        return self.last(torch.cat((self.third(parts[0]), y.sigmoid()), 1))


class Scaled(nn.Module):
    """A block of ConvNeXt, numbers and parameters in sums and products, and what makes images larger."""

    def __init__(self):
        super().__init__()
        self.stem, self.depth = nn.Conv2d(3, 16, 2, 2), nn.Conv2d(16, 16, 7, padding=3, groups=16)
        self.norm, self.gamma = nn.LayerNorm(16), nn.Parameter(torch.randn(16))
        self.up, self.down = nn.Linear(16, 40), nn.Linear(40, 16)
        self.last, self.head = nn.Conv2d(16, 7, 3, padding=1), nn.Linear(7, 3)

    def forward(self, x):
        x = self.stem(x)
        y = F.layer_norm(self.depth(x).permute(0, 2, 3, 1), (16,), self.norm.weight, self.norm.bias, 1e-6)
        y = self.down(F.gelu(self.up(y))).permute(0, 3, 1, 2).mul(self.gamma.reshape(1, -1, 1, 1))
        y = F.interpolate(F.avg_pool2d(x + y, 2, ceil_mode=True), scale_factor=(2, 3)) / 3 - self.gamma[:, None, None]
        y = self.last(F.interpolate(y, (5, 11), mode="nearest-exact"))
        return self.head(F.relu(y - 0.1).mean((2, 3)) * 2 + 1)


class Vision(nn.Module):
    """Attention over patches; queries, keys and values are parts of a tensor with samples along its second side."""

    def __init__(self):
        super().__init__()
        self.patches, self.qkv, self.out = nn.Conv2d(3, 32, 2, 2), nn.Linear(32, 96), nn.Linear(32, 5)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        parts = self.qkv(x).reshape(x.shape[0], x.shape[1], 3, 2, 16).permute(2, 0, 3, 1, 4)
        q, k, v = parts.unbind(0)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape[0], -1, 32)
        return self.out(x + y)


class Last(nn.Module):
    def __init__(self, rnn):
        super().__init__()
        self.rnn, self.head = rnn, nn.Linear(rnn.hidden_size, 3)

    def forward(self, x):
        y, h = self.rnn(x)
        h = h[0] if isinstance(self.rnn, nn.LSTM) or getattr(self.rnn, "mode", "") == "LSTM" else h
        return self.head(h[-1]), y


def odd():
    return nn.Sequential(
        nn.BatchNorm2d(3), nn.Conv2d(3, 17, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2)), nn.PReLU(17),
        nn.MaxPool2d(3, 2, padding=1, ceil_mode=True), nn.Dropout2d(), nn.Conv2d(17, 33, (3, 1), padding="same"),
        nn.LeakyReLU(0.1), nn.BatchNorm2d(33), nn.BatchNorm2d(33), nn.AvgPool2d(2), nn.Flatten(),
        nn.LazyLinear(19), nn.BatchNorm1d(19),
        nn.ReLU(), nn.Linear(19, 4), nn.PReLU(),
    )  # fmt: skip


def sparse():
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 40), nn.Linear(40, 3)
    )
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.3), init="keep"))
    assert isinstance(model[0], SparseConv2d)
    assert isinstance(model[3], SparseLinear)
    return model


def integers():
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 20), nn.ReLU(), nn.Linear(20, 3)
    )
    fg.compress_(model, fg.RoundToNearest(bits=8))
    assert isinstance(model[3], IntegerLinear)
    return model


def looped(kind, **settings):
    model = Last(kind(5, 20, batch_first=True, **settings))
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.4), init="keep"))
    return model


def encoder(norm_first):
    layer = nn.TransformerEncoderLayer(
        32, 2, 48, activation=F.gelu if norm_first else "relu", batch_first=True, norm_first=norm_first
    )
    return nn.TransformerEncoder(layer, 2, nn.LayerNorm(32) if norm_first else None, enable_nested_tensor=False)


def sparse_encoder():
    model = encoder(norm_first=False)
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.3), init="keep"))
    return model


NETWORKS = {
    "odd": (odd, (3, 13, 12)),
    "residual": (Residual, (5, 6, 7)),
    "pitch": (Pitch, (128,)),
    "concatenated": (Concatenated, (3, 6, 5)),
    "shuffled": (Shuffled, (3, 6, 5)),
    "scaled": (Scaled, (3, 12, 8)),
    "vision": (Vision, (3, 6, 4)),
    "mobile": (Mobile, (3, 11, 9)),
    "depthwise, 1-D": (lambda: nn.Sequential(
        nn.Conv1d(20, 20, 7, padding=3, groups=20), nn.ReLU(), nn.Conv1d(20, 20, 3, 2, groups=20), nn.Conv1d(20, 5, 1),
    ), (20, 19)),
    "sparse": (sparse, (4, 10, 10)),
    "integers": (integers, (4, 10, 10)),
    "tokens": (lambda: nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 5)), (7, 6)),
    "one layer": (lambda: nn.Linear(6, 5), (6,)),
    "1-D": (
        lambda: nn.Sequential(nn.Conv1d(3, 8, 5, padding=2), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(8, 2, 3)), (3, 20),
    ),
    "lstm": (lambda: Last(nn.LSTM(5, 20, 2, batch_first=True)), (9, 5)),
    "gru": (lambda: Last(nn.GRU(5, 17, 2, batch_first=True, bias=False)), (9, 5)),
    "both ways": (lambda: Last(nn.LSTM(5, 18, 2, batch_first=True, bidirectional=True)), (9, 5)),
    "encoder": (lambda: encoder(norm_first=False), (9, 32)),
    "encoder, norms first": (lambda: encoder(norm_first=True), (9, 32)),
    "sparse encoder": (lambda: sparse_encoder(), (5, 32)),
    "norms": (lambda: nn.Sequential(nn.Linear(6, 19), nn.LayerNorm(19), nn.GELU("tanh"), nn.Linear(19, 5), nn.SiLU(),
                                    nn.LayerNorm(5, elementwise_affine=False), nn.Tanh()), (7, 6)),
    "sparse lstm": (lambda: looped(nn.LSTM), (9, 5)),
    "sparse gru": (lambda: looped(nn.GRU), (9, 5)),
}  # fmt: skip


def built(name):
    """A network in eval mode with norms that do something, and the shape of its inputs."""
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    model = make()
    model(torch.randn(2, *shape))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            for tensor in (module.running_mean, module.weight.data, module.bias.data):
                tensor.normal_()
            module.running_var.uniform_(0.5, 2)
    return model.eval(), shape


@pytest.mark.parametrize("name", NETWORKS)
def test_every_form_of_every_network_equals_it(isa, name):
    model, shape = built(name)
    with torch.no_grad():
        traced = Traced(model, [torch.randn(3, *shape)])
        plans = plans_of(traced, set(), Int8Errors(traced, 0))
        drafts = [draft for plan in plans for draft in plan.drafts if draft.layer is not None]
        assert drafts
        for form in sorted({form for draft in drafts for form in draft.forms}):
            for draft in drafts:
                draft.form = form if form in draft.forms else "floats"
            graph = graph_of(traced, plans, chunk=2)
            for batch in (1, 3, 8):
                x = torch.randn(batch, *shape)
                torch.testing.assert_close(graph(x), model(x), rtol=1e-4, atol=1e-5)


def test_whole_networks_are_one_call():
    for name in (
        "odd",
        "mobile",
        "vision",
        "scaled",
        "shuffled",
        "depthwise, 1-D",
        "sparse",
        "integers",
        "tokens",
        "1-D",
        "norms",
        "encoder",
        "encoder, norms first",
        "sparse encoder",
    ):
        model, shape = built(name)
        with torch.no_grad():
            traced = Traced(model, [torch.randn(2, *shape)])
            graph = graph_of(traced, plans_of(traced, set(), Int8Errors(traced, 0)), 1).graph
        assert [node.op for node in graph.nodes] == ["placeholder", "call_module", "output"], name


def test_the_verb_reports_and_stands_in_where_it_may(faster):
    model, shape = built("residual")
    plain, x = copy.deepcopy(model), torch.randn(4, *shape)
    report = fg.optimize_(model, x)
    assert report.speedup == 2
    assert [layer.name for layer in report.layers] == ["first", "second", "shortcut", "head"]
    assert set(report.layers[0].milliseconds) == {"as it was", "floats"}
    assert report.difference < 1e-5
    assert "x 2.00" in str(report)
    runtime = optimization.runtimes_of(model)[0]
    calls = []
    runtime.run = lambda *args: calls.append(len(args[0])) or runtime.graph(*args)
    with torch.no_grad():
        for batch in (4, 1, 9):
            inputs = torch.randn(batch, *shape)
            torch.testing.assert_close(model(inputs), plain(inputs), rtol=1e-4, atol=1e-6)
        assert calls == [4, 1, 9]
        larger, double = torch.randn(2, 5, 8, 8), copy.deepcopy(model).double()
        torch.testing.assert_close(model(larger), plain(larger))
        assert double(x.double()).dtype is torch.float64
    y = model(x)
    assert y.requires_grad
    model.train()
    with torch.no_grad():
        model(x)
    assert calls == [4, 1, 9]


def test_what_is_saved_copied_and_pickled_is_the_original(faster, tmp_path):
    model, shape = built("sparse")
    fg.optimize_(model, torch.randn(2, *shape))
    assert isinstance(model, nn.Sequential)
    assert type(model).__name__ == "SparseSequential"
    x = torch.randn(2, *shape)
    with torch.no_grad():
        expected = model(x)
        duplicate = copy.deepcopy(model)
        assert torch.equal(duplicate(x), expected)
        assert len(optimization.runtimes_of(duplicate)) == 1
        assert {id(p) for p in duplicate.parameters()}.isdisjoint({id(p) for p in model.parameters()})
        fg.save(model, tmp_path / "m.safetensors")
        fresh = nn.Sequential(
            nn.Conv2d(4, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(128, 40), nn.Linear(40, 3)
        )
        again = fg.load(tmp_path / "m.safetensors", into=fresh).eval()
        torch.testing.assert_close(again(x), expected)
        assert optimization.runtimes_of(again) == []
        buffer = io.BytesIO()
        torch.save(model, buffer)
        buffer.seek(0)
        unpickled = torch.load(buffer, weights_only=False)
        assert optimization.runtimes_of(unpickled) == []
        torch.testing.assert_close(unpickled(x), expected)


@pytest.mark.parametrize("change", ["weight", "parameter", "module", "load_state_dict", "fused step"])
def test_after_a_change_the_model_runs_as_before_and_warns(faster, change):
    model, shape = built("odd")
    x = torch.randn(2, *shape)
    fg.optimize_(model, x)
    with torch.no_grad():
        if change == "weight":
            model[1].weight.mul_(2)
        elif change == "parameter":
            model[1].weight = nn.Parameter(model[1].weight * 2)
        elif change == "module":
            model[2] = nn.ReLU()
        elif change == "fused step":
            for parameter in model.parameters():
                parameter.grad = torch.ones_like(parameter)
            torch.optim.SGD(model.parameters(), 0.1, fused=True).step()
        else:
            model.load_state_dict({key: value * 2 for key, value in model.state_dict().items()})
        plain = nn.Sequential(*model).eval()
        with pytest.warns(UserWarning, match="have changed since"):
            torch.testing.assert_close(model(x), plain(x))
        assert optimization.runtimes_of(model) == []
        torch.testing.assert_close(model(x), plain(x))  # without a warning


def test_hooks_are_called(faster):
    model, shape = built("odd")
    x = torch.randn(2, *shape)
    fg.optimize_(model, x)
    seen = []
    model[1].register_forward_hook(lambda *_: seen.append(1))
    with torch.no_grad():
        model(x)
    assert seen == [1]


def test_restored_it_is_as_it_was(faster):
    model, shape = built("odd")
    fg.optimize_(model, torch.randn(2, *shape))
    assert restore_(model)
    assert type(model) is nn.Sequential
    assert not restore_(model)


def test_never_slower(monkeypatch):
    model, shape = built("odd")
    monkeypatch.setattr(
        optimization, "time_interleaved", lambda works, *_, **__: [Timing(i + 1.0, 0.0, 0.0) for i in range(len(works))]
    )
    report = fg.optimize_(model, torch.randn(2, *shape))
    assert type(model) is nn.Sequential
    assert report.speedup == 1
    assert {layer.form for layer in report.layers} == {"as it was"}


@pytest.mark.parametrize("kind", ["integers", "sparse, and a ReLU"])
def test_torchs_dense_layer_is_one_of_the_forms(kind, monkeypatch):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(40, 24), nn.ReLU()).eval(), torch.randn(5, 40)
    if kind == "integers":
        fg.compress_(model, fg.RoundToNearest(bits=8))
    else:
        fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.3)))
    before, keys = model(x).detach(), list(model.state_dict())
    calls = []

    def times(works, seconds, beyond=0.0):  # of the layer's forms the first, of all else the last
        calls.append(len(works))
        fastest = 0 if len(calls) == 1 else len(works) - 1
        return [Timing(1.0 if i == fastest else 2.0, 0.0, 0.0) for i in range(len(works))]

    monkeypatch.setattr(optimization, "time_interleaved", times)
    report = fg.optimize_(model, x)
    assert [layer.form for layer in report.layers] == ["dense, by torch"]
    (runtime,) = runtimes_of(model)
    assert any(type(module) is nn.Linear for module in runtime.graph.modules())
    assert list(model.state_dict()) == keys
    with torch.no_grad():
        torch.testing.assert_close(model(x), before, rtol=1e-5, atol=1e-5)


def test_an_error_leaves_the_model_as_it_was(monkeypatch):
    model, shape = built("odd")
    before = copy.deepcopy(model.state_dict())

    def fails(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(optimization, "time_interleaved", fails)
    with pytest.raises(KeyboardInterrupt):
        fg.optimize_(model, torch.randn(2, *shape))
    assert type(model) is nn.Sequential
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


class Unclear(nn.Module):
    """What it does depends on its input's numbers; the module inside is plain."""

    def __init__(self):
        super().__init__()
        self.inside = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6))

    def forward(self, x):
        return self.inside(x) if x.sum() > 1e9 else self.inside(x.abs())


def test_of_a_model_whose_graph_is_not_known_the_modules_inside_are_optimised(faster):
    model = Unclear().eval()
    x = torch.randn(3, 6)
    with torch.no_grad():
        expected = model(x)
        report = fg.optimize_(model, x)
        assert [layer.name for layer in report.layers] == ["inside.0", "inside.2"]
        assert len(optimization.runtimes_of(model)) == 1
        torch.testing.assert_close(model(x), expected)


def test_a_tensor_changed_in_place_that_others_read_is_left(faster):
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            y = self.layer(x)
            z = y.relu_()
            return operator.add(y, z)

    model = Branches().eval()
    x = torch.randn(3, 4)
    with torch.no_grad():
        expected = model(x)
        report = fg.optimize_(model, x)
        torch.testing.assert_close(model(x), expected)
    assert report.notes == []
    assert type(model) is Branches  # the layer inside was optimised
    assert type(model.layer) is not nn.Linear


def test_what_cannot_be_taken_is_said():
    with pytest.raises(ValueError, match=r"^optimize_: the model must be in eval mode: model.eval\(\).$"):
        fg.optimize_(nn.Linear(2, 2), torch.ones(1, 2))
    with pytest.raises(ValueError, match=r"^optimize_: the model does not run on the example: "):
        fg.optimize_(nn.Linear(2, 2).eval(), torch.ones(1, 3))
    with pytest.raises(TypeError, match=r"^optimize_: model must be a torch module"):
        fg.optimize_(3, torch.ones(1, 3))
    report = fg.optimize_(nn.Sequential(nn.Softmax(-1)).eval(), torch.ones(1, 3))
    assert report.notes == ["left as it was: the model: no layer in it can be laid out anew"]


@pytest.mark.parametrize("example", [None, "x", [], 3])
def test_an_example_that_is_none(example):
    with pytest.raises(ValueError, match=r"^optimize_: example must be a tensor or a tuple of tensors\. Got "):
        fg.optimize_(fg.models.mlp([3, 4, 2]).eval(), example)
