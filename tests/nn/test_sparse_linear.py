import copy

import pytest
import torch
from torch import nn

import filigree as fg
from contract import check_gradgrad, check_layer
from filigree.nn import MaskedLinear, SparseLinear


def layer(relu=False, bias=True, dtype=torch.float32, flat_indices=None):
    made = SparseLinear(23, 11, fg.ErdosRenyi(density=0.3), bias, relu, seed=3, flat_indices=flat_indices, dtype=dtype)
    if bias:
        nn.init.normal_(made.bias)
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_equals_its_dense_reference(relu, bias, dtype):
    check_layer(layer(relu, bias, dtype), 23)


@pytest.mark.parametrize("relu", [False, True])
def test_masked_equals_its_dense_reference(relu):
    check_layer(MaskedLinear(layer(relu)), 23, [0, 1, 5])


@pytest.mark.parametrize("bias", [False, True])
def test_gradcheck(bias):
    check_gradgrad(layer(bias=bias), 23)
    check_gradgrad(layer(relu=True, bias=bias), 23)


def test_emptied_rows_and_columns():
    flat_indices = torch.tensor([0, 1, 5 * 23 + 22, 10 * 23 + 7])
    check_layer(layer(flat_indices=flat_indices), 23, [0, 1, 16])
    check_layer(layer(flat_indices=flat_indices[:0]), 23, [0, 1, 16])


def test_more_dimensions():
    made, x = layer(), torch.randn(2, 3, 5, 23)
    torch.testing.assert_close(made(x), made.dense()(x))
    assert made(torch.randn(23)).shape == (11,)


def test_output_is_feature_major_and_stays_so():
    made = layer()
    assert made(torch.randn(8, 23)).stride() == (1, 8)
    assert torch.dropout(made(torch.randn(8, 23)), 0.5, True).stride() == (1, 8)


def test_from_dense_keeps_the_weights():
    linear = nn.Linear(7, 5)
    mask = torch.rand(5, 7) < 0.4
    sparse = SparseLinear.from_dense(linear, mask)
    assert torch.equal(sparse.dense().weight, linear.weight * mask)
    assert torch.equal(sparse.dense().bias, linear.bias)
    with pytest.raises(ValueError, match=r"mask must have the weight's shape \(5, 7\)"):
        SparseLinear.from_dense(linear, mask.t())


def test_initial_scale_follows_the_real_fan_in():
    made = SparseLinear(4000, 500, fg.ErdosRenyi(density=0.05))
    fan_in = made.indptr.diff()
    scaled = made.values * fan_in.float().sqrt().repeat_interleave(fan_in.long())
    assert abs(scaled.std().item() - 2**0.5) < 0.02


def test_state_dict_holds_the_topology():
    one, other = layer(), SparseLinear(23, 11, fg.ErdosRenyi(density=0.7), seed=9)
    parameter = other.values
    other.load_state_dict(one.state_dict())
    x = torch.randn(4, 23)
    assert torch.equal(one(x), other(x))
    assert other.values is parameter  # an optimizer made before still holds it
    y = other(x)
    y.sum().backward()
    assert other.values.grad.shape == (one.nnz,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["indices"].__setitem__(0, 99), "indices must lie in"),
        (lambda s: s["indices"].__setitem__(0, -1), "indices must lie in"),
        (lambda s: s["indptr"].__setitem__(3, 10_000), "indptr must rise"),
        (lambda s: s["indptr"].__setitem__(-1, 3), "indptr must rise"),
        (lambda s: s["indices"].copy_(s["indices"].flip(0)), "sorted and distinct"),
        (lambda s: s.__setitem__("values", s["values"][:-1]), "one number a connection"),
        (lambda s: s.__setitem__("indptr", s["indptr"][:-1]), "expected shapes"),
        (lambda s: s.__setitem__("indices", s["indices"].float()), "int32 or both int64"),
    ],
)
def test_a_hostile_topology_is_refused(change, message):
    made = layer()
    state = {key: value.clone() for key, value in made.state_dict().items()}
    change(state)
    with pytest.raises(ValueError, match=message):
        made.load_state_dict(state)


def test_copies_and_moves():
    made, x = layer(), torch.randn(4, 23)
    dense_reference = copy.deepcopy(made)
    assert torch.equal(dense_reference(x), made(x))
    assert dense_reference.pattern.indices.data_ptr() != made.pattern.indices.data_ptr()
    assert copy.deepcopy(made).double()(x.double()).dtype == torch.float64
    assert made.to("meta")(torch.empty(4, 23, device="meta")).shape == (4, 11)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"in_features=23. Got \(4, 22\)"):
        layer()(torch.randn(4, 22))
    with pytest.raises(TypeError, match=r"must be torch\.float32"):
        layer()(torch.randn(4, 23).double())
    with pytest.raises(ValueError, match="out_features must be at least 1"):
        SparseLinear(3, 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    made = layer(relu=True).to(dtype)
    x = torch.randn(4, 23).to(dtype).requires_grad_()
    y = made(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y, made.float()(x.float()).to(dtype))
    y.sum().backward()
    assert x.grad.dtype == dtype


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_compiles_in_a_model():
    model = nn.Sequential(nn.Linear(5, 23), layer(relu=True), nn.Linear(11, 2))
    x = torch.randn(4, 5)
    expected = model(x)
    expected.sum().backward()
    gradient = model[1].values.grad.clone()
    model.zero_grad()
    got = torch.compile(model, backend="aot_eager", fullgraph=True)(x)
    got.sum().backward()
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(model[1].values.grad, gradient)


def test_extra_repr():
    assert "in_features=23, out_features=11, nnz=76, density=0.3004, bias=True" in repr(layer())
