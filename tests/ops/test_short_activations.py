"""Activations of 16 bits: read and written in bfloat16 or float16, everything else in float32."""

import copy

import pytest
import torch

from filigree.nn import SparseLinear
from filigree.ops import kernels, reference
from filigree.ops.chain import Link, chain_backward, chain_forward

TYPES = [torch.bfloat16, torch.float16]
both_types = pytest.mark.parametrize("dtype", TYPES)


def in_order(x, order):
    if order == "by feature":
        return x.t().contiguous().t()
    if order == "strided":
        return torch.stack([x, x], 2).flatten(1)[:, ::2]
    return x


def made(ins=37, outs=41, relu=True):
    layer = SparseLinear(ins, outs, relu=relu)
    with torch.no_grad():
        layer.bias.normal_()
    return layer


@both_types
@pytest.mark.parametrize("order", ["by sample", "by feature", "strided"])
@pytest.mark.parametrize("batch", [0, 1, 7, 64, 131, 300])
def test_equals_the_dense_reference(isa, dtype, order, batch):
    torch.manual_seed(batch)
    layer = made()
    pattern, values, bias = layer.pattern, layer.values.detach(), layer.bias.detach()
    x, dy = (in_order(torch.randn(batch, n).to(dtype), order) for n in (37, 41))
    link = Link(pattern, values, bias, True)
    for by_feature in (True, False):
        y, _ = chain_forward([link], x, by_feature)
        assert y.dtype is dtype
        torch.testing.assert_close(y, reference.linear(pattern, values, bias, x, True))
    dx, [(dvalues, dbias)] = chain_backward([link], x, None, y, dy, True, [True])
    expected = reference.linear_backward(pattern, values, x.t(), y, dy, True, True)
    assert [t.dtype for t in (dvalues, dbias, dx)] == [torch.float32, torch.float32, dtype]
    torch.testing.assert_close(dvalues, expected[0], atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(dbias, expected[1], atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(dx, expected[2])
    _, [(alone, _)] = chain_backward([link], x, None, y, dy, False, [True])
    torch.testing.assert_close(alone, dvalues, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("batch", [7, 64, 300])
def test_processors_with_and_without_products_of_pairs_agree(isa, batch):
    """To the rounding of sums; what is infinite or NaN is so in both."""
    torch.manual_seed(batch)
    layer, has = made(), kernels.multiplies_pairs()
    link = Link(layer.pattern, layer.values.detach(), None)
    x, dy = (torch.randn(batch, n).bfloat16().t().contiguous().t() for n in (37, 41))
    x[0, :2] = torch.tensor([torch.inf, torch.nan])
    results = []
    try:
        for on in (False, has):
            kernels.set_multiplies_pairs(on)
            results.append(chain_backward([link], x, None, None, dy, True, [True]))
            results.append(chain_backward([link], x, None, None, dy, False, [True]))
    finally:
        kernels.set_multiplies_pairs(has)
    (dx, [(expected, dbias)]), *others = results
    assert not expected.isfinite().all()
    assert dbias.isfinite().all()
    for other_dx, [(dvalues, other_dbias)] in others:
        torch.testing.assert_close(dvalues, expected, atol=1e-4, rtol=1e-5, equal_nan=True)
        torch.testing.assert_close(other_dbias, dbias, atol=1e-4, rtol=1e-5)
        assert other_dx is None or torch.equal(other_dx, dx)


@both_types
def test_a_chain_equals_its_layers(isa, dtype):
    torch.manual_seed(0)
    layers = [made(37, 41), made(41, 30), made(30, 11, relu=False)]
    links = [Link(layer.pattern, layer.values.detach(), layer.bias.detach(), layer.relu) for layer in layers]
    x, dy = torch.randn(150, 37).to(dtype), torch.randn(150, 11).to(dtype)
    inputs = [x]
    for link in links:
        inputs.append(chain_forward([link], inputs[-1])[0])
    y, kept = chain_forward(links, x, keep=True)
    assert torch.equal(y, inputs[-1])
    dx, gradients = chain_backward(links, x, kept, None, dy, True, [True] * 3)
    for i in (2, 1, 0):
        output = inputs[i + 1] if links[i].relu else None
        dy, [(dvalues, _)] = chain_backward([links[i]], inputs[i], None, output, dy, True, [True])
        torch.testing.assert_close(gradients[i][0], dvalues, atol=1e-4, rtol=1e-5)
    assert torch.equal(dx, dy)


@both_types
@pytest.mark.parametrize("batch", [1, 48])
def test_every_number_of_16_bits_is_read_and_written(isa, dtype, batch):
    """Infinities, NaN, signed zeros and denormal numbers among them: the layer multiplies by 1."""
    bits = torch.arange(-(2**15), 2**15).to(torch.int16)
    x = bits.view(dtype).view(-1, batch if batch == 1 else 32).t().contiguous().t()[: 2**11 * batch]
    one = torch.arange(x.shape[1])
    layer = SparseLinear(x.shape[1], x.shape[1], bias=False, flat_indices=one * x.shape[1] + one)
    link = Link(layer.pattern, torch.ones(x.shape[1]), None)
    for rows in (x, x[:3], x[5:6]):
        y, _ = chain_forward([link], rows)
        assert torch.equal(y.isnan(), rows.isnan())
        assert torch.equal(y.nan_to_num(0.5), rows.nan_to_num(0.5))


@both_types
@pytest.mark.parametrize("batch", [3, 64])
def test_rounds_to_the_nearest_even_number(isa, dtype, batch):
    """As torch does, from the smallest denormal numbers to what becomes infinite."""
    torch.manual_seed(1)
    exponents = torch.randint(-45, 128, (4000,)) if dtype is torch.bfloat16 else torch.randint(-27, 18, (4000,))
    values = torch.ldexp(torch.randn(4000).sign() * (1 + torch.randint(0, 4096, (4000,)) / 4096), exponents)
    diagonal = torch.arange(4000) * 4000 + torch.arange(4000)
    layer = SparseLinear(4000, 4000, bias=False, flat_indices=diagonal)
    y, _ = chain_forward([Link(layer.pattern, values, None)], torch.ones(batch, 4000, dtype=dtype))
    assert torch.equal(y, values.to(dtype).expand(batch, -1))


@both_types
def test_autocast_reads_and_writes_16_bits(dtype):
    layer, x = made(), torch.randn(20, 37, requires_grad=True)
    with torch.autocast("cpu", dtype):
        y = layer(x)
        assert y.dtype is dtype
        assert torch.equal(layer(x.to(dtype)), y)
        assert copy.deepcopy(layer).double()(x).dtype is torch.float64
    y.float().square().sum().backward()
    expected_layer, expected_x = copy.deepcopy(layer), x.detach().clone().requires_grad_()
    expected = reference.linear(layer.pattern, expected_layer.values, expected_layer.bias, expected_x.to(dtype), True)
    expected.float().square().sum().backward()
    torch.testing.assert_close(y, expected)
    for mine, its in ((layer.values, expected_layer.values), (layer.bias, expected_layer.bias), (x, expected_x)):
        assert mine.grad.dtype is torch.float32
        torch.testing.assert_close(mine.grad, its.grad, atol=0.02, rtol=0.02)


@both_types
def test_values_of_16_bits_are_computed_in_float32(dtype):
    layer = made().to(dtype)
    x = torch.randn(20, 37).to(dtype).requires_grad_()
    y = layer(x)
    y.float().sum().backward()
    assert y.dtype is x.grad.dtype is layer.values.grad.dtype is layer.bias.grad.dtype is dtype
    torch.testing.assert_close(
        y, reference.linear(layer.pattern, layer.values.float(), layer.bias.float(), x, True), atol=1e-6, rtol=0.01
    )


def test_mixed_types_are_refused_outside_autocast():
    with pytest.raises(TypeError, match=r"must be torch\.float32"):
        made()(torch.randn(4, 37).bfloat16())
    layer = made()
    link, x = Link(layer.pattern, layer.values.detach(), None), torch.randn(4, 37).half()
    with pytest.raises(TypeError, match="one type"):
        chain_backward([link], x, None, None, torch.randn(4, 41).bfloat16(), True, [True])


@both_types
def test_gradients_of_gradients_and_compiled_graphs(dtype):
    layer, x = made(), torch.randn(20, 37, requires_grad=True)
    with torch.autocast("cpu", dtype):
        y = layer(x)
        compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)(x)
    assert torch.equal(compiled, y)
    (first,) = torch.autograd.grad(y.float().square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), layer.values)
    assert second.dtype is torch.float32
    assert second.isfinite().all()
    assert second.abs().sum() > 0
