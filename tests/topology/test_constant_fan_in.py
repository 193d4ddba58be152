import pytest
import torch

import filigree as fg
from filigree.topology import Size


@pytest.mark.parametrize(("rows", "cols", "k"), [(50, 1000, 20), (300, 21, 20), (7, 40, 15), (5, 9, 1), (0, 9, 3)])
def test_every_unit_has_as_many_distinct_inputs(rows, cols, k):
    (flat_indices,) = fg.ConstantFanIn(k).draw([Size(rows, cols)], torch.Generator().manual_seed(1))
    assert flat_indices.numel() == rows * k
    assert bool((flat_indices.diff() > 0).all())
    assert torch.equal(flat_indices // cols, torch.arange(rows).repeat_interleave(k))


def test_all_inputs_are_equally_likely():
    (flat_indices,) = fg.ConstantFanIn(3).draw([Size(20_000, 10)], torch.Generator().manual_seed(1))
    assert (flat_indices % 10).bincount(minlength=10).float().div(20_000).sub(0.3).abs().max() < 0.015


def test_few_inputs_stay_dense_and_bad_input():
    model = fg.models.mlp([784, 100, 100, 10])
    fg.convert_(model, fg.Sparse(fg.ConstantFanIn(100)))
    assert model.fc1.nnz == 100 * 100
    assert model.fc2.weight.shape == (100, 100)
    with pytest.raises(ValueError, match="connections"):
        fg.ConstantFanIn(0)
