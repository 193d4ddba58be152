"""A whole training step at batch 128: ours, dense torch and the peers in turns, results checked first."""

import pytest
import torch
from networks import SIZES, best_peer, densified, ours, peers, step_of
from torch.nn import functional as F

from filigree.measure.timing import time_interleaved

# at least so many times faster than dense: the foundation's goal, the performance goal
GOALS = {"3 x 1000": (4, 7), "4000-1000-4000": (7, 11), "4 x 4000": (15, 28)}
GOAL_PEER = 3  # times faster than the best peer


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", SIZES)
def test_training_step(name, suite, benchmark):
    sizes = SIZES[name]
    model = ours(sizes)
    dense = densified(model)
    x, y = torch.randn(128, sizes[0]), torch.randint(0, sizes[-1], (128,))
    contestants = {"filigree": model, "dense": dense, **peers(model)}
    expected, gradient = _answer(dense, x, y)
    for label, network in contestants.items():
        output, gradient_of_network = _answer(network, x, y)
        torch.testing.assert_close(output, expected, rtol=1e-3, atol=1e-4, msg=lambda m, s=label: f"{s}: {m}")
        torch.testing.assert_close(
            gradient_of_network, gradient, rtol=1e-3, atol=1e-5, msg=lambda m, s=label: f"{s}: {m}"
        )
    steps = [step_of(network, x, y) for network in contestants.values()]
    steps.append(step_of(densified(model), x, y, autocast=True))
    timings = dict(zip([*contestants, "dense, bf16 autocast"], time_interleaved(steps, seconds=4), strict=True))
    best = best_peer(timings)
    mine = timings["filigree"].median
    for label, t in timings.items():
        suite.add(
            network=name, contestant=label, ms=t.median, low=t.low, high=t.high,
            times_dense=timings["dense"].median / t.median,
            goals=GOALS[name] if label == "filigree" else None,
            times_best_peer=best / mine if label == "filigree" and best else None,
            goal_best_peer=GOAL_PEER if label == "filigree" else None,
        )  # fmt: skip
    benchmark.pedantic(steps[0], rounds=20, warmup_rounds=3)


def _answer(network, x, y):
    """The output, and the gradient of the last bias: it has seen all of the forward pass, and exact targets."""
    network.zero_grad()
    out = network(x)
    F.cross_entropy(out, y).backward()
    first = next(p for p in reversed(list(network.parameters())) if p.dim() == 2)
    gradient = first.grad.clone()
    network.zero_grad()
    return out.detach(), gradient
