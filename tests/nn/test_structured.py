"""Structured layers against dense matrices that are built by other means, and their programs against plain torch."""

import copy

import numpy as np
import pytest
import scipy.fft
import scipy.linalg
import torch
from torch import nn

import filigree as fg
from filigree.nn import (
    ACDCLinear,
    AFDFLinear,
    CirculantLinear,
    FastfoodBlock,
    FastfoodLinear,
    PHDLinear,
    StructuredRNN,
    ToeplitzLinear,
)
from filigree.ops import sell as ops

LAYERS = {
    "ACDC": lambda i, o: ACDCLinear(i, o, order=2),
    "ACDC, permuted": lambda i, o: ACDCLinear(i, o, order=3, permute=True, bias=False),
    "ACDC, not padded": lambda i, o: ACDCLinear(i, o, pad=False),
    "ACDC, band": lambda i, o: ACDCLinear(i, o, structure="band"),
    "ACDC, blocks": lambda i, o: ACDCLinear(i, o, structure="block", width=4),
    "Fastfood": lambda i, o: FastfoodLinear(i, o, bias=True),
    "AFDF": lambda i, o: AFDFLinear(i, o, order=2),
    "AFDF, unitary": lambda i, o: AFDFLinear(i, o, order=2, unitary=True),
    "circulant": CirculantLinear,
    "Toeplitz": ToeplitzLinear,
    "PHD": lambda i, o: PHDLinear(i, o, density=0.4),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [1, 2, 4, 8, 16, 64, 512, 1024])
def test_transforms_are_scipys(isa, n, dtype):
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-10, "atol": 1e-12}
    for batch in (0, 1, 7, 16, 33):
        x = torch.randn(batch, n, dtype=dtype)
        expected = {
            "hadamard": x @ torch.from_numpy(scipy.linalg.hadamard(n) / np.sqrt(n)).to(dtype),
            "dct": torch.from_numpy(scipy.fft.dct(x.numpy(), norm="ortho")) if batch else x,
            "idct": torch.from_numpy(scipy.fft.idct(x.numpy(), norm="ortho")) if batch else x,
        }
        for kind, its in expected.items():
            for order in (x, x.t().contiguous().t(), torch.randn(2 * batch, 2 * n, dtype=dtype)[::2, ::2].copy_(x)):
                torch.testing.assert_close(ops.sell(order, [(kind, None)], n, n, []), its, **tolerance)
                torch.testing.assert_close(ops.reference(order, [(kind, None)], n, n, []), its, **tolerance)


@pytest.mark.parametrize("n", [3, 5, 6, 100])
def test_cosine_transforms_of_any_size(n):
    x = torch.randn(4, n, dtype=torch.float64)
    torch.testing.assert_close(ops.dct(x), torch.from_numpy(scipy.fft.dct(x.numpy(), norm="ortho")))
    torch.testing.assert_close(ops.idct(ops.dct(x)), x)


STEPS = [("diagonal", 0), ("dct", None), ("diagonal", 1), ("bias", 2), ("idct", None), ("relu", None), ("permute", 3),
         ("hadamard", None), ("diagonal", 0)]  # fmt: skip


@pytest.mark.parametrize("sides", [(64, 64), (61, 50), (1, 64), (64, 1)])
@pytest.mark.parametrize("batch", [1, 5, 16, 200])
def test_programs_and_their_gradients_are_plain_torchs(isa, sides, batch):
    n, (ins, outs) = 64, sides
    tensors = [torch.randn(n, dtype=torch.float64, requires_grad=True) for _ in range(3)] + [torch.randperm(n)]
    x = torch.randn(batch, ins, dtype=torch.float64)
    for ordered in (x, x.t().contiguous().t()):
        mine = ordered.detach().requires_grad_()
        y, expected = (run(mine, STEPS, n, outs, tensors) for run in (ops.sell, ops.reference))
        torch.testing.assert_close(y, expected)
        dy = torch.randn_like(expected)
        for order in (dy, dy.t().contiguous().t()):
            got = torch.autograd.grad(y, [mine, *tensors[:3]], order, retain_graph=True)
            its = torch.autograd.grad(expected, [mine, *tensors[:3]], order, retain_graph=True)
            for g, e in zip(got, its, strict=True):
                torch.testing.assert_close(g, e)


@pytest.mark.parametrize("config", [fg.ACDC(), fg.AFDF(), fg.Circulant(), fg.Fastfood(), fg.PHD(), fg.Toeplitz()])
def test_the_dense_reference_is_of_the_layer_without_its_hooks(config):
    """A hook sees the user's inputs only, and what it does to them is not the layer's."""
    model, x = nn.Sequential(nn.Linear(6, 6)), torch.randn(4, 6)
    fg.convert_(model, config, lambda *_: True)
    expected = model(x)
    model[0].register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    model[0].register_forward_hook(lambda module, args, y: 2 * y)
    torch.testing.assert_close(model[0].dense()(x), expected)


def test_fits_and_calibrations_are_of_layers_without_their_hooks():
    """The hooks stay, so what they do must not be fitted as well."""
    x = torch.randn(64, 6)
    for config in (fg.FitStructured(fg.ACDC(), steps=5), fg.MonteCarlo(samples=4.0)):
        plain, hooked = (nn.Sequential(nn.Linear(6, 6)) for _ in range(2))
        hooked.load_state_dict(plain.state_dict())
        hooked[0].register_forward_hook(lambda module, args, y: 5 * y)
        for model in (plain, hooked):
            fg.compress_(model, config, x)
        torch.testing.assert_close(hooked[0].forward(x), plain(x))


def test_first_and_second_derivatives():
    a, b = (torch.randn(8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    x = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    steps = [("diagonal", 0), ("dct", None), ("diagonal", 1), ("hadamard", None)]
    run = lambda x, a, b: ops.sell(x, steps, 8, 6, [a, b])  # noqa: E731
    assert torch.autograd.gradcheck(run, (x, a, b))
    assert torch.autograd.gradgradcheck(run, (x, a, b))


def test_sums_do_not_depend_on_threads():
    layer, x = ACDCLinear(64, 64, order=2), torch.randn(300, 64)
    found, before = [], torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        layer.zero_grad()
        layer(x).square().sum().backward()
        found.append([p.grad.clone() for p in layer.parameters()])
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("sides", [(16, 16), (13, 30), (30, 13)])
def test_layers_are_their_dense_equivalents(name, sides):
    torch.manual_seed(0)
    layer = LAYERS[name](*sides)
    for parameter in layer.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    layer = layer.double() if "AFDF" not in name else layer
    dtype = torch.float32 if "AFDF" in name else torch.float64
    dense = layer.dense()
    x = torch.randn(3, 5, sides[0], dtype=dtype)
    mine, its = x.clone().requires_grad_(), x.clone().requires_grad_()
    y = layer(mine)
    assert y.shape == (3, 5, sides[1])
    tolerance = {"rtol": 1e-3, "atol": 1e-4} if dtype == torch.float32 else {}
    torch.testing.assert_close(y, dense(its), **tolerance)
    dy = torch.randn_like(y)
    torch.testing.assert_close(
        torch.autograd.grad(y, mine, dy)[0], torch.autograd.grad(dense(its), its, dy)[0], **tolerance
    )
    with pytest.raises(ValueError, match=f"in_features={sides[0]}"):
        layer(torch.randn(2, sides[0] + 1, dtype=dtype))


def test_the_formulas_themselves():
    """Each matrix from its definition (Moczulski 2019, eqs. 3.10, 3.23, 3.26)."""
    d = 8
    block = FastfoodBlock(d, 0.5, True, torch.Generator().manual_seed(0)).double()
    h = torch.from_numpy(scipy.linalg.hadamard(d) / np.sqrt(d))
    b, g, s = (torch.diag(getattr(block, f"diagonal{i}").detach()) for i in range(3))
    pi = torch.eye(d, dtype=torch.float64)[block.permute0]
    x = torch.randn(4, d, dtype=torch.float64)
    torch.testing.assert_close(block(x), x @ (s @ h @ g @ pi @ h @ b).t())
    acdc = ACDCLinear(d, d, order=1, sigma=0.5).double()
    acdc.bias0.data.normal_()
    c = torch.from_numpy(scipy.fft.dct(np.eye(d), norm="ortho"))  # row vectors: x @ c
    expected = (x * acdc.diagonal0) @ c * acdc.diagonal1 + acdc.bias0
    torch.testing.assert_close(acdc(x), expected @ c.t())
    circulant = CirculantLinear(d, d, bias=False).double()
    r = torch.from_numpy(scipy.linalg.circulant(circulant.column.detach().numpy()))
    torch.testing.assert_close(circulant(x), (x * circulant.signs) @ r.t())
    toeplitz = ToeplitzLinear(3, 5, bias=False).double()
    t = torch.stack([toeplitz.diagonals.detach()[2 - i : 7 - i] for i in range(3)])
    torch.testing.assert_close(toeplitz(x[:, :3]), x[:, :3] @ t)
    afdf = AFDFLinear(d, d, order=2)
    f = torch.from_numpy(np.fft.fft(np.eye(d), norm="ortho")).to(torch.complex64)
    matrix = f @ torch.diag(afdf.diagonal0) @ f.conj() @ torch.diag(afdf.diagonal1) @ f @ torch.diag(afdf.diagonal2)
    z = torch.randn(4, d, dtype=torch.complex64)
    torch.testing.assert_close(afdf(z), z @ (matrix @ f.conj()), rtol=1e-4, atol=1e-5)
    unitary = AFDFLinear(d, d, order=3, unitary=True, sigma=2.0)
    torch.testing.assert_close(unitary(z).norm(dim=1), z.norm(dim=1))  # eq. 3.25
    with pytest.raises(TypeError, match="AFDFLinear: the input must be"):
        afdf(z.real.int())


def test_random_fastfood_is_gaussian():
    layer = FastfoodLinear(50, 4096, adaptive=False, sigma=0.3)
    assert not list(layer.parameters())
    weight = layer.dense().weight
    assert abs(weight.mean()) < 0.005
    assert abs(weight.std() - 0.3) < 0.01
    padded = FastfoodLinear(64, 64, adaptive=False, sigma=1.0).dense().weight
    lengths = padded.norm(dim=1)  # of a Gaussian row of 64: chi with 64 degrees
    assert abs(lengths.mean() - 8) < 0.5
    assert len(set(lengths.tolist())) > 60


@pytest.mark.parametrize(("features", "kernel"), [("cos_sin", "rbf"), ("relu", "arc-cosine")])
def test_features_approximate_kernels(features, kernel):
    x = torch.randn(30, 10) / 3
    layer = FastfoodLinear(10, 2**15, adaptive=False, sigma=1.0, features=features)
    z = layer(x)
    if kernel == "rbf":
        expected, got = torch.exp(-torch.cdist(x, x).square() / 2), z @ z.t()
    else:
        lengths = x.norm(dim=1)
        cosine = (x @ x.t() / lengths.outer(lengths)).clamp(-1, 1)
        angle = cosine.acos()
        expected = lengths.outer(lengths) / (2 * torch.pi) * (angle.sin() + (torch.pi - angle) * cosine)
        got = z @ z.t() / z.shape[1]
    assert (got - expected).abs().max() < 0.04


# -- configs ----------------------------------------------------------------------------------------------------------

CONFIGS = [
    fg.Fastfood(), fg.Fastfood(adaptive=False, bias=True), fg.ACDC(order=3, relu=True, permute=True), fg.AFDF(),
    fg.Circulant(), fg.Toeplitz(), fg.PHD(),
]  # fmt: skip


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_convert_train_save_load(config, tmp_path):
    model = fg.models.mlp([60, 64, 64, 5])
    report = fg.convert_(model, config, where=["fc1", "fc2"])
    assert "total" in str(report)
    x, y = torch.randn(40, 60), torch.randint(0, 5, (40,))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    fg.save(model, tmp_path / "m.safetensors")
    again = fg.load(tmp_path / "m.safetensors")
    assert torch.equal(again.eval()(x), model.eval()(x))
    assert fg.measure(model, x).parameters == sum(p.numel() for p in model.parameters())


def test_layers_that_would_not_gain_are_left_unless_named():
    model = fg.models.mlp([300, 256, 3])
    assert [change.name for change in fg.convert_(model, fg.ACDC()).changes] == ["fc1"]
    with pytest.raises(ValueError, match="no layer would gain by ACDC"):
        fg.convert_(fg.models.mlp([5, 3]), fg.ACDC())
    report = fg.convert_(fg.models.mlp([5, 3]), fg.ACDC(), where="fc1")
    assert "larger" in report.changes[0].note


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fg.ACDC(order=0), "order"),
        (lambda: ACDCLinear(4, 4, order=0), "order must be at least 1"),
        (lambda: ACDCLinear(4, 4, structure="band", width=2), "must be odd"),
        (lambda: FastfoodLinear(4, 5, features="cos_sin"), "even for cos_sin"),
        (lambda: fg.FuseLinears(by=3, features=4), "by must be a structured layer"),
        (lambda: ops.hadamard(torch.randn(2, 6)), "power of two"),
    ],
)
def test_bad_configs_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_span_becomes_one_layer_and_a_new_classifier():
    lenet = nn.Sequential(nn.Flatten(), nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10))
    fg.convert_(lenet, fg.FuseLinears(fg.Fastfood(), features=1024))
    assert [type(m).__name__ for m in lenet] == ["Flatten", "FastfoodLinear", "ReLU", "Linear"]
    weights = sum(
        p.numel() for m in lenet if not isinstance(m, nn.Flatten) for n, p in m.named_parameters() if n != "bias"
    )
    assert 20 * 25 + 50 * 20 * 25 + weights == 38_812  # Moczulski 2019, table 3.1: as printed, without biases
    three = nn.Sequential(
        nn.Linear(64, 128), nn.ReLU(), nn.Dropout(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 7)
    )
    fg.convert_(three, fg.FuseLinears(fg.ACDC(order=12, relu=True, permute=True), features=64))
    assert three(torch.randn(2, 64)).shape == (2, 7)
    assert [type(m).__name__ for m in three] == ["ACDCLinear", "ReLU", "Dropout", "Identity", "Identity", "Linear"]
    with pytest.raises(ValueError, match="at least two"):
        fg.convert_(fg.models.mlp([4, 4]), fg.FuseLinears(fg.ACDC(), features=4))
    with pytest.raises(ValueError, match="does not read"):
        fg.convert_(nn.ModuleList([nn.Linear(4, 5), nn.Linear(6, 7)]), fg.FuseLinears(fg.ACDC(), features=4))


def test_parameter_groups():
    model = nn.Sequential(ACDCLinear(16, 16, order=2), nn.Linear(16, 3))
    groups = {g["name"]: g for g in fg.nn.sell_groups(model, 0.1)}
    assert {n: (g["lr"], g["weight_decay"]) for n, g in groups.items()} == {
        "A": (0.1 * 24, 0.0), "D": (0.1 * 12, 0.0), "biases": (0.1, 0.0), "rest": (0.1, 0.0005)
    }  # fmt: skip
    assert groups["A"]["params"][1] is model[0].diagonal2
    assert sum(len(g["params"]) for g in groups.values()) == len(list(model.parameters()))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_inside_recurrent_networks(kind):
    rnn = kind(24, 32, num_layers=2, bidirectional=True, batch_first=True)
    model = nn.ModuleList([rnn])
    fg.convert_(model, fg.Fastfood())
    made = model[0]
    assert isinstance(made, StructuredRNN)
    assert sum(p.numel() for p in made.parameters()) < sum(p.numel() for p in rnn.parameters()) / 4
    plain = copy.deepcopy(rnn)  # the same matrices in torch's own
    for name, product in made.products.items():
        plain._parameters[f"weight_{name}"].data.copy_(product.dense().weight)
        plain._parameters[f"bias_{name}"].data.copy_(getattr(made, f"bias_{name}"))
    x = torch.randn(3, 6, 24)
    for a, b in zip(made(x)[0], plain(x)[0], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_counts_of_the_document():
    """CaffeNet's and LeNet's layers (Moczulski 2019, tables 3.1 to 3.5): weights only, as the document counts."""
    count = lambda layer: sum(p.numel() for p in layer.parameters())  # noqa: E731
    assert count(FastfoodLinear(9216, 16384)) + 16384 * 1000 == 16_433_152
    assert count(FastfoodLinear(9216, 32768)) + 32768 * 1000 == 32_866_304
    acdc = count(ACDCLinear(9216, 9216, order=12, pad=False))
    assert acdc == 331_776  # printed: 165,888
    assert acdc + 9216 * 1000 == 9_547_776
    with torch.device("meta"):
        caffenet = fg.models.caffenet()
    weights = {n: p.numel() for n, p in caffenet.named_parameters() if n.endswith("weight")}
    assert sum(weights.values()) == 60_954_656
    assert sum(n for name, n in weights.items() if name.startswith("conv")) == 2_332_704  # printed: 27,232
    lenet = 20 * 25 + 50 * 20 * 25
    for features, printed in ((1024, 38_812), (2048, 52_124)):
        assert lenet + count(FastfoodLinear(800, features)) + 10 * features == printed


# -- low rank and fits ------------------------------------------------------------------------------------------------


def test_low_rank_is_the_truncated_decomposition(tmp_path):
    model = fg.models.mlp([40, 30, 5])
    weight = model[0].weight.detach().clone()
    fg.compress_(model, fg.LowRank(rank=7), where="fc1")
    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    torch.testing.assert_close(model[0].dense().weight, (u[:, :7] * s[:7]) @ v[:7], rtol=1e-3, atol=1e-5)
    x = torch.randn(3, 40)
    torch.testing.assert_close(model[0](x), model[0].dense()(x), rtol=1e-3, atol=1e-5)
    fg.save(model, tmp_path / "m.safetensors")
    assert torch.equal(fg.load(tmp_path / "m.safetensors")(x), model(x))
    full = fg.models.mlp([40, 30, 5])
    expected = full(x)
    fg.compress_(full, fg.LowRank(rank=30), where="fc1")
    torch.testing.assert_close(full(x), expected, rtol=1e-3, atol=1e-5)


def test_low_rank_by_energy_and_by_share(tmp_path):
    model = fg.models.mlp([40, 30, 5])
    with torch.no_grad():
        u, _, v = torch.linalg.svd(model[0].weight, full_matrices=False)
        model[0].weight.copy_((u * torch.tensor([10.0, 5, 1, *[0.01] * 27])) @ v)
    fg.compress_(model, fg.LowRank(energy=0.98), where="fc1")
    assert model[0].rank == 2
    fg.save(model, tmp_path / "m.safetensors")
    assert fg.load(tmp_path / "m.safetensors")[0].rank == 2
    half = fg.models.mlp([400, 300, 5])
    assert [c.name for c in fg.convert_(half, fg.LowRank(0.25), where="fc1").changes] == ["fc1"]
    whole = torch.nn.Sequential(torch.nn.Linear(20, 30))
    fg.convert_(whole, fg.LowRank(1.0), where="0")  # a fraction, not rank 1
    assert whole[0].rank == 20
    assert half[0].rank == 75
    with pytest.raises(ValueError, match="give rank or energy"):
        fg.LowRank()


def test_a_structured_layer_fitted_to_a_dense_one(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    target = ACDCLinear(16, 16, order=2, sigma=0.3)
    model[0] = target.dense()
    x = torch.randn(500, 16)
    expected = model(x).detach()
    report = fg.compress_(model, fg.FitStructured(fg.ACDC(order=4), steps=700), x, where="0")
    assert isinstance(model[0], ACDCLinear)
    assert float(report.changes[0].note.split()[-1]) < 0.1
    assert (model(x) - expected).norm() < 0.1 * expected.norm()
    with pytest.raises(ValueError, match="data are needed"):
        fg.compress_(nn.Sequential(nn.Linear(4, 4)), fg.FitStructured(fg.ACDC()))
    with pytest.raises(ValueError, match="data must be finite"):
        fg.compress_(nn.Sequential(nn.Linear(4, 4)), fg.FitStructured(fg.ACDC()), torch.full((2, 4), float("nan")))


def test_multiply_adds_are_counted():
    model = nn.Sequential(ACDCLinear(64, 64), FastfoodLinear(64, 128), nn.Linear(128, 3))
    cost = fg.measure(model, torch.randn(4, 64))
    forward, backward = cost.macs_forward, cost.macs_backward
    acdc, fastfood = 64 * (3 + 2 * 6), 2 * 64 * (4 + 2 * 6)  # diagonals (and the permutation), and transforms
    assert forward == acdc + fastfood + 128 * 3
    assert backward >= 2 * (acdc + fastfood + 128 * 3)


def test_span_keeps_type_and_generator_and_counts_what_went():
    model = fg.models.mlp([64, 128, 128, 10]).double()
    size = sum(p.numel() for p in model.parameters())
    torch.manual_seed(1)
    state = torch.get_rng_state()
    report = fg.convert_(model, fg.FuseLinears(fg.Fastfood(seed=3), features=128))
    assert torch.equal(torch.get_rng_state(), state)
    assert report.parameters == (size, sum(p.numel() for p in model.parameters()))
    assert model(torch.randn(2, 64, dtype=torch.float64)).dtype == torch.float64
    dense_reference = fg.models.mlp([64, 128, 128, 10]).double()
    torch.manual_seed(2)
    fg.convert_(dense_reference, fg.FuseLinears(fg.Fastfood(seed=3), features=128))
    assert torch.equal(dense_reference.fc3.weight, model.fc3.weight)


def test_unknown_choices_are_named():
    for make, message in (
        (lambda: fg.nn.FastfoodLinear(8, 8, features="sincos"), "features must be one of 'relu', 'cos_sin', None"),
        (lambda: fg.nn.ACDCLinear(8, 8, structure="blocks"), "structure must be one of 'diagonal', 'band', 'block'"),
        (lambda: fg.nn.PartitionedDropout(2, per="elements"), "per must be one of 'unit', 'element'"),
        (lambda: fg.nn.StrengthDropout(4, region="bottom"), "region must be one of 'top', 'active'"),
    ):
        with pytest.raises(ValueError, match=message):
            make()


@pytest.mark.parametrize("make", [fg.AFDF(), fg.Circulant(), fg.Toeplitz(), fg.ACDC(), fg.Fastfood()])
def test_no_samples_at_all(make):
    model = nn.Sequential(nn.Linear(12, 12), nn.ReLU())
    fg.convert_(model, make, where="0")
    x = torch.randn(0, 12, requires_grad=True)
    y = model(x)
    assert y.shape == (0, 12)
    y.sum().backward()
    assert x.grad.shape == (0, 12)
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_afdf_stays_complex_in_other_types():
    """torch's `Module.to(dtype)` makes complex parameters real."""
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU()).double()
    fg.convert_(model, fg.AFDF(), where="0")
    parameters, before = list(model.parameters()), [p.detach().clone() for p in model.parameters()]
    assert {p.dtype for p in parameters} == {torch.complex128}
    model(torch.randn(2, 8, dtype=torch.float64)).sum().backward()
    for dtype, expected in (
        (torch.float32, torch.complex64), (torch.bfloat16, torch.complex64), (torch.float16, torch.complex64),
        (torch.float64, torch.complex128),
    ):  # fmt: skip
        model.to(dtype)
        assert {t.dtype for p in model.parameters() for t in (p, p.grad)} == {expected}
        assert all(p is q for p, q in zip(model.parameters(), parameters, strict=True))
        torch.testing.assert_close([p.to(torch.complex128) for p in parameters], before, rtol=1e-6, atol=1e-6)
    assert model.double()[0].diagonal0.dtype is torch.complex128
    assert model.to("meta")[0].diagonal0.is_meta
