"""What every layer satisfies against its dense reference: import and call from the layer's own test."""

import copy

import pytest
import torch
from torch import nn

import filigree as fg
from filigree.convert import Conversion

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
            own, other = x.detach().requires_grad_(), x.detach().clone().requires_grad_()
            y, expected = layer(own), dense_reference(other)
            message = f"batch {batch}, {order}: "
            torch.testing.assert_close(y, expected, **tolerance(dtype), msg=lambda m, s=message: s + m)
            dy = torch.randn_like(expected)
            for orderly in (dy, dy.t().contiguous().t()):
                gradients = torch.autograd.grad(y, [own, *layer.parameters()], orderly, retain_graph=True)
                dense = dense_gradients(layer, dense_reference, other, expected, orderly)
                for gradient, reference in zip(gradients, dense, strict=True):
                    torch.testing.assert_close(gradient, reference, **tolerance(dtype), msg=lambda m, s=message: s + m)


def dense_gradients(layer, dense_reference, x, y, dy):
    """The dense reference's gradients, in the shape of the layer's parameters."""
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


def check_contract(layer: nn.Module, x: torch.Tensor) -> None:
    """In eval mode, a layer with `Capabilities` and its `dense()` agree on x, the input of one of its calls.

    In float64: outputs, the gradient of the input, and by finite differences those of its parameters. What else the
    layer says of itself is possible.
    """
    layer, x = _float64(copy.deepcopy(layer)).eval(), _float64(x[:2].detach().clone())
    dense = layer.dense().eval()
    assert all(type(module).__module__.startswith("torch.nn") for module in dense.modules())
    own, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, expected = layer(own), dense(other)
    torch.testing.assert_close(y, expected, **tolerance(torch.float64))
    (gradient,) = torch.autograd.grad(y.square().sum(), own)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.square().sum(), other)[0])
    trained = {name: p.detach().clone() for name, p in layer.named_parameters() if p.requires_grad}

    def call(*values):
        return torch.func.functional_call(layer, dict(zip(trained, values, strict=True)), (x,))

    if trained:
        assert torch.autograd.gradcheck(call, [value.requires_grad_() for value in trained.values()], fast_mode=True)
    check_statements(layer)


def check_statements(layer) -> None:
    """What a layer says of itself is of the right kind, and of the size of what it holds."""
    assert layer.label().startswith(type(layer).__name__)
    assert layer.macs >= 0
    assert 0 <= layer.stored_nonzeros() <= layer.stored_numbers()
    reason = layer.why_not_prunable()
    assert reason is None or (reason and "\n" not in reason and not reason.endswith("."))
    if layer.has_integer_form:
        assert layer.weight_matrix().dim() == 2


def check_attributes(layer: nn.Module, replaced: nn.Module) -> None:
    """What the torch layer that was replaced offers can be read, or the error says in a line what to read instead.

    Tensors are of the same type and device, which is what owners read of them, and of the same shape unless they are a
    parameter of the layer's own. A bias may be there where none was, or lack where one was: then it is None.
    """
    offered = {*vars(replaced), *replaced._parameters, *replaced._buffers}
    for name in sorted(name for name in offered if not name.startswith("_") and name != "training"):
        expected = getattr(replaced, name)
        try:
            value = getattr(layer, name)
        except AttributeError as error:
            reason = str(error)
            assert reason.startswith(f"{type(layer).__name__} has no {name}: "), reason
            assert "\n" not in reason
            continue
        if isinstance(value, torch.Tensor) and isinstance(expected, torch.Tensor):
            assert (value.dtype, value.device) == (expected.dtype, expected.device), name
            assert name in layer._parameters or value.shape == expected.shape, name
        elif name != "bias":
            assert value == expected, name


def convert_or_skip(model: nn.Module, config, x=None) -> None:
    """Change all layers that a config accepts; the test is skipped where there are none, or where it refuses them."""
    if not any(config.accepts(module) for module in model.modules()):
        pytest.skip("the method changes nothing in this network")
    try:
        if isinstance(config, Conversion):
            fg.convert_(model, config, where=lambda name, module: True)
        else:
            fg.compress_(model, config, x)
    except ValueError as error:
        pytest.skip(f"refused: {error}")


def _float64(value):
    """A module or a tensor in double precision, complex numbers too."""
    wide = {torch.float32: torch.float64, torch.complex64: torch.complex128}
    if isinstance(value, torch.Tensor):
        return value.to(wide.get(value.dtype, value.dtype))
    return value._apply(lambda tensor: tensor.to(wide.get(tensor.dtype, tensor.dtype)))
