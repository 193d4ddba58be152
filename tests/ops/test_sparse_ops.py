"""The kernels against dense torch: every product, dtype, index width, instruction set and odd shape."""

import ast
import subprocess
import sys
import threading

import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from filigree.ops import reference, sparse
from filigree.ops._load import kernels
from filigree.topology.flat_indices import csr_pattern, distinct, pattern_from_flat_indices

DTYPES = [torch.float32, torch.float64]


def random_pattern(rows, cols, nnz, wide=False, seed=0):
    flat_indices = distinct(rows * cols, nnz, torch.Generator().manual_seed(seed))
    pattern = pattern_from_flat_indices(flat_indices, rows, cols)
    return sparse.Pattern(*(part.long() for part in pattern)) if wide else pattern


def close(got, expected):
    tight = expected.dtype == torch.float64
    torch.testing.assert_close(got, expected, rtol=1e-10 if tight else 1e-4, atol=1e-12 if tight else 1e-4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("wide", [False, True], ids=["int32", "int64"])
@pytest.mark.parametrize("batch", [0, 1, 2, 3, 5, 8, 15, 16, 17, 33, 64, 100, 128, 129, 200, 257])
def test_products_equal_dense(isa, dtype, wide, batch):
    pattern = random_pattern(37, 53, 300, wide)
    values = torch.randn(300, dtype=dtype)
    x, dy = torch.randn(53, batch, dtype=dtype), torch.randn(37, batch, dtype=dtype)
    close(sparse.spmm(pattern, values, x), reference.spmm(pattern, values, x))
    close(sparse.spmm_t(pattern, values, dy), reference.spmm_t(pattern, values, dy))
    close(sparse.sddmm(pattern, dy, x), reference.sddmm(pattern, dy, x))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("batch", [0, 1, 2, 7, 16, 40, 128, 150])
def test_linear_equals_dense(isa, dtype, relu, batch):
    pattern = random_pattern(37, 53, 300)
    values, bias, x = (torch.randn(n, dtype=dtype, requires_grad=True) for n in ((300,), (37,), (batch, 53)))
    y = sparse.linear(pattern, values, bias, x, relu)
    expected = reference.linear(pattern, values, bias, x, relu)
    close(y, expected)
    dy = torch.randn_like(expected)
    for order in (dy, dy.t().contiguous().t(), dy[:1].expand_as(dy) if batch else dy):
        got = torch.autograd.grad(y, (values, bias, x), order, retain_graph=True)
        for mine, its in zip(
            got, torch.autograd.grad(expected, (values, bias, x), order, retain_graph=True), strict=True
        ):
            close(mine, its)


@pytest.mark.parametrize("shape", [(1, 1, 0), (1, 1, 1), (5, 1, 3), (1, 9, 4), (6, 7, 42), (8, 8, 0)])
def test_edge_shapes(isa, shape):
    rows, cols, nnz = shape
    pattern = random_pattern(rows, cols, nnz)
    values, x, dy = torch.randn(nnz), torch.randn(cols, 18), torch.randn(rows, 18)
    close(sparse.spmm(pattern, values, x), reference.spmm(pattern, values, x))
    close(sparse.spmm_t(pattern, values, dy), reference.spmm_t(pattern, values, dy))
    close(sparse.sddmm(pattern, dy, x), reference.sddmm(pattern, dy, x))


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 40),
    cols=st.integers(1, 40),
    share=st.floats(0, 1),
    batch=st.integers(0, 70),
    seed=st.integers(0, 99),
)
def test_products_on_random_shapes(rows, cols, share, batch, seed):
    pattern = random_pattern(rows, cols, round(share * rows * cols), seed=seed)
    values = torch.randn(pattern.nnz, dtype=torch.float64)
    x, dy = torch.randn(batch, cols, dtype=torch.float64).t(), torch.randn(rows, batch, dtype=torch.float64)
    close(sparse.spmm(pattern, values, x), reference.spmm(pattern, values, x))
    close(sparse.spmm_t(pattern, values, dy), reference.spmm_t(pattern, values, dy))
    close(sparse.sddmm(pattern, dy, x), reference.sddmm(pattern, dy, x))


def test_gradients_close_under_differentiation():
    pattern = random_pattern(5, 4, 9)
    values, x, dy = (torch.randn(n, dtype=torch.float64, requires_grad=True) for n in ((9,), (4, 3), (5, 3)))
    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(lambda v, x: sparse.spmm(pattern, v, x), (values, x))
        assert check(lambda v, y: sparse.spmm_t(pattern, v, y), (values, dy))
        assert check(lambda y, x: sparse.sddmm(pattern, y, x), (dy, x))


def test_strided_values_and_bias():
    pattern, many, x = random_pattern(6, 5, 12), torch.randn(12, 3), torch.randn(4, 5)
    strided, bias = many[:, 1], torch.randn(6, 2)[:, 0]
    expected = sparse.linear(pattern, strided.clone(), bias.clone(), x)
    for _ in range(20):
        assert torch.equal(sparse.linear(pattern, strided, bias, x), expected)


def test_same_bits_for_any_number_of_threads():
    pattern, values, x = random_pattern(500, 400, 9000), torch.randn(9000), torch.randn(400, 130)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            results.append((sparse.spmm(pattern, values, x), sparse.sddmm(pattern, torch.ones(500, 130), x)))
    finally:
        torch.set_num_threads(before)
    for y, dvalues in results[1:]:
        assert torch.equal(y, results[0][0])
        assert torch.equal(dvalues, results[0][1])


def test_two_python_threads_at_once():
    pattern, values, x = random_pattern(300, 300, 9000), torch.randn(9000), torch.randn(300, 128)
    expected, wrong = sparse.spmm(pattern, values, x), []

    def work():
        wrong.extend(not torch.equal(sparse.spmm(pattern, values, x), expected) for _ in range(50))

    threads = [threading.Thread(target=work) for _ in range(2)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert len(wrong) == 100
    assert not any(wrong)


def test_one_openmp_pool():
    program = """
import torch, filigree as fg
model = fg.models.mlp([64, 300, 10])
fg.convert_(model, fg.Sparse(fg.ErdosRenyi(epsilon=20)))
optimizer = torch.optim.SGD(model.parameters(), 0.1)
fg.fit(model, (torch.randn(200, 64), torch.randint(0, 10, (200,))), optimizer=optimizer, epochs=1, progress=False)
maps = [line.split()[-1] for line in open("/proc/self/maps")]
print({path for path in maps if any(name in path for name in ("libgomp", "libiomp", "libomp"))})
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    (pool,) = ast.literal_eval(done.stdout.splitlines()[-1])
    assert "torch" in pool


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.long("compiles C++"))])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_compiles(backend):
    pattern = random_pattern(6, 5, 12)
    values, bias, x = (torch.randn(n, requires_grad=True) for n in ((12,), (6,), (4, 5)))

    def call(values, bias, x):
        return sparse.linear(pattern, values, bias, x, True).sin().sum() + sparse.spmm(pattern, values, x.t()).sum()

    expected = torch.autograd.grad(call(values, bias, x), (values, bias, x))
    compiled = torch.compile(call, backend=backend, fullgraph=True)
    for got, want in zip(torch.autograd.grad(compiled(values, bias, x), (values, bias, x)), expected, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("name", ["spmm", "spmm_t", "sddmm"])
def test_operators_are_registered_properly(name):
    pattern, values = random_pattern(6, 5, 12), torch.randn(12, requires_grad=True)
    x, dy = torch.randn(5, 3, requires_grad=True), torch.randn(6, 3, requires_grad=True)
    arguments = {"spmm": (values, x), "spmm_t": (values, dy), "sddmm": (dy, x)}[name]
    torch.library.opcheck(getattr(torch.ops.filigree, name).default, (*arguments, *pattern))


def test_other_devices_take_the_reference_path():
    """The meta device stands in for a device without kernels: shapes come from the registered fakes."""
    pattern = sparse.Pattern(*(part.to("meta") for part in random_pattern(6, 5, 12)))
    y = sparse.linear(pattern, torch.empty(12, device="meta"), None, torch.empty(4, 5, device="meta"))
    assert y.shape == (4, 6)
    assert y.device.type == "meta"


def test_reference_implementations_agree_with_kernels():
    """What other devices run: the same operators, called by their fallback."""
    pattern, values, bias, x = random_pattern(6, 5, 12), torch.randn(12), torch.randn(6), torch.randn(4, 5)
    y = torch.ops.filigree.linear_forward(values, bias, x, True, *pattern)
    dy = torch.randn_like(y)
    mine = torch.ops.filigree.linear_backward(values, x.t(), y, dy, *pattern, True, True)
    its = reference.linear_backward(pattern, values, x.t(), y, dy, True, True)
    for a, b in zip(mine, its, strict=True):
        torch.testing.assert_close(a, b)


def test_nan_and_inf_pass_as_in_torch():
    pattern, values = random_pattern(6, 5, 12), torch.randn(12)
    x = torch.randn(17, 5)
    x[3, 2], x[16, 4], x[0, 0] = float("nan"), float("inf"), -float("inf")
    y = sparse.linear(pattern, values, None, x, True)
    weight = scipy.sparse.csr_array((values, pattern.indices, pattern.indptr), shape=(6, 5))
    torch.testing.assert_close(y, torch.from_numpy((weight @ x.t().numpy()).T).relu(), equal_nan=True)


def test_bad_input_is_named():
    pattern, values = random_pattern(6, 5, 12), torch.randn(12)
    with pytest.raises(ValueError, match=r"spmm: expected a feature-major matrix \(5, batch\)"):
        sparse.spmm(pattern, values, torch.randn(6, 3))
    with pytest.raises(TypeError, match="float32 or float64"):
        sparse.spmm(pattern, values, torch.randn(5, 3).half())
    with pytest.raises(ValueError, match="same batch"):
        sparse.sddmm(pattern, torch.randn(6, 3), torch.randn(5, 4))
    with pytest.raises(ValueError, match=r"x must be \(batch, 5\)"):
        sparse.linear(pattern, values, None, torch.randn(3, 6))
    with pytest.raises(ValueError, match=r"values must be \(12,\)"):
        sparse.linear(pattern, values[:-1], None, torch.randn(3, 5))
    with pytest.raises(ValueError, match="no kernels for 'mmx'"):
        kernels.set_isa("mmx")


def test_transposed_index():
    pattern, numbers = random_pattern(7, 9, 30), torch.arange(1.0, 31)
    dense = reference.dense(pattern.indptr, pattern.indices, numbers, 9)
    transposed = reference.dense(pattern.t_indptr, pattern.t_indices, numbers[pattern.t_perm.long()], 7)
    assert torch.equal(transposed, dense.t())
    again = csr_pattern(pattern.t_indptr.numpy(), pattern.t_indices.numpy(), 7)
    assert torch.equal(again.t_indices, pattern.indices)
