"""What `optimize_` lays out does what the model did: for every batch, with all that it returns and keeps."""

import collections
import copy
import random
from collections import OrderedDict, deque, namedtuple

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize, prune

import filigree as fg
from filigree.laid_out import LaidOut, runtimes_of
from filigree.optimize import restore_
from filigree.optimize.graphs import graph_of, plans_of
from filigree.optimize.int8_errors import Int8Errors
from filigree.optimize.tracing import NotTraceable, Traced

pytestmark = pytest.mark.usefixtures("faster")


class Mixing(nn.Module):
    """A view that takes the samples of a batch apart."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(5 * 8, 4)

    def forward(self, x):
        return self.b(self.a(x).permute(1, 0, 2).reshape(x.shape[0], -1))


class Keeping(nn.Module):
    def __init__(self, keep):
        super().__init__()
        self.a, self.b, self.keep = nn.Linear(6, 8), nn.Linear(8, 4), keep
        self.seen, self.by_name, self.recent = [], {}, deque(maxlen=3)

    def forward(self, x):
        h = self.a(x)
        self.keep(self, h)
        return self.b(h)


class Returning(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.a, self.b, self.kind = nn.Linear(6, 8), nn.Linear(8, 4), kind

    def forward(self, x):
        return self.kind(self.b(self.a(x)))


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(6, 8)

    def forward(self, scale, x):
        return scale * self.a(x)


def equals_itself(model, x):
    """Optimised, it gives for batches of every size what it gave."""
    plain = copy.deepcopy(model)
    fg.optimize_(model, x)
    with torch.no_grad():
        for batch in (x, x[:1], torch.cat([x, x.flip(0)])):
            torch.testing.assert_close(model(batch), plain(batch), rtol=1e-4, atol=1e-5)
    return model


@pytest.mark.parametrize("view", [nn.Flatten(0), nn.Flatten(0, 1), nn.Flatten(-2), nn.Flatten(1)])
@pytest.mark.parametrize("shape", [(6,), (3, 6)])
def test_a_view_across_samples_is_left_to_torch(view, shape):
    equals_itself(nn.Sequential(nn.Linear(6, 8), view).eval(), torch.randn(5, *shape))


@pytest.mark.parametrize("batch", [1, 3])
def test_a_model_that_mixes_samples(batch):
    x = torch.randn(batch, 5, 6)
    Traced(Mixing().eval(), [x])  # its graph is known
    equals_itself(Mixing().eval(), x)


def test_layers_behind_what_mixes_samples_are_laid_out():
    class Centred(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Flatten(), nn.Linear(8, 4))

        def forward(self, x):
            return self.layers(x - x.mean(0, keepdim=True))

    model = equals_itself(Centred().eval(), torch.randn(5, 6))
    assert len(runtimes_of(model)) == 1


@pytest.mark.parametrize("between", [[], [nn.ReLU()], [nn.AvgPool2d(2)], [nn.ReLU(), nn.MaxPool2d(2)]])
def test_a_norm_of_all_numbers_of_an_image(between):
    head = [nn.Conv2d(3, 8, 3), *between, nn.Flatten()]
    width = nn.Sequential(*head)(torch.randn(1, 3, 8, 8)).shape[1]
    norm = nn.BatchNorm1d(width)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    equals_itself(nn.Sequential(*head, norm, nn.Linear(width, 5)).eval(), torch.randn(4, 3, 8, 8))


def test_a_norm_of_channels_that_were_shuffled():
    norm = nn.BatchNorm1d(8)
    norm.running_mean.normal_()
    norm.weight.data.normal_()
    layers = [nn.Conv2d(3, 8, 1), nn.ReLU(), nn.ChannelShuffle(2), nn.Flatten(), norm, nn.Linear(8, 5)]
    equals_itself(nn.Sequential(*layers).eval(), torch.randn(4, 3, 1, 1))


@pytest.mark.parametrize(("inputs", "shape"), [(0, (2, 0)), (6, (2, 0, 6))])
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_no_numbers(inputs, shape):
    fg.optimize_(nn.Sequential(nn.Linear(inputs, 4)).eval(), torch.zeros(shape))


def test_layers_that_are_called_with_plain_values_after_their_tensors():
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x, mask=None, twice=False, *, scale=1.0):
            y = F.relu(self.linear(x)) * scale
            y = y if mask is None else y * mask
            return y + y if twice else y

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([Layer(), Layer()])

        def forward(self, x):
            for layer in self.layers:
                x = layer(x, None, True, scale=0.5)
            return collections.UserList([x])  # has no graph

    model = Model().eval()
    plain, x = copy.deepcopy(model), torch.randn(3, 8)
    fg.optimize_(model, x)
    assert len(runtimes_of(model)) == 2
    fast, original = model.layers[0], plain.layers[0]
    runtimes_of(fast)[0].run = lambda x: pytest.fail("it computes another thing")
    others = [
        ((), {}), ((None, True), {}), ((None, False), {"scale": 0.5}), ((None, 1), {"scale": 0.5}),
        ((torch.ones(8), True), {"scale": 0.5}), ((None,), {"twice": True, "scale": 0.5}),
    ]  # fmt: skip
    with torch.no_grad():
        for args, named in others:
            torch.testing.assert_close(fast(x, *args, **named), original(x, *args, **named), rtol=0, atol=0)
        torch.testing.assert_close(model.layers[1](x, None, True, scale=0.5), plain.layers[1](x, None, True, scale=0.5))
        with pytest.raises(pytest.fail.Exception):
            fast(x, None, True, scale=0.5)


def test_token_ids_are_taken():
    model = nn.Sequential(nn.Embedding(20, 8), nn.Flatten(), nn.Linear(40, 16), nn.ReLU(), nn.Linear(16, 3))
    tokens = torch.randint(0, 20, (4, 5))
    equals_itself(model.eval(), tokens)
    (runtime,) = runtimes_of(model)
    with torch.no_grad():
        assert runtime.takes((tokens,), {})
        assert not runtime.takes((tokens.int(),), {})


@pytest.mark.parametrize("part", ["hooks", "training"])
def test_a_part_that_is_called_as_it_is_switches_nothing_off(part):
    model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.0), nn.Linear(8, 4), nn.Dropout(0.0)).eval()
    if part == "hooks":
        prune.l1_unstructured(model[0], "weight", 0.5)
        with torch.no_grad():
            model(torch.randn(3, 6))  # what the hook computes can be copied then
    else:
        model[1].train()
    equals_itself(model, torch.randn(3, 6))
    with torch.no_grad():
        assert runtimes_of(model)[0].takes((torch.randn(3, 6),), {})
        model[2].train()  # which changes nothing
        assert runtimes_of(model)[0].takes((torch.randn(3, 6),), {})
        model[3].train()
        assert not runtimes_of(model)[0].takes((torch.randn(3, 6),), {})
        model[3].eval()
        handle = model[2].register_forward_pre_hook(lambda module, args: None)
        assert not runtimes_of(model)[0].takes((torch.randn(3, 6),), {})
        handle.remove()
        assert runtimes_of(model)[0].takes((torch.randn(3, 6),), {})


def clear_and_append(model, h):
    model.seen.clear()
    model.seen.append(h)


@pytest.mark.parametrize(
    "keep",
    [
        lambda m, h: setattr(m, "last", h), lambda m, h: m.seen.append(h), clear_and_append,
        lambda m, h: m.by_name.update(h=h), lambda m, h: m.recent.append(h),
    ],
)  # fmt: skip
def test_what_a_model_keeps_is_of_the_present_batch(keep):
    model = equals_itself(Keeping(keep).eval(), torch.randn(3, 6))
    x = torch.randn(3, 6)
    with torch.no_grad():
        model(x)
        latest = [model.__dict__.get("last"), *model.seen[-1:], model.by_name.get("h"), *list(model.recent)[-1:]]
        (latest,) = (h for h in latest if h is not None)
        torch.testing.assert_close(latest, nn.functional.linear(x, model.a.weight, model.a.bias))


def test_what_draws_random_numbers_has_no_graph():
    model = Keeping(lambda m, h: h.add_(torch.randn(h.shape[-1]))).eval()
    with pytest.raises(NotTraceable):
        Traced(model, [torch.randn(3, 6)])
    drawn = Keeping(lambda m, h: torch.randn(8)).eval()
    with pytest.raises(NotTraceable, match="draws random numbers"):
        Traced(drawn, [torch.randn(3, 6)])


class InPlace(nn.Module):
    """Rectifies what a function made of the output of a layer."""

    def __init__(self, function):
        super().__init__()
        self.layer, self.same, self.function, self.last = nn.Linear(6, 8), nn.Identity(), function, nn.Linear(8, 4)

    def forward(self, x):
        h = self.layer(x)
        y = F.relu(self.function(self, h), inplace=True)
        return self.last(y + h)


@pytest.mark.parametrize("function", [lambda m, h: h * 2, lambda m, h: h - h.mean(1, keepdim=True)])
def test_what_is_changed_in_place_may_be_made_of_what_others_read(function):
    equals_itself(InPlace(function).eval(), torch.randn(3, 6))
    Traced(InPlace(function).eval(), [torch.randn(3, 6)])


@pytest.mark.parametrize("function", [lambda m, h: m.same(h), lambda m, h: h.view(-1, 8), lambda m, h: h[:, :8]])
def test_what_is_changed_in_place_may_not_share_memory_with_what_others_read(function):
    equals_itself(InPlace(function).eval(), torch.randn(3, 6))
    with pytest.raises(NotTraceable, match="changes a tensor in place"):
        Traced(InPlace(function).eval(), [torch.randn(3, 6)])


class Between(nn.Module):
    """Two layers and what a function makes of the numbers between them."""

    def __init__(self, function, first=None, last=None):
        super().__init__()
        self.a, self.b = first or nn.Linear(6, 8), last or nn.Linear(8, 4)
        self.function, self.p, self.scale = function, nn.Parameter(torch.rand(8) + 1), torch.ones(8)
        self.register_buffer("sums", torch.zeros(8))

    def forward(self, x):
        return self.b(self.function(self, self.a(x)))


def mask_of_large_ones(m, y):
    mask = torch.ones(8)
    mask *= (y.amax(0) < 1).float()
    return y * mask


def clamped_by_name(m, y):
    z = torch.flatten(input=y, start_dim=1)
    z.clamp_(-1, 1)
    return y


def halved(m, y):
    a, b = m.p, m.p / 2
    for _ in range(200):
        a, b = (a + b) * 0.5, (a - b) * 0.5
    return y * (a + 1)


ODD = {
    "a mask made in the forward": mask_of_large_ones,
    "a plain attribute": lambda m, y: y * m.scale,
    "a number as a tensor": lambda m, y: y * torch.tensor(float(m.scale[0])),
    "in place by a function": lambda m, y: (torch.clamp_(y, -1, 1), y)[1],
    "in place by out": lambda m, y: (torch.clamp(y, -1, 1, out=y), y)[1],
    "in place by name": clamped_by_name,
    "a power in place": lambda m, y: y.pow_(2),
    "a long constant": halved,
    "indices of tokens": lambda m, y: y[:, y.abs().sum(0).topk(8).indices],
    "an index by a size": lambda m, y: torch.cat([y, y], 1)[:, int(y.shape[1] // 2) :][:, :8],
    "an index by the batch": lambda m, y: torch.cat([y, 2 * y], 1)[:, y.shape[0] // 4 : 8 + y.shape[0] // 4],
    "a divisor with a zero": lambda m, y: (y / (m.p * torch.tensor([1.0] * 7 + [0.0]))).clamp(-1, 1),
}


@pytest.mark.filterwarnings("ignore:optimize_. the model's weights")
@pytest.mark.parametrize("name", ODD)
def test_odd_forwards_stay_what_they_are(name):
    plain = Between(ODD[name]).eval()
    model = copy.deepcopy(plain)
    fg.optimize_(model, torch.randn(1, 6) * 1e-3)
    with torch.no_grad():
        for batch, size in ((1, 1.0), (5, 30.0), (8, 1.0), (5, 1e-3)):
            x = torch.randn(batch, 6) * size
            torch.testing.assert_close(model(x), plain(x), rtol=1e-4, atol=1e-5)
        model.scale.fill_(3.0)
        plain.scale.fill_(3.0)
        torch.testing.assert_close(model(x), plain(x), rtol=1e-4, atol=1e-5)


def test_an_index_that_depends_on_numbers():
    class AtMost(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 4)

        def forward(self, x):
            y = self.a(x)
            return self.b(y[torch.zeros_like(x[:, 0], dtype=torch.long) + x.abs().sum(1).argmax()])

    equals_itself(AtMost().eval(), torch.randn(1, 6))
    model = AtMost().eval()
    plain = copy.deepcopy(model)
    fg.optimize_(model, torch.randn(1, 6))
    x = torch.randn(9, 6)
    with torch.no_grad():
        torch.testing.assert_close(model(x), plain(x))


@pytest.mark.parametrize(
    "function", [lambda m, y: y + 1e-3 * torch.randn_like(m.p), lambda m, y: y * (1 + 0.01 * random.random())]
)
def test_what_is_drawn_for_a_constant_is_drawn_anew(function):
    model, x = Between(function).eval(), torch.randn(3, 6)
    fg.optimize_(model, x, tolerance=0.1)
    with torch.no_grad():
        assert not torch.equal(model(x), model(x))


def test_what_nothing_reads_is_called_where_it_does_something():
    seen = []
    model = Between(lambda m, y: (m.probe(y), y)[1]).eval()
    model.probe = nn.Identity()
    model.probe.register_forward_hook(lambda module, args, y: seen.append(len(y)))
    fg.optimize_(model, torch.randn(3, 6))
    seen.clear()
    with torch.no_grad():
        model(torch.randn(5, 6))
    assert seen == [5]
    model = Between(lambda m, y: (torch._assert((y.abs() < 100).all(), "too large"), y)[1]).eval()
    fg.optimize_(model, torch.randn(3, 6))
    with torch.no_grad(), pytest.raises(AssertionError, match="too large"):
        model(torch.randn(3, 6) * 1e6)


@pytest.mark.parametrize("size", [[2], (2,)])
def test_sizes_of_pools_in_lists(size):
    conv = nn.Conv2d(3, 8, 3, padding=1)
    function = lambda m, y: F.avg_pool2d(F.avg_pool2d(y, size), 2, size)  # noqa: E731
    equals_itself(Between(function, conv, nn.Conv2d(8, 4, 1)).eval(), torch.randn(2, 3, 9, 8))
    model = Between(lambda m, y: nn.AvgPool2d((1, 2))(y), nn.Linear(6, 8), nn.Linear(4, 4)).eval()
    equals_itself(model, torch.randn(3, 5, 6))


def test_upsampling_by_factors_that_are_computed_anew():
    up = nn.Upsample(scale_factor=1.7, recompute_scale_factor=True)
    conv = nn.Conv2d(3, 8, 3, padding=1)
    equals_itself(Between(lambda m, y: up(y), conv, nn.Conv2d(8, 4, 1)).eval(), torch.randn(2, 3, 7, 7))


@pytest.mark.parametrize("part", [lambda y: y.chunk(2, 1)[1], lambda y: y[:, 8:]])
def test_rounding_to_bytes_goes_by_what_is_read(part):
    """The other half may be far larger, or no number."""
    torch.manual_seed(0)
    model = Between(lambda m, y: part(y), nn.Conv2d(3, 16, 1), nn.Conv2d(8, 32, 3)).eval()
    x = torch.randn(2, 3, 12, 12)
    with torch.no_grad():
        traced = Traced(model, [x])
        (plan,) = plans_of(traced, set(), Int8Errors(traced, 0.05))
        for draft in plan.drafts:
            draft.form = "int8" if "int8" in draft.forms and draft.outputs == 32 else draft.form
        graph = graph_of(traced, [plan], 1)
        expected = graph(x)
        model.a.weight[:8] *= 1e4
        traced = Traced(model, [x])
        (plan,) = plans_of(traced, set(), Int8Errors(traced, 0.05))
        for draft in plan.drafts:
            draft.form = "int8" if "int8" in draft.forms and draft.outputs == 32 else draft.form
        assert any(draft.form == "int8" for draft in plan.drafts)
        torch.testing.assert_close(graph_of(traced, [plan], 1)(x), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("count", [lambda m: m.calls.add_(1), lambda m: setattr(m, "calls", m.calls + 1)])
def test_what_counts_its_calls_has_no_graph(count):
    model = Keeping(lambda m, h: count(m)).eval()
    model.register_buffer("calls", torch.zeros(()))
    with pytest.raises(NotTraceable, match="keeps what it computes"):
        Traced(model, [torch.randn(3, 6)])
    fg.optimize_(model, torch.randn(3, 6))
    before = int(model.calls)
    with torch.no_grad():
        model(torch.randn(3, 6))
    assert int(model.calls) == before + 1


Pair = namedtuple("Pair", "one two")


@pytest.mark.parametrize(
    "kind", [lambda y: OrderedDict(y=y), lambda y: {"y": y}, lambda y: [y, (y, y)], lambda y: Pair(y, y), lambda y: y]
)
def test_outputs_stay_of_their_kind(kind):
    model, x = Returning(kind).eval(), torch.randn(3, 6)
    with torch.no_grad():
        before = model(x)
        fg.optimize_(model, x)
        assert type(model(x)) is type(before)


def test_an_input_without_dimensions():
    model, x = Scaled().eval(), torch.randn(3, 6)
    with pytest.raises(ValueError, match="first dimension of the first tensor"):
        fg.optimize_(model, (torch.tensor(2.0), x))


@pytest.mark.parametrize("change", ["data", "part"])
def test_new_memory_of_a_weight_is_noticed(change):
    model, x = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).eval(), torch.randn(3, 6)
    fg.optimize_(model, x)
    if change == "data":
        model[0].weight.data = torch.zeros(8, 6)
    else:
        model[0].half().float()
    with torch.no_grad(), pytest.warns(UserWarning, match="have changed since"):
        torch.testing.assert_close(model(x), nn.Sequential(*model)(x), rtol=0, atol=0)


def test_a_sparse_buffer_is_no_hindrance():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    model.register_buffer("graph", torch.eye(3).to_sparse())
    equals_itself(model, torch.randn(3, 6))
    assert len(runtimes_of(model)) == 1


def test_a_model_that_works_in_place_on_its_input_is_refused():
    class InPlace(nn.Module):
        def forward(self, x):
            return x.mul_(2)

    x = torch.ones(3, 6)
    with pytest.raises(ValueError, match="must leave its input as it is"):
        fg.optimize_(nn.Sequential(InPlace(), nn.Linear(6, 8)).eval(), x)
    assert torch.equal(x, torch.ones(3, 6))


def test_a_move_to_where_it_is_keeps_the_fast_form():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    fg.optimize_(model, torch.randn(3, 6))
    assert len(runtimes_of(model.to("cpu").float())) == 1
    assert runtimes_of(model.double()) == []


def test_other_verbs_see_the_layers_as_they_were():
    class Reading(nn.Module):  # its graph is not known, so that its layer is laid out alone
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(64, 64)

        def forward(self, x):
            y = self.layer(x)
            return y.relu_() + y

    x = torch.randn(40, 64)
    model = Reading().eval()
    fg.optimize_(model, x)
    assert isinstance(model.layer, LaidOut)
    fg.compress_(model, fg.OneShot(0.5), x, progress=False)
    assert isinstance(model.layer, fg.nn.SparseLinear)
    model = Reading().eval()
    fg.optimize_(model, x)
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.5)))
    assert isinstance(model.layer, fg.nn.SparseLinear)


def test_a_parametrisation_of_a_layer_that_was_laid_out():
    class Double(nn.Module):
        def forward(self, weight):
            return 2 * weight

    layer, x = nn.Linear(6, 8).eval(), torch.randn(3, 6)
    expected = 2 * nn.functional.linear(x, layer.weight) + layer.bias
    fg.optimize_(layer, x)
    parametrize.register_parametrization(layer, "weight", Double())
    assert restore_(layer)
    torch.testing.assert_close(layer(x), expected)
    parametrize.remove_parametrizations(layer, "weight")
    assert type(layer) is nn.Linear


@pytest.mark.parametrize(("option", "value"), [("floats", None), ("floats", [3]), ("seconds", 0), ("tolerance", "0.1")])
def test_a_bad_option(option, value):
    with pytest.raises((TypeError, ValueError), match=f"optimize_: {option} must be"):
        fg.optimize_(nn.Linear(6, 8).eval(), torch.randn(3, 6), **{option: value})


def in_halves(m, y):
    """Attention within halves of the tokens, with the first halves of all samples before the second ones."""
    w = torch.cat([y[:, :2], y[:, 2:]], 0)
    scores = (w @ w.mT).view(2, -1, 2, 2) + m.bias[:, None]
    return torch.cat((scores.view(-1, 2, 2).softmax(-1) @ w).chunk(2, 0), 1)


def squeezed(m, y):
    z = y.mean(1).squeeze()
    return y + (z.unsqueeze(0) if len(z.shape) == 1 else z)[:, None]


def of_some(m, y):
    z = y[:, y[0, :, 0] > 0]
    return y * z.shape[1] + torch.ones(z.shape[1]).sum()


TOKENS = {
    "halves of all samples": in_halves,
    "a number of dimensions": squeezed,
    "a size counted from the last": lambda m, y: y / y[:, 0].squeeze().shape[-1],
    "tokens of all samples": lambda m, y: F.scaled_dot_product_attention(*[y.flatten(0, 1)] * 3).view_as(y),
    "samples in pairs": lambda m, y: y + (torch.arange(y.size(0)) // 2).view(-1, 1, 1),
    "samples in eights": lambda m, y: F.pad(y, (0, 0, 0, 0, 0, -y.size(0) % 8))[: y.size(0)] * 2,
    "an input by name": lambda m, y: torch.softmax(input=y @ y.mT, dim=-1) @ y,
    "a vector as a weight": lambda m, y: F.linear(y, m.vector)[..., None] * y,
    "one query for all": lambda m, y: (y[:, :1] @ y.mT + m.square).softmax(-1) @ y,
    "as many as there are": of_some,
    "tables in a list": lambda m, y: y * m.tables[0],
    "the second of two samples": lambda m, y: y.roll(2, 0),
    "attention of attention": lambda m, y: (lambda z: (z @ z.mT).softmax(-1).contiguous() @ y)(
        (y @ y.mT).softmax(-1) @ y
    ),
}


@pytest.mark.filterwarnings("ignore:optimize_. the model's weights")
@pytest.mark.parametrize("hooked", [False, True])
@pytest.mark.parametrize("name", TOKENS)
def test_tokens_of_several_samples_where_the_example_has_one(name, hooked):
    class Model(Between):
        def __init__(self):
            super().__init__(TOKENS[name])
            self.bias, self.vector = nn.Parameter(torch.randn(2, 2, 2)), nn.Parameter(torch.randn(8))
            self.square, self.tables = nn.Parameter(torch.randn(4, 4)), [torch.rand(8) + 1]

    plain = Model().eval()
    model = copy.deepcopy(plain)
    for each in (model, plain) if hooked else ():
        next(each.children()).register_forward_hook(lambda *_: None)
    fg.optimize_(model, torch.randn(1, 4, 6))
    with torch.no_grad():
        for batch in (1, 2, 3, 5, 9):
            x = torch.randn(batch, 4, 6)
            torch.testing.assert_close(model(x), plain(x), rtol=1e-4, atol=1e-5)
        for each in (model, plain):
            each.tables[0].fill_(3.0)
        torch.testing.assert_close(model(x), plain(x), rtol=1e-4, atol=1e-5)


def test_a_tuple_before_the_sizes_of_a_view():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(6, 8)

        def forward(self, x):
            y = self.b(x)
            return self.a(x), y.reshape((-1,) + y.shape[2:])  # noqa: RUF005

    model = Model().eval()
    model.b.register_forward_hook(lambda *_: None)
    plain = copy.deepcopy(model)
    fg.optimize_(model, torch.randn(1, 4, 6))
    with torch.no_grad():
        x = torch.randn(5, 4, 6)
        torch.testing.assert_close(model(x), plain(x))


def test_a_loop_over_time_is_not_unrolled():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.last = nn.Linear(6, 6), nn.Linear(6, 4)

        def forward(self, x):
            h = x[:, 0]
            for t in range(x.shape[1]):
                h = torch.tanh(self.cell(h) + x[:, t])
            return self.last(h)

    model, x = Model().eval(), torch.randn(2, 100, 6)
    with pytest.raises(NotTraceable, match="more than 64 times"):
        Traced(model, [x])
    assert isinstance(equals_itself(model, x).last, LaidOut)
