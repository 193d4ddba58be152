"""Against networkx on small graphs, planted laws, and values known by hand."""

import math

import networkx as nx
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from networkx.algorithms import bipartite

import filigree as fg
from filigree.topology import science


def random_pattern(rows, cols, nnz, seed=0):
    anything = sp.csr_array((np.ones(nnz), (np.arange(nnz) % rows, np.arange(nnz) // rows)), shape=(rows, cols))
    return science._null(anything, np.random.default_rng(seed))


def to_networkx(pattern):
    return bipartite.from_biadjacency_matrix(pattern.tocsr())


@pytest.mark.parametrize("seed", range(4))
def test_clustering_equals_networkx(seed):
    pattern = random_pattern(15, 12, 60, seed)
    expected = bipartite.robins_alexander_clustering(to_networkx(pattern))
    assert science.clustering(pattern, block=4) == pytest.approx(expected)


def test_clustering_of_known_graphs():
    assert science.clustering(sp.csr_array(np.ones((4, 5)))) == 1
    assert math.isnan(science.clustering(sp.csr_array(np.ones((1, 5)))))  # a star has no path of three edges
    assert math.isnan(science.clustering(sp.csr_array((3, 5))))


def test_path_length_equals_networkx():
    layers = [random_pattern(9, 11, 40), random_pattern(7, 9, 30)]
    whole = nx.from_scipy_sparse_array(science.graph(layers))
    lengths = dict(nx.all_pairs_shortest_path_length(whole))
    distances = [d for source, row in lengths.items() for target, d in row.items() if target != source]
    mean, apart = science.mean_path_length(layers, sources=100)
    assert mean == pytest.approx(np.mean(distances))
    n = whole.number_of_nodes()
    assert apart == pytest.approx(1 - len(distances) / (n * (n - 1)))


def test_path_length_of_a_complete_layer():
    mean, apart = science.mean_path_length([sp.csr_array(np.ones((3, 3)))])
    assert mean == pytest.approx((9 * 2 * 1 + 2 * 3 * 2 * 2) / 30)
    assert apart == 0


def test_a_planted_power_law_is_found():
    generator = np.random.default_rng(0)
    numbers = generator.zipf(2.5, 5000)
    numbers = numbers[numbers < 300]  # the few giants make the likelihood ratio's own spread huge
    law = science.power_law_fit(numbers)
    assert law.alpha == pytest.approx(2.5, abs=0.1)
    assert law.against_null > 0
    assert law.p < 0.05
    poisson = science.power_law_fit(generator.poisson(20, 5000), xmin=1)
    assert poisson.against_null < 0
    assert poisson.p < 1e-3


def test_power_law_of_nothing():
    for numbers in ([], [0, 0], [3, 3, 3, 3], list(range(5))):
        assert math.isnan(science.power_law_fit(numbers).alpha)


def test_survival_by_hand():
    # ages 1 (died), 2 (censored), 2 (died), 3 (censored): S(1) = 3/4, S(2) = 3/4 * (1 - 1/3)
    ages, share = science.survival_curve(np.array([0, 1, 0, 0]), np.array([1, -1, 2, -1]), 3)
    assert ages.tolist() == [1, 2]
    assert share == pytest.approx([0.75, 0.5])


def test_input_strength_ranks_features():
    pattern = sp.csr_array(np.array([[0.0, -3.0, 1.0], [0.5, 0.0, -1.0]]))
    assert science.input_strength(pattern).tolist() == [0.5, 3.0, 2.0]
    assert science.rank_features(pattern).tolist() == [1, 2, 0]


def test_random_is_random_and_structure_is_not():
    random = science.analyze([random_pattern(60, 50, 400)], nulls=20).layers[0]
    assert abs(random.clustering.z) < 4
    assert abs(random.fan_out_deviation.z) < 4
    blocks = sp.csr_array(np.kron(np.eye(6), np.ones((10, 8))))
    structured = science.analyze([blocks], nulls=20).layers[0]
    assert structured.clustering.value == 1
    assert structured.clustering.z > 20
    assert structured.small_world > 1.5


def test_analyze_a_model_and_its_survival():
    model = fg.models.mlp([20, 30, 30, 4])
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.2)), where=["fc1", "fc2"])
    evolution = fg.Evolution(model, None, 0.3, regrow="initial")
    [evolution.step() for _ in range(5)]
    report = fg.analyze(model, nulls=3)
    assert [layer.name for layer in report.layers] == ["fc1", "fc2"]
    assert report.network.nodes == 80
    assert "fc1" in str(report)
    assert report.to_dict()["layers"][0]["connections"] == 120
    ages, share = fg.connection_survival(evolution, "fc1")
    assert ages[0] == 1
    assert 0 < share[-1] < share[0] < 1
    assert sorted(fg.feature_ranking(model)) == list(range(20))
    with pytest.raises(ValueError, match="no sparse layers"):
        fg.analyze(fg.models.mlp([3, 4]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_networks_of_16_bits_are_analysed(dtype):
    model = fg.models.mlp([6, 8, 4])
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.5)))
    ranking = fg.feature_ranking(model.to(dtype).float())
    assert (fg.feature_ranking(model.to(dtype)) == ranking).all()
    assert "fc1" in str(fg.analyze(model, nulls=1))
