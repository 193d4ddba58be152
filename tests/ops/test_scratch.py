"""Kernels that find no memory: Python gets MemoryError, and the process goes on."""

import pytest
import torch

from filigree.ops import kernels
from filigree.ops.addresses import compressed_rows

HUGE = 2**52  # numbers, more than an address space holds: none of them is read
NULL, STRIDED, TOP = (0, 0), (0, 1, 1), (0,) * 7
AXIS = (0, 1, 1, 1)
PLANES = (1, 1, 1, 1, AXIS, AXIS)
IMAGES = (0, 1, 1, 1, 1)


def pattern(nnz):
    """A pattern of one row that says that it has so many nonzeros, and the tensor that holds its addresses."""
    indptr = torch.tensor([0, nnz])
    return compressed_rows(indptr, indptr), indptr


def convolution(stride):
    of_nothing, held = pattern(0)
    return (PLANES, PLANES, of_nothing, of_nothing, stride, 0, 1), held


def conv(f64):
    c, _held = convolution(HUGE)
    kernels.conv(f64, c, 0, 0, IMAGES, IMAGES)


def conv_backward(f64):
    c, _held = convolution(HUGE)
    kernels.conv_backward(f64, c, 0, IMAGES, IMAGES, 0, 0, 0)


def top(f64):
    kernels.top(f64, HUGE, 1, 1, NULL, TOP)


def top_backward(f64):
    kernels.top_backward(f64, False, HUGE, 1, 1, 1, NULL, NULL, NULL, NULL, NULL, 0)


def unified_backward(f64):
    kernels.top_backward(f64, True, 1, HUGE, 1, 1, NULL, NULL, NULL, NULL, NULL, 0)


def sell(f64):
    kernels.sell(f64, (HUGE, [4], [0]), 1, 1, STRIDED, 1, STRIDED)


def sell_backward(f64):
    kernels.sell_backward(f64, (HUGE, [4], [0]), 1, 1, STRIDED, 1, STRIDED, STRIDED, [0])


CALLS = [conv, conv_backward, top, top_backward, unified_backward, sell, sell_backward]


@pytest.mark.parametrize("f64", [False, True])
@pytest.mark.parametrize("call", CALLS)
def test_no_memory_is_an_error_in_python(call, f64, isa):
    with pytest.raises(MemoryError):
        call(f64)


def test_a_kernel_works_after_one_that_found_no_memory():
    with pytest.raises(MemoryError):
        sell(False)
    x, y = torch.randn(3, 8), torch.empty(3, 8)
    strided = x.stride()
    kernels.sell(False, (8, [4], [0]), 3, 8, (x.data_ptr(), *strided), 8, (y.data_ptr(), *strided))
    torch.testing.assert_close(y.norm(), x.norm())


def test_a_thread_keeps_a_little_for_its_next_call_and_no_more(isa):
    """Of no images: the memory is taken, but not written to."""

    def conv(numbers):
        (_, _, *rest), _held = convolution(numbers)
        nothing = (0, *PLANES[1:])
        kernels.conv(False, (nothing, nothing, *rest), 0, 0, IMAGES, IMAGES)
        return kernels.kept_scratch()

    assert 2**20 <= conv(2**18) <= 2**28
    assert conv(2**26) == 0  # for the input and for the output
    assert conv(0) < 2**20
    with pytest.raises(MemoryError):
        conv(HUGE)
    assert kernels.kept_scratch() < 2**20


@pytest.mark.parametrize(
    "x", [0, (0,), (0, 0, 0), [0, 0], (0, "a"), (0, 0.5)], ids=["int", "short", "long", "list", "str", "float"]
)
def test_an_argument_that_is_no_matrix_is_refused(x):
    with pytest.raises(TypeError):
        kernels.transpose(False, 0, 0, x, NULL)
