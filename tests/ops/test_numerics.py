"""Numbers: errors against float64, what is not finite, memory orders, and the same bits again and again."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import filigree as fg
from filigree.ops import dropout, integers, noise, reference, selection, sell, sparse
from filigree.ops._load import kernels
from filigree.ops.conv import Geometry, conv2d
from filigree.ops.rows import rows_linear
from filigree.topology.flat_indices import distinct, pattern_from_flat_indices
from filigree.train import fit, seed_everything

EPS = torch.finfo(torch.float32).eps
NAN, INF = float("nan"), float("inf")


@contextmanager
def running_on(isa: str) -> Iterator[None]:
    before = kernels.isa()
    kernels.set_isa(isa)
    try:
        yield
    finally:
        kernels.set_isa(before)


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


isas = st.sampled_from(kernels.isas())
sides = st.integers(1, 40) | st.sampled_from([1, 2, 64, 129])
densities = st.sampled_from([0.0, 0.02, 0.3, 1.0]) | st.floats(0, 1)
orders = st.sampled_from(["batch-major", "feature-major", "slice", "strided", "one sample for all"])
seeds = st.integers(0, 10_000)


def pattern_for(rows: int, cols: int, density: float, seed: int, holes: bool = False) -> sparse.Pattern:
    """A random pattern; with holes every other row and every third column are empty."""
    flat_indices = distinct(rows * cols, round(density * rows * cols), torch.Generator().manual_seed(seed))
    if holes:
        flat_indices = flat_indices[(flat_indices // cols % 2 == 0) & (flat_indices % cols % 3 != 0)]
    return pattern_from_flat_indices(flat_indices, rows, cols)


def in_order(x: Tensor, order: str) -> Tensor:
    """The same numbers in another memory order (except for the last, which repeats the first sample)."""
    if order == "feature-major":
        return x.t().contiguous().t()
    if order == "slice":
        return torch.nn.functional.pad(x, (2, 3, 1, 1))[1 : 1 + len(x), 2 : 2 + x.shape[1]]
    if order == "strided":
        return x.repeat_interleave(2, 1)[:, ::2]
    return x[:1].expand_as(x) if order == "one sample for all" else x


def products(pattern: sparse.Pattern, values: Tensor, x: Tensor) -> Tensor:
    """The naive product in the type of its arguments: one connection after another, `(batch, rows)`."""
    row = reference.rows(pattern.indptr, pattern.nnz)
    y = x.new_zeros(pattern.rows, len(x))
    return y.index_add_(0, row, values[:, None] * x.t()[pattern.indices.long()]).t()


def close_as_naive(mine: Tensor, naive: Tensor, exact: Tensor, size: Tensor) -> None:
    """An error within twice that of the naive sum in float32, plus one rounding of what is summed, `size`."""
    if not exact.numel():
        return
    error, allowed = (mine.double() - exact).abs().max(), 2 * (naive.double() - exact).abs().max()
    assert error <= allowed + EPS * size.max()


# -- errors, shapes, memory orders ------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(isa=isas, rows=sides, cols=sides, batch=st.integers(0, 40) | st.just(129), density=densities,
       holes=st.booleans(), order=orders, dy_order=orders, wide=st.booleans(), seed=seeds)  # fmt: skip
def test_a_sparse_layer_is_as_exact_as_naive_sums(
    isa: str, rows: int, cols: int, batch: int, density: float, holes: bool, order: str, dy_order: str, wide: bool,
    seed: int,
) -> None:  # fmt: skip
    torch.manual_seed(seed)
    pattern = pattern_for(rows, cols, density, seed, holes)
    if wide:
        pattern = sparse.Pattern(*(part.long() for part in pattern))
    values, x = torch.randn(pattern.nnz, requires_grad=True), in_order(torch.randn(batch, cols), order)
    dy, x = in_order(torch.randn(batch, rows), dy_order), x.detach().requires_grad_()
    with running_on(isa):
        y = sparse.linear(pattern, values, None, x)
        dvalues, dx = torch.autograd.grad(y, (values, x), dy)
    row, col = reference.rows(pattern.indptr, pattern.nnz), pattern.indices.long()
    v, x = values.detach(), x.detach()
    close_as_naive(y, products(pattern, v, x), products(pattern, v.double(), x.double()),
                   products(pattern, v.abs(), x.abs()))  # fmt: skip
    back = pattern_of_transpose(pattern)
    turned = v[pattern.t_perm.long()]
    close_as_naive(dx, products(back, turned, dy), products(back, turned.double(), dy.double()),
                   products(back, turned.abs(), dy.abs()))  # fmt: skip
    if batch:
        each = dy.t()[row] * x.t()[col]
        exact = (dy.t().double()[row] * x.t().double()[col]).sum(1)
        close_as_naive(dvalues, each.cumsum(1)[:, -1], exact, each.abs().sum(1))
    else:
        assert not dvalues.any()


def pattern_of_transpose(pattern: sparse.Pattern) -> sparse.Pattern:
    return sparse.Pattern(
        pattern.t_indptr, pattern.t_indices, pattern.indptr, pattern.indices, pattern.t_place, pattern.t_perm
    )


@settings(max_examples=60, deadline=None)
@given(isa=isas, rows=sides, cols=sides, batch=st.integers(1, 40), order=orders, seed=seeds)
def test_memory_order_changes_no_bit(isa: str, rows: int, cols: int, batch: int, order: str, seed: int) -> None:
    torch.manual_seed(seed)
    pattern = pattern_for(rows, cols, 0.3, seed)
    values, bias, x = torch.randn(pattern.nnz), torch.randn(rows), torch.randn(batch, cols)
    other = in_order(x, order)
    with running_on(isa):
        assert torch.equal(
            sparse.linear(pattern, values, bias, other, True), sparse.linear(pattern, values, bias, other.clone(), True)
        )


@settings(max_examples=40, deadline=None)
@given(isa=isas, images=st.integers(0, 5), groups=st.integers(1, 2), kernel=st.integers(1, 3), stride=st.integers(1, 3),
       padding=st.integers(0, 2), dilation=st.integers(1, 2), density=densities,
       order=st.sampled_from([torch.contiguous_format, torch.channels_last]), seed=seeds)  # fmt: skip
def test_a_sparse_convolution_is_as_exact_as_a_dense_one(
    isa: str, images: int, groups: int, kernel: int, stride: int, padding: int, dilation: int, density: float,
    order: torch.memory_format, seed: int,
) -> None:  # fmt: skip
    torch.manual_seed(seed)
    channels, outs = 3 * groups, 4 * groups
    g = Geometry((kernel, kernel), (stride, stride), (padding,) * 4, (dilation, dilation), groups)
    pattern = pattern_for(outs, channels // groups * kernel**2, density, seed)
    values, bias = torch.randn(pattern.nnz), torch.randn(outs)
    x = torch.randn(images, channels, 9, 11).contiguous(memory_format=order)

    def dense(values: Tensor, bias: Tensor, x: Tensor) -> Tensor:
        weight = reference.dense(pattern.indptr, pattern.indices, values, channels // groups * kernel**2)
        return torch.nn.functional.conv2d(
            x, weight.view(outs, -1, kernel, kernel), bias, stride, padding, dilation, groups
        )

    def run(function: Callable[..., Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
        leaves = [t.to(dtype).requires_grad_() for t in (values, bias, x)]
        y = function(*leaves)
        return y.detach(), *torch.autograd.grad(y, leaves, torch.ones_like(y).cumsum(-1))

    with running_on(isa):
        mine = run(lambda v, b, x: conv2d(v, b, x, pattern.indptr, pattern.indices, g), torch.float32)
    for own, exact in zip(mine, run(dense, torch.float64), strict=True):
        size = exact.abs().max() if exact.numel() else 1.0
        torch.testing.assert_close(own.double(), exact, rtol=0, atol=float(200 * EPS * size) + 1e-30)


@settings(max_examples=40, deadline=None)
@given(isa=isas, power=st.integers(0, 7), batch=st.integers(0, 20), order=orders, kinds=st.lists(
    st.sampled_from(["hadamard", "dct", "idct"]), min_size=1, max_size=3), seed=seeds)  # fmt: skip
def test_transforms_keep_lengths_and_come_close_to_float64(
    isa: str, power: int, batch: int, order: str, kinds: list[str], seed: int
) -> None:
    torch.manual_seed(seed)
    n = 2**power
    x, steps = in_order(torch.randn(batch, n), order), [(kind, None) for kind in kinds]
    with running_on(isa):
        y = sell.sell(x, steps, n, n, [])
    exact = sell.reference(x.double(), steps, n, n, [])
    torch.testing.assert_close(y.double(), exact, rtol=0, atol=20 * EPS * max(1, power) * len(kinds) * 4)
    torch.testing.assert_close(y.norm(dim=1), x.norm(dim=1), rtol=1e-5, atol=1e-6)


# -- what is not finite, huge or denormal -----------------------------------------------------------------------------

odd = st.sampled_from([NAN, INF, -INF, 1e37, -1e37, 1e-40, -1e-45, 0.0, -0.0, 1.0])


@settings(max_examples=60, deadline=None)
@given(isa=isas, rows=st.integers(1, 20), cols=st.integers(1, 20), batch=st.integers(1, 36), density=densities,
       put=st.lists(st.tuples(seeds, odd), max_size=6), relu=st.booleans(), seed=seeds)  # fmt: skip
def test_what_is_not_finite_shows_where_connections_carry_it(
    isa: str, rows: int, cols: int, batch: int, density: float, put: list[tuple[int, float]], relu: bool, seed: int
) -> None:
    """As in the sum over the stored connections alone; overflow is left out: where it happens depends on the order."""
    torch.manual_seed(seed)
    pattern = pattern_for(rows, cols, density, seed)
    values, x = torch.rand(pattern.nnz) - 0.5, torch.randn(batch, cols)
    dy = torch.randn(batch, rows)
    for place, number in put:
        x.view(-1)[place % x.numel()] = number
        dy.view(-1)[place * 7 % dy.numel()] = number
    leaf, x = values.requires_grad_(), x.requires_grad_()
    with running_on(isa):
        y = sparse.linear(pattern, leaf, None, x, relu)
        dvalues, dx = torch.autograd.grad(y, (leaf, x), dy)
    v, x, y = values.detach().double(), x.detach().double(), y.detach()
    exact = products(pattern, v, x)
    same_kind(y, exact.relu() if relu else exact)
    dz = torch.where(y <= 0, 0, dy.double()) if relu else dy.double()
    same_kind(dx, products(pattern_of_transpose(pattern), v[pattern.t_perm.long()], dz))
    row, col = reference.rows(pattern.indptr, pattern.nnz), pattern.indices.long()
    each = dz.t()[row] * x.t()[col]
    representable = ~(each.isfinite() & (each.abs() > 1e38)).any(1)
    same_kind(dvalues[representable], each.sum(1)[representable])


def same_kind(mine: Tensor, exact: Tensor) -> None:
    """NaN and infinities in the same places, and numbers that agree."""
    assert torch.equal(mine.isnan(), exact.isnan())
    assert torch.equal(mine.isposinf(), exact.isposinf())
    assert torch.equal(mine.isneginf(), exact.isneginf())
    finite = exact.isfinite()
    scale = exact[finite].abs().max() if finite.any() else 0
    torch.testing.assert_close(mine.double()[finite], exact[finite], rtol=1e-4, atol=float(1e-5 * scale) + 1e-43)


def test_a_nan_that_no_connection_reads_does_not_show() -> None:
    """Where the dense reference multiplies it by zero, and spreads it."""
    pattern = pattern_from_flat_indices(
        torch.tensor([0, 5]), 3, 4
    )  # input 2 and 3 feed nothing, output 2 reads nothing
    x, values = torch.ones(2, 4), torch.ones(2)
    x[0, 2], x[1, 3] = NAN, INF
    y = sparse.linear(pattern, values, torch.zeros(3), x)
    assert y.tolist() == [[1, 1, 0], [1, 1, 0]]
    assert reference.linear(pattern, values, None, x, False).isnan().any()
    leaf = torch.ones(2, 4, requires_grad=True)
    dy = torch.tensor([[0, 0, NAN], [1, 1, INF]])
    (dx,) = torch.autograd.grad(sparse.linear(pattern, values, None, leaf), leaf, dy)
    assert dx.tolist() == [[0, 0, 0, 0], [1, 1, 0, 0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_overflow_is_infinite_and_denormals_are_kept(isa: str, dtype: torch.dtype) -> None:
    pattern = pattern_from_flat_indices(torch.arange(4), 2, 2)
    info = torch.finfo(dtype)
    values = torch.tensor([1.0, 0.0, -2.0, 0.0], dtype=dtype)
    x = torch.tensor([[info.max, 0], [info.tiny / 8, 0], [-0.0, 0]], dtype=dtype).repeat(6, 1)
    y = sparse.linear(pattern, values, None, x)
    assert y[0].tolist() == [info.max, -INF]
    assert y[1].tolist() == [info.tiny / 8, -info.tiny / 4]
    kernels.flush_denormals(True)
    try:
        flushed = sparse.linear(pattern, values, None, x)
    finally:
        kernels.flush_denormals(False)
    assert (flushed[1] == 0).all()
    assert torch.equal(sparse.linear(pattern, values, None, x), y)


def test_a_nan_stays_in_its_sample_of_a_transform(isa: str) -> None:
    for kind in ("hadamard", "dct", "idct", "relu"):
        x = torch.randn(20, 16)
        x[7, 3] = NAN
        y = sell.sell(x, [(kind, None)], 16, 16, [])
        assert y[7].isnan().sum() == (1 if kind == "relu" else 16)
        others = [sample for sample in range(20) if sample != 7]
        assert torch.equal(y[others], sell.sell(torch.where(x.isnan(), 0, x), [(kind, None)], 16, 16, [])[others])


def test_a_nan_stays_in_its_image_of_a_convolution(isa: str) -> None:
    layer = fg.nn.SparseConv2d(nn.Conv2d(2, 3, 3, padding=1), torch.arange(3 * 18))
    x = torch.randn(3, 2, 6, 6)
    x[1, 0, 5, 5] = NAN
    y, dense = layer(x), layer.dense()(x)
    assert torch.equal(y.isnan(), dense.isnan())
    assert y.isnan().sum() == 3 * 4  # the taps that reach a corner


def test_top_counts_nan_as_the_largest(isa: str) -> None:
    x = torch.randn(9, 40)
    x[2, 5], x[3, 7], x[4, :3] = NAN, INF, NAN
    kept = selection.dense(selection.top(x, 2))
    assert kept.isnan().sum(1).tolist() == [0, 0, 1, 0, 2, 0, 0, 0, 0]
    assert torch.equal(kept != 0, selection.top_mask(x, 2))
    assert selection.dense(selection.top(x, 1))[3, 7] == INF


def test_dropout_drops_nan_and_keeps_it_as_any_number(isa: str) -> None:
    x = torch.full((4000,), NAN)
    y = dropout.dropout(x, 0.5, 3)
    assert torch.equal(y.isnan(), y != 0)
    assert 0.4 < y.isnan().float().mean() < 0.6


@pytest.mark.parametrize("kind", noise.KINDS)
@pytest.mark.parametrize("tanh", [False, True])
def test_noise_keeps_nan_and_saturates_infinities(isa: str, kind: str, tanh: bool) -> None:
    x = torch.tensor([NAN, INF, -INF, 1e30, 1e-40, 0.0]).repeat(5)
    p, numbers = torch.ones(1), noise.Noise(kind)
    y = noise.noisy(x, p, numbers, tanh, 0.5)
    expected = noise.noisy_reference(x, p, 0.5, numbers, tanh)
    assert torch.equal(y.isnan(), expected.isnan())
    torch.testing.assert_close(y, expected, equal_nan=True)


# -- the same bits ----------------------------------------------------------------------------------------------------


def samples(*shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*shape, generator=generator), torch.randint(5, shape[:1], generator=generator)


def sparse_network() -> tuple[nn.Module, Tensor, Tensor]:
    model = fg.models.mlp([96, 300, 300, 5], dropout=0.3)
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.2)))
    fg.convert_(model, fg.Dropout())
    return model, *samples(300, 96)


def convolutions() -> tuple[nn.Module, Tensor, Tensor]:
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 5, 3, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )  # fmt: skip
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.4)))
    return model, *samples(120, 3, 12, 12)


def structured() -> tuple[nn.Module, Tensor, Tensor]:
    model = fg.models.mlp([96, 256, 5])
    fg.convert_(model, fg.ACDC(order=2), where=["fc1", "fc2"])
    return model, *samples(300, 96)


def units() -> tuple[nn.Module, Tensor, Tensor]:
    model = fg.models.mlp([96, 200, 5], dropout=0.25)
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.2)))
    fg.convert_(model, fg.PartitionDropout(parts=4))
    return model, *samples(300, 96)


NETWORKS = (sparse_network, convolutions, structured, units)


def trained(make: Callable[[], tuple[nn.Module, Tensor, Tensor]], count: int, deterministic: bool = False) -> Any:
    """The parameters and buffers after a whole run with rewiring, where there is something to rewire."""
    with threads(count):
        seed_everything(3)
        model, x, y = make()
        optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
        has_connections = any(hasattr(module, "rewire_") for module in model.modules())
        evolution = [fg.Evolution(model, optimizer, 0.3, regrow="initial")] if has_connections else []
        torch.use_deterministic_algorithms(deterministic)
        try:
            fit(model, (x, y), optimizer=optimizer, epochs=3, callbacks=evolution, progress=False, seed=3)
        finally:
            torch.use_deterministic_algorithms(False)
    return {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("make", NETWORKS, ids=lambda make: make.__name__)
def test_a_run_comes_out_the_same_whatever_the_number_of_threads(make: Any) -> None:
    """Networks of filigree's own products throughout: torch's dense ones may depend on the number of threads."""
    first = trained(make, 1)
    for count in (1, 2, 2, 3):
        assert same(trained(make, count), first), count


@pytest.mark.parametrize("make", NETWORKS, ids=lambda make: make.__name__)
def test_deterministic_algorithms_are_those_that_run_anyway(make: Any) -> None:
    assert same(trained(make, 2, deterministic=True), trained(make, 2))


def test_another_seed_is_another_run() -> None:
    def other() -> tuple[nn.Module, Tensor, Tensor]:
        torch.manual_seed(4)
        return sparse_network()

    assert not same(trained(other, 1), trained(sparse_network, 1))


@pytest.mark.parametrize("unified", [False, True])
@pytest.mark.parametrize("ins", [37, 200, 784])
def test_top_backward_has_the_same_bits_for_any_number_of_threads(isa: str, ins: int, unified: bool) -> None:
    delta, x, w = torch.randn(128, 300), torch.randn(128, ins), torch.randn(300, ins)
    results = []
    for count in (1, 2, 3, 5):
        with threads(count):
            results.append(selection.top_backward(delta, x, w, 40, unified, True, True))
    for one in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(one, results[0], strict=True))


@pytest.mark.parametrize("units", [1, 300])
@pytest.mark.parametrize("order", ["batch-major", "feature-major"])
def test_noise_and_its_gradients_have_the_same_bits_for_any_number_of_threads(isa: str, units: int, order: str) -> None:
    x = in_order(torch.randn(400, 300), order).requires_grad_()
    p, seed, results = torch.randn(units, requires_grad=True), torch.tensor(7), []
    for count in (1, 2, 3, 5):
        with threads(count):
            y = noise.noisy(x, p, noise.Noise("NAH"), True, seed)
            results.append((y, *torch.autograd.grad(y, (x, p), torch.ones_like(y))))
    for one in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(one, results[0], strict=True))


@pytest.mark.parametrize("make", [
    fg.Sparse(fg.ErdosRenyi(density=0.3)), fg.Fastfood(), fg.ACDC(order=2), fg.PHD(), fg.Asymmetric.topk(4),
    fg.Asymmetric.partial(4, 6), fg.Circulant(),
])  # fmt: skip
@pytest.mark.parametrize("batch", [1, 8])
def test_numbers_that_are_negated_when_they_are_read(make, batch):
    """Complex arithmetic hands such views on, as inputs and as gradients."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16))
    fg.convert_(model, make, where="0")
    x = torch.randn(batch, 16, dtype=torch.cfloat).conj().imag
    assert x.is_neg()
    torch.testing.assert_close(model(x), model(x.resolve_neg()))
    found = []
    for resolve in (False, True):
        mine = x.detach().resolve_neg().clone().requires_grad_()
        y = model(mine)
        dy = torch._neg_view(torch.arange(y.numel()).view_as(y) / 7.0)
        found.append(torch.autograd.grad(y, [mine, *model.parameters()], dy.resolve_neg() if resolve else dy))
    torch.testing.assert_close(*found)


def test_negated_images():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.5)))
    x = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(model(torch._neg_view(x)), model(-x))
    found = []
    for dy in (torch._neg_view(torch.ones(2, 4, 4, 4)), -torch.ones(2, 4, 4, 4)):
        mine = x.clone().requires_grad_()
        found.append(torch.autograd.grad(model(mine), [mine, *model.parameters()], dy))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("make", [fg.Noisy("NAH"), fg.Asymmetric.topk(4), fg.Asymmetric.partial(4, 8)])
def test_what_is_differentiable_once_says_so_on_every_path(make):
    """A penalty on the gradient, differentiated by weights before and behind, and with `inputs=`."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 16), nn.Softplus(), nn.Linear(16, 4)).double()
    fg.convert_(model, make, where="1" if isinstance(make, fg.Noisy) else "2")
    for name in ("0.weight", "4.weight"):
        x = torch.randn(4, 16, dtype=torch.double, requires_grad=True)
        (gradient,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            torch.autograd.grad(gradient.square().sum(), model.get_parameter(name))
        (gradient,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            gradient.square().sum().backward(inputs=[model.get_parameter(name)])


@pytest.mark.parametrize("unified", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sparsified_sparse_layers_in_half_precision(dtype, unified):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 20))
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.4)))
    fg.convert_(model, fg.Asymmetric.topk(5, unified=unified))
    wide = copy.deepcopy(model)
    model.to(dtype)
    x = torch.randn(6, 30)
    for network, its in ((wide, x), (model, x.to(dtype))):
        network(its).float().square().sum().backward()
    torch.testing.assert_close(model[0].values.grad.float(), wide[0].values.grad, atol=0.3, rtol=0.1)


def test_kernels_refuse_what_they_do_not_read():
    layer, x = fg.nn.SparseLinear(16, 8), torch.randn(4, 16)
    with pytest.raises(TypeError, match=r"kernels: float32 or float64"):
        torch.ops.filigree.spmm(layer.values.half(), torch.randn(16, 4).half(), *layer.pattern)
    with pytest.raises(TypeError, match=r"kernels: float32 or float64"):
        torch.ops.filigree.dropout(x.half(), 0.0, 0.5, torch.tensor(3))
    with pytest.raises(ValueError, match="on one device"):
        fg.nn.SparseLinear(16, 8).to("meta")(x)
    with pytest.raises(ValueError, match=r"rows must be int64"):
        rows_linear(layer.pattern, torch.tensor([1], dtype=torch.int32), layer.values, layer.bias, x)
    with pytest.raises(ValueError, match=r"scale must be \(8,\)"):
        integers.integer_linear(integers.Integers(layer.indptr.int(), layer.indices.int(), layer.values.to(torch.int8)),
                                16, x, torch.ones(1))  # fmt: skip
    with pytest.raises(ValueError, match=r"bias must be \(8,\)"):
        fg.nn.IntegerLinear(torch.ones(8, 4, dtype=torch.int32), torch.ones(1), bias=torch.ones(1))


def test_fake_tensors_have_no_memory():
    with FakeTensorMode():
        assert fg.nn.ACDCLinear(16, 16)(torch.randn(4, 16)).shape == (4, 16)
        assert selection.dense(selection.top(torch.randn(4, 16), 3)).shape == (4, 16)


def test_the_chosen_weights_follow_a_change_of_type():
    model = nn.Sequential(nn.Linear(64, 256))
    fg.convert_(model, fg.Asymmetric.complete(20))
    for dtype in (torch.float32, torch.float64):
        x = torch.randn(8, 64, dtype=dtype, requires_grad=True)
        model.to(dtype)(x).square().sum().backward()
        assert x.grad.abs().max() < 1e3
    model[0].weight.data = torch.zeros_like(model[0].weight)
    x = torch.randn(8, 64, dtype=torch.float64, requires_grad=True)
    model(x).square().sum().backward()
    assert not x.grad.any()


def test_hooks_on_saved_tensors_may_lay_them_out_anew():
    layer, x = fg.nn.SparseLinear(16, 8, relu=True), torch.randn(5, 16)
    found = []
    for pack in (lambda t: t, lambda t: t.contiguous()):
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            y = layer(x)
        found.append(torch.autograd.grad(y, list(layer.parameters()), torch.ones_like(y)))
    torch.testing.assert_close(*found)


def test_what_ran_for_inference_trains_afterwards():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.3)), where="2")
    model[0] = fg.nn.ChannelMajorConv2d.like(nn.Conv2d(3, 8, 3, dilation=1))
    x = torch.randn(2, 3, 9, 9)
    with torch.inference_mode():
        model(x)
    model(x).sum().backward()
    assert model[0].weight.grad is not None
