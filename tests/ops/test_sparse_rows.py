"""Sparse samples: what layers, sequences and training make of them equals what they make of the same samples dense."""

import numpy as np
import pytest
import scipy.sparse
import torch
from torch import nn

import filigree as fg
from filigree.ops.sparse_rows import sparse_rows, taken

X = scipy.sparse.random(60, 400, 0.02, "csr", random_state=0, dtype=np.float32)
X = scipy.sparse.vstack([X[:7], scipy.sparse.csr_matrix((1, 400), dtype=np.float32), X[8:]], "csr")  # one has none
Y = torch.arange(60) % 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("density", [0.05, 1.0])
def test_a_layer_of_sparse_samples_equals_that_of_dense_ones(dtype, relu, density):
    layer = fg.nn.SparseLinear(400, 50, fg.ErdosRenyi(density=density), relu=relu, dtype=dtype)
    nn.init.normal_(layer.bias)
    dense = torch.from_numpy(X.toarray())
    results = []
    for x in (sparse_rows(X, dtype), dense.to(dtype)):
        layer.zero_grad()
        y = layer(x)
        (y * torch.linspace(-1, 1, 50, dtype=dtype)).square().sum().backward()
        results.append([y.detach(), layer.values.grad, layer.bias.grad])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    unseen = ~torch.isin(layer.indices, torch.from_numpy(X.indices).unique())
    if density < 1:
        assert unseen.any()
        assert not results[0][1][unseen].any()  # features that no sample has
    with pytest.raises(ValueError, match="last side must be in_features=400"):
        layer(sparse_rows(X[:, :9]))


def test_rows_are_taken_by_number_and_by_slice():
    x = sparse_rows(X)
    rows = torch.tensor([7, 3, 3, 59])
    assert np.array_equal(taken(x, rows).to_dense().numpy(), X.toarray()[rows])
    for part in (slice(5, 9), slice(50, 99), slice(60, 70)):
        assert np.array_equal(taken(x, part).to_dense().numpy(), X.toarray()[part])


def test_training_on_sparse_samples_equals_training_on_dense_ones():
    """Also of a network whose first layer is dense; nothing is made dense on the way."""
    for sparse in (True, False):
        rows = []
        for x in (X, torch.from_numpy(X.toarray())):
            torch.manual_seed(0)
            model = fg.models.mlp([400, 30, 3])
            fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.2)), where="fc1" if sparse else "fc2")
            optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
            evolution = fg.SET(model, optimizer)
            history = fg.fit(
                model, (x, Y), optimizer=optimizer, epochs=4, batch_size=16, test=(x, Y), callbacks=evolution
            )
            rows.append([row["test_loss"] for row in history] + [fg.evaluate(model, (x, Y))["loss"]])
        np.testing.assert_allclose(rows[0], rows[1], rtol=1e-4)
        assert rows[0][-1] < rows[0][0]


def test_the_callers_matrix_is_left_as_it_is():
    """Of unsorted columns, with duplicates, or not to be written to."""
    ends, columns = np.array([0, 3, 4]), np.array([4, 1, 1, 0])
    x = scipy.sparse.csr_matrix((np.array([1, 2, 3, 4], np.float32), columns, ends), (2, 5))
    expected = [[0, 5, 0, 0, 1], [4, 0, 0, 0, 0]]
    for writable in (True, False):
        for part in (x.data, x.indices, x.indptr):
            part.flags.writeable = writable
        before = [part.copy() for part in (x.data, x.indices, x.indptr)]
        assert sparse_rows(x).to_dense().tolist() == expected
        for part, was in zip((x.data, x.indices, x.indptr), before, strict=True):
            assert np.array_equal(part, was)
    own = X.copy()
    assert sparse_rows(own).values().data_ptr() == own.data.ctypes.data  # no copy where none is needed
    own.data.flags.writeable = False
    sparse_rows(own).values().zero_()
    assert own.data.any()


@pytest.mark.parametrize("kind", [np.float64, np.int64])
def test_matrices_of_scipy_take_the_type_of_the_network(kind):
    x = (X * 10).astype(kind)
    model = fg.models.mlp([400, 9, 3])
    dense = torch.from_numpy(x.toarray()).float()
    losses = [fg.evaluate(model, (data, Y))["loss"] for data in (x, x.tocoo(), dense)]
    assert losses[0] == pytest.approx(losses[2], rel=1e-5)
    assert losses[0] == losses[1]
    fg.fit(model, (x, Y), optimizer=torch.optim.SGD(model.parameters(), 0.01), epochs=1, validation=(x, Y))


def test_what_cannot_read_sparse_samples_says_so_in_a_line():
    x = sparse_rows(X)
    plain = nn.Linear(400, 3)
    asymmetric = fg.models.mlp([400, 9, 3])
    fg.convert_(asymmetric, fg.Asymmetric.topk(5))
    for model, data, message in (
        (
            plain,
            (x.to_dense().to_sparse_coo(), Y),
            r"x must be dense or CSR: x\.to_sparse_csr\(\)\. Got torch.sparse_coo",
        ),
        (plain, (x.to_dense().to_sparse_csc(), Y), "Got torch.sparse_csc"),
        (plain, (x, Y.float().unsqueeze(1).to_sparse()), "y must be dense"),
        (asymmetric, (x, Y), r"fc1 \(AsymmetricLinear\): x must be dense"),
        (nn.Sequential(nn.LayerNorm(400), plain), (x, Y), "x must be dense.* does not read CSR"),
    ):
        with pytest.raises(TypeError, match=message) as raised:
            fg.fit(model, data, optimizer=torch.optim.SGD(model.parameters(), 0.1), epochs=1)
        assert "\n" not in str(raised.value)
    assert fg.evaluate(asymmetric, (x, Y))["loss"] > 0  # exact there


def test_sparse_samples_that_are_not_finite_are_refused():
    bad = X.copy()
    bad.data[3] = np.nan
    with pytest.raises(ValueError, match=r"data: x must be finite\. 1 of"):
        fg.evaluate(nn.Linear(400, 3), (bad, Y))
