"""Growth by topology against a brute-force look at every path, and what soft sampling draws."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import filigree as fg
from filigree.dynamics import link_prediction, rewire
from filigree.dynamics.link_prediction import ch2_l3, ch3_l3


def brute_force(connected):
    """Both scores of each missing pair, from the definitions: a community, its links inside, those that leave it."""
    outs, ins = connected.shape
    by_path, by_unit = np.zeros((outs, ins)), np.zeros((outs, ins))
    links = {("out", u): {("in", v) for v in range(ins) if connected[u, v]} for u in range(outs)}
    links |= {("in", v): {("out", u) for u in range(outs) if connected[u, v]} for v in range(ins)}
    for u, v in itertools.product(range(outs), range(ins)):
        if connected[u, v]:
            continue
        source, target = ("out", u), ("in", v)
        paths = [(z1, z2) for z1 in links[source] for z2 in links[z1] if target in links[z2]]
        community = {z for path in paths for z in path}
        inside = {z: len(links[z] & community) for z in community}
        outside = {z: len(links[z] - community - {source, target}) for z in community}
        by_path[u, v] = sum(((1 + outside[z1]) * (1 + outside[z2])) ** -0.5 for z1, z2 in paths)
        by_unit[u, v] = sum((1 + inside[z]) / (1 + outside[z]) for z in community)
    return by_path, by_unit


def dense(blocks, shape):
    scores = np.zeros(shape[0] * shape[1])
    for flat_indices, values in blocks:
        assert not scores[flat_indices].any()
        scores[flat_indices] = values
    return scores.reshape(shape)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.floats(0, 1), st.integers(0, 99), st.sampled_from([1, 7, 10**6]))
def test_scores_are_those_of_the_definition(outs, ins, density, seed, block):
    connected = np.random.default_rng(seed).random((outs, ins)) < density
    flat_indices = torch.from_numpy(np.flatnonzero(connected))
    before, link_prediction._BLOCK = link_prediction._BLOCK, block
    try:
        by_path, by_unit = (dense(score(flat_indices, outs, ins), (outs, ins)) for score in (ch3_l3, ch2_l3))
    finally:
        link_prediction._BLOCK = before
    for scores, truth in zip((by_path, by_unit), brute_force(connected), strict=True):
        np.testing.assert_allclose(scores, truth, rtol=1e-12)


def layer_of(connected, seed=0):
    flat_indices = torch.from_numpy(np.flatnonzero(connected))
    return fg.nn.SparseLinear(connected.shape[1], connected.shape[0], flat_indices=flat_indices, seed=seed)


@pytest.mark.parametrize("grow", ["cht3", "cht2"])
@pytest.mark.parametrize("masked", [False, True])
def test_the_highest_scores_of_what_remains_grow(grow, masked):
    connected = np.random.default_rng(3).random((14, 11)) < 0.25
    model = nn.Sequential(layer_of(connected))
    if masked:
        model = nn.Sequential(fg.nn.MaskedLinear(model[0]))
    fg.Evolution(model, None, 0.3, grow=grow).step()
    now = np.zeros(connected.size, dtype=bool)
    now[model[0].flat_indices().numpy()] = True
    grown = model[0].flat_indices()[model[0].weights() == 0].numpy()
    now[grown] = False
    scores = brute_force(now.reshape(connected.shape))[grow == "cht2"].flatten()
    scores[now] = -1
    assert len(grown) == connected.sum() - now.sum()
    np.testing.assert_allclose(np.sort(scores[grown]), np.sort(scores)[-len(grown) :], rtol=1e-12)
    assert scores[grown].min() < scores.max()


def test_a_rest_that_no_path_reaches_is_random():
    """A single connection leads nowhere: whatever grows beside it is drawn, all places alike."""
    grown = np.zeros(12)
    kept = torch.tensor([5])
    for seed in range(600):
        blocks = ch3_l3(kept, 3, 4)
        generator = torch.Generator().manual_seed(seed)
        grown[rewire.scored_growth(kept, blocks, 12, 3, generator).numpy()] += 1
    assert grown[5] == 0
    assert abs(grown[grown > 0] - 600 * 3 / 11).max() < 45  # more than 4 standard deviations


def test_of_equal_scores_chance_decides():
    blocks = [(np.arange(i, 30, 3), np.ones(10)) for i in range(3)]
    seen = np.zeros(30)
    for seed in range(300):
        generator = torch.Generator().manual_seed(seed)
        seen[rewire.scored_growth(torch.empty(0, dtype=torch.int64), blocks, 40, 6, generator).numpy()] += 1
    assert seen.sum() == 1800
    assert abs(seen - 60).max() < 30


def test_soft_growth_is_multinomial():
    scores, seen, expected = np.array([1.0, 2.0, 3.0, 6.0]), np.zeros(4), np.zeros(4)
    for seed in range(2000):
        generator = torch.Generator().manual_seed(seed)
        kept = torch.empty(0, dtype=torch.int64)
        seen[rewire.scored_growth(kept, [(np.arange(4), scores)], 9, 2, generator, soft=True).numpy()] += 1
        expected[torch.multinomial(torch.from_numpy(scores), 2, generator=generator).numpy()] += 1
    assert abs(seen - expected).max() < 130
    gradients = torch.from_numpy(scores)
    seeds = [torch.Generator().manual_seed(seed) for seed in range(600)]
    drawn = [int(rewire.largest_growth(kept, [(0, gradients)], 1, generator)) for generator in seeds]
    assert abs(np.bincount(drawn, minlength=4) / 600 - scores / 12).max() < 0.08


def test_soft_removal_keeps_by_a_power_of_the_weights():
    weights = torch.tensor([0.0, 1.0, -2.0, 3.0])
    kept = np.zeros(4)
    for seed in range(2000):
        keep = rewire.soft_survivors(weights, 2 / 3, 2.0, torch.Generator().manual_seed(seed))
        assert int(keep.sum()) == 1
        kept += keep.numpy()
    assert abs(kept / 2000 - np.array([0, 1, 4, 9]) / 14).max() < 0.05
    assert rewire.soft_survivors(weights, 0.0, 1.0, torch.Generator()).tolist() == [False, True, True, True]


def test_the_presets():
    model = fg.models.mlp([20, 30, 10])
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.2)))
    cht, chts = fg.CHT(model, None, epochs=4), fg.CHTs(model, None, 0.2, epochs=4)
    assert (cht.grow, cht.soft, cht.schedule) == ("cht3", None, fg.Constant(0.3))
    assert (chts.grow, chts.soft, chts.schedule) == ("cht2", (1.0, 3.0), fg.CosineDecay(0.2, 1.0))
    before = [layer.nnz for layer in chts.layers.values()]
    for _ in range(4):
        chts.step()
    assert [layer.nnz for layer in chts.layers.values()] == before
    with pytest.raises(ValueError, match="soft needs the horizon"):
        fg.Evolution(model, None, 0.3, soft=(1, 3)).step()
    with pytest.raises(ValueError, match="soft must be two exponents above 0"):
        fg.Evolution(model, None, 0.3, soft=(0, 3))
