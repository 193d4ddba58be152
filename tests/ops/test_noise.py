"""Noisy activations and recurrent steps by kernels against plain torch with the same noise."""

import math

import pytest
import torch
from scipy import stats

from filigree.ops import kernels
from filigree.ops.noise import KINDS, Noise, draw_seed, expected_input_noise, hard, noisy, noisy_reference, normals
from filigree.ops.noisy_rnn import gru_reference, gru_step, gru_steps, lstm_reference, lstm_steps

LAYOUTS = {  # shape, units, dimension of the units, memory order
    "rows": ((7, 33), 33, 1, None),
    "feature-major": ((7, 33), 33, 1, lambda x: x.t().contiguous().t()),
    "images": ((2, 5, 3, 4), 5, 1, None),
    "channels last": ((2, 5, 3, 4), 5, 1, lambda x: x.contiguous(memory_format=torch.channels_last)),
    "channel-major": ((2, 5, 3, 4), 5, 1, lambda x: x.transpose(0, 1).contiguous().transpose(0, 1)),
    "sequences": ((3, 4, 6), 6, -1, None),
    "a row": ((37,), 1, 0, None),
    "wide": ((20, 2500), 2500, -1, None),  # sums of p in blocks of columns, from several parts
    "one p": ((3, 100), 1, 1, None),
    "one unit": ((9, 1), 1, 1, None),
    "empty": ((0, 4), 4, 1, None),
    "gaps": ((7, 33), 33, 1, lambda x: torch.cat([x, x], 1)[:, ::2]),
}


@pytest.fixture(autouse=True, params=kernels.isas())
def isa(request):
    kernels.set_isa(request.param)
    yield
    kernels.set_isa(kernels.isas()[0])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("tanh", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_kernels_compute_the_formulas_and_their_gradients(kind, tanh, layout):
    shape, units, dim, order = LAYOUTS[layout]
    torch.manual_seed(1)
    for dtype, alpha in ((torch.float32, 0.9), (torch.float64, 1.0), (torch.float64, 1.1)):
        noise, seed = Noise(kind, alpha, 2.0, 0.3), draw_seed()
        x = torch.randn(shape, dtype=dtype) * (2 if tanh else 4)
        x = (order(x) if order else x).requires_grad_()
        p = (torch.rand(units, dtype=dtype) * 2 - 1).requires_grad_()
        y = noisy(x, p, noise, tanh, seed, dim)
        after = 0 if units == 1 else len(shape) - 1 - dim % len(shape)
        expected = noisy_reference(x, p.view(-1, *[1] * after), normals(y.detach(), seed), noise, tanh)
        dy = torch.randn(shape, dtype=dtype)
        found = torch.autograd.grad(y, [x, p], dy)
        wanted = torch.autograd.grad(expected, [x, p], dy, materialize_grads=True, allow_unused=True)
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(found[0], wanted[0])
        torch.testing.assert_close(found[1], wanted[1], atol=1e-4 if dtype is torch.float32 else 1e-9, rtol=1e-4)
        if layout != "gaps":
            assert y.stride() == x.stride()


@pytest.mark.parametrize("tanh", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck_with_the_noise_frozen(kind, tanh):
    torch.manual_seed(0)
    x = (torch.randn(4, 5, dtype=torch.float64) * (2 if tanh else 4)).requires_grad_()
    p, seed = torch.rand(5, dtype=torch.float64).requires_grad_(), draw_seed()
    for alpha in (0.9, 1.0, 1.2):
        noise = Noise(kind, alpha, 1.5, 0.2)
        assert torch.autograd.gradcheck(lambda x, p, noise=noise: noisy(x, p, noise, tanh, seed), (x, p))


def test_the_numbers_are_normal_and_ruled_by_the_seed():
    seed = torch.tensor(12345)
    z = normals(torch.empty(400_000), seed)
    assert stats.kstest(z[:100_000].numpy(), "norm").pvalue > 1e-3
    for power, moment, error in ((1, 0, 1), (2, 1, math.sqrt(2)), (3, 0, math.sqrt(15)), (4, 3, math.sqrt(96))):
        assert abs(float((z.double() ** power).mean()) - moment) < 4 * error / math.sqrt(len(z))
    for lag in (1, 16, 512, 864, 2048, 12_288):
        for power in (1, 2):
            a = z**power - (z**power).mean()
            assert abs(float((a[lag:] * a[:-lag]).mean() / a.var())) < 4.5 / math.sqrt(len(z))
    assert torch.equal(z, normals(torch.empty(400_000), seed))
    other = normals(torch.empty(400_000), seed + 1)
    assert abs(float((z * other).mean())) < 4 / math.sqrt(len(z))
    assert abs(float((z * normals(torch.empty(400_000), seed, step=1)).mean())) < 4 / math.sqrt(len(z))


@pytest.mark.parametrize("kind", KINDS)
def test_threads_and_instruction_sets_make_no_difference(kind):
    x, p, seed = torch.randn(64, 1000) * 3, torch.rand(1000) * 2 - 1, torch.tensor(7)
    y = noisy(x, p, Noise(kind, c=3.0), True, seed)
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if threads > 1 else 2)
    again = noisy(x, p, Noise(kind, c=3.0), True, seed)
    torch.set_num_threads(threads)
    assert torch.equal(y, again)
    kernels.set_isa("portable")
    torch.testing.assert_close(noisy(x, p, Noise(kind, c=3.0), True, seed), y)


@pytest.mark.parametrize("tanh", [True, False])
@pytest.mark.parametrize("kind", ["NANI", "NANIL", "NANIS"])
def test_expectations_of_noise_at_the_input(kind, tanh):
    x = torch.linspace(-6, 6, 25, dtype=torch.float64)
    noise = Noise(kind, c=8.0, sigma=0.7)
    xi = torch.randn(200_000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sampled = noisy_reference(x.expand(200_000, -1), 0.8, xi, noise, tanh)
    error = 5 * sampled.std(0) / math.sqrt(200_000) + 1e-5
    assert bool(((expected_input_noise(x, 0.8, noise, tanh) - sampled.mean(0)).abs() < error).all())
    calm = Noise(kind, c=0.0, sigma=0.0)
    torch.testing.assert_close(expected_input_noise(x, 0.8, calm, tanh), hard(x, tanh))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reverse", [False, True])
def test_lstm_steps(kind, reverse):
    torch.manual_seed(0)
    noise, seed, sizes, hidden = Noise(kind, 0.9, 2.0, 0.3), draw_seed(), [3, 3, 2, 1], 5
    f64: dict = {"dtype": torch.float64, "requires_grad": True}
    pre, weight = torch.randn(9, 20, **f64), torch.randn(20, hidden, **f64)
    h, c, p = torch.randn(3, hidden, **f64), torch.randn(3, hidden, **f64), torch.rand(5, hidden, **f64)
    found = lstm_steps(pre * 2, weight, h, c, p, noise, seed, sizes, reverse)
    hs, cs, out, parts = h, c, [None] * 4, (pre * 2).split(sizes)
    for step in range(4)[:: -1 if reverse else 1]:
        n = sizes[step]
        xi = normals(torch.empty(n * 5 * hidden, dtype=torch.float64), seed, step)
        own = [*xi[: n * 4 * hidden].view(n, 4, hidden).unbind(1), xi[n * 4 * hidden :].view(n, hidden)]
        out[step], now = lstm_reference(parts[step] + hs[:n] @ weight.t(), cs[:n], p, own, noise)
        hs, cs = torch.cat([out[step], hs[n:]]), torch.cat([now, cs[n:]])
    wanted = torch.cat(out), hs, cs
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)
    inputs, dys = (pre, weight, h, c, p), [torch.randn_like(y) for y in wanted]
    options: dict = {"allow_unused": True, "materialize_grads": True}
    for a, b in zip(*(torch.autograd.grad(ys, inputs, dys, **options) for ys in (found, wanted)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bias", [False, True])
def test_gru_steps(kind, bias):
    torch.manual_seed(0)
    noise, seed, sizes, hidden = Noise(kind, 1.1, 2.0, 0.3), draw_seed(), [3, 2, 2], 5
    f64: dict = {"dtype": torch.float64, "requires_grad": True}
    px, weight, h = torch.randn(7, 15, **f64), torch.randn(15, hidden, **f64), torch.randn(3, hidden, **f64)
    b, p = torch.randn(15, **f64) if bias else None, torch.rand(3, hidden, **f64)
    found = gru_steps(px * 2, weight, b, h, p, noise, seed, sizes)
    hs, out = h, []
    for step, part in enumerate((px * 2).split(sizes)):
        n = sizes[step]
        xi = normals(torch.empty(n * 3 * hidden, dtype=torch.float64), seed, step).view(n, 3, hidden).unbind(1)
        ph = hs[:n] @ weight.t() + (b if bias else 0)
        out.append(gru_reference(part, ph, hs[:n], p, list(xi), noise))
        if step == 0:
            torch.testing.assert_close(gru_step(part, ph, hs, p, noise, seed), out[0])
        hs = torch.cat([out[-1], hs[n:]])
    wanted = torch.cat(out), hs
    for a, y in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, y)
    inputs = (px, weight, h, p, *([b] if bias else []))
    dys, options = [torch.randn_like(y) for y in wanted], {"allow_unused": True, "materialize_grads": True}
    for a, y in zip(*(torch.autograd.grad(ys, inputs, dys, **options) for ys in (found, wanted)), strict=True):
        torch.testing.assert_close(a, y)


def test_gradcheck_of_single_steps():
    torch.manual_seed(0)
    f64: dict = {"dtype": torch.float64, "requires_grad": True}
    noise, seed = Noise("NAH", 0.9, 1.5), draw_seed()
    px, ph, h, p = torch.randn(2, 9, **f64), torch.randn(2, 9, **f64), torch.randn(2, 3, **f64), torch.rand(3, 3, **f64)
    assert torch.autograd.gradcheck(lambda *a: gru_step(*a, noise, seed), (px * 2, ph, h, p))
    pre, c, p5 = torch.randn(2, 12, **f64), torch.randn(2, 3, **f64), torch.rand(5, 3, **f64)
    assert torch.autograd.gradcheck(
        lambda pre, h, c, p: lstm_steps(pre, None, h, c, p, noise, seed, [2])[::2], (pre * 2, h, c, p5)
    )
