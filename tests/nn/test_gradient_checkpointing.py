"""What is computed again under gradient checkpointing is what was computed: methods are found, not listed."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import filigree as fg
from contract import convert_or_skip
from filigree.convert import Conversion
from filigree.nn.step_memory import StepMemory

CONFIGS = [
    *(pair for kind in Conversion.by_kind().values() for pair in kind.examples().items()),
    ("nn.Dropout", None),  # the control
    ("PartitionDropout, elements", fg.PartitionDropout(3, per="element")),
    ("PartitionDropout, connect", fg.PartitionDropout(3, connect=True)),
    ("GuidedDropout, top", fg.GuidedDropout("top")),
    ("OnlinePaths, independent", fg.OnlinePaths(20, "independent", rescale=False)),
    ("Asymmetric, random", fg.Asymmetric(fg.RandomK(3), fg.RandomK(3), fg.RandomK(2))),
    ("NoisyHardTanh", "noise"),
]


def network(name):
    torch.manual_seed(0)
    if name == "flat":
        return nn.Sequential(
            nn.Linear(8, 16), nn.Tanh(), nn.Dropout(0.3), nn.Linear(16, 16), nn.ReLU(), nn.Dropout(0.3),
            nn.Linear(16, 4),
        ), torch.randn(6, 8)  # fmt: skip
    if name == "images":
        return nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Dropout2d(0.3), nn.Conv2d(4, 4, 3, stride=2, bias=False),
            nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(36, 4),
        ), torch.randn(6, 2, 8, 8)  # fmt: skip
    return nn.Sequential(Outputs(), nn.Dropout(0.3), nn.Linear(4, 4)), torch.randn(3, 5, 8)


class Outputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(8, 4, batch_first=True)

    def forward(self, x):
        return self.rnn(x)[0]


def whole(model, x, reentrant):
    return checkpoint(model, x, use_reentrant=reentrant)


def pieces(model, x, reentrant):
    """Each module is a part of its own: a layer and the dropout behind it are computed again one after the other."""
    return checkpoint_sequential(model, len(model), x, use_reentrant=reentrant)


def twice(model, x, reentrant):
    """Two passes over the same input, as for consistency losses, whose backward passes come after both."""
    return sum(number * (whole(model, x, reentrant) if reentrant is not None else model(x)) for number in (1, 3))


def trained(model, x, run, reentrant, steps=3):
    """Losses and gradients of some steps of training, and what the random numbers go on with."""
    model, seen = copy.deepcopy(model).train(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.manual_seed(1)
    for _ in range(steps):
        inputs = x.clone().requires_grad_()
        y = model(inputs) if run is None else run(model, inputs, reentrant)
        loss = (y - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        seen += [loss.detach(), inputs.grad, *(p.grad.clone() for p in model.parameters() if p.grad is not None)]
        optimizer.step()
    state = [value for value in model.state_dict().values() if isinstance(value, torch.Tensor)]
    return [*seen, *state, torch.rand(3)]


def converted(label, config, name):
    model, x = network(name)
    if config == "noise":
        if name != "flat":
            pytest.skip("one network is enough")
        model[1], model[4] = fg.nn.NoisyHardTanh(), fg.nn.NoisyReLU()
    elif config is not None:
        convert_or_skip(model, config)
    return model, x


@pytest.mark.parametrize(
    "name", ["flat", "images", pytest.param("recurrent", marks=pytest.mark.long("gates draw anew in each call"))]
)
@pytest.mark.parametrize(("label", "config"), [pytest.param(*pair, id=pair[0]) for pair in CONFIGS])
def test_losses_and_gradients_are_those_without_checkpoints(label, config, name):
    model, x = converted(label, config, name)
    plain, both = trained(model, x, None, None), trained(model, x, twice, None)
    for reentrant in (True, False):
        for run, expected in ((whole, plain), (pieces, plain), (twice, both)):
            result = trained(model, x, run, reentrant)
            for value, truth in zip(result, expected, strict=True):
                assert torch.allclose(value, truth, 1e-5, 1e-6), (run.__name__, reentrant)  # sums in another order


def test_a_step_is_taken_once_and_no_call_is_kept_after_the_next():
    torch.manual_seed(0)
    dropout = fg.nn.PartitionedDropout(5)
    x = torch.ones(2, 30, requires_grad=True)
    for step in range(1, 4):
        y = checkpoint(dropout, x, use_reentrant=False)
        y.square().sum().backward()
        assert int(dropout.step) == step
        assert len(dropout.memory._chosen) == 1
    for _ in range(StepMemory.limit + 9):
        checkpoint(dropout, x, use_reentrant=False)  # never differentiated
    assert len(dropout.memory._chosen) == StepMemory.limit
    dropout = fg.nn.PartitionedDropout(5)
    dropout(x).sum().backward()
    assert not dropout.memory._chosen  # no checkpoint, nothing remembered


def test_what_cannot_be_repeated_is_refused():
    dropout = fg.nn.PartitionedDropout(5)
    x = torch.ones(2, 30, requires_grad=True)
    y = checkpoint(lambda x: dropout(x).square(), x, use_reentrant=False, preserve_rng_state=False)
    step = int(dropout.step)
    with pytest.raises(RuntimeError, match=r"PartitionedDropout: .*preserve_rng_state=True.* Got a new one\."):
        y.sum().backward()
    assert int(dropout.step) == step


def test_copies_have_calls_of_their_own():
    dropout = fg.nn.PartitionedDropout(5)
    checkpoint(dropout, torch.ones(2, 30, requires_grad=True), use_reentrant=False)
    for other in (copy.deepcopy(dropout), pickle.loads(pickle.dumps(dropout))):
        assert torch.equal(other.partition, dropout.partition)
        assert not other.memory._chosen
