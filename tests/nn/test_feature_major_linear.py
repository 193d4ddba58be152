import pytest
import torch

import filigree as fg
from filigree.nn import FeatureMajorLinear


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_its_dense_reference(bias, dtype):
    layer = FeatureMajorLinear(23, 11, bias, dtype=dtype)
    dense_reference = layer.dense()
    for batch in (0, 1, 2, 17):
        x = torch.randn(23, batch, dtype=layer.weight.dtype).t().requires_grad_()
        torch.testing.assert_close(layer(x), dense_reference(x))
        dy = torch.randn(batch, 11, dtype=layer.weight.dtype)
        mine = torch.autograd.grad(layer(x), [x, *layer.parameters()], dy)
        its = torch.autograd.grad(dense_reference(x), [x, *dense_reference.parameters()], dy)
        for a, b in zip(mine, its, strict=True):
            torch.testing.assert_close(a, b)
    assert layer(torch.randn(2, 3, 23, dtype=layer.weight.dtype)).shape == (2, 3, 11)


def test_shares_the_parameters_of_the_layer_that_it_replaces():
    model = fg.models.mlp([9, 8, 3])
    weight = model.fc2.weight
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(epsilon=3)))
    assert isinstance(model.fc2, FeatureMajorLinear)
    assert model.fc2.weight is weight
