import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from filigree.dynamics.rewire import gradient_growth, random_growth, survivors
from filigree.topology.flat_indices import distinct, empty_flat_indices, merge

weights = st.lists(st.sampled_from([-2.0, -1.0, -0.5, -0.1, 0.0, 0.1, 0.3, 1.0, 5.0]), max_size=40)


@given(weights, st.floats(0, 1))
def test_removed_are_the_smallest_of_each_sign_and_all_zeros(values, zeta):
    w = torch.tensor(values)
    keep = survivors(w, zeta)
    assert not bool(keep[w == 0].any())
    for sign in (w > 0, w < 0):
        kept, gone = w[sign & keep].abs(), w[sign & ~keep].abs()
        assert gone.numel() == round(zeta * int(sign.sum()))
        if kept.numel() and gone.numel():
            assert gone.max() <= kept.min()


def test_ties_go_by_lower_place():
    assert survivors(torch.ones(4), 0.5).tolist() == [False, False, True, True]


@given(st.integers(0, 60), st.data())
def test_empty_places_are_empty_distinct_and_sorted(population, data):
    taken = data.draw(st.integers(0, population))
    count = data.draw(st.integers(0, population - taken))
    generator = torch.Generator().manual_seed(0)
    occupied = distinct(population, taken, generator)
    flat_indices = empty_flat_indices(occupied, population, count, generator)
    assert flat_indices.numel() == count
    assert bool((flat_indices.diff() > 0).all())
    assert not set(flat_indices.tolist()) & set(occupied.tolist())
    assert all(0 <= p < population for p in flat_indices.tolist())


def test_empty_places_are_uniform():
    generator, counts = torch.Generator().manual_seed(0), torch.zeros(10)
    for _ in range(4000):
        counts[empty_flat_indices(torch.tensor([0, 3, 4, 9]), 10, 3, generator)] += 1
    free = counts[[1, 2, 5, 6, 7, 8]] / 4000
    assert (free - 0.5).abs().max() < 0.04  # 5 standard deviations
    assert counts[[0, 3, 4, 9]].sum() == 0


def test_distinct_is_uniform_at_any_density():
    for population, count in [(20, 3), (20, 12), (20, 18)]:
        generator, counts = torch.Generator().manual_seed(1), torch.zeros(population)
        for _ in range(3000):
            counts[distinct(population, count, generator)] += 1
        assert (counts / 3000 - count / population).abs().max() < 0.05


def test_merge_says_where_each_came_from():
    flat_indices, source = merge(torch.tensor([2, 5, 9]), torch.tensor([0, 6, 7]))
    assert flat_indices.tolist() == [0, 2, 5, 6, 7, 9]
    assert source.tolist() == [-1, 0, 1, -1, -1, 2]


def test_random_growth_beyond_32_bits():
    kept = distinct(10**12, 1000, torch.Generator().manual_seed(0))
    assert int(random_growth(kept, 10**12, 1000, torch.Generator().manual_seed(1)).max()) > 2**32


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 60), st.integers(0, 99))
def test_gradient_growth_equals_the_dense_choice(n_in, n_out, block, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(5, n_in, generator=generator, dtype=torch.float64)
    dy = torch.randn(5, n_out, generator=generator, dtype=torch.float64)
    kept = distinct(n_in * n_out, n_in * n_out // 2, generator)
    count = (n_in * n_out - kept.numel()) // 2
    dense = (dy.t() @ x).abs().flatten()
    dense[kept] = -1
    expected = dense.topk(count).indices.sort().values
    assert torch.equal(gradient_growth(kept, x, dy, count, block), expected)
