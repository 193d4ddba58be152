import pytest
import torch

from filigree.ops import conv
from filigree.topology.flat_indices import distinct, pattern_from_flat_indices

GEOMETRY = conv.Geometry((3, 2), (2, 1), (1, 1, 1, 0), (1, 2), 2)


def arguments(images=9, dtype=torch.float32):
    pattern = pattern_from_flat_indices(distinct(6 * 12, 30, torch.Generator()), 6, 12)
    values, bias = torch.randn(30, dtype=dtype, requires_grad=True), torch.randn(6, dtype=dtype, requires_grad=True)
    x = torch.randn(images, 4, 9, 8, dtype=dtype, requires_grad=True)
    return values, bias, x, pattern.indptr, pattern.indices


@pytest.mark.parametrize("images", [0, 1, 2, 40])
def test_equals_dense_on_every_instruction_set(isa, images):
    inputs = arguments(images, torch.float64)
    y, expected = conv.conv2d(*inputs, GEOMETRY), conv._dense(*inputs, GEOMETRY.flat())
    torch.testing.assert_close(y, expected)
    dy = torch.randn_like(expected)
    for g, e in zip(torch.autograd.grad(y, inputs[:3], dy), torch.autograd.grad(expected, inputs[:3], dy), strict=True):
        torch.testing.assert_close(g, e)


def test_only_the_gradients_that_are_needed():
    values, _, x, *index = arguments()
    y = conv.conv2d(values, None, x.detach(), *index, GEOMETRY)
    (dvalues,) = torch.autograd.grad(y.square().sum(), [values])
    expected = conv._dense(values, None, x.detach(), *index, GEOMETRY.flat()).square().sum()
    torch.testing.assert_close(dvalues, torch.autograd.grad(expected, values)[0], rtol=1e-4, atol=1e-4)


def test_same_bits_for_any_number_of_threads(monkeypatch):
    monkeypatch.setattr(conv, "_CHUNK", 3000)
    inputs, results, before = arguments(100), [], torch.get_num_threads()
    dy = torch.randn(conv.conv2d(*inputs, GEOMETRY).shape)
    try:
        for threads in (1, 2, 3, 20):
            torch.set_num_threads(threads)
            y = conv.conv2d(*inputs, GEOMETRY)
            results.append((y, *torch.autograd.grad(y, inputs[:3], dy)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(map(torch.equal, other, results[0]))


def test_operator_is_registered_properly():
    values, bias, x, indptr, indices = arguments(2)
    torch.library.opcheck(
        torch.ops.filigree.conv2d_forward.default, (values, bias, x, indptr, indices, GEOMETRY.flat())
    )


def test_what_other_devices_run():
    values, bias, x, *index = arguments(3)
    dy = torch.randn(conv.conv2d(values, bias, x, *index, GEOMETRY).shape)
    mine = torch.ops.filigree.conv2d_backward(values, x, dy, *index, GEOMETRY.flat(), True, True)
    for a, b in zip(mine, conv._dense_backward(values, x, dy, *index, GEOMETRY.flat(), True, True), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_nan_stays_where_torch_has_it():
    inputs = arguments(2)
    with torch.no_grad():
        inputs[2][1, 0, 4, 4] = float("nan")
    y, expected = conv.conv2d(*inputs, GEOMETRY), conv._dense(*inputs, GEOMETRY.flat())
    assert not y[0].isnan().any()
    assert bool((y.isnan() <= expected.isnan()).all())  # a missing connection reads nothing; a zero weight would
