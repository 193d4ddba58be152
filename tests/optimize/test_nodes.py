"""Operations between two layers: each is part of one call, and equals torch."""

import einops.layers.torch
import pytest
import torch
from einops import rearrange, reduce, repeat
from torch import nn
from torch.nn import functional as F

import filigree as fg
from filigree.optimize.graphs import graph_of, plans_of
from filigree.optimize.int8_errors import Int8Errors
from filigree.optimize.tracing import Traced


class Between(nn.Module):
    """Two layers and a function of the model and the numbers between them."""

    def __init__(self, first, function, last):
        super().__init__()
        self.first, self.function, self.last = first, function, last
        self.p, self.q = nn.Parameter(torch.rand(20, 1, 1) + 1), nn.Parameter(torch.randn(48))
        self.map, self.tokens = nn.Parameter(torch.randn(1, 20, 7, 8)), nn.Parameter(torch.rand(7, 48) + 1)
        self.token, self.bias = nn.Parameter(torch.randn(1, 1, 48)), nn.Parameter(torch.randn(3, 7, 7))
        self.register_buffer("seen", torch.rand(7, 7).add(torch.eye(7)) > 0.5)
        self.weight, self.pixels = nn.Parameter(torch.randn(20, 5, 3, 3)), nn.Parameter(torch.randn(20, 20))

    def forward(self, x):
        return self.last(self.function(self, self.first(x)))


def graph_of_plans(model, x):
    """What a model computes, as calls of plans."""
    traced = Traced(model.eval(), [x[:2]])
    plans = plans_of(traced, set(), Int8Errors(traced, 0))
    graph = graph_of(traced, plans, chunk=2)
    for batch in (1, 2, len(x)):
        torch.testing.assert_close(graph(x[:batch]), model(x[:batch]), rtol=1e-4, atol=1e-5)
    return traced, plans, graph


def is_taken_whole(model, x):
    with torch.no_grad():
        _, plans, graph = graph_of_plans(model, x)
    assert len(plans) == 1
    assert len([node for node in graph.graph.nodes if node.op.startswith("call")]) == 1


POOLS = [
    nn.AvgPool2d(3, 1, 1), nn.AvgPool2d(3, 2, 1, count_include_pad=False), nn.AvgPool2d(2, 2, ceil_mode=True),
    nn.AvgPool2d(3, 2, 1, ceil_mode=True),
    nn.AvgPool2d((3, 2), (2, 1), (1, 1), ceil_mode=True, count_include_pad=False),
    nn.AvgPool2d(2, divisor_override=3), nn.AvgPool2d(3, 2, 1, divisor_override=-2), nn.AvgPool2d(1),
    nn.AdaptiveAvgPool2d((3, 4)), nn.AdaptiveAvgPool2d((None, 1)), nn.AdaptiveAvgPool2d(9), nn.AdaptiveAvgPool2d(1),
]  # fmt: skip


@pytest.mark.parametrize("sizes", [(7, 8), (6, 5)])
@pytest.mark.parametrize("pool", POOLS, ids=str)
def test_means_over_windows(isa, pool, sizes):
    is_taken_whole(nn.Sequential(nn.Conv2d(3, 20, 3, padding=1), pool, nn.Conv2d(20, 4, 1)), torch.randn(5, 3, *sizes))


OF_IMAGES = {
    "adaptive, by function": lambda m, y: F.adaptive_avg_pool2d(y, (2, 3)) + F.avg_pool2d(y, (3, 3), 2, 0)[:, :, :2],
    "a number first": lambda m, y: 0 + 2 * y,
    "a parameter first": lambda m, y: m.p * (m.p + y),
    "zero plus, in place": lambda m, y: sum([y, F.relu(y), -y]),
    "a difference": lambda m, y: F.relu(y) - y,
    "a difference from a gate": lambda m, y: y - y.mean((2, 3), keepdim=True),
    "negative": lambda m, y: torch.neg(F.relu(y)),
    "a product with a factor that is computed": lambda m, y: (m.p * 2 + 1) * y - m.p,
    "a convolution by function": lambda m, y: F.relu(F.conv2d(y, m.weight, None, 1, "same", groups=4)),
    "one with a weight that is computed": lambda m, y: F.conv2d(y, m.weight / m.weight.norm(), stride=2, groups=4),
    "a constant for each pixel": lambda m, y: (y + m.map) * m.map[:, :1] - m.map[0, 3],
    "a linear layer by function": lambda m, y: F.linear(y.movedim(1, -1), m.pixels, m.p[:, 0, 0]).movedim(-1, 1),
}


@pytest.mark.parametrize("name", OF_IMAGES)
def test_images(isa, name):
    model = Between(nn.Conv2d(3, 20, 3, padding=1), OF_IMAGES[name], nn.Conv2d(20, 4, 1))
    is_taken_whole(model, torch.randn(5, 3, 7, 8))


OF_TOKENS = {
    "a scale": lambda m, y: m.q * y,
    "a scale and a shift, read twice": lambda m, y: (y * m.q - m.q) + y,
    "a number": lambda m, y: 1 + F.layer_norm(y, (48,)) / 2,
    "negative": lambda m, y: -F.gelu(y),
    "a difference": lambda m, y: y - F.gelu(y),
    "a constant for each token and channel": lambda m, y: (y + m.tokens) * m.tokens - m.tokens / (y + m.tokens).size(1),
    "a quotient by one": lambda m, y: y / m.tokens[:, :1] + m.tokens,
    "a sum that begins with a token": lambda m, y: m.token.expand(y.size(0), 7, -1) + y,
    "a token before them": lambda m, y: torch.cat([m.token.expand(y.shape[0], -1, -1), y], dim=1)[:, :3],
    "tokens after them": lambda m, y: torch.cat([y, F.gelu(y), m.token.expand(y.size(0), 2, -1) * 2], -2),
    "windows side by side": lambda m, y: torch.cat([y.unflatten(1, (1, 7)), y[:, :, None].transpose(1, 2)], 2),
    "their mean": lambda m, y: F.gelu(y).mean(1),
    "padded": lambda m, y: F.pad(F.pad(F.gelu(y), (0, 0, 0, 0)) + y, (0, 0, 1, 2)),
    "the mean of windows": lambda m, y: y * y[:, :6].unflatten(1, (2, 3)).mean((1, 2), keepdim=True)[:, 0],
    "a copy": lambda m, y: y.clone().to(torch.float32).relu_() + y,
}


def heads(y, count=3):
    return y.unflatten(-1, (count, -1)).transpose(1, 2)


def joined(y):
    return y.transpose(-3, -2).flatten(-2)


ATTENTION = {
    "plain": lambda m, y: joined(F.scaled_dot_product_attention(*[heads(y)] * 3)),
    "causal": lambda m, y: joined(F.scaled_dot_product_attention(*[heads(y)] * 3, is_causal=True)),
    "a mask": lambda m, y: joined(F.scaled_dot_product_attention(*[heads(y)] * 3, m.seen)),
    "a bias by head": lambda m, y: joined(F.scaled_dot_product_attention(*[heads(y)] * 3, m.bias, scale=0.4)),
    "other keys": lambda m, y: joined(F.scaled_dot_product_attention(heads(y), *[heads(F.gelu(y[:, :4]))] * 2)),
    "narrow values": lambda m, y: joined(F.scaled_dot_product_attention(*[heads(y)] * 2, heads(y[..., :21]))),
    "heads of twelve": lambda m, y: joined(F.scaled_dot_product_attention(*[heads(y, 4)] * 3)),
    "one head": lambda m, y: F.scaled_dot_product_attention(y, y, y),
    "windows": lambda m, y: joined(
        F.scaled_dot_product_attention(*[y[:, :6].reshape(-1, 2, 3, 3, 16).transpose(2, 3)] * 3, m.seen[:3, :3])
    ).flatten(1, 2),
    "heads between the numbers": lambda m, y: F.scaled_dot_product_attention(
        *[y.unflatten(-1, (16, 3)).permute(0, 3, 1, 2)] * 3
    ).permute(0, 2, 3, 1).flatten(2),
}  # fmt: skip


@pytest.mark.parametrize("name", ATTENTION)
def test_attention_between_layers(isa, name):
    width = 21 if name == "narrow values" else 48
    is_taken_whole(Between(nn.Linear(6, 48), ATTENTION[name], nn.Linear(width, 4)), torch.randn(5, 7, 6))


def matmul(q, k, v, change, after=lambda w: w):
    return joined(after(change(q @ k.transpose(-2, -1)).softmax(-1)) @ v)


WRITTEN = {
    "plain": lambda m, y: matmul(heads(y), heads(y), heads(F.gelu(y)), lambda s: s),
    "a scale": lambda m, y: matmul(*[heads(y)] * 3, lambda s: s / 16**0.5, lambda w: F.dropout(w, 0.3, training=False)),
    "scaled queries": lambda m, y: matmul(heads(y) * 0.2, *[heads(y)] * 2, lambda s: s * torch.tensor(0.7)),
    "a bias": lambda m, y: matmul(*[heads(y)] * 3, lambda s: (s + m.bias) * 2 - m.bias[0]),
    "filled": lambda m, y: matmul(
        *[heads(y)] * 3, lambda s: (s * 0.25).masked_fill(~m.seen, torch.finfo(s.dtype).min), lambda w: w.to(y.dtype)
    ),
    "filled in place": lambda m, y: matmul(*[heads(y)] * 3, lambda s: s.mul_(2).masked_fill_(m.seen == 0, -torch.inf)),
    "where": lambda m, y: matmul(*[heads(y)] * 3, lambda s: torch.where(m.seen[: s.size(-2)], s / 3, -1e9)),
    "causal": lambda m, y: matmul(
        *[heads(y)] * 3, lambda s: s + torch.full((y.size(1), y.size(1)), -torch.inf).triu(1)
    ),
    "torch.softmax of one head": lambda m, y: torch.softmax(torch.bmm(y, y.mT) / 7, 2).bmm(y),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITTEN)
def test_attention_that_is_written_out(isa, name):
    is_taken_whole(Between(nn.Linear(6, 48), WRITTEN[name], nn.Linear(48, 4)), torch.randn(5, 7, 6))


NO_ATTENTION = {
    "over queries": lambda m, y: (y @ y.mT).softmax(1) @ y,
    "weights read twice": lambda m, y: (lambda w: w @ y + w.mean())((y @ y.mT).softmax(-1)),
    "scores read twice": lambda m, y: (lambda s: s.softmax(-1) @ y + s.mean())(y @ y.mT),
    "a small fill": lambda m, y: (y @ y.mT).masked_fill(~m.seen, -3.0).softmax(-1) @ y,
    "a row without keys": lambda m, y: (y @ y.mT).masked_fill(m.seen | True, -1e9).softmax(-1) @ y,
    "a scale that depends on the sample": lambda m, y: ((y @ y.mT) * y.mean((1, 2), keepdim=True)).softmax(-1) @ y,
    "weights of weights": lambda m, y: (lambda w: w @ w)((y @ y.mT).softmax(-1)) @ y,
    "a curve between": lambda m, y: (y @ y.mT).tanh().softmax(-1) @ y,
}


@pytest.mark.parametrize("name", NO_ATTENTION)
def test_what_is_like_attention_stays_what_it_is(name):
    with torch.no_grad():
        traced, *_ = graph_of_plans(
            Between(nn.Linear(6, 48), NO_ATTENTION[name], nn.Linear(48, 4)), torch.randn(5, 7, 6)
        )
    assert F.scaled_dot_product_attention not in [node.target for node in traced.graph.nodes]


def drawn(layer):
    """The layer, a batch norm with statistics of its own."""
    if isinstance(layer, nn.BatchNorm1d):
        layer.running_mean.normal_(), layer.running_var.uniform_(1, 2)
    return layer


def windows(y):
    """`(batch, 8, 48)` as `(2 batch, 4, 48)`."""
    return y.view(-1, 4, 48)


def shifted(m, y):
    """Attention within windows, each with a mask of its own, as hierarchical transformers write it out."""
    q, k, v = m.qkv(windows(torch.roll(y, -1, 1))).reshape(-1, 4, 3, 3, 16).permute(2, 0, 3, 1, 4)
    scores = (q * 0.25) @ k.transpose(-2, -1) + m.bias[:, :4, :4]
    mask = y.new_zeros((2, 4, 4))
    mask[1, :2, 2:], mask[1, 2:, :2] = -100.0, -100.0
    scores = scores.view(-1, 2, 3, 4, 4) + mask.unsqueeze(1).unsqueeze(0)
    return joined(scores.view(-1, 3, 4, 4).softmax(-1) @ v).view(y.shape).roll(1, dims=1)


ROWS = {
    "layers of windows": lambda m, y: F.layer_norm(m.linear(F.gelu(windows(y)) * m.q + 1), (48,)),
    "sums of windows": lambda m, y: windows(y) - F.relu(windows(y) + m.tokens[:4]),
    "windows and back": lambda m, y: (windows(y) * m.q).view(y.size(0), 8, 48) + y,
    "pieces of windows": lambda m, y: windows(y).split(2, dim=1)[1] + sum(windows(y).chunk(2, 1)),
    "attention within windows": lambda m, y: joined(F.scaled_dot_product_attention(*[heads(windows(y))] * 3)),
    "windows of q, k and v": lambda m, y: joined(
        F.scaled_dot_product_attention(*m.qkv(windows(y)).view(-1, 4, 3, 3, 16).permute(2, 0, 3, 1, 4).unbind(0))
    ).view_as(y),
    "windows one after another": lambda m, y: torch.cat([windows(y), F.relu(windows(y)), windows(y)], dim=1)[:, 2:6],
    "shifted windows": shifted,
    "a norm of all tokens": lambda m, y: m.norm(y.flatten(0, 1)).reshape_as(y),
    "rows that are not put together again": lambda m, y: y.flatten(0, 1),
    "a mask for each window": lambda m, y: joined(
        F.scaled_dot_product_attention(*[heads(windows(y))] * 3, m.bias[:2, None, :4, :4].repeat(y.size(0), 1, 1, 1))
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_several_rows_a_sample(isa, name):
    model = Between(nn.Linear(6, 48), ROWS[name], nn.Linear(48, 4))
    model.qkv, model.linear, model.norm = nn.Linear(48, 144), nn.Linear(48, 48), drawn(nn.BatchNorm1d(48))
    is_taken_whole(model, torch.randn(5, 8, 6))


OTHER_ROWS = {
    "a slope for each": nn.PReLU(4), "a norm of what lies along the second dimension": nn.BatchNorm1d(4),
    "a convolution": nn.Conv1d(4, 4, 3, padding=1), "a pool": nn.MaxPool1d(3, 1, 1), "a flattened one": nn.Flatten(),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHER_ROWS)
def test_layers_with_channels_of_several_rows_a_sample_run_as_before(name):
    class Model(Between):
        def forward(self, x):
            return self.last(self.function(windows(self.first(x))).reshape(x.size(0), 8, 48))

    model = Model(nn.Linear(6, 48), drawn(OTHER_ROWS[name]), nn.Linear(48, 4))
    with torch.no_grad():
        graph_of_plans(model, torch.randn(5, 8, 6))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("value", [0, 1])
def test_first_states_of_zeros(isa, kind, value):
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.last = kind(6, 20, 2, batch_first=True), nn.Linear(20, 4)

        def forward(self, x):
            states = torch.full((2, x.size(0), 20), float(value)).to(x.device)
            y, _ = self.rnn(x, (states, torch.zeros_like(states)) if kind is nn.LSTM else states)
            return self.last(self.rnn(x, None)[0][:, 0] + y[:, -1])

    with torch.no_grad():
        traced, plans, _ = graph_of_plans(Recurrent(), torch.randn(5, 7, 6))
    taken = [node for plan in plans for node in plan.nodes if type(traced.module_of(node)) is kind]
    assert len(taken) == 2 - value


class Patches(nn.Module):
    """Attention of pixels in patches, in einops' words."""

    def __init__(self, pooled):
        super().__init__()
        self.first = nn.Sequential(einops.layers.torch.Rearrange("b c (h p) (w q) -> b (h w) (p q c)", p=2, q=2))
        self.project, self.last = nn.Linear(12, 48), nn.Linear(16, 4)
        self.token, self.pooled = nn.Parameter(torch.randn(1, 1, 48)), pooled

    def forward(self, x):
        y = self.project(self.first(x))
        y = torch.cat([repeat(self.token, "1 1 d -> b 1 d", b=y.shape[0]), y], dim=1)
        q, k, v = (rearrange(part, "b n (h d) -> b h n d", h=4) for part in torch.cat([y, y, y], 1).chunk(3, 1))
        return self.last(self.pooled(rearrange(F.scaled_dot_product_attention(q, k, v), "b h n d -> b n (d h)")))


def test_changes_of_shape_in_einops_words(isa):
    is_taken_whole(Patches(lambda y: repeat(y[..., :8], "b n d -> b n (d r)", r=2)), torch.randn(5, 3, 6, 4))


@pytest.mark.parametrize("kind", ["max", "sum", "mean"])
def test_einops_reductions_stay_what_they_are(kind):
    narrow = einops.layers.torch.Rearrange("b n (d r) -> b (n r) d", d=16)
    layer = nn.Sequential(narrow, einops.layers.torch.Reduce("b n d -> b d", kind))
    for pooled in (lambda y: reduce(y[..., :16], "b n d -> b d", kind), layer):
        with torch.no_grad():
            graph_of_plans(Patches(pooled), torch.randn(5, 3, 6, 4))


def test_the_report_names_layers_that_are_called_by_function():
    class Head(nn.Linear):
        def forward(self, x):
            return F.linear(x, self.weight, self.bias)

    model = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Sequential(Head(64, 32)), nn.ReLU(), Head(32, 4)).eval()
    report = fg.optimize_(model, torch.randn(4, 6), seconds=0.001)
    assert [layer.name for layer in report.layers] == ["0", "2.0", "4"]
    assert "Linear(64, 32)" in str(report)
