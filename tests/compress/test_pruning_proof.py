"""Pruning is right or refused in one line: structures that reorder, mix or count units, whatever the model returns."""

import copy
import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import filigree as fg

MAGNITUDE = fg.MagnitudePruning(keep=0.5, compensate=None, measure=False)


class Net(nn.Module):
    """Two convolutions (8 filters, read by a 1 x 1) and a head; subclasses put something between or beside them."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(2, 8, 3), nn.Conv2d(8, 4, 1), nn.Linear(64, 3)
        self.norm = nn.LayerNorm(3)  # mixes outputs, not units

    def between(self, h):
        return h

    def forward(self, x):
        h = self.between(F.relu(self.a(x)))
        return self.norm(self.head(self.b(h).flatten(1)))


def between(function):
    return type("Between", (Net,), {"between": staticmethod(function)})


MIXING = {
    "permuted": between(lambda h: h[:, torch.tensor([3, 1, 4, 0, 5, 2, 7, 6])]),
    "sorted": between(lambda h: h.sort(1).values),
    "softmax": between(lambda h: h.softmax(1)),
    "rolled": between(lambda h: h.roll(1, 1)),
    "blurred": between(lambda h: F.avg_pool1d(h.flatten(2).transpose(1, 2), 3, 1, 1).transpose(1, 2).view(h.shape)),
}


@pytest.mark.parametrize("dead", [False, True])
@pytest.mark.parametrize("name", MIXING)
def test_what_reorders_or_mixes_is_refused_also_beside_norms(name, dead):
    torch.manual_seed(0)
    model = MIXING[name]().eval()
    if dead:
        with torch.no_grad():
            model.a.weight[::2], model.a.bias[::2] = 0, 0
    x = torch.randn(20, 2, 6, 6)
    before, y = copy.deepcopy(model.state_dict()), model(x)
    with pytest.raises(ValueError, match=r"the units of 'a' cannot be taken out: [^\n]*$"):
        fg.compress_(model, MAGNITUDE, x, where=["a"])
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    assert torch.equal(model(x), y)
    report = fg.compress_(model, MAGNITUDE, x) if name != "softmax" else None  # without names the others are pruned
    assert report is None or ("left whole" in str(report) and model.a.out_channels == 8)


MEANS = {
    "less the mean": lambda h: h - h.mean(1, keepdim=True),
    "attention": lambda h: h * torch.sigmoid(h.amax(1, keepdim=True) + h.mean(1, keepdim=True)),
    "root mean square": lambda h: h * (h.square().mean(1, keepdim=True) + 1e-5).rsqrt(),
}


@pytest.mark.parametrize("name", MEANS)
def test_means_over_units_are_over_those_that_stay(name):
    torch.manual_seed(0)
    model, x = between(MEANS[name])().eval(), torch.randn(20, 2, 6, 6)
    whole = copy.deepcopy(model)
    fg.compress_(model, MAGNITUDE, x, where=["a"])
    kept = model.b.kept_inputs
    assert len(kept) == 4
    h = MEANS[name](F.relu(whole.a(x))[:, kept])
    expected = whole.norm(whole.head(F.conv2d(h, whole.b.weight[:, kept], whole.b.bias).flatten(1)))
    torch.testing.assert_close(model(x), expected)


def by_hand(h):
    return h.unflatten(1, (2, 4)).transpose(1, 2).flatten(1, 2)


@pytest.mark.parametrize("shuffle", [nn.ChannelShuffle(2), by_hand])
def test_shuffled_channels_go_from_each_group_alike(shuffle):
    torch.manual_seed(0)
    model, x = between(shuffle)().eval(), torch.randn(20, 2, 6, 6)
    if shuffle is by_hand:  # knows the size of the groups
        with pytest.raises(ValueError, match=r"the units of 'a' cannot be taken out: [^\n]*$"):
            fg.compress_(model, MAGNITUDE, x, where=["a"])
        return
    whole = copy.deepcopy(model)
    fg.compress_(model, MAGNITUDE, x, where=["a"])
    assert torch.equal(model.a.kept_outputs[:2] + 4, model.a.kept_outputs[2:])
    with torch.no_grad():
        whole.b.weight[:, torch.isin(torch.arange(8), model.b.kept_inputs, invert=True)] = 0
    torch.testing.assert_close(model(x), whole(x))


@dataclasses.dataclass
class Outputs:
    first: torch.Tensor
    rest: dict


class Heads(nn.Module):
    """Two heads on the same units, the second through `function`; outputs as `make` packs them."""

    def __init__(self, function, make):
        super().__init__()
        self.body, self.one, self.two = nn.Linear(6, 16), nn.Linear(16, 3), nn.Linear(16, 4)
        self.function, self.make = function, make

    def forward(self, x):
        h = torch.tanh(self.body(x))
        return self.make(self.one(h), self.two(self.function(h)))


PACKED = {
    "tuple": lambda a, b: (a, b),
    "list in a tuple": lambda a, b: (a, [b, None]),
    "dict": lambda a, b: {"a": a, "b": b},
    "dataclass": lambda a, b: Outputs(a, {"b": b, "count": 3}),
    "indices first": lambda a, b: (a.argmax(1), a, b),
}


def tensors(output):
    output = {"first": output.first, **output.rest} if isinstance(output, Outputs) else output
    parts = output.values() if isinstance(output, dict) else output
    return [
        tensor for part in parts for tensor in ([part] if isinstance(part, torch.Tensor) else
        tensors(part) if isinstance(part, list | dict | tuple) else [])
        if tensor.is_floating_point()
    ]  # fmt: skip


@pytest.mark.parametrize("make", PACKED.values(), ids=PACKED)
@pytest.mark.parametrize("keep", [0.5, fg.MaxError(0.5), fg.Budget(parameters=0.6)])
def test_all_outputs_count(make, keep):
    torch.manual_seed(0)
    x = torch.randn(60, 6)
    with pytest.raises(ValueError, match="the units of 'body' cannot be taken out"):
        fg.compress_(Heads(lambda h: h.roll(1, 1), make), fg.SubsetPruning(keep=keep, measure=False), x)
    model = Heads(lambda h: h * 2, make)
    expected = copy.deepcopy(model)
    fg.compress_(model, fg.SubsetPruning(keep=keep, measure=False, compensate=None), x)
    gone = torch.ones(16, dtype=torch.bool)
    gone[model.body.kept_outputs] = False
    assert 0 < gone.sum() < 16
    with torch.no_grad():
        expected.one.weight[:, gone], expected.two.weight[:, gone] = 0, 0
    for one, other in zip(tensors(model(x)), tensors(expected(x)), strict=True):
        torch.testing.assert_close(one, other)


def test_the_error_of_several_outputs_is_that_of_the_worst():
    torch.manual_seed(0)
    x = torch.randn(200, 6)
    model = Heads(lambda h: h, lambda a, b: {"large": 1000 * a, "small": b})
    y = model(x)
    fg.compress_(model, fg.SubsetPruning(keep=fg.MaxError(0.3), measure=False), x)
    assert model.body.out_features < 16
    for name, output in model(x).items():
        assert (output - y[name]).norm() <= 0.3 * (y[name] - y[name].mean(0)).norm()


def test_gated_units_go_in_pairs():
    class Gate(nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.o = nn.Linear(6, 32), nn.Linear(16, 3)

        def forward(self, x):
            a, b = self.w(x).chunk(2, -1)
            return self.o(F.silu(a) * b)

    torch.manual_seed(0)
    model, x = Gate(), torch.randn(50, 6)
    expected = copy.deepcopy(model)
    fg.compress_(model, MAGNITUDE, x)
    gone = torch.ones(16, dtype=torch.bool)
    gone[model.o.kept_inputs] = False
    assert model.w.out_features == 16
    with torch.no_grad():
        expected.o.weight[:, gone] = 0
    torch.testing.assert_close(model(x), expected(x))


@pytest.mark.parametrize("norm", [nn.LayerNorm(12), nn.GroupNorm(3, 12), nn.GroupNorm(12, 12), nn.GroupNorm(1, 12)])
def test_norms_over_units_are_over_those_that_stay(norm):
    torch.manual_seed(0)
    images = isinstance(norm, nn.GroupNorm)
    first, last = (nn.Conv2d(5, 12, 1), nn.Conv2d(12, 2, 1)) if images else (nn.Linear(5, 12), nn.Linear(12, 2))
    model = nn.Sequential(first, norm, nn.Tanh(), last)
    with torch.no_grad():
        norm.weight.normal_(), norm.bias.normal_()
    x = torch.randn(30, 5, 2, 2) if images else torch.randn(30, 5)
    whole = copy.deepcopy(model)
    fg.compress_(model, MAGNITUDE, x)
    kept = model[0].kept_outputs
    assert len(kept) == 6
    groups = {3: 3, 12: 6, 1: 1}[getattr(whole[1], "num_groups", 1)]
    h = F.group_norm(whole[0](x)[:, kept], groups, whole[1].weight[kept], whole[1].bias[kept])
    if groups == 3:
        assert torch.equal((kept // 4).bincount(), torch.tensor([2, 2, 2]))  # no unit changes its group
    y = torch.einsum("ou,bu...->bo...", whole[3].weight[:, kept].flatten(1), torch.tanh(h))
    torch.testing.assert_close(model(x), y + whole[3].bias.view(-1, *[1] * (x.dim() - 2)))


def test_frozen_networks_are_pruned_and_stay_frozen():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 3))
    model[:3].requires_grad_(False)
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    fg.compress_(model, fg.SubsetPruning(keep=0.5, measure=False), torch.randn(50, 8))
    assert [model[i].out_features for i in (0, 2)] == [10, 10]
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags


class Attention(nn.Module):
    """Heads of queries on fewer heads of keys and values, and a gated part: one layer of a language model."""

    def __init__(self, repeat):
        super().__init__()
        self.q, self.k, self.v = nn.Linear(16, 16, False), nn.Linear(16, 8, False), nn.Linear(16, 8, False)
        self.o, self.gate, self.up, self.down = (
            nn.Linear(i, o, False) for i, o in [(16, 16), *[(16, 24)] * 2, (24, 16)]
        )
        self.repeat = repeat

    def forward(self, x):
        b, t, _ = x.shape
        q, k, v = (layer(x).view(b, t, -1, 4).transpose(1, 2) for layer in (self.q, self.k, self.v))
        q = torch.cat([-q[..., 2:], q[..., :2]], -1)  # as rotary positions do
        h = F.scaled_dot_product_attention(q, self.repeat(k), self.repeat(v))
        x = x + self.o(h.transpose(1, 2).flatten(2))
        return x + self.down(F.silu(self.gate(x)) * self.up(x))


REPEATS = {
    "expand": lambda k: k[:, :, None].expand(-1, -1, 2, -1, -1).flatten(1, 2),
    "repeat_interleave": lambda k: k.repeat_interleave(2, 1),
    "repeat": lambda k: k.repeat(1, 2, 1, 1),
}


@pytest.mark.parametrize("repeat", REPEATS.values(), ids=REPEATS)
@pytest.mark.parametrize("where", [["gate", "up"], None])
@pytest.mark.parametrize("scale", [1.0, 0.01])
def test_grouped_queries(repeat, where, scale):
    torch.manual_seed(0)
    model = nn.Sequential(Attention(repeat), Attention(repeat))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= scale  # small weights, of which attention is nearly even, hide nothing
    x = torch.randn(12, 5, 16)
    whole = copy.deepcopy(model)
    fg.compress_(model, MAGNITUDE, x, where=None if where is None else [f"*.{name}" for name in where])
    assert [part.gate.out_features for part in model] == [12, 12]
    heads = 1 if where is None else 2  # of keys and values, each with two heads of queries
    for part, original in zip(model, whole, strict=True):
        assert (part.v.out_features, part.k.out_features, part.q.out_features) == (4 * heads, 4 * heads, 8 * heads)
        for name in ("down", "o"):
            layer, smaller = getattr(original, name), getattr(part, name)
            with torch.no_grad():
                layer.weight[:, torch.isin(torch.arange(layer.in_features), smaller.kept_inputs, invert=True)] = 0
    torch.testing.assert_close(model(x), whole(x))


# -- refits ------------------------------------------------------------------------------------------------------------


class Twice(nn.Module):
    """Layers that run several times."""

    def __init__(self, conv=False):
        super().__init__()
        self.a = nn.Conv2d(4, 24, 3, padding=1) if conv else nn.Linear(8, 24)
        self.b = nn.Conv2d(24, 4, 3, padding=1) if conv else nn.Linear(24, 8)

    def forward(self, x):
        for _ in range(2):
            x = self.b(torch.relu(self.a(x))) * 3 + 2
        return x


def error(model, x, y):
    return float((model(x).detach() - y).norm() / (y - y.mean(0)).norm())


@pytest.mark.parametrize("conv", [False, True])
def test_a_layer_that_runs_twice_is_refitted_on_both_calls(conv):
    torch.manual_seed(0)
    model = nn.Sequential(Twice(conv), nn.Flatten()).eval()
    x = torch.randn(300, 4, 5, 5) if conv else torch.randn(400, 8)
    y = model(x).detach()
    plain, refitted = copy.deepcopy(model), copy.deepcopy(model)
    fg.compress_(plain, fg.SubsetPruning(keep=16, compensate=None, measure=False), x, where=["0.a"])
    fg.compress_(refitted, fg.SubsetPruning(keep=16, measure=False), x, where=["0.a"])
    assert error(refitted, x, y) < 0.7 * error(plain, x, y)


def test_connections_of_a_layer_that_runs_twice():
    torch.manual_seed(0)
    model, x = nn.Sequential(Twice()), torch.randn(400, 8)
    y = model(x).detach()
    plain, refitted = copy.deepcopy(model), copy.deepcopy(model)
    config = fg.MagnitudePruning(keep=0.6, of="connections", compensate=None)
    fg.compress_(plain, config, x)
    fg.compress_(refitted, fg.MagnitudePruning(keep=0.6, of="connections"), x)
    assert error(refitted, x, y) < error(plain, x, y)


def test_a_refit_that_makes_it_worse_is_left_out_with_a_warning():
    class Depending(nn.Module):
        """Least squares fits the head on what the body says of all; the data decide how often it runs."""

        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 16), nn.Linear(16, 4)

        def forward(self, x):
            for _ in range(1 + int(len(x) > 1)):
                x = self.b(torch.relu(self.a(x)))
            return x

    torch.manual_seed(0)
    model, x = Depending(), torch.randn(50, 4)
    report = fg.compress_(model, fg.SubsetPruning(keep=8, measure=False), x, where=["a"])
    assert "not refitted: b, since how often it runs depends on the data" in str(report)


def test_weights_that_other_modules_read_are_not_refitted():
    class Tied(nn.Module):
        """A language model whose head has the weights of its embedding."""

        def __init__(self):
            super().__init__()
            self.embed, self.a, self.b = nn.Embedding(30, 8), nn.Linear(8, 24), nn.Linear(24, 8)
            self.head = nn.Linear(8, 30, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, x):
            h = self.embed(x)
            return self.head(h + self.b(torch.relu(self.a(h))))

    torch.manual_seed(0)
    model, x = Tied(), torch.randint(0, 30, (50, 6))
    weight = model.embed.weight.detach().clone()
    fg.compress_(model, fg.SubsetPruning(keep=0.5, measure=False), x, where=["a"])
    assert model.a.out_features == 12
    assert model.head.weight is model.embed.weight
    assert torch.equal(model.embed.weight, weight)
    fg.compress_(model, fg.MagnitudePruning(keep=0.5, compensate=None, measure=False), x, where=["b"])
    assert model.embed.weight.shape == (30, 4)
    assert model.head.weight is model.embed.weight


def test_layers_stay_without_bias_where_their_owner_would_lose_it():
    torch.manual_seed(0)

    class Owner(nn.Sequential):
        def save_pretrained(self, path): ...

    for kind, gains in ((nn.Sequential, True), (Owner, False)):
        model = kind(nn.Linear(6, 20, bias=False), nn.ReLU(), nn.Linear(20, 3, bias=False))
        x = torch.randn(80, 6)
        y = model(x).detach()
        plain = copy.deepcopy(model)
        fg.compress_(plain, MAGNITUDE, x)
        report = fg.compress_(model, fg.MagnitudePruning(keep=0.5, measure=False), x)
        assert (model[2].bias is not None) == gains == ("gains a bias" in str(report))
        assert error(model, x, y) < error(plain, x, y)


def test_layers_whose_weights_a_mask_computes_stay():
    torch.manual_seed(0)
    model = nn.Sequential(*fg.models.mlp([6, 20, 20, 20, 3]))
    nn.utils.prune.random_unstructured(model[2], "weight", 0.5)
    y, x = None, torch.randn(50, 6)
    y = model(x).detach()
    fg.compress_(model, fg.SubsetPruning(keep=0.5, measure=False), x)
    assert [model[i].out_features for i in (0, 2, 4)] == [20, 20, 10]
    assert error(model, x, y) < 0.5
    with pytest.raises(ValueError, match=r"none of 0 has units that another layer reads"):
        fg.compress_(model, MAGNITUDE, x, where=["0"])


def test_what_cannot_be_copied_is_one_line():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    model.lock = (i for i in ())  # nobody can copy a generator
    with pytest.raises(ValueError, match=r"this model cannot be copied: [^\n]*$"):
        fg.compress_(model, MAGNITUDE, torch.randn(9, 4))


class Chaotic(nn.Module):
    """Rounding grows by 30 a step: in float32 no two ways to add up agree."""

    def __init__(self, counts=False):
        super().__init__()
        self.a, self.b, self.counts = nn.Linear(6, 64), nn.Linear(64, 3), counts

    def forward(self, x):
        h = self.a(x).tanh()
        y = self.b(h / h.shape[1] if self.counts else h)
        for _ in range(5):
            y = (30 * y).sin()
        return y


@pytest.mark.parametrize("counts", [False, True])
def test_rounding_that_grows_is_no_difference(counts):
    torch.manual_seed(0)
    model, x = Chaotic(counts).eval(), torch.randn(40, 6)
    if counts:
        with pytest.raises(ValueError, match="reorders or mixes"):
            fg.compress_(model, MAGNITUDE, x, where=["a"])
    else:
        fg.compress_(model, MAGNITUDE, x, where=["a"])
        assert model.a.out_features == 32
