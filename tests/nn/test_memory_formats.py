"""Inputs and incoming gradients in any memory order: each layer equals its dense reference on contiguous copies."""

import copy
import itertools
import random

import pytest
import torch
from torch import nn

import filigree as fg

DENSITY = fg.ErdosRenyi(density=0.4)


def orders(tensor, generator):
    """The same numbers by every permutation of the sides in memory, with any stride where a side is 1; and from inside
    a larger tensor, every second sample of it."""
    for order in itertools.permutations(range(tensor.dim())):
        strides, step = [0] * tensor.dim(), 1
        for side in reversed(order):
            strides[side], step = step, step * tensor.shape[side]
        strides = [
            generator.choice([1, 2, 3, step]) if size == 1 else s for size, s in zip(tensor.shape, strides, strict=True)
        ]
        memory = torch.zeros(max(step, 1) + sum(strides), dtype=tensor.dtype)
        yield memory.as_strided(tensor.shape, strides).copy_(tensor)
    wide = torch.zeros(2 * len(tensor), *(size + 1 for size in tensor.shape[1:]), dtype=tensor.dtype)
    inside = wide[(slice(None, None, 2), *(slice(1, None) for _ in tensor.shape[1:]))]
    yield inside.copy_(tensor)


def converted(layer, config, *others):
    """What a config makes of a layer, in float64."""
    torch.manual_seed(0)
    model = nn.Sequential(layer, *others).double()
    fg.convert_(model, config, where="0")
    return model


IMAGES = {
    "SparseConv2d": lambda: converted(nn.Conv2d(3, 4, 3, padding=1), fg.Sparse(DENSITY))[0],
    "SparseConv2d, stride": lambda: converted(nn.Conv2d(3, 4, 3, stride=2, padding=1), fg.Sparse(DENSITY))[0],
    "MaskedConv2d": lambda: converted(nn.Conv2d(3, 4, 3, padding=1), fg.Sparse(DENSITY, masked=True))[0],
    "ChannelMajorConv2d": lambda: fg.nn.ChannelMajorConv2d.like(nn.Conv2d(3, 4, 3, padding=1).double()),
    "ChannelMajorConv2d, large": lambda: fg.nn.ChannelMajorConv2d.like(nn.Conv2d(3, 180, 3, padding=1).double()),
    "ChannelMajorConv2d, a product": lambda: fg.nn.ChannelMajorConv2d.like(nn.Conv2d(3, 1400, 1, stride=2).double()),
    "ChannelMajorBatchNorm2d": lambda: fg.nn.ChannelMajorBatchNorm2d.like(nn.BatchNorm2d(3).double()),
    "AsymmetricConv2d": lambda: converted(nn.Conv2d(3, 4, 3, padding=1), fg.Asymmetric.topk(4))[0],
}
VECTORS = {
    "SparseLinear": lambda: converted(nn.Linear(6, 5), fg.Sparse(DENSITY))[0],
    "SparseLinear, ReLU": lambda: converted(nn.Linear(6, 5), fg.Sparse(DENSITY), nn.ReLU())[0],
    "MaskedLinear": lambda: converted(nn.Linear(6, 5), fg.Sparse(DENSITY, masked=True))[0],
    "FeatureMajorLinear": lambda: fg.nn.FeatureMajorLinear.like(nn.Linear(6, 5).double()),
    "AsymmetricLinear": lambda: converted(nn.Linear(6, 5), fg.Asymmetric.topk(5))[0],
    "LowRankLinear": lambda: converted(nn.Linear(6, 5), fg.LowRank(2))[0],
    "ACDCLinear": lambda: converted(nn.Linear(6, 6), fg.ACDC())[0],
    "FastfoodLinear": lambda: converted(nn.Linear(6, 5), fg.Fastfood())[0],
    "CirculantLinear": lambda: converted(nn.Linear(6, 5), fg.Circulant())[0],
    "ToeplitzLinear": lambda: converted(nn.Linear(6, 5), fg.Toeplitz())[0],
    "PHDLinear": lambda: converted(nn.Linear(6, 5), fg.PHD(density=0.5))[0],
}
CASES = [(name, make, shape) for name, make in IMAGES.items() for shape in ((2, 3, 4, 3), (1, 3, 4, 3), (2, 3, 1, 4))]
CASES += [(name, make, shape) for name, make in VECTORS.items() for shape in ((3, 6), (2, 1, 6), (2, 3, 6))]


@pytest.mark.parametrize(("name", "make", "shape"), CASES, ids=lambda value: "" if callable(value) else str(value))
def test_any_memory_order_of_inputs_and_gradients(name, make, shape):
    generator = random.Random(0)
    layer = make().train()
    dense = layer.dense().double().train()
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    expected = dense(x)
    dy = torch.randn_like(expected, memory_format=torch.contiguous_format)
    (dx,) = torch.autograd.grad(expected, x, dy)
    for given in orders(x.detach(), generator):
        for incoming in orders(dy, generator):
            own = copy.deepcopy(layer)
            leaf = given.detach().requires_grad_()
            y = own(leaf)
            y.backward(incoming)
            torch.testing.assert_close(y, expected)
            torch.testing.assert_close(leaf.grad, dx)


def test_a_network_whose_norm_is_read_channels_last():
    """Found with timm's resnet18: a permutation behind a norm gives its gradient another memory order."""
    torch.manual_seed(0)
    convolution, norm, head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 4)

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution, self.norm, self.head = convolution, norm, head

        def forward(self, x):
            return self.head(self.norm(self.convolution(x)).permute(0, 2, 3, 1))

    model = Network().double()
    fg.convert_(model, fg.Sparse(DENSITY), where="convolution")
    x = torch.randn(4, 3, 6, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: model(x).square().sum(), (x,))


def test_a_model_in_channels_last_memory():
    """`model.to(memory_format=torch.channels_last)`, as vision models are trained: small and large convolutions."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.Conv2d(8, 120, 3),
        nn.Conv2d(120, 40, 1), nn.BatchNorm2d(40),
    )  # fmt: skip
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.3)), where="0")
    plain = nn.Sequential(*(layer.dense() if hasattr(layer, "dense") else copy.deepcopy(layer) for layer in model))
    model.to(memory_format=torch.channels_last)
    x = torch.randn(4, 3, 8, 7)
    y, expected = model(x.to(memory_format=torch.channels_last)), plain(x)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    y.square().mean().backward()
    expected.square().mean().backward()
    for mine, theirs in zip(model[1:].parameters(), plain[1:].parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-3, atol=1e-4)
