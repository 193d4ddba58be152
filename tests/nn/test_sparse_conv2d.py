import copy

import pytest
import torch
from torch import nn

import filigree as fg
from filigree.nn import ChannelMajorBatchNorm2d, MaskedConv2d, SparseConv2d

# in, out, kernel, stride, padding, dilation, groups, height, width, images
SHAPES = [
    (3, 5, 3, 1, 1, 1, 1, 8, 8, 2),
    (4, 6, 3, 1, 1, 1, 2, 7, 9, 3),
    (4, 4, 3, 2, 1, 1, 1, 8, 8, 2),
    (4, 8, 5, 2, 2, 1, 1, 9, 7, 2),
    (6, 6, (3, 1), (2, 3), (1, 0), (1, 2), 3, 11, 10, 2),
    (4, 4, 1, 1, 0, 1, 1, 5, 5, 2),
    (4, 4, 1, 2, 0, 1, 1, 6, 6, 2),
    (4, 4, 3, 1, "same", 2, 1, 9, 9, 2),
    (4, 4, (4, 3), 1, "same", 2, 1, 9, 9, 2),
    (4, 4, 2, 3, 1, 2, 1, 10, 13, 1),
    (4, 4, 1, 1, 3, 1, 1, 4, 4, 2),
    (5, 5, 3, 1, 1, 1, 5, 6, 6, 2),
    (2, 2, 3, 3, 5, 2, 1, 6, 6, 2),
    (4, 4, 3, 1, 0, 1, 1, 8, 8, 0),
]


def pair(shape, dtype=torch.float64, bias=True, density=0.4):
    """A sparse convolution, its dense reference, and an input."""
    channels, outs, kernel, stride, padding, dilation, groups, *size, images = shape
    conv = nn.Conv2d(channels, outs, kernel, stride, padding, dilation, groups, bias, dtype=dtype)
    layer = SparseConv2d.from_dense(conv, torch.rand_like(conv.weight) < density)
    return layer, layer.dense(), torch.randn(images, channels, *size, dtype=dtype)


def check(layer, dense_reference, x):
    # The reference has its channels first. With them last, oneDNN writes past its own memory (its issue 6035) in the
    # gradient of the weights of a 1x1 convolution with a stride from fewer channels than a register holds.
    mine = x.detach().requires_grad_()
    reference_x = x.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
    y, expected = layer(mine), dense_reference(reference_x)
    tight = {} if x.dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(y, expected, **tight)
    for dy in (torch.randn_like(expected), torch.randn_like(y)):
        got = torch.autograd.grad(y, [mine, *layer.parameters()], dy, retain_graph=True)
        dx, dw, *db = torch.autograd.grad(expected, [reference_x, *dense_reference.parameters()], dy, retain_graph=True)
        for g, e in zip(got, [dx, dw.flatten()[layer.flat_indices()], *db], strict=True):
            torch.testing.assert_close(g, e, **tight)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_its_dense_reference(shape, dtype):
    layer, dense_reference, x = pair(shape, dtype, bias=shape[0] != 3)
    check(layer, dense_reference, x)
    check(layer, dense_reference, x.transpose(0, 1).contiguous().transpose(0, 1))
    check(layer, dense_reference, x.to(memory_format=torch.channels_last))


@pytest.mark.parametrize("mode", ["circular", "reflect", "replicate"])
def test_padding_modes(mode):
    conv = nn.Conv2d(3, 4, 3, padding=1, padding_mode=mode, dtype=torch.float64)
    layer = SparseConv2d.from_dense(conv, torch.rand_like(conv.weight) < 0.5)
    check(layer, layer.dense(), torch.randn(2, 3, 6, 5, dtype=torch.float64))


def test_several_chunks_of_images(monkeypatch):
    monkeypatch.setattr("filigree.ops.conv._CHUNK", 5000)
    layer, dense_reference, x = pair((4, 6, 3, 1, 1, 1, 1, 8, 8, 7))
    check(layer, dense_reference, x)


def test_emptied_channels_and_int64():
    conv = nn.Conv2d(4, 6, 3, padding=1, dtype=torch.float64)
    mask = torch.rand_like(conv.weight) < 0.5
    mask[2], mask[:, 1] = False, False
    layer = SparseConv2d.from_dense(conv, mask)
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    check(layer, layer.dense(), x)
    layer._set_pattern(type(layer.pattern)(*(part.long() for part in layer.pattern)))
    check(layer, layer.dense(), x)


def test_gradcheck_and_second_derivatives():
    layer, _, x = pair((2, 3, 3, 2, 1, 1, 1, 5, 5, 2))
    x.requires_grad_()

    def call(x, values, bias):
        return torch.func.functional_call(layer, {"values": values, "bias": bias}, (x,))

    inputs = (x, *(p.detach().clone().requires_grad_() for p in layer.parameters()))
    assert torch.autograd.gradcheck(call, inputs)
    assert torch.autograd.gradgradcheck(call, inputs)


def test_one_image_without_a_batch_and_bad_input():
    layer, dense_reference, x = pair(SHAPES[0])
    torch.testing.assert_close(layer(x[0]), dense_reference(x[0]))
    with pytest.raises(ValueError, match=r"must be \(N, 3, H, W\)"):
        layer(torch.randn(2, 4, 8, 8, dtype=torch.float64))
    with pytest.raises(ValueError, match="spans 3, more than the padded input's 2"):
        SparseConv2d(nn.Conv2d(1, 1, 3), torch.arange(4))(torch.randn(1, 1, 2, 5))
    with pytest.raises(TypeError, match=r"must be torch\.float64"):
        layer(x.float())


def test_compiles_and_counts():
    layer, dense_reference, x = pair(SHAPES[1], torch.float32)
    torch.testing.assert_close(torch.compile(layer, backend="aot_eager", fullgraph=True)(x), dense_reference(x))
    macs = fg.measure(nn.Sequential(layer), x).macs_forward
    assert macs == layer.nnz * 7 * 9


def test_half_precision_is_computed_in_float32():
    layer, _, x = pair(SHAPES[0], torch.float32)
    half = copy.deepcopy(layer).bfloat16()
    torch.testing.assert_close(half(x.bfloat16()), half.float()(x.bfloat16().float()).bfloat16())


def network():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1, groups=2),
        nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3),
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore:.* were never trained")  # it is rewired and saved at once
@pytest.mark.parametrize("masked", [False, True])
def test_trains_evolves_saves_and_loads(tmp_path, masked):
    model = network()
    report = fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.3), masked=masked))
    assert isinstance(model[3], MaskedConv2d if masked else SparseConv2d)
    assert isinstance(model[4], ChannelMajorBatchNorm2d) is not masked
    assert "Conv2d(8, 8, 3x3)" in str(report)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    evolution = fg.Evolution(model, optimizer, 0.3)
    x, y = torch.randn(9, 1, 8, 8), torch.randint(0, 3, (9,))
    before = model[3].flat_indices().clone()
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        evolution.step()
    assert not torch.equal(before, model[3].flat_indices())
    assert model[3].flat_indices().numel() == before.numel()
    model.eval()
    fg.save(model, tmp_path / "model")
    again = fg.load(tmp_path / "model", into=network()).eval()
    assert torch.equal(again(x), model(x))
    dense = nn.Sequential(*(m.dense() if hasattr(m, "dense") else m for m in model)).eval()
    torch.testing.assert_close(dense(x), model(x), rtol=1e-4, atol=1e-5)


def test_masked_equals_sparse():
    layer, dense_reference, x = pair((4, 6, (3, 2), 2, 1, 1, 2, 9, 8, 2))
    masked = MaskedConv2d(layer)
    torch.testing.assert_close(masked(x), dense_reference(x))
    torch.testing.assert_close(masked.dense()(x), dense_reference(x))
    assert masked.nnz == layer.nnz


def test_growth_by_gradient_goes_where_the_dense_gradient_is_largest():
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Flatten(), nn.Linear(48, 3)).double()
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.5)), ["0"])
    evolution = fg.Evolution(model, None, 0.3, grow="gradient")
    x, y = torch.randn(5, 2, 4, 4).double(), torch.randint(0, 3, (5,))
    dense_reference = nn.Sequential(model[0].dense(), model[1], model[2])
    for net in (model, dense_reference):
        nn.functional.cross_entropy(net(x), y).backward()
    before = model[0].flat_indices()
    kept = fg.dynamics.rewire.survivors(model[0].weights(), 0.3)
    evolution.step()
    size = dense_reference[0].weight.grad.flatten().abs()
    size[before[kept]] = -1
    expected = size.topk(int((~kept).sum())).indices
    grown = set(model[0].flat_indices().tolist()) - set(before[kept].tolist())
    assert grown == set(expected.tolist())


@pytest.mark.parametrize("training", [False, True])
def test_channel_major_batch_norm(training):
    norm = nn.BatchNorm2d(4, momentum=0.2)
    norm.weight.data.normal_()
    mine, dense_reference = ChannelMajorBatchNorm2d.like(norm), copy.deepcopy(norm)
    assert mine.weight is norm.weight
    mine.train(training), dense_reference.train(training)
    x = torch.randn(4, 3, 5, 6).transpose(0, 1)
    a, b = x.detach().requires_grad_(), x.contiguous().requires_grad_()
    y, expected = mine(a), dense_reference(b)
    assert y.transpose(0, 1).is_contiguous()
    torch.testing.assert_close(y, expected)
    dy = torch.randn_like(expected)
    torch.testing.assert_close(torch.autograd.grad(y, a, dy), torch.autograd.grad(expected, b, dy))
    torch.testing.assert_close(mine.running_var, dense_reference.running_var)
    torch.testing.assert_close(mine.dense().state_dict(), dense_reference.state_dict())


def test_erdos_renyi_kernel():
    sizes = [fg.topology.Size(64, 27, (3, 3)), fg.topology.Size(64, 576, (3, 3)), fg.topology.Size(128, 576, (3, 3))]
    topology = fg.ErdosRenyiKernel(density=0.05)
    densities = topology.densities(sizes)
    assert sum(d * s.numel for d, s in zip(densities, sizes, strict=True)) == pytest.approx(
        0.05 * sum(s.numel for s in sizes)
    )
    ratio = ((64 + 64 + 6) / (64 * 576)) / ((128 + 64 + 6) / (128 * 576))
    assert densities[1] / densities[2] == pytest.approx(ratio)
    assert topology.densities([*sizes, fg.topology.Size(4, 9, (3, 3))])[3] == 1
    drawn = topology.draw([*sizes, fg.topology.Size(4, 9, (3, 3))], torch.Generator())
    assert drawn[3] is None
    total = sum(s.numel for s in sizes) + 36
    assert sum(p.unique().numel() for p in drawn[:3]) + 36 == pytest.approx(0.05 * total, rel=1e-3)
    assert fg.ErdosRenyi(epsilon=1).connections(fg.topology.Size(64, 576, (3, 3))) == 64 + 64 + 6
    empty = fg.topology.Size(0, 27, (3, 3))
    assert topology.densities([empty, *sizes, empty]) == [1, *densities, 1]
    assert topology.densities([empty]) == [1]
