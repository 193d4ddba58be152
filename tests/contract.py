"""What every layer satisfies against its dense twin: import and call from the layer's own test."""

import copy

import torch
from torch import nn

BATCHES = [0, 1, 2, 3, 7, 16, 17, 100, 128, 131]


def tolerance(dtype):
    return {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-10, "atol": 1e-12}


def inputs(batch, features, dtype):
    """The same numbers in the memory orders that a layer may meet."""
    x = torch.randn(batch, features, dtype=dtype)
    wide = torch.zeros(2 * batch, features + 3, dtype=dtype)
    wide[::2, 1 : features + 1] = x
    yield "contiguous", x
    yield "feature-major", x.t().contiguous().t()
    yield "strided", wide[::2, 1 : features + 1]


def check_layer(layer: nn.Module, in_features: int, batches=BATCHES) -> None:
    """Forward and the gradients of input and every parameter equal those of `layer.dense()`."""
    dtype = next(layer.parameters()).dtype
    dense_reference = layer.dense()
    for batch in batches:
        for order, x in inputs(batch, in_features, dtype):
            mine, its = x.detach().requires_grad_(), x.detach().clone().requires_grad_()
            y, expected = layer(mine), dense_reference(its)
            message = f"batch {batch}, {order}: "
            torch.testing.assert_close(y, expected, **tolerance(dtype), msg=lambda m, s=message: s + m)
            dy = torch.randn_like(expected)
            for orderly in (dy, dy.t().contiguous().t()):
                got = torch.autograd.grad(y, [mine, *layer.parameters()], orderly, retain_graph=True)
                dense = dense_gradients(layer, dense_reference, its, expected, orderly)
                for g, d in zip(got, dense, strict=True):
                    torch.testing.assert_close(g, d, **tolerance(dtype), msg=lambda m, s=message: s + m)


def dense_gradients(layer, dense_reference, x, y, dy):
    """The twin's gradients, in the shape of the layer's parameters."""
    linear = dense_reference[0] if isinstance(dense_reference, nn.Sequential) else dense_reference
    dx, dw, *db = torch.autograd.grad(y, [x, linear.weight, *([linear.bias] if layer.bias is not None else [])], dy,
                                      retain_graph=True)  # fmt: skip
    return [dx, layer_weights(layer, dw), *db]


def layer_weights(layer, dense_weight):
    if hasattr(layer, "mask"):
        return dense_weight * layer.mask
    return dense_weight.flatten()[layer.flat_indices()]


def check_gradgrad(layer: nn.Module, in_features: int, batch: int = 3) -> None:
    """First and second derivatives against finite differences, in float64."""
    layer = copy.deepcopy(layer).double()
    names, parameters = zip(*layer.named_parameters(), strict=True)
    x = torch.randn(batch, in_features, dtype=torch.float64, requires_grad=True)

    def call(x, *values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    values = [p.detach().clone().requires_grad_() for p in parameters]
    assert torch.autograd.gradcheck(call, (x, *values))
    assert torch.autograd.gradgradcheck(call, (x, *values))
