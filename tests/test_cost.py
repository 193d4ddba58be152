import functools
import itertools

import pytest
import torch
from torch import nn

import filigree as fg
from filigree.measure import timing
from filigree.measure.cost import macs


def test_counts_of_a_sparse_network():
    model = fg.models.mlp([784, 1000, 1000, 1000, 10])
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(epsilon=20)))
    cost = fg.measure(model, torch.randn(4, 784), torch.zeros(4, dtype=torch.long), seconds=0.01)
    connections = 35_680 + 40_000 + 40_000 + 10_000
    assert cost.parameters == 128_690
    assert cost.macs_forward == connections
    assert cost.macs_backward == 2 * connections - 35_680  # the input needs no gradient
    assert cost.nonzeros == connections + 10  # sparse biases begin at zero
    assert all((cost.batch_ms, cost.single_ms, cost.train_step_ms))
    assert "MACs forward     125,680 a sample" in str(cost)


def test_counts_of_a_dense_and_a_masked_network():
    model = fg.models.mlp([20, 30, 5])
    cost = fg.measure(model, torch.randn(3, 20), seconds=0.01)
    assert (cost.parameters, cost.nonzeros) == (785, 785)
    assert (cost.macs_forward, cost.macs_backward) == (750, 750 + 150)
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.5), masked=True), where="fc1")
    assert fg.measure(model).nonzeros == 300 + 150 + 5  # new biases are zero, the head's are not
    assert fg.measure(model).parameters == 785
    convolution = fg.measure(fg.models.lenet5(), torch.randn(2, 1, 28, 28), seconds=0.01)
    assert convolution.macs_forward == 28 * 28 * 6 * 25 + 100 * 16 * 150 + 400 * 120 + 120 * 84 + 840


def test_all_outputs_are_counted():
    """Whatever holds them: a dict, with a tuple and what is no tensor in it."""

    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.a, self.b = nn.Linear(20, 30), nn.Linear(30, 5), nn.Linear(30, 2)

        def forward(self, x):
            y = self.body(x)
            return {"logits": self.a(y), "more": (self.b(y), None), "labels": y.argmax(-1)}

    x, y = torch.randn(3, 20), torch.zeros(3, dtype=torch.long)
    cost = fg.measure(Heads(), x, seconds=0.01)
    assert (cost.macs_forward, cost.macs_backward) == (600 + 150 + 60, 600 + 2 * (150 + 60))
    with pytest.raises(ValueError, match=r"with target=, the model must return logits. Got a dict"):
        fg.measure(Heads(), x, y, seconds=0.01)


def test_attention_and_frozen_networks_are_counted():
    """With torch's attention on the CPU, as the products that it stands for; nothing is trained of a frozen network."""
    x = torch.randn(2, 16, 32)
    block = nn.MultiheadAttention(32, 4, batch_first=True)

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = block

        def forward(self, x):
            return self.block(x, x, x, need_weights=False)[0]

    projections, products = 4 * 16 * 32 * 32, 2 * 16 * 16 * 32
    cost = fg.measure(Attention(), x, seconds=0)
    assert cost.macs_forward == projections + products
    assert cost.macs_backward == 2 * projections - 3 * 16 * 32 * 32 + 5 * 16 * 16 * 32  # x needs no gradient
    mlp = fg.models.mlp([20, 30, 5]).requires_grad_(False)
    cost = fg.measure(mlp, torch.randn(3, 20), seconds=0)
    assert (cost.macs_forward, cost.macs_backward) == (750, None)


@pytest.mark.parametrize(
    ("model", "example"),
    [
        (nn.Linear(3, 4), torch.randn(2, 5)),
        (nn.Linear(3, 4), torch.tensor(1.0)),
        (nn.Bilinear(4, 5, 6), torch.ones(2, 4)),
    ],
)
def test_an_example_on_which_the_model_does_not_run_is_refused(model, example):
    for seconds in (0, 0.01):
        with pytest.raises(ValueError, match=r"measure: the model does not run on samples"):
            fg.measure(model, example, seconds=seconds)


def test_medians_and_tenths_of_calls_in_turns(monkeypatch):
    """By a clock that only the calls move: ten blocks of each, the second call twice as slow as the first."""
    clock = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(timing.time, "sleep", lambda seconds: None)
    order, numbers = [], itertools.count()

    def call(name, milliseconds):
        order.append(name)
        clock[0] += 1e-3 * milliseconds * (1 + next(numbers) % 3)  # 1, 2 and 3 times as long

    works = [functools.partial(call, "first", 5), functools.partial(call, "second", 10)]
    first, second = timing.time_interleaved(works, seconds=0.0, least=9)
    assert (first.low, first.median, first.high) == pytest.approx((5, 10, 15))
    assert (second.low, second.median, second.high) == pytest.approx((10, 20, 30))
    assert order[4:] == ["first", "first", "second", "second"] * 9  # one call that is not timed, then one that is


@pytest.mark.parametrize(("seconds", "blocks"), [(0.0, 5), (2.0, 10)])
def test_what_is_far_slower_is_timed_once(monkeypatch, seconds, blocks):
    """By a clock that only the calls move; calls of 20 ms and more have none before them that is not timed."""
    clock, order = [0.0], []
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(timing.time, "sleep", lambda seconds: None)

    def call(name, milliseconds):
        order.append(name)
        clock[0] += 1e-3 * milliseconds

    works = [functools.partial(call, name, ms) for name, ms in (("slow", 301), ("fast", 100), ("slower", 290))]
    times = [each.median for each in timing.time_interleaved(works, seconds, beyond=3.0)]
    assert times == pytest.approx([301, 100, 290])
    assert order.count("slow") == 3
    assert order.count("slower") == order.count("fast") == 2 + blocks


def test_without_seconds_only_what_can_be_counted():
    cost = fg.measure(fg.models.mlp([20, 30, 5]), torch.randn(3, 20), seconds=0)
    assert (cost.macs_forward, cost.batch_ms, cost.single_ms) == (750, None, None)


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    fg.measure(model, torch.randn(5, 4), torch.zeros(5, dtype=torch.long), seconds=0.01)
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("convert", [None, fg.Noisy(), fg.Mollified(), fg.Asymmetric.topk(2)])
def test_recurrent_networks_are_counted(convert):
    """Each weight once for each position: 5 positions x (8 + 16) x 64, whatever the gates."""
    model = nn.Sequential(nn.LSTM(8, 16))
    if convert is not None:
        fg.convert_(model, convert)
    found = fg.measure(model, torch.randn(5, 8).unsqueeze(1))  # (time, batch, features): "a sample" is a time step here
    assert found.macs_forward == 24 * 64


def test_sparse_recurrent_networks_are_counted():
    sparse = nn.Sequential(nn.LSTM(8, 16))
    fg.convert_(sparse, fg.Sparse(fg.ErdosRenyi(density=0.3)))
    products = sparse[0].products.values()
    assert fg.measure(sparse, torch.randn(1, 1, 8)).macs_forward == sum(product.nnz for product in products)


@pytest.mark.parametrize("structure", ["diagonal", "band", "block"])
def test_structured_layers_count_themselves_once(structure):
    layer = fg.nn.ACDCLinear(48, 48, structure=structure, width=3, bias=False, pad=False)
    width = {"diagonal": 1, "band": 3, "block": 3}[structure]
    assert layer.macs == 2 * width * 48 + 2 * 48 * 6  # A and D, and two transforms of 48 log2 48
    assert macs(nn.Sequential(layer), torch.randn(1, 48)) == (layer.macs, 2 * layer.macs)


def test_complex_parameters_are_timed():
    model = fg.models.mlp([64, 64, 10])
    fg.convert_(model, fg.AFDF(), where="fc1")
    assert fg.measure(model, torch.randn(8, 64), torch.randint(10, (8,)), seconds=0.01).train_step_ms.median > 0


@pytest.mark.parametrize("wrap", [lambda model: torch.compile(model, backend="eager"), nn.DataParallel])
def test_a_wrapped_model_is_measured_as_the_one_inside(wrap, recwarn):
    model, x = fg.models.mlp([8, 16, 3]), torch.randn(4, 8)
    wrapped = wrap(model)
    cost, plain = (fg.measure(of, x, torch.tensor([0, 1, 2, 0]), seconds=0) for of in (wrapped, model))
    assert cost == plain
    assert fg.measure(wrapped, x, seconds=0.01).batch_ms is not None
    assert not list(recwarn)
