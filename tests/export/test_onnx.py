"""ONNX files of every kind of layer, run in ONNX Runtime on inputs that were not exported, against torch."""

import copy

import pytest
import torch
from packaging.version import Version
from torch import nn

import filigree as fg
from filigree.export import export, export_onnx
from filigree.export.onnx import candidates
from filigree.export.onnx.program import Session, translate
from filigree.measure.timing import Timing
from filigree.nn.asymmetric.asymmetric_sparse_linear import AsymmetricSparseLinear
from filigree.nn.sparse.sparse_conv2d import SparseConv2d
from filigree.nn.structured.onnx_transforms import Cosine, Fourier, Hadamard, InverseCosine
from filigree.ops import sell

REASON = "the extra `onnx` is not installed"
onnx = pytest.importorskip("onnx", reason=REASON)
pytest.importorskip("onnxscript", reason=REASON)
pytest.importorskip("onnxruntime", reason=REASON)

FAST = {"seconds": 0.001}


def close(output, expected, tolerance, message=None):
    """Within a share of the largest number: outputs of another scale have differences of that scale."""
    torch.testing.assert_close(output, expected, rtol=0, atol=tolerance * float(expected.abs().max()), msg=message)


def check(model, example, path, *fresh, **options):
    """Export, and compare the file with torch on other inputs; the report."""
    report = export_onnx(model, path, example, **FAST, **options)
    session = Session(onnx.load(path))
    reference = copy.deepcopy(model).eval()
    for inputs in fresh:
        inputs = inputs if isinstance(inputs, tuple) else (inputs,)
        with torch.no_grad():
            expected = reference(*inputs)
        (output,) = session.run(inputs)
        close(output, expected, 1e-4)
    assert report.bytes == path.stat().st_size
    return report


def forms(report):
    return {layer.name: layer.form for layer in report.layers}


def converted(model, **configs):
    """Layers of a chain by name, each with a conversion of its own."""
    for name, config in configs.items():
        fg.convert_(model, config, where=name)
    return model


def shaken(model):
    """With other numbers in biases and running statistics than those they begin with."""
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if "bias" in name or name.endswith(("running_mean", "running_var")):
                tensor.add_(0.3 * torch.rand_like(tensor))
    return model


# -- every kind of layer -----------------------------------------------------------------------------------------------


def structured():
    return converted(
        fg.models.mlp([20, 24, 24, *[32] * 7, 5], activation="tanh"),
        fc1=fg.ACDC(order=2, relu=True, permute=True), fc2=fg.ACDC(structure="band", pad=False),
        fc3=fg.ACDC(structure="block"), fc4=fg.AFDF(order=2), fc5=fg.AFDF(unitary=True),
        fc6=fg.Fastfood(bias=True), fc7=fg.Circulant(), fc8=fg.Toeplitz(), fc9=fg.PHD(), fc10=fg.LowRank(0.5),
    )  # fmt: skip


def sparsified():
    model = fg.models.mlp([20] + [40] * 7 + [5], dropout=0.3)
    half = fg.ErdosRenyi(density=0.3)
    converted(model, fc1=fg.Sparse(half), fc2=fg.Sparse(fg.ConstantFanIn(4)), fc3=fg.Sparse(half, masked=True))
    fg.convert_(model, fg.Sparse(fg.Paths(80)), where=["fc4", "fc5"])
    converted(model, fc5=fg.Asymmetric.topk(4), fc6=fg.Asymmetric.topk(4), fc7=fg.PartitionDropout(3, connect=True))
    fg.convert_(model, fg.PartitionDropout(parts=3))
    return model


def noisy():
    model = fg.models.mlp([20] + [24] * 8 + [5], activation="sigmoid")
    for i, kind in enumerate(("NAN", "NAH", "NANI", "NANIL", "NANIS"), 1):
        fg.convert_(model, fg.Noisy(kind, exact=i > 2, alpha=1.1 if i == 2 else 0.9), where=f"sigmoid{i}")
    model.sigmoid6 = nn.Sequential(nn.ReLU())
    fg.convert_(model, fg.NoisyRectifier())
    fg.convert_(model, fg.Mollified(residual=True, expected=True), where="fc7")
    fg.convert_(model, fg.Mollified(skip="project", expected=True), where="fc8")
    for module in model.modules():
        if isinstance(module, fg.nn.MollifiedBlock):
            module.p = 0.4
    return model


LAYERS = [pytest.param(structured, marks=pytest.mark.long("exports some twenty layers")), sparsified, noisy]


@pytest.mark.parametrize("make", LAYERS)
def test_layers(make, tmp_path):
    model = shaken(make())
    report = check(model, torch.randn(6, 20), tmp_path / "m.onnx", torch.randn(1, 20), torch.randn(17, 20))
    assert report.relative < 1e-5
    text = str(report)
    assert f"{report.bytes:,} bytes, opset 21" in text
    for layer in report.layers:
        assert layer.name in text
        assert layer.form in text
    assert "ms" in text.splitlines()[-1]


def test_structured_layers_stay_structured(tmp_path):
    model = converted(
        nn.Sequential(*(nn.Linear(512, 512) for _ in range(6))),
        **{"0": fg.ACDC(), "1": fg.AFDF(), "2": fg.Fastfood(), "3": fg.Circulant(), "4": fg.Toeplitz(),
           "5": fg.PHD(0.01)},
    )  # fmt: skip
    report = check(model, torch.randn(3, 512), tmp_path / "m.onnx", torch.randn(2, 512))
    assert report.bytes < 6 * 4 * 512 * 512 / 20  # of their dense matrices
    assert forms(report)["0"] == "bias, dct, diagonal, idct"
    graph = onnx.load(tmp_path / "m.onnx").graph
    assert {"DFT"} <= {node.op_type for node in graph.node}
    assert max(max(tensor.dims, default=1) for tensor in graph.initializer) < 512 * 512 / 20


@pytest.mark.parametrize("n", [1, 2, 7, 15, 32, 60, 512])
def test_transforms_equal_torch(n):
    x, double = torch.randn(3, n, dtype=torch.float64), torch.float64
    z = torch.randn(3, n, dtype=torch.complex128)
    close(Fourier(n, double)(z), torch.fft.fft(z), 1e-12)
    close(Fourier(n, double, inverse=True)(z), n * torch.fft.ifft(z), 1e-12)
    close(Cosine(n, double)(x), sell.dct(x), 1e-12)
    close(InverseCosine(n, double)(x), sell.idct(x), 1e-12)
    if n & (n - 1) == 0:
        close(Hadamard(n, double)(x), sell.hadamard(x), 1e-12)


def test_float64(tmp_path):
    model = fg.models.mlp([20, 30, 30, 30, 5]).double()
    converted(model, fc1=fg.ACDC(pad=False), fc2=fg.Sparse(fg.ErdosRenyi(density=0.3)))
    fg.compress_(model, fg.MonteCarlo(samples=1.0), where="fc3")
    x = torch.randn(4, 20, dtype=torch.float64)
    assert check(model, x, tmp_path / "m.onnx", x[:1]).relative < 1e-12


# -- sparse layers -----------------------------------------------------------------------------------------------------

CONVS = [
    nn.Conv2d(4, 6, 3, padding=1),
    nn.Conv2d(4, 6, (3, 2), stride=2, dilation=(1, 2), groups=2, bias=False),
    nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"),
    nn.Conv2d(4, 6, 2, padding="same"),
]


def test_every_form_equals_the_layer():
    """All forms of all layers in one program: forms that are slow on this machine too."""
    empty_row = torch.rand(9, 20) < 0.3
    empty_row[3], empty_row[4] = False, True
    layers = [
        fg.nn.SparseLinear.from_dense(nn.Linear(20, 9), empty_row),
        fg.nn.SparseLinear(20, 9, fg.ErdosRenyi(density=0.9), bias=False, relu=True),
        *(SparseConv2d.from_dense(conv, torch.rand_like(conv.weight) < 0.4) for conv in CONVS),
    ]
    inputs = [torch.randn(5, 20), torch.randn(2, 5, 20), *(torch.randn(3, 4, 8, 9) for _ in CONVS)]
    offered = {str(i): layer.onnx_candidates() for i, layer in enumerate(layers)}
    names = [f"y{i}" for i in range(3 * 2 + 2 * 4)]
    program = translate(candidates._SideBySide(offered).eval(), tuple(inputs), False, None, names)
    outputs = iter(Session(program).run(inputs))
    for layer, forms, x in zip(layers, offered.values(), inputs, strict=True):
        for form in forms:
            close(next(outputs), layer(x).detach(), 1e-5, f"{layer}: {form}")


def test_the_fastest_form_is_kept(tmp_path, monkeypatch):
    model = fg.models.mlp([20, 30, 30, 5])
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.2)))
    fastest = iter([1, 2, 0])

    def time_interleaved(works, seconds):
        best = next(fastest, None)
        for work in works:
            work()
        return [Timing(1.0 if i == best else 2.0 + i, 0, 0) for i in range(len(works))]

    monkeypatch.setattr(candidates, "time_interleaved", time_interleaved)
    report = check(model, torch.randn(4, 20), tmp_path / "m.onnx", torch.randn(9, 20))
    assert forms(report) == {"fc1": "gather", "fc2": "gather by feature", "fc3": "dense"}
    assert report.layers[0].note == "dense 2 ms, gather 1 ms, gather by feature 4 ms"


def test_a_form_can_be_asked_for_and_files_are_as_large_as_the_connections(tmp_path):
    model = nn.Sequential(nn.Linear(1000, 1000))
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.01)))
    x = torch.randn(3, 1000)
    report = check(model, x, tmp_path / "m.onnx", x[:1], sparse="dense")
    assert forms(report) == {"0": "dense"}
    assert report.layers[0].note == ""
    assert report.bytes < 8 * model[0].nnz + 4 * 1000 + 3000
    report = check(model, x, tmp_path / "m.onnx", x[:1], sparse="gather")
    assert forms(report)["0"].startswith("gather")
    assert report.bytes < 30 * model[0].nnz
    with pytest.raises(ValueError, match=r"sparse must be one of measure, dense, gather, operator\. Got 'fast'"):
        export_onnx(model, tmp_path / "m.onnx", x, sparse="fast")


# -- networks ----------------------------------------------------------------------------------------------------------


def test_residual_network(tmp_path):
    model = fg.models.resnet((1, 1), 8)
    fg.convert_(model, fg.StochasticDepth())
    fg.convert_(model, fg.Sparse(fg.ErdosRenyiKernel(density=0.3)), where=["conv", "block1_1.*", "fc"])
    fg.convert_(model, fg.Mollified(), where="block2_1")
    report = check(shaken(model), torch.randn(2, 3, 12, 12), tmp_path / "m.onnx", torch.randn(5, 3, 12, 12))
    assert forms(report)["bn"] == "BatchNorm2d"
    assert forms(report)["block2_1"] == "block at p = 0"


def test_convolutional_network_pruned_and_quantised(tmp_path):
    model, x = shaken(fg.models.lenet5()), torch.randn(40, 1, 28, 28)
    fg.compress_(model, fg.SubsetPruning(keep=0.5), x)
    fg.compress_(model, fg.MonteCarlo(samples=1.0, calibrate="rms", activations=2.0), x, where=["conv2", "fc1"])
    converted(model, conv1=fg.Asymmetric.topk(2), fc2=fg.Asymmetric.topk(5))
    report = check(model, x[:2], tmp_path / "m.onnx", torch.randn(3, 1, 28, 28))
    assert forms(report)["conv1"] == "Conv2d"
    assert forms(report)["conv2"] == "integers of 4 bits"


@pytest.mark.long("exports a VGG")
def test_pruned_vgg(tmp_path):
    model, x = fg.models.vgg16_cifar(), torch.randn(2, 3, 32, 32)
    fg.compress_(model, fg.MagnitudePruning(keep=0.1, compensate=None, measure=False), x)
    report = check(shaken(model), x, tmp_path / "m.onnx", x[:1])
    assert report.layers == []  # plain torch
    assert report.bytes < 4.4 * sum(t.numel() for t in model.state_dict().values()) + 20_000


class Recurrent(nn.Module):
    def __init__(self, kind, **options):
        super().__init__()
        self.rnn = kind(7, 6, **options)
        self.fc = nn.LazyLinear(4)
        self(torch.zeros(2, 2, 7))

    def forward(self, x):
        y, last = self.rnn(x)
        last = last[0] + last[1] if isinstance(last, tuple) else last
        return self.fc(y) + (last.sum(0).unsqueeze(1) if self.rnn.batch_first else 0)[..., :4]


@pytest.mark.long("exports unrolled networks, seconds each")
@pytest.mark.parametrize(
    ("kind", "configs", "options"),
    [
        pytest.param(
            *(nn.LSTM, (), {"num_layers": 2, "bidirectional": True}),
            marks=pytest.mark.skipif(Version(torch.__version__) < Version("2.12"), reason="torch 2.11 fixes the batch"),
        ),
        (nn.GRU, (fg.Asymmetric.topk(3),), {}),
        (nn.LSTM, (fg.Noisy("NAH"),), {"bidirectional": True, "bias": False}),
        (nn.LSTM, (fg.Asymmetric.topk(3), fg.Mollified()), {}),
        (nn.GRU, (fg.Mollified(expected=True),), {"num_layers": 2}),
        (nn.GRU, (fg.Sparse(fg.ErdosRenyi(density=0.4)), fg.Noisy("NANIL")), {}),
        (nn.GRU, (fg.ACDC(),), {}),
    ],
)
def test_recurrent(kind, configs, options, tmp_path):
    model = Recurrent(kind, batch_first=True, **options)
    for config in configs:
        fg.convert_(model, config, where="rnn")
    for module in model.modules():
        if isinstance(module, fg.nn.MollifiedGates):
            module.p = 0.3
    check(shaken(model), torch.randn(4, 2, 7), tmp_path / "m.onnx", torch.randn(1, 2, 7), torch.randn(5, 2, 7))


def test_a_language_model_forgets_between_calls(tmp_path):
    model = fg.models.language_model(9, 5, 6, layers=1).eval()
    first, tokens = torch.randint(0, 9, (4, 3)), torch.randint(0, 9, (4, 3))
    model(first)
    carried = model._state[0].clone()
    report = export_onnx(model, tmp_path / "m.onnx", tokens, **FAST)
    torch.testing.assert_close(model._state[0], carried)
    model.reset()
    (output,) = Session(onnx.load(tmp_path / "m.onnx")).run([tokens])
    close(output, model(tokens).detach(), 1e-5)
    assert report.batch == 4


# -- integers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "name", "bits"),
    [
        (fg.MonteCarlo(samples=0.12), "INT4", 4),
        (fg.RoundToNearest(4), "INT4", 4),
        (fg.RoundToNearest(5), "INT8", 8),
        (fg.RoundToNearest(16), "INT16", 16),
    ],
)
def test_integers_are_stored_as_integers(config, name, bits, tmp_path):
    model = nn.Sequential(nn.Linear(300, 200), nn.ReLU(), nn.Linear(200, 30))
    fg.compress_(model, config)
    x = torch.randn(3, 300)
    tolerance = 1e-4  # 16 bits on 16 bits: sums of 300 numbers
    report = check(model, x, tmp_path / "m.onnx", torch.randn(5, 300), tolerance=tolerance)
    assert forms(report) == {"0": f"integers of {bits} bits", "2": f"integers of {bits} bits"}
    stored = {tensor.data_type for tensor in onnx.load(tmp_path / "m.onnx").graph.initializer if len(tensor.dims) == 2}
    assert onnx.TensorProto.DataType.Value(name) in stored
    weights = 200 * 300 + 30 * 200
    assert report.bytes < weights * bits / 8 + 4 * 2 * 230 + 2500
    (layer,) = [m for m in model.modules() if isinstance(m, fg.nn.IntegerLinear) and m.in_features == 300]
    assert layer.activation is None


def test_sampled_activations(tmp_path):
    model, x = fg.models.mlp([20, 30, 5]), torch.randn(50, 20)
    fg.compress_(model, fg.MonteCarlo(samples=2.0, activations=3.0, per="neuron"), x)
    check(model, x[:4], tmp_path / "m.onnx", torch.randn(3, 20), torch.randn(1, 20))


# -- files, and what is refused ----------------------------------------------------------------------------------------


class Twisted(nn.Module):
    """Its ONNX form would be another function: what the comparison is for."""

    def forward(self, x):
        return -x if torch.compiler.is_compiling() else x


def test_a_wrong_form_is_found_and_leaves_nothing_behind(tmp_path):
    path, model, x = tmp_path / "m.onnx", nn.Sequential(nn.Linear(5, 3), Twisted()), torch.randn(4, 5)
    with pytest.raises(ValueError, match=r"differs from torch by 2 of the largest .* No file was written"):
        export_onnx(model, path, x, **FAST)
    assert list(tmp_path.iterdir()) == []
    path.write_bytes(b"before")
    with pytest.raises(ValueError, match=r"differs from torch by 2 .* at most 0\.5 was expected"):
        export_onnx(model, path, x, tolerance=0.5, **FAST)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_the_model_is_left_as_it_was(tmp_path):
    model = fg.models.mlp([20, 30, 30, 5], dropout=0.5)
    converted(model, fc1=fg.Sparse(fg.ErdosRenyi(density=0.3)), fc2=fg.Sparse(fg.ErdosRenyi(density=0.3)))
    fg.convert_(model, fg.Asymmetric.topk(3), where="fc2")
    model.train()
    model.fc3.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modules = dict(model.named_modules())
    modes = {name: module.training for name, module in modules.items()}
    export_onnx(model, tmp_path / "m.onnx", torch.randn(1, 20, requires_grad=True), **FAST)
    assert dict(model.named_modules()) == modules
    assert isinstance(model.fc2, AsymmetricSparseLinear)
    assert {name: module.training for name, module in model.named_modules()} == modes
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_a_layer_alone_and_a_fixed_batch(tmp_path):
    layer, x = fg.nn.SparseLinear(20, 9), torch.randn(4, 20)
    report = check(layer, x, tmp_path / "m.onnx", torch.randn(4, 20), dynamic=False)
    assert report.layers[0].kind == "SparseLinear"
    with pytest.raises(ValueError, match="ONNX Runtime cannot run the model"):
        Session(onnx.load(tmp_path / "m.onnx")).run([x[:2]])


class Fixed(nn.Module):
    def forward(self, x):
        return x.reshape(4, 5).sum(1)


class Undecided(nn.Module):
    def forward(self, x):
        return x if float(x.sum()) > 0 else -x


class Unknown(nn.Module):
    def forward(self, x):
        return torch.linalg.svdvals(x)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Fixed(), r"fixes the size of the batch\. With dynamic=False"),
        (Undecided(), r"'1\.0' \(Undecided\) cannot be exported: "),
        (Unknown(), r"'1\.0' \(Unknown\) calls .*svd.*, which ONNX does not have"),
    ],
)
def test_what_cannot_be_exported_is_named(module, message, tmp_path, capfd):
    model = nn.Sequential(nn.Linear(5, 5), nn.Sequential(module))
    with pytest.raises(ValueError, match=message) as caught:
        export_onnx(model, tmp_path / "m.onnx", torch.randn(4, 5), **FAST)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


class Decoder(nn.Module):
    """Cells on two inputs; it asks for the length of a batch, so that its code is analysed."""

    def __init__(self):
        super().__init__()
        self.cell, self.embedding = nn.LSTMCell(5 + 4, 6), nn.Embedding(9, 4)

    def forward(self, features, tokens):
        state = None
        for y in self.embedding(tokens).unbind(1):
            state = self.cell(torch.cat([features.sum(1) / len(features), y], -1), state)
        return state[0]


@pytest.mark.long("exports unrolled networks")
def test_networks_of_cells_and_several_inputs(tmp_path):
    model = Decoder()
    fg.convert_(model, fg.Noisy("NAN"))
    inputs = torch.randn(2, 3, 5), torch.randint(0, 9, (2, 3))
    check(model, inputs, tmp_path / "m.onnx", (torch.randn(4, 3, 5), torch.randint(0, 9, (4, 3))))


class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(4, 5, batch_first=True)

    def forward(self, x):
        lengths = (x != 0).any(-1).sum(1)
        return self.rnn(nn.utils.rnn.pack_padded_sequence(x, lengths, True, enforce_sorted=False))[1][0]


def test_packed_sequences_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"'rnn' \(LSTM\) cannot be exported"):
        export_onnx(Packed(), tmp_path / "m.onnx", torch.randn(3, 4, 4), **FAST)


def test_bad_input_is_refused_in_one_line(tmp_path, monkeypatch):
    model, path, x = fg.models.mlp([5, 4, 3]), tmp_path / "m.onnx", torch.randn(2, 5)
    with pytest.raises(ValueError, match="needs an example"):
        export_onnx(model, path)
    with pytest.raises(TypeError, match=r"example must be a tensor.*Got ndarray"):
        export_onnx(model, path, x.numpy())
    with pytest.raises(TypeError, match="Got nothing"):
        export_onnx(model, path, ())
    with pytest.raises(ValueError, match=r"one batch.*Got \(2, 5\), \(3, 5\)"):
        export_onnx(model, path, (x, torch.randn(3, 5)))
    with pytest.raises(ValueError, match=r"one batch.*Got \(0, 5\)"):
        export_onnx(model, path, x[:0])
    with pytest.raises(ValueError, match=r"for inference\. Got training=True"):
        export_onnx(model, path, x, training=True)
    with pytest.raises(ValueError, match=r"float32 or float64\. Got torch\.bfloat16"):
        export_onnx(fg.models.mlp([5, 4, 3]).bfloat16(), path, x.bfloat16())
    with torch.device("meta"), pytest.raises(ValueError, match="Got no weights"):
        export_onnx(fg.models.mlp([5, 4, 3]), path, x)
    diverged = fg.models.mlp([5, 4, 3])
    torch.nn.init.constant_(diverged[-1].bias, float("nan"))
    with pytest.raises(ValueError, match=r"bias holds NaN: has training diverged\?"):
        export_onnx(diverged, path, x)
    for tolerance in (float("nan"), -0.1, "0.1"):
        with pytest.raises(ValueError, match=f"tolerance must be None or a number of at least 0. Got {tolerance!r}"):
            export_onnx(model, path, x, tolerance=tolerance)
    for metadata in ({"classes": 3}, ["a", "b"]):
        with pytest.raises(TypeError, match=r"metadata must be a dict of text by text\. Got"):
            export_onnx(model, path, x, metadata=metadata)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        export_onnx(model, tmp_path / "no" / "m.onnx", x)
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"export: onnxscript is needed\. pip install 'onnx>"):
        export_onnx(model, path, x)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_modules_that_wrap_are_left_out(tmp_path):
    x = torch.randn(2, 5)
    for wrapped in (torch.compile(fg.models.mlp([5, 4, 3])), nn.DataParallel(fg.models.mlp([5, 4, 3]))):
        assert [layer.name for layer in export(wrapped, tmp_path / "m.c", x).layers if layer.form] == ["fc1", "fc2"]


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize("name", ["m.c", "m.onnx"])
def test_modules_without_python_or_weights_are_refused(tmp_path, name):
    x = torch.randn(2, 5)
    with pytest.raises(ValueError, match=r"'the model' must be a module of Python\. Got a RecursiveScriptModule"):
        export(torch.jit.script(nn.Linear(5, 4)), tmp_path / name, x)
    with pytest.raises(ValueError, match=r"'1' has no weights yet: run the model on a batch before"):
        export(nn.Sequential(nn.Linear(5, 4), nn.LazyLinear(3)), tmp_path / name, x)


def test_the_suffix_decides(tmp_path):
    model, x = fg.models.mlp([5, 4, 3]), torch.randn(2, 5)
    report = export(model, tmp_path / "m.onnx", x, **FAST)
    assert report.path == str(tmp_path / "m.onnx")
    with pytest.raises(ValueError, match=r"path must end in \.onnx or \.c\. Got 'm\.pt'"):
        export(model, "m.pt", x)


def test_a_model_that_does_not_run_on_the_example_says_so(tmp_path):
    with pytest.raises(ValueError, match=r"^export: the model does not run on the example: [^\n]*dtype"):
        export_onnx(nn.Linear(3, 2).double(), tmp_path / "m.onnx", torch.randn(2, 3))
    assert not list(tmp_path.iterdir())


class Gated(nn.Module):
    """Two layers that read one tensor, as gates, and queries, keys and values do."""

    def __init__(self):
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(16, 24), nn.Linear(16, 24), nn.Linear(24, 8)

    def forward(self, x):
        return self.down(self.gate(x).sigmoid() * self.up(x))


def test_layers_that_read_one_tensor(tmp_path):
    model = Gated()
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.3)))
    report = check(model, torch.randn(4, 16), tmp_path / "m.onnx", torch.randn(3, 16))
    assert {layer.name for layer in report.layers} == {"gate", "up", "down"}
