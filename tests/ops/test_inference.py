"""Steps of inference on every instruction set, against dense torch."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from filigree.ops.inference import ADD, DEPTHWISE, MAXIMUM, MEAN, MULTIPLY, TIMES, Finishing, Span, Step, Steps
from filigree.ops.panel_weights import CODINGS, INT8_CODINGS, pack, padded, unpack
from filigree.optimize.depthwise import by_tap

NAN = float("nan")
EXACT = [coding for coding in CODINGS if coding not in INT8_CODINGS]


def product(coding, outputs, depth, images, points=1, finish=None):
    """A weight with many zeros on inputs that lie anywhere, and what it should give: step, x, y."""
    generator = torch.Generator().manual_seed(outputs * 100 + depth)
    weight = torch.randint(-3, 4, (outputs, depth), generator=generator).float()
    weight[torch.rand(weight.shape, generator=generator) < 0.6] = 0
    positions = torch.randperm(depth + 7, generator=generator)[:depth]
    positions = torch.where(positions > 3, positions + 5, positions)
    starts = torch.arange(points) * 3
    size = depth + 13 + 3 * points
    x = torch.randn(images, size, generator=generator)
    patches = torch.stack([x[:, start + positions] for start in starts.tolist()], 1)  # (images, points, depth)
    packed = pack(coding, weight.to(torch.int8) if coding == "bytes" else weight, positions)
    wide = padded(outputs)
    writes = (torch.arange(points) * wide).int()
    finish = Finishing() if finish is None else finish
    step = Step(
        MULTIPLY, 0, 1, points, starts.int(), writes, weight=packed, finish=finish.packed(outputs), work=1 << 20
    )
    sums = patches.double() @ weight.double().t()
    return step, [Span(size), Span(points * wide)], x, sums, packed, weight, positions


def run(step, spans, x, chunk=4):
    y = torch.full((len(x), spans[1].size), NAN)
    Steps(spans, [step], chunk).run([x.contiguous(), y], len(x))
    return y


@pytest.mark.parametrize("coding", EXACT)
@pytest.mark.parametrize(("outputs", "depth"), [(1, 1), (5, 33), (16, 40), (17, 1), (70, 95), (130, 7)])
def test_products_equal_dense_on_every_instruction_set(isa, coding, outputs, depth):
    for images, points in [(0, 1), (1, 1), (2, 1), (5, 1), (31, 1), (3, 7)]:
        step, spans, x, sums, packed, weight, positions = product(coding, outputs, depth, images, points)
        y = run(step, spans, x).unflatten(1, (points, padded(outputs)))
        torch.testing.assert_close(y[..., :outputs], sums.float(), rtol=1e-5, atol=1e-4)
        assert (y[..., outputs:] == 0).all()
        assert torch.equal(unpack(packed, outputs), weight[:, positions.argsort()])


@pytest.mark.parametrize("coding", ["floats", "bytes", "bitmap"])
@pytest.mark.parametrize(("outputs", "lengths"), [(16, (700,)), (30, (259, 1, 300)), (70, (64, 63, 130)), (10, (256,))])
def test_products_with_many_inputs_take_some_at_a_time(isa, coding, outputs, lengths):
    """Sums go on where those before ended, in runs of neighbours of any length."""
    generator = torch.Generator().manual_seed(outputs)
    depth = sum(lengths)
    weight = torch.randint(-2, 3, (outputs, depth), generator=generator).to(
        torch.int8 if coding == "bytes" else torch.float32
    )
    runs = torch.repeat_interleave(torch.arange(len(lengths)) * 3, torch.tensor(lengths))
    positions = torch.arange(depth) + runs
    size, wide = depth + 10, padded(outputs)
    finish = Finishing(bias=torch.arange(outputs) - 9.0, relu=True)
    for points in (1, 6, 7, 13, 97, 200):
        starts = torch.arange(points) % 4
        x = torch.randn(2, size, generator=generator)
        step = Step(
            MULTIPLY, 0, 1, points, starts.int(), (torch.arange(points) * wide).int(),
            weight=pack(coding, weight, positions), finish=finish.packed(outputs),
        )  # fmt: skip
        y = run(step, [Span(size), Span(points * wide)], x).unflatten(1, (points, wide))
        patches = x[:, starts[:, None] + positions].double()
        expected = (patches @ weight.double().t() + finish.bias).relu().float()
        torch.testing.assert_close(y[..., :outputs], expected, rtol=1e-5, atol=1e-3)
        if points == 200:
            one = run(replace(step, points=1), [Span(size), Span(points * wide)], x[:1])
            assert torch.equal(one[0, :wide], y[0, 0])  # the number of points changes no bit


@pytest.mark.parametrize(("groups", "outputs", "inputs"), [(2, 16, 5), (3, 32, 300), (5, 80, 16)])
def test_products_of_groups(isa, groups, outputs, inputs):
    generator = torch.Generator().manual_seed(groups)
    weight = torch.randn(groups, outputs, inputs, generator=generator)
    parts = torch.randn(5, groups * outputs, generator=generator)
    finish = Finishing(*parts, relu=True)
    packed = pack("floats", weight.flatten(0, 1), torch.arange(inputs))._replace(groups=groups, shift=inputs + 3)
    points, wide, size = 7, groups * outputs, groups * (inputs + 3)
    step = Step(
        MULTIPLY, 0, 1, points, (torch.arange(points) * size).int(), (torch.arange(points) * wide).int(),
        weight=packed, finish=finish.packed(wide), work=1 << 20,
    )  # fmt: skip
    x = torch.randn(3, points, groups, inputs + 3, generator=generator)
    y = run(step, [Span(points * size), Span(points * wide)], x.flatten(1)).view(3, points, wide)
    sums = torch.einsum("ipgk,gok->ipgo", x[..., :inputs].double(), weight.double()).flatten(2) * parts[0] + parts[1]
    expected = torch.where(sums < 0, sums * parts[2], sums) * parts[3] + parts[4]
    torch.testing.assert_close(y, expected.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("coding", EXACT)
@pytest.mark.parametrize("kind", ["relu", "slope", "all"])
def test_what_becomes_of_the_sums(isa, coding, kind):
    outputs = 21
    scale, bias, slope, factor, shift = torch.randn(5, outputs)
    finish = {
        "relu": Finishing(bias=bias, relu=True),
        "slope": Finishing(scale, bias, slope, relu=True),
        "all": Finishing(scale, bias, slope, factor, shift, True),
    }[kind]
    step, spans, x, sums, *_ = product(coding, outputs, 30, 6, finish=finish)
    expected = (sums[:, 0] * (1 if finish.scale is None else scale) + bias).float()
    expected = torch.where(expected < 0, 0 if finish.slope is None else expected * slope, expected)
    expected = expected if finish.factor is None else expected * factor + shift
    torch.testing.assert_close(run(step, spans, x)[:, :outputs], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("outputs", [10, 30, 100])
@pytest.mark.parametrize("coding", EXACT)
def test_threads_and_chunks_change_no_bit(coding, outputs):
    step, spans, x, *_ = product(coding, outputs, 50, 9, points=3)
    before = torch.get_num_threads()
    try:
        results = []
        for count, chunk, images in [(1, 1, 9), (1, 9, 9), (2, 4, 9), (3, 2, 2), (4, 9, 1)]:
            torch.set_num_threads(count)
            results.append(run(step, spans, x[:images], chunk))
    finally:
        torch.set_num_threads(before)
    for each in results[1:]:
        assert torch.equal(each, results[0][: len(each)])


def test_a_weight_of_zeros_and_one_without_inputs(isa):
    for coding in EXACT:
        packed = pack(
            coding, torch.zeros(3, 4, dtype=torch.int8 if coding == "bytes" else torch.float32), torch.arange(4)
        )
        step = Step(
            MULTIPLY, 0, 1, 1, torch.zeros(1, dtype=torch.int32), torch.zeros(1, dtype=torch.int32), weight=packed
        )
        assert torch.equal(run(step, [Span(4), Span(16)], torch.randn(2, 4)), torch.zeros(2, 16))


CURVES = {
    "gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"), "silu": F.silu, "tanh": torch.tanh,
    "sigmoid": torch.sigmoid, "hard_sigmoid": F.hardsigmoid, "hard_swish": F.hardswish, "relu6": F.relu6,
}  # fmt: skip


@pytest.mark.parametrize("curve", CURVES)
def test_curves_equal_torch(isa, curve):
    outputs = 19
    finish = Finishing(bias=torch.linspace(-12, 12, outputs), curve=curve)
    step, spans, x, sums, *_ = product("floats", outputs, 4, 30, finish=finish)
    y = run(step, spans, x)
    torch.testing.assert_close(y[:, :outputs], CURVES[curve]((sums[:, 0] + finish.bias).float()), rtol=1e-5, atol=2e-6)
    assert (y[:, outputs:] == 0).all()
    assert run(step, spans, x * NAN)[:, :outputs].isnan().all()
    values = torch.tensor([-1e30, -100.0, -6, -3, 0, 3, 6, 100, 1e30])
    step, spans, x, *_ = product("floats", len(values), 4, 1, finish=Finishing(bias=values, curve=curve))
    torch.testing.assert_close(run(step, spans, 0 * x)[0, : len(values)], CURVES[curve](values), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 16, 33, 70])
@pytest.mark.parametrize(("points", "taps"), [(1, 1), (4, 9), (7, 3)])
def test_depthwise_products_equal_dense(isa, channels, points, taps):
    generator = torch.Generator().manual_seed(channels + points)
    weight, wide = torch.randn(channels, taps, generator=generator), padded(channels)
    first = torch.randint(0, 12, (points,), generator=generator)
    offsets = torch.randint(0, 12, (taps,), generator=generator)
    bias = torch.randn(channels, generator=generator)
    step = Step(
        DEPTHWISE, 0, 1, points, (first * wide).int(), (torch.arange(points).flip(0) * wide).int(), taps=taps,
        others=(offsets * wide).int(), channels=wide, weight=by_tap(weight),
        finish=Finishing(bias=bias, relu=True).packed(channels), work=1 << 20,
    )  # fmt: skip
    for images in (0, 1, 5):
        x = torch.randn(images, 23, channels, generator=generator)
        y = run(step, [Span(23 * wide), Span(points * wide)], F.pad(x, (0, wide - channels)).flatten(1))
        taken = x[:, first[:, None] + offsets]
        expected = (torch.einsum("iptc,ct->ipc", taken, weight) + bias).relu().flip(1)
        y = y.unflatten(1, (points, wide))
        torch.testing.assert_close(y[..., :channels], expected, rtol=1e-5, atol=1e-5)
        assert (y[..., channels:] == 0).all()


@pytest.mark.parametrize("channels", [1, 8, 16, 21, 64, 77])
def test_pools_write_their_channels_alone(isa, channels):
    generator = torch.Generator().manual_seed(channels)
    x = torch.randn(3, 5, 80, generator=generator)
    reads = torch.tensor([[0, 2, 4], [1, 0, 3]])
    for kind, taps, function in [(MEAN, 3, torch.mean), (MEAN, 1, torch.mean), (MAXIMUM, 3, torch.amax)]:
        writes = torch.tensor([100, 7]).int()
        step = Step(kind, 0, 1, 2, (reads[:, :taps] * 80).reshape(-1).int(), writes, taps=taps, channels=channels)
        y = run(step, [Span(400), Span(200)], x.flatten(1))
        expected = torch.full((3, 200), NAN)
        for point, write in enumerate(writes.tolist()):
            expected[:, write : write + channels] = function(x[:, reads[point, :taps], :channels], 1)
        torch.testing.assert_close(y, expected, equal_nan=True)


@pytest.mark.parametrize(("kind", "function"), [(ADD, torch.add), (TIMES, torch.mul)])
def test_sums_and_products_of_two(isa, kind, function):
    reads = (torch.arange(3) * 32).int()
    step = Step(kind, 0, 1, 3, reads, reads, 0, others=torch.tensor([64, 0, 0]).int(), channels=32)
    x = torch.randn(2, 96)
    pixels = x.view(2, 3, 32)
    assert torch.equal(run(step, [Span(96), Span(96)], x), function(pixels, pixels[:, [2, 0, 0]]).flatten(1))


def test_relu_keeps_what_is_not_a_number():
    step, spans, x, *_ = product("floats", 4, 3, 1, finish=Finishing(relu=True))
    assert run(step, spans, x * NAN)[0, :4].isnan().all()
