"""Products of bytes on every instruction set: whole numbers bit for bit as plain torch has them."""

import pytest
import torch
from torch.nn import functional as F

from filigree.ops import kernels
from filigree.ops.inference import ADD, ATTENTION, MULTIPLY, NORM, Attention, Finishing, Span, Step, Steps
from filigree.ops.int8 import int8_inputs, int8_product, int8_weight
from filigree.ops.panel_weights import INT8_CODINGS, in_groups, pack, padded, unpack

NAN, INF = float("nan"), float("inf")


@pytest.fixture(params=[(True, True), (True, False), (False, False)], ids=["AMX", "VNNI", "pairs"])
def how(request):
    """By the instructions of so new a processor, or of what this one has of them."""
    fours, amx = request.param
    kernels.set_multiplies_fours(fours)
    kernels.set_amx(amx, always=amx)
    yield
    kernels.set_multiplies_fours(True)
    kernels.set_amx(True)


def integers(outputs, depth, density=0.4):
    generator = torch.Generator().manual_seed(outputs * 100 + depth)
    weight = torch.randint(-127, 128, (outputs, depth), generator=generator)
    return torch.where(torch.rand(weight.shape, generator=generator) < density, weight, 0).to(torch.int8)


def run(step, spans, tensors, images, chunk=4):
    y = torch.full((images, spans[-1].size), NAN)
    Steps(spans, [step], chunk).run([*(t.contiguous() for t in tensors), y], images)
    return y


def product(coding, weight, x, positions, by_image=False, finish=None):
    """`x (images, points, numbers)`: what the kernel computes of the numbers at `positions` of each point."""
    images, points, size = x.shape
    wide = padded(len(weight))
    step = Step(
        MULTIPLY, 0, 1, points, (torch.arange(points) * size).int(), (torch.arange(points) * wide).int(),
        weight=pack(coding, weight, positions), by_image=by_image, finish=(finish or Finishing()).packed(len(weight)),
        work=1 << 20,
    )  # fmt: skip
    y = run(step, [Span(points * size), Span(points * wide)], [x], images).view(images, points, wide)
    assert (y[..., len(weight) :].nan_to_num(0) == 0).all()
    return y[..., : len(weight)]


@pytest.mark.parametrize("coding", INT8_CODINGS)
@pytest.mark.parametrize("shape", [(1, 1), (5, 33), (16, 40), (17, 1), (70, 95), (130, 7), (100, 128), (200, 600)])
def test_whole_numbers_are_exact_on_every_instruction_set(isa, how, coding, shape):
    outputs, depth = shape
    weight = integers(outputs, depth)
    positions = torch.randperm(depth + 7, generator=torch.Generator().manual_seed(depth))[:depth]
    positions = torch.where(positions > 3, positions + 5, positions)
    packed = pack(coding, weight, positions)
    assert torch.equal(unpack(packed, outputs), in_groups(weight[:, positions.argsort()], packed.runs).float())
    for images, points in [(0, 1), (1, 1), (2, 1), (5, 1), (3, 7), (70, 1), (2, 48)]:
        x = torch.randn(images, points, depth + 13) * torch.rand(images, points, 1) * 10
        y = product(coding, weight, x, positions)
        expected = int8_product(x[..., positions].flatten(0, 1), weight).view_as(y)
        assert torch.equal(y, expected)


@pytest.mark.parametrize("coding", INT8_CODINGS)
@pytest.mark.parametrize("points", [1, 5, 21, 64])
def test_a_scale_for_all_of_an_image(isa, how, coding, points):
    weight, x = integers(20, 30), torch.randn(3, points, 40)
    positions = torch.tensor([*range(4, 15), *range(20, 39)])
    rounded = int8_inputs(x)
    sums = (rounded.integers[..., positions] - rounded.zero[:, None, None]).long() @ weight.long().t()
    expected = sums.float() * rounded.scale[:, None, None]
    assert torch.equal(product(coding, weight, x, positions, by_image=True), expected)


@pytest.mark.parametrize("coding", INT8_CODINGS)
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_numbers_do_not_overflow(isa, how, coding, sign):
    """Where products of bytes are summed in 16 bits, these would be cut off."""
    weight = torch.full((3, 999), 127 * sign, dtype=torch.int8)
    x = torch.ones(2, 1, 999)
    x[1] = -1
    y = product(coding, weight, x, torch.arange(999))
    assert torch.equal(y[:, 0, 0] * 255, torch.tensor([1.0, -1.0]) * 999 * 127 * sign * 255)


@pytest.mark.parametrize("coding", INT8_CODINGS)
def test_what_is_not_finite_or_too_small(isa, coding):
    weight = integers(18, 37, density=1.0)
    x = torch.randn(40, 1, 37)
    x[0], x[1], x[2, 0, 36], x[3, 0, 0], x[4, 0, 20], x[5] = 0, 1e-41, NAN, INF, -INF, 1e38 * x[5].sign() * 3
    y = product(coding, weight, x, torch.arange(37))[:, 0]
    assert (y[:2] == 0).all()
    assert y[2:6].isnan().all()
    assert torch.equal(y[6:], int8_product(x[6:, 0], weight))


@pytest.mark.parametrize("coding", INT8_CODINGS)
def test_an_empty_weight_and_what_follows_the_sums(isa, coding):
    x = torch.randn(9, 1, 12)
    bias, scale = torch.randn(7), torch.rand(7)
    assert torch.equal(product(coding, torch.zeros(7, 12, dtype=torch.int8), x, torch.arange(12)), torch.zeros(9, 1, 7))
    finish = Finishing(scale=scale, bias=bias, relu=True)
    weight = integers(7, 12)
    y = product(coding, weight, x, torch.arange(12), finish=finish)[:, 0]
    torch.testing.assert_close(y, F.relu(int8_product(x[:, 0], weight) * scale + bias), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("coding", INT8_CODINGS)
def test_threads_and_chunks_change_no_bit(coding):
    weight, x = integers(100, 50), torch.randn(9, 3 * 60)
    step = Step(
        MULTIPLY, 0, 1, 3, torch.tensor([0, 60, 120]).int(), (torch.arange(3) * padded(100)).int(),
        weight=pack(coding, weight, torch.arange(50)), work=1 << 20,
    )  # fmt: skip
    before, results = torch.get_num_threads(), []
    try:
        for count, chunk, images in [(1, 1, 9), (1, 9, 9), (2, 4, 9), (3, 2, 2), (4, 9, 1)]:
            torch.set_num_threads(count)
            results.append(run(step, [Span(180), Span(3 * padded(100))], [x[:images]], images, chunk))
    finally:
        torch.set_num_threads(before)
    for each in results[1:]:
        assert torch.equal(each, results[0][: len(each)])


def test_rounded_inputs_and_weights_are_near_what_they_were():
    x, weight = torch.randn(5, 3, 40), torch.randn(6, 40)
    rounded = int8_inputs(x)
    error = (rounded.dequantised() - x).abs().flatten(1).amax(1)
    assert (error <= rounded.scale * 0.501).all()
    rows, scale = int8_weight(weight)
    assert ((rows * scale[:, None] - weight).abs() <= scale[:, None] * 0.501).all()
    assert rows.abs().amax(1).eq(127).all()
    assert int8_weight(torch.zeros(2, 3))[1].eq(0).all()


@pytest.mark.parametrize("curve", ["gelu", "gelu_tanh", "silu", "tanh"])
def test_curves(isa, curve):
    functions = {
        "gelu": F.gelu, "gelu_tanh": lambda v: F.gelu(v, approximate="tanh"), "silu": F.silu, "tanh": torch.tanh,
    }  # fmt: skip
    x = torch.cat([torch.linspace(-30, 30, 4001), torch.tensor([0.0, NAN, 1e-30])])
    zeros = torch.zeros(len(x))
    steps = Step(
        ADD, 0, 2, 1, torch.zeros(1).int(), torch.zeros(1).int(), 1, others=torch.zeros(1).int(),
        channels=padded(len(x)), finish=Finishing(curve=curve),
    )  # fmt: skip
    size = padded(len(x))
    given = [F.pad(each, (0, size - len(x)))[None] for each in (x, zeros)]
    y = run(steps, [Span(size), Span(size), Span(size)], given, 1)[0, : len(x)]
    torch.testing.assert_close(y, functions[curve](x), rtol=1e-5, atol=2e-6, equal_nan=True)


@pytest.mark.parametrize("count", [1, 5, 16, 37])
def test_layer_norms(isa, count):
    x, size = torch.randn(3, 4, count) * 3 + 1, padded(count)
    factor, shift = torch.randn(2, count)
    places = (torch.arange(4) * size).int()
    step = Step(
        NORM, 0, 1, 4, places, places, taps=count, channels=size, number=1e-3,
        finish=Finishing(factor=factor, shift=shift).packed(count),
    )  # fmt: skip
    y = run(step, [Span(4 * size), Span(4 * size)], [F.pad(x, (0, size - count))], 3).view(3, 4, size)[..., :count]
    torch.testing.assert_close(y, F.layer_norm(x, (count,), factor, shift, 1e-3), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("biases", [0, 1, None])
@pytest.mark.parametrize(
    ("heads", "queries", "keys", "width", "of_value"),
    [
        (1, 1, 1, 16, 16),
        (2, 37, 37, 16, 16),
        (3, 16, 5, 32, 7),
        (1, 70, 18, 80, 17),
        (2, 3, 40, 5, 33),
        (4, 1, 9, 1, 1),
    ],
)
def test_attention(isa, heads, queries, keys, width, of_value, biases):
    counts, widths = (queries, keys, keys), (width, width, of_value)
    qkv = [torch.randn(2, n, heads, w) for n, w in zip(counts, widths, strict=True)]
    reads = [(torch.arange(heads)[:, None] + torch.arange(n) * heads) * w for n, w in zip(counts, widths, strict=True)]
    wide = padded(of_value)
    writes = ((torch.arange(heads)[:, None] + torch.arange(queries) * heads) * wide).int()
    bias = None if biases == 0 else torch.randn(biases or heads, queries, keys)
    if bias is not None:
        bias[:, :, 1::3] = -torch.inf
    step = Step(
        ATTENTION, 0, 3, queries, reads[0].int(), writes, 1, 2, torch.cat(reads[1:]).int(), taps=heads, channels=width,
        number=0.3, work=1 << 20,
        attention=Attention(keys, of_value, None if bias is None else F.pad(bias, (0, padded(keys) - keys))),
    )  # fmt: skip
    sizes = [n * heads * w for n, w in zip((*counts, queries), (*widths, wide), strict=True)]
    y = run(step, [Span(size) for size in sizes], qkv, 2).view(2, queries, heads, wide)[..., :of_value]
    q, k, v = (each.transpose(1, 2) for each in qkv)
    expected = F.scaled_dot_product_attention(q, k, v, bias, scale=0.3).transpose(1, 2)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
