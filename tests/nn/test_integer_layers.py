"""Layers of small integers against their dense twins, and the bytes that they are stored in."""

import copy

import pytest
import torch
from torch import nn

import filigree as fg
from contract import BATCHES, inputs, tolerance
from filigree.nn.integer.integer_code import decode, encode
from filigree.nn.integer.integer_layer import SampledActivation


def matrix(rows, cols, density=0.2, most=3):
    counts = torch.randint(-most, most + 1, (rows, cols), dtype=torch.int32)
    return counts * (torch.rand(rows, cols) < density)


def dense_of(indptr, columns, counts, rows, cols):
    out = torch.zeros(rows, cols, dtype=torch.int32)
    return out.index_put((torch.repeat_interleave(indptr.diff().long()), columns.long()), counts, accumulate=True)


@pytest.mark.parametrize("shape", [(0, 5), (1, 1), (3, 7), (20, 1000), (7, 127), (7, 128), (2, 40_000)])
@pytest.mark.parametrize(("density", "most"), [(0, 1), (0.001, 1), (0.05, 1), (0.1, 5), (1, 3), (1, 300), (1, 100_000)])
def test_code_is_lossless(shape, density, most):
    counts = matrix(*shape, density, most)
    code = encode(counts)
    torch.testing.assert_close(dense_of(*decode(code, *shape), *shape), counts, rtol=0, atol=0)
    largest = 1 if most < 128 else 2 if most < 32768 else 4
    assert code.numel() * code.element_size() <= max(largest * counts.numel(), 1)


def test_a_sample_is_a_byte():
    counts = torch.zeros(10, 100, dtype=torch.int32)
    counts[:, ::20] = torch.tensor([1, -1, 2, 1, -1])
    assert len(encode(counts)) == 10 * (6 + 1)  # and one byte ends a row


def test_few_bits_are_packed():
    counts = torch.arange(-3, 4, dtype=torch.int32).repeat(10, 10)  # 10 x 70, a seventh are zeros
    code = encode(counts)
    assert len(code) == 1 + 88 + 225  # 3 bits for each of 600, a bit for each of 700
    assert torch.equal(dense_of(*decode(code, 10, 70), 10, 70), counts)
    assert encode(counts, packed=False).dim() == 2


@pytest.mark.parametrize(
    "code",
    [
        torch.tensor([2, 2], dtype=torch.uint8),  # no end
        torch.tensor([255, 255, 255], dtype=torch.uint8),  # three ends
        torch.tensor([255, 40, 255], dtype=torch.uint8),  # column 20 of 8
        torch.tensor([254, 255, 254, 2, 255], dtype=torch.uint8),  # column 128 of 8
        torch.tensor([255, 255, 2], dtype=torch.uint8),  # something behind the last end
        torch.zeros(2, 9, dtype=torch.int8),
        torch.zeros(0, dtype=torch.int8),  # packed, without its bits
        torch.tensor([40, 0, 0], dtype=torch.int8),  # numbers of 40 bits
        torch.tensor([3, 1, 0], dtype=torch.int8),  # a number that is not there
        torch.tensor([3, 0, 0, 1], dtype=torch.int8),  # a byte too many
        torch.tensor([3, 1, 0, 32], dtype=torch.int8),  # a zero among the others
        torch.zeros(2, 8, dtype=torch.float32),
        torch.zeros(3, dtype=torch.int32),
    ],
)
def test_hostile_code_is_refused(code):
    with pytest.raises(ValueError, match="code: "):
        decode(code, 2, 8)
    layer = fg.nn.IntegerLinear(torch.ones(2, 8, dtype=torch.int32), torch.ones(1))
    with pytest.raises(ValueError, match="code: "):
        layer.load_state_dict({"code": code, "scale": torch.ones(1)})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("options", [{}, {"scale": "row", "bias": True}, {"input": True, "bias": True}])
@pytest.mark.parametrize("most", [1, 1000])
def test_linear_equals_dense_on_every_instruction_set(isa, dtype, relu, options, most):
    counts = matrix(33, 40, 0.4, most)
    counts[3] = 0
    layer = fg.nn.IntegerLinear(
        counts,
        torch.rand(33 if options.get("scale") else 1, dtype=dtype) / most,
        torch.rand(40, dtype=dtype) + 0.5 if options.get("input") else None,
        torch.randn(33, dtype=dtype) if options.get("bias") else None,
        relu,
    )
    dense_reference = layer.dense()
    for batch in BATCHES:
        for _, x in inputs(batch, 40, dtype):
            mine, its = x.detach().requires_grad_(), x.detach().requires_grad_()
            y, expected = layer(mine), dense_reference(its)
            torch.testing.assert_close(y, expected, **tolerance(dtype))
            dy = torch.randn_like(expected)
            parameters = [layer.bias] if layer.bias is not None else []
            its_bias = [p for name, p in dense_reference.named_parameters() if "bias" in name]
            got = torch.autograd.grad(y, [mine, *parameters], dy)
            for g, e in zip(got, torch.autograd.grad(expected, [its, *its_bias], dy), strict=True):
                torch.testing.assert_close(g, e, **tolerance(dtype))


def test_gradcheck_wide_columns_and_more_sides():
    layer = fg.nn.IntegerLinear(matrix(5, 9), torch.rand(5).double(), None, torch.randn(5).double())
    x = torch.randn(3, 9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, x)
    wide = fg.nn.IntegerLinear(matrix(4, 40_000, 0.01), torch.rand(1))
    assert wide.indices.dtype is torch.int32
    x = torch.randn(2, 3, 40_000)
    torch.testing.assert_close(wide(x), wide.dense()(x), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="in_features=40000"):
        wide(torch.randn(2, 9))


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(3, 5, 3, padding=1),
        nn.Conv2d(4, 6, (3, 2), stride=2, groups=2, bias=False),
        nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular", dilation=2),
    ],
)
def test_convolution_equals_dense(conv):
    counts = matrix(conv.out_channels, conv.weight[0].numel(), 0.5)
    input_scale = torch.rand(conv.in_channels) + 0.5 if conv.groups == 1 else None
    layer = fg.nn.IntegerConv2d(conv, counts, torch.rand(conv.out_channels), input_scale, conv.bias)
    dense_reference = layer.dense()
    for x in (torch.randn(3, conv.in_channels, 8, 9), torch.randn(conv.in_channels, 8, 9)):
        if conv.padding_mode == "zeros":
            torch.testing.assert_close(layer(x), dense_reference(x), rtol=1e-4, atol=1e-5)
    x = torch.randn(3, conv.in_channels, 8, 9)
    inner = layer(x)
    if conv.padding_mode == "zeros" or input_scale is not None:
        torch.testing.assert_close(inner, dense_reference(x), rtol=1e-4, atol=1e-5)


def test_saved_and_loaded(tmp_path):
    model = fg.models.mlp([64, 40, 10])
    fg.compress_(model, fg.RoundToNearest(8))
    assert [type(m).__name__ for m in model.modules()].count("IntegerLinear") == 2
    x = torch.randn(5, 64)
    fg.save(model, tmp_path / "m.safetensors")
    assert torch.equal(fg.load(tmp_path / "m.safetensors")(x), model(x))
    dense_reference = copy.deepcopy(model)
    assert torch.equal(dense_reference(x), model(x))
    dense = fg.models.mlp([64, 40, 10])
    fg.compress_(dense, fg.RoundToNearest(16))
    assert fg.measure(dense).nonzeros >= 0


def test_rounding_is_to_the_nearest():
    layer = nn.Sequential(nn.Linear(30, 20))
    weight = layer[0].weight.detach().clone()
    fg.compress_(layer, fg.RoundToNearest(bits=4))
    made = layer[0]
    assert int(made.integers().abs().max()) == 7
    assert ((made.dense().weight - weight).abs() <= made.scale[:, None] / 2 + 1e-7).all()


def test_sampled_activations():
    x = torch.randn(6, 50)
    made = SampledActivation(0.3)
    counts = made.integers(x)
    assert torch.equal(counts, counts.round())
    assert (made(x) - x).abs().max() <= 0.3 + 1e-6
    runs = (made(x).abs() - x.abs()).cumsum(1)
    assert runs.abs().max() <= 0.15 + 1e-5  # of any leading run of features
    assert torch.equal(made(x), made(x))


@pytest.mark.parametrize("shape", [(0, 5), (0, 3, 4, 4)])
def test_sampled_activations_of_an_empty_batch(shape):
    assert SampledActivation(0.3)(torch.empty(shape)).shape == shape


@pytest.mark.parametrize("wrong", [{"bias": torch.zeros(3)}, {"code": torch.full((5,), -1, dtype=torch.int8)}])
def test_a_refused_state_changes_nothing(wrong):
    model = nn.Sequential(nn.Linear(12, 4))
    fg.compress_(model, fg.RoundToNearest(8))
    x, before = torch.randn(5, 12), copy.deepcopy(model)
    extra = {"input_scale": torch.ones(12), "activation.scale": torch.ones(1), "scale": torch.ones(1)}
    with pytest.raises(ValueError, match=r"^state_dict: "):
        model[0].load_state_dict(model[0].state_dict() | extra | wrong)
    assert model[0].state_dict().keys() == before[0].state_dict().keys()
    assert torch.equal(model(x), before(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_an_input_of_another_type_is_computed_in_it(dtype):
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Flatten(), nn.Linear(6 * 36, 4))
    for layer in (model[0], model[2]):
        nn.init.constant_(layer.bias, 5.0)
    fg.compress_(model, fg.RoundToNearest())
    x = torch.randn(2, 3, 8, 8)
    y = model(x.to(dtype))
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), model(x), atol=0.02, rtol=0.01)
