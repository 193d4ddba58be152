"""The kernels of sparse layers, one or several in a call, against plain torch on their connections alone."""

import pytest
import torch

from filigree.ops import kernels, sparse
from filigree.ops.chain import Link, chain_backward, chain_forward
from filigree.ops.curves import CURVES, SMOOTH
from filigree.ops.dropout import dropout
from filigree.ops.reference import rows as row_of_each
from filigree.topology.flat_indices import distinct, pattern_from_flat_indices

DTYPES = [torch.float32, torch.float64]
INF, NAN = float("inf"), float("nan")


@pytest.fixture(params=["narrow", "wide"])
def panels(request):
    """Panels as narrow and as wide as processors with a small and with a large level-2 cache have them."""
    before = kernels.level2_bytes()
    kernels.set_level2_bytes(1 if request.param == "narrow" else 1 << 30)
    yield request.param
    kernels.set_level2_bytes(before)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def link(rows, cols, nnz, dtype=torch.float32, wide=False, bias=True, **options):
    flat_indices = distinct(rows * cols, nnz, torch.Generator().manual_seed(nnz))
    pattern = pattern_from_flat_indices(flat_indices, rows, cols)
    pattern = sparse.Pattern(*(part.long() for part in pattern)) if wide else pattern
    return Link(pattern, torch.randn(nnz, dtype=dtype), torch.randn(rows, dtype=dtype) if bias else None, **options)


def plain(links, x):
    """The same in plain torch, by a product for each connection: what is not connected never meets."""
    for each in links:
        pattern = each.pattern
        products = x[:, pattern.indices.long()] * each.values
        y = x.new_zeros(len(x), pattern.rows).index_add(1, row_of_each(pattern.indptr, pattern.nnz), products)
        y = y if each.bias is None else y + each.bias
        y = y.relu() if each.relu else y
        y = SMOOTH[each.curve](y) if each.curve else y
        x = dropout(y.t().contiguous().t(), each.drop, each.seed) if each.drop else y
    return x


def plain_gradients(links, x, dy):
    """The output, and the gradients of input, values and biases in turn."""
    links = [
        each._replace(
            values=each.values.clone().requires_grad_(),
            bias=None if each.bias is None else each.bias.clone().requires_grad_(),
        )
        for each in links
    ]
    x = x.clone().requires_grad_()
    y = plain(links, x)
    wanted = [x, *(part for each in links for part in (each.values, each.bias) if part is not None)]
    return y.detach(), *torch.autograd.grad(y, wanted, dy)


def ours(links, x, dy, by_feature=True, need_input=True):
    y, kept = chain_forward(links, x, by_feature, keep=True)
    output = y if links[-1].relu else None
    dx, gradients = chain_backward(links, x, kept, output, dy, need_input, [each.bias is not None for each in links])
    return y, dx, *(part for pair in gradients for part in pair if part is not None)


def close(mine, expected):
    tight = expected.dtype is torch.float64
    tolerance = 1e-10 if tight else 1e-4
    torch.testing.assert_close(mine, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


def all_close(mine, expected):
    for one, other in zip(mine, expected, strict=True):
        close(one, other)


ORDERS = {
    "batch-major": lambda t: t.contiguous(),
    "feature-major": lambda t: t.t().contiguous().t(),
    "rows apart": lambda t: torch.cat([t, t], 1)[:, : t.shape[1]],
    "features apart": lambda t: torch.cat([t, t]).t().contiguous().t()[: len(t)],
    "every other": lambda t: torch.stack([t, t], 2)[:, :, 0],
    "one sample expanded": lambda t: t[:1].expand_as(t) if len(t) else t,
    "one feature expanded": lambda t: t[:, :1].expand_as(t),
}


def test_every_batch_is_cut_rightly(isa, panels):
    """Outputs of a batch are those of its samples, and gradients the sums over them."""
    layer = link(13, 17, 90)
    most = 130
    x, dy = torch.randn(most, 17), torch.randn(most, 13)
    pattern = layer.pattern
    y = plain([layer], x)
    dx = plain_gradients([layer], x, dy)[1]
    dvalues = (dy[:, row_of_each(pattern.indptr, pattern.nnz)] * x[:, pattern.indices.long()]).cumsum(0)
    dbias = dy.cumsum(0)
    for batch in range(1, most + 1):
        b = slice(batch)
        for order in ("batch-major", "feature-major"):
            mine = ours([layer], ORDERS[order](x[b]), ORDERS[order](dy[b]))
            all_close(mine, (y[b], dx[b], dvalues[batch - 1], dbias[batch - 1]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("wide", [False, True], ids=["int32", "int64"])
def test_any_memory_order(isa, panels, dtype, wide):
    layer = link(11, 14, 60, dtype, wide, relu=True)
    for batch in (1, 33, 64, 100):
        x, dy = torch.randn(batch, 14, dtype=dtype), torch.randn(batch, 11, dtype=dtype)
        for order in ORDERS.values():
            expected = plain_gradients([layer], order(x), order(dy))
            for by_feature in (True, False):
                all_close(ours([layer], order(x), order(dy), by_feature), expected)


def test_memory_orders_of_outputs():
    layer = link(11, 14, 60)
    for x in (torch.randn(5, 14), torch.randn(14, 5).t()):
        assert sparse.linear(*layer[:3], x).stride() == (1, 5)
        assert sparse.linear(*layer[:3], x, by_feature=False).is_contiguous()
        x.requires_grad_()
        y = sparse.linear(*layer[:3], x, by_feature=False)
        assert y.is_contiguous()
        assert torch.autograd.grad(y.sum(), x)[0].stride() == x.stride()


@pytest.mark.parametrize("need_input", [False, True])
def test_no_samples(isa, need_input):
    links = [link(9, 8, 20, relu=True), link(7, 9, 20)]
    y, dx, *gradients = ours(links, torch.randn(0, 8), torch.randn(0, 7), need_input=need_input)
    assert y.shape == (0, 7)
    assert dx.shape == (0, 8) if need_input else dx is None
    assert all(not gradient.any() for gradient in gradients)


@pytest.mark.parametrize("activation", [{"relu": True}, {"curve": "gelu"}], ids=str)
def test_threads_change_no_bit(isa, panels, threads, activation):
    links = [link(90, 100, 5000, drop=0.3, seed=7, **activation), link(100, 90, 5000)]
    for batch in (3, 9, 130, 200):  # a panel that threads share, and several
        x, dy = torch.randn(batch, 100), torch.randn(batch, 100)
        results = []
        for number in (1, 2, 3, 5):
            threads(number)
            results.append([ours(links, x, dy), ours(links, x, dy, need_input=False)])
        for one, *others in zip(*results, strict=True):
            for other in others:
                assert all((a is None and b is None) or torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("need_input", [False, True])
def test_unconnected_units(isa, panels, need_input):
    links = [link(40, 30, 12, relu=True), link(30, 40, 9), link(5, 30, 0, relu=True)]
    x, dy = torch.randn(70, 30), torch.randn(70, 5)
    y, dx, *gradients = plain_gradients(links, x, dy)
    all_close(ours(links[:1], x, x.new_ones(70, 40)), plain_gradients(links[:1], x, x.new_ones(70, 40)))
    mine_y, mine_dx, *mine = ours(links, x, dy, need_input=need_input)
    all_close((mine_y, *mine), (y, *gradients))
    if need_input:
        close(mine_dx, dx)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("which", ["x", "values", "dy"])
def test_what_is_not_finite_spreads_along_connections_only(isa, panels, which, relu):
    links = [link(13, 17, 60, relu=relu), link(12, 13, 60, relu=relu)]
    for batch in (3, 33, 70):
        for few in (links[:1], links):
            x, dy = torch.randn(batch, 17), torch.randn(batch, few[-1].pattern.rows)
            {"x": x[-1], "dy": dy[-1], "values": few[-1].values}[which][[2, 5, 7]] = torch.tensor([INF, -INF, NAN])
            expected = plain_gradients(few, x, dy)
            for order in ("batch-major", "feature-major"):
                all_close(ours(few, ORDERS[order](x), ORDERS[order](dy)), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("drop", [0.0, 0.4])
def test_chains_equal_plain_torch(isa, panels, dtype, drop):
    links = [
        link(23, 17, 90, dtype, relu=True, drop=drop, seed=2**40 + 3),
        link(31, 23, 150, dtype, bias=False, relu=drop > 0, drop=drop, seed=5),
        link(8, 31, 70, dtype, relu=True, drop=drop, seed=6),
    ]
    for batch in (1, 2, 7, 16, 33, 64, 128, 130):
        x, dy = torch.randn(batch, 17, dtype=dtype), torch.randn(batch, 8, dtype=dtype)
        for order in ("batch-major", "feature-major"):
            for few in (links[:1], links[:2], links):
                gradient = torch.randn(batch, few[-1].pattern.rows, dtype=dtype)
                expected = plain_gradients(few, x, gradient)
                all_close(ours(few, ORDERS[order](x), ORDERS[order](gradient)), expected)
        y, _, *gradients = plain_gradients(links, x, dy)
        mine_y, dx, *mine = ours(links, x, dy, by_feature=False, need_input=False)
        assert dx is None
        assert mine_y.is_contiguous()
        all_close((mine_y, *mine), (y, *gradients))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("curve", SMOOTH)
@pytest.mark.parametrize("drop", [0.0, 0.4])
def test_curves_between_layers_equal_plain_torch(isa, panels, curve, dtype, drop):
    links = [
        link(23, 17, 90, dtype, curve=curve, drop=drop, seed=2**40 + 3),
        link(31, 23, 150, dtype, bias=False, relu=True),
        link(19, 31, 150, dtype, curve=curve),
        link(40, 19, 150, dtype, bias=False, curve=curve, drop=drop, seed=6),
        link(8, 40, 70, dtype, relu=True),
    ]
    for batch in (1, 2, 3, 7, 16, 33, 64, 70, 130):
        x, dy = torch.randn(batch, 17, dtype=dtype), torch.randn(batch, 8, dtype=dtype)
        for order in ("batch-major", "feature-major"):
            expected = plain_gradients(links, x, dy)
            all_close(ours(links, ORDERS[order](x), ORDERS[order](dy)), expected)
            close(chain_forward(links, x)[0], expected[0])
        y, _, *gradients = expected
        mine_y, _, *mine = ours(links, x, dy, need_input=False)
        all_close((mine_y, *mine), (y, *gradients))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("curve", SMOOTH)
def test_curves_and_their_slopes_near_and_far(isa, curve, dtype):
    """Of a layer of one connection each, which keeps its input."""
    one = Link(pattern_from_flat_indices(torch.tensor([0]), 1, 1), torch.ones(1, dtype=dtype), None)
    links = [one._replace(curve=curve), one]
    double = {"rtol": 1e-12, "atol": 1e-14}

    def compared(x, **tolerance):
        x = x.to(dtype)[:, None]
        tolerance = double if dtype is torch.float64 else tolerance
        y, dx, *_ = ours(links, x, torch.ones_like(x))
        expected_y, expected_dx, *_ = plain_gradients(links, x, torch.ones_like(x))
        torch.testing.assert_close(y, expected_y, equal_nan=True, **tolerance)
        torch.testing.assert_close(dx, expected_dx, equal_nan=True, **tolerance)

    compared(torch.linspace(-30, 30, 4001), rtol=1e-5, atol=3e-6)
    most = 1e38 if curve in ("tanh", "sigmoid") else 1e12  # torch's slopes of larger ones are NaN
    compared(torch.tensor([100.0, -100.0, 1e4, -1e4, most, -most, NAN]), rtol=1e-5, atol=1e-6)
    near = torch.logspace(-20, 0, 200)
    compared(torch.cat([near, -near, torch.zeros(1)]), rtol=3e-6, atol=0)  # no digit is lost
    if dtype is torch.float32:
        y = chain_forward(links, torch.full((5, 1), -1e38))[0]
        assert bool((y == torch.tensor(-1.0 if curve == "tanh" else 0.0)).all() | (y.abs() < 1e-30).all())


def test_curves_in_other_places_are_refused(isa):
    for links in ([link(5, 4, 9, curve="gelu")], [link(5, 4, 9, curve="relu6"), link(3, 5, 7)]):
        with pytest.raises(ValueError, match="chain: only smooth curves between layers"):
            chain_forward(links, torch.randn(2, 4))
    assert set(SMOOTH) < set(CURVES)


def test_dropout_is_that_of_a_feature_major_tensor(isa, panels):
    layer = link(40, 30, 600, relu=True)
    for batch in (1, 5, 37, 130):
        x = torch.randn(batch, 30)
        y = chain_forward([layer], x)[0]
        dropped = chain_forward([layer._replace(drop=0.5, seed=2**63 - 9)], x)[0]
        assert torch.equal(dropped, dropout(y.t().contiguous().t(), 0.5, 2**63 - 9))


def test_indices_of_two_types_are_refused():
    links = [link(5, 4, 9), link(3, 5, 7, wide=True)]
    with pytest.raises(ValueError, match="chain: the indices of all layers must be of one type"):
        chain_forward(links, torch.randn(2, 4))
    with pytest.raises(ValueError, match="chain: the indices of all layers must be of one type"):
        chain_backward(links, torch.randn(2, 4), None, None, torch.randn(2, 3), True, [True, True])
