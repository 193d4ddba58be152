"""filigree's own operators for ONNX Runtime: compiled, loaded by one line, against torch on shapes of all kinds."""

import numpy as np
import pytest
import torch
from torch import nn

import filigree as fg
from filigree.export import export_onnx
from filigree.export.c.compiler import compiler
from filigree.export.onnx import candidates
from filigree.export.onnx import operators as library_of
from filigree.export.onnx.candidates import _linear, offered_forms
from filigree.export.onnx.operators import operators
from filigree.export.onnx.program import Session, translate
from filigree.measure.timing import Timing
from filigree.nn.integer.integer_linear import IntegerLinear
from filigree.nn.onnx_operators import OperatorLinear, encoded, product_operator, recurrent_operator
from filigree.nn.sparse.sparse_conv2d import SparseConv2d
from filigree.nn.sparse.sparse_linear import SparseLinear

REASON = "the extra `onnx` is not installed"
onnx = pytest.importorskip("onnx", reason=REASON)
pytest.importorskip("onnxscript", reason=REASON)
runtime = pytest.importorskip("onnxruntime", reason=REASON)
pytestmark = pytest.mark.skipif(compiler() is None, reason="there is no C compiler")

FAST = {"seconds": 0.001, "runtime": "ort", "sparse": "operator"}


def with_zeros(module, share=0.9, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() > 1:
                parameter.mul_(torch.rand(parameter.shape, generator=generator) >= share)
    return module


def decoded(code):
    """The matrix in a code, read number by number."""
    a = code.attributes
    data, size = code.bytes.numpy(), a["rows"] * a["width"]
    at, flat = 0, []
    if a["gaps"]:
        here = -1
        while len(flat) < a["nonzeros"]:
            here += 255 if data[at] == 255 else int(data[at]) + 1
            flat += [here] if data[at] != 255 else []
            at += 1
    else:
        flat = [i for i in range(size) if data[i // 8] >> (i % 8) & 1]
        at = -(-size // 8)
    bits = a["bits"]
    if bits == 32:
        values = data[at:].view(np.float32)
    else:
        digits = np.unpackbits(data[at:], bitorder="little")[: bits * len(flat)].reshape(-1, bits).astype(int)
        raised = (digits << np.arange(bits)).sum(1)
        values = 1 - 2 * raised if bits == 1 else raised - (1 << (bits - 1))
    matrix = np.zeros(size)
    matrix[flat] = values
    return torch.from_numpy(matrix).reshape(a["rows"], a["width"])


@pytest.mark.parametrize("density", [0.0, 0.001, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("most", [None, 1, 3, 7, 100, 1000])
def test_codes(density, most):
    generator = torch.Generator().manual_seed(1)
    mask = torch.rand(37, 53, generator=generator) < density
    numbers = torch.randn(37, 53, generator=generator)
    matrix = numbers * mask if most is None else ((numbers * most).round().clamp(-most, most) * mask).int()
    code = encoded(matrix)
    assert torch.equal(decoded(code), matrix.double())
    nonzeros = int(matrix.count_nonzero())
    bits = 32 if most is None else 1 if int(matrix.abs().max()) <= 1 else int(matrix.abs().max()).bit_length() + 1
    assert code.attributes["bits"] == bits
    assert len(code.bytes) <= -(-37 * 53 // 8) + -(-nonzeros * bits // 8)
    if density < 0.01:
        assert len(code.bytes) <= nonzeros * (1 + bits / 8) + 37 * 53 // 255 + 2


def test_integers_of_many_bits_have_no_code():
    assert encoded(torch.tensor([[40000]], dtype=torch.int32)) is None
    assert encoded(torch.eye(2, dtype=torch.float64)) is None


class Several(nn.Module):
    """Modules side by side, each on the first channels or features of one input."""

    def __init__(self, modules, sides):
        super().__init__()
        self.parts, self.sides = nn.ModuleList(modules), sides

    def forward(self, x):
        return [part(x[:, :side]) for part, side in zip(self.parts, self.sides, strict=True)]


def test_linear():
    torch.manual_seed(0)
    layers = [
        SparseLinear.from_dense(with_zeros(nn.Linear(width, rows, bias=rows != 33), 0.8), relu=rows == 600)
        for rows, width in ((1, 1), (5, 300), (33, 700), (600, 90), (130, 1100))
    ]
    model = Several([layer.onnx_operator() for layer in layers], sides := [layer.in_features for layer in layers])
    with operators() as library:
        session = Session(translate(model, (torch.randn(4, 1100),), True, None, list("abcde")), library)
    for batch in (1, 2, 3, 4, 7, 16, 17, 32, 60, 128, 129, 300):  # each way of the library, and what is left over
        x = torch.randn(batch, 1100)
        for layer, side, y in zip(layers, sides, session.run([x]), strict=True):
            with torch.no_grad():
                torch.testing.assert_close(y, layer.dense()(x[:, :side]), rtol=1e-5, atol=1e-5)


ONE_VECTOR = [  # width, rows, share of zeros: less than a window, one or two numbers of a row in it, gathers, threads
    (1, 9, 0.0), (3, 20, 0.3), (7, 8, 0.5), (8, 8, 0.5), (9, 33, 0.4), (31, 17, 0.6), (33, 17, 0.6), (300, 200, 0.95),
    (300, 200, 0.6), (900, 50, 0.995), (1024, 512, 0.7),
]  # fmt: skip


def one_vector_equals(library):
    for width, rows, share in ONE_VECTOR:
        linear = with_zeros(nn.Linear(width, rows), share)
        program = translate(OperatorLinear(linear, encoded(linear.weight)), (torch.randn(2, width),), True, None, ["y"])
        for batch in (1, 3):
            x = torch.randn(batch, width)
            (y,) = Session(program, library).run([x])
            torch.testing.assert_close(y, linear(x).detach(), rtol=1e-4, atol=1e-4)


def test_one_vector():
    with operators() as library:
        one_vector_equals(library)


def test_rows_of_samples_and_wide_weights(tmp_path):
    model = nn.Sequential(SparseLinear(66000, 40, fg.ConstantFanIn(50)), nn.ReLU(), with_zeros(nn.Linear(40, 8)))
    report = export_onnx(model, tmp_path / "m.onnx", torch.randn(2, 3, 66000), **FAST)
    assert [layer.form for layer in report.layers] == ["operator", "operator"]
    assert report.bytes < 66000 * 40 // 8


CONVOLUTIONS = [
    nn.Conv2d(3, 20, 3, padding=1), nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False),
    nn.Conv2d(8, 12, (3, 5), stride=(1, 3), padding=(0, 2), dilation=(2, 1), groups=4),
    nn.Conv2d(6, 70, 1, stride=2), nn.Conv2d(4, 4, 3, groups=4, padding=1),
    nn.Conv2d(5, 9, 3, padding=2, padding_mode="reflect"), nn.Conv2d(5, 9, (3, 5), padding="same"),
]  # fmt: skip


def test_convolutions(tmp_path):
    convs = [with_zeros(conv, 0.7) for conv in CONVOLUTIONS]
    model = Several([SparseConv2d.from_dense(conv) for conv in convs], [conv.in_channels for conv in convs])
    report = export_onnx(model, tmp_path / "m.onnx", torch.randn(3, 8, 19, 23), **FAST)
    assert report.library == str(tmp_path / "m.so")
    options = runtime.SessionOptions()
    options.register_custom_ops_library(report.library)
    session = runtime.InferenceSession(str(tmp_path / "m.onnx"), options)
    x = torch.randn(5, 8, 19, 23)
    for conv, y in zip(convs, session.run(None, {session.get_inputs()[0].name: x.numpy()}), strict=True):
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(y), conv(x[:, : conv.in_channels]), rtol=1e-5, atol=1e-5)


def test_convolutions_of_sequences(tmp_path):
    convs = [
        nn.Conv1d(3, 20, 5, stride=2, padding=2), nn.Conv1d(8, 12, 3, dilation=2, groups=4, bias=False),
        nn.Conv1d(6, 9, 5, padding="same"), nn.Conv1d(5, 7, 3, padding=2, padding_mode="reflect"),
    ]  # fmt: skip
    model = Several([with_zeros(conv, 0.7) for conv in convs], [conv.in_channels for conv in convs])
    report = export_onnx(model, tmp_path / "m.onnx", torch.randn(3, 8, 41), **FAST)  # compared with torch there
    assert [layer.form for layer in report.layers] == ["operator"] * 4


def test_layers_of_integers(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(4, 16, 3, groups=2), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 40), nn.ReLU(),
        nn.Linear(40, 6),
    ).eval()  # fmt: skip
    x = torch.rand(20, 4, 10, 10)
    fg.compress_(model, fg.MonteCarlo(samples=0.3), x)
    report = export_onnx(model, tmp_path / "m.onnx", x, **FAST)
    assert {layer.form for layer in report.layers} == {"operator"}
    plain = export_onnx(model, tmp_path / "plain.onnx", x, seconds=0.001)
    assert report.bytes < plain.bytes
    assert not (tmp_path / "plain.so").exists()


RECURRENT = [  # of 1 and 3 layers, both directions, odd sizes
    nn.LSTM(5, 16, batch_first=True), nn.GRU(7, 21, 3, batch_first=True), nn.LSTM(40, 33, 2, bidirectional=True),
    nn.GRU(1, 1, bias=False), nn.LSTM(13, 50, 2, bias=False, batch_first=True, bidirectional=True), nn.GRU(6, 35, 2),
]  # fmt: skip


class FromStates(nn.Module):
    """A recurrent network on `(batch, time, inputs)`, from first states that its input says or from zeros."""

    def __init__(self, rnn, given, operator=None):
        super().__init__()
        self.rnn, self.like, self.given = operator or rnn, [rnn], given

    def forward(self, x):
        (like,) = self.like
        hx = None
        if self.given:
            layers = torch.arange(1, like.num_layers * (2 if like.bidirectional else 1) + 1) / 4
            first = layers[:, None, None] * x[:, 0].mean(1)[:, None].expand(-1, like.hidden_size)
            hx = (first, -first) if isinstance(like, nn.LSTM) else first
        outputs, last = self.rnn(x if like.batch_first else x.transpose(0, 1), hx)
        return [outputs, *last] if isinstance(last, tuple) else [outputs, last]


@pytest.mark.parametrize(("number", "given"), [(0, False), (1, True), (2, True), (3, False), (4, True), (5, False)])
def test_recurrent_layers(number, given):
    """Outputs and last states as torch has them, for numbers of sequences that take each way of the library."""
    torch.manual_seed(number)
    rnn = with_zeros(RECURRENT[number], 0.8 if RECURRENT[number].hidden_size > 1 else 0.0).eval()
    products = {name.removeprefix("weight_"): p for name, p in rnn.named_parameters() if name.startswith("weight")}
    operator = recurrent_operator(
        rnn, {name: product_operator(_linear(weight)) for name, weight in products.items()},
        {name: getattr(rnn, f"bias_{name}", None) for name in products}, isinstance(rnn, nn.LSTM),
    )  # fmt: skip
    x = torch.randn(4, 5, rnn.input_size)
    names = ["y", "h", "c"][: 3 if isinstance(rnn, nn.LSTM) else 2]
    with operators() as library:
        session = Session(translate(FromStates(rnn, given, operator), (x,), True, None, names), library)
    for batch in (1, 2, 8, 17, 33, 70):
        x = torch.randn(batch, 5, rnn.input_size)
        with torch.no_grad():
            expected = FromStates(rnn, given)(x)
        for y, z in zip(session.run([x]), expected, strict=True):
            torch.testing.assert_close(y, z, rtol=1e-5, atol=1e-5)


class LastState(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(6, 40, 2, batch_first=True), nn.Linear(40, 3)

    def forward(self, x):
        return self.head(self.lstm(x)[1][0][-1])


@pytest.mark.parametrize("way", ["zeros", "sparse", "one shot, 8 bits"])
def test_sparse_recurrent_networks(way, tmp_path):
    """As each way makes them they are one operator, smaller than dense; plain files hold them as before."""
    torch.manual_seed(0)
    model, x = LastState().eval(), torch.randn(20, 7, 6)
    if way == "zeros":
        with_zeros(model.lstm)
    elif way == "sparse":
        fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.2), init="keep"), where=["lstm"])
    else:
        fg.compress_(model, fg.OneShot(0.8, bits=8), x, where=["lstm"])
    report = export_onnx(model.eval(), tmp_path / "m.onnx", x, **FAST)  # compared with torch there
    assert [(layer.name, layer.form) for layer in report.layers if "lstm" in layer.name] == [("lstm", "operator")]
    dense = export_onnx(model, tmp_path / "dense.onnx", x, seconds=0.001, runtime="ort", sparse="dense")
    assert report.bytes < dense.bytes * (0.5 if "bits" in way else 0.7)
    assert offered_forms(model, operators=True)["lstm"].keys() == {"dense", "operator"}
    assert "lstm" not in offered_forms(model)
    session = runtime.InferenceSession(str(tmp_path / "dense.onnx"))
    with torch.no_grad():
        expected = model(x)
    y = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(y), expected, rtol=1e-4, atol=1e-4)


def test_recurrent_networks_without_operators():
    networks = nn.ModuleDict({
        "dense": nn.LSTM(8, 8), "projected": with_zeros(nn.LSTM(8, 8, proj_size=4)),
        "structured": fg.nn.StructuredRNN(nn.GRU(8, 8), lambda i, o, n: fg.nn.LowRankLinear(i, o, 2, bias=False)),
    })  # fmt: skip
    assert not {"dense", "projected", "structured"} & offered_forms(networks, operators=True).keys()


def test_scales_of_inputs():
    torch.manual_seed(0)
    layer = IntegerLinear(torch.randint(-2, 3, (30, 50)), torch.rand(30), torch.rand(50), torch.randn(30), relu=True)
    x = torch.randn(9, 50)
    with operators() as library:
        session = Session(translate(layer.onnx_operator(), (x,), True, None, ["y"]), library)
    torch.testing.assert_close(session.run([x])[0], layer(x).detach(), rtol=1e-4, atol=1e-4)


def test_what_is_offered():
    model = nn.ModuleDict({
        "dense": nn.Linear(8, 8), "zeros": with_zeros(nn.Linear(8, 8)), "sparse": SparseLinear(8, 8),
        "wide": SparseLinear(8, 8, dtype=torch.float64), "images": with_zeros(nn.Conv2d(4, 4, 3)),
        "sounds": with_zeros(nn.Conv1d(4, 4, 3)),
    })  # fmt: skip
    forms = offered_forms(model, operators=True)
    assert list(forms["zeros"]) == list(forms["images"]) == list(forms["sounds"]) == ["dense", "operator"]
    assert list(forms["sparse"]) == ["dense", "gather", "gather by feature", "operator"]
    assert "operator" not in forms["wide"]
    assert "dense" not in forms
    assert "zeros" not in offered_forms(model)


def test_dense_files_need_no_library(tmp_path):
    model = with_zeros(nn.Linear(16, 16))
    report = fg.export(model, tmp_path / "m.onnx", torch.randn(2, 16), sparse="dense", runtime="ort", seconds=0.001)
    assert report.library is None
    assert not (tmp_path / "m.so").exists()


def test_the_fastest_form_is_taken(tmp_path, monkeypatch):
    times = iter([Timing(2.0, 2.0, 2.0), Timing(1.0, 1.0, 1.0)])
    monkeypatch.setattr(candidates, "time_interleaved", lambda works, seconds: [next(times) for _ in works])
    report = fg.export(with_zeros(nn.Linear(16, 16)), tmp_path / "m.onnx", torch.randn(2, 16), runtime="ort")
    assert [(layer.form, layer.note) for layer in report.layers] == [("operator", "dense 2 ms, operator 1 ms")]
    assert f"register_custom_ops_library('{tmp_path / 'm.so'}')" in str(report)


def test_errors(tmp_path, monkeypatch):
    model, x = with_zeros(nn.Linear(16, 16)), torch.randn(2, 16)
    with pytest.raises(ValueError, match=r"runtime must be None or ort. Got 'tvm'"):
        export_onnx(model, tmp_path / "m.onnx", x, runtime="tvm")
    with pytest.raises(ValueError, match="sparse='operator' needs runtime='ort'"):
        export_onnx(model, tmp_path / "m.onnx", x, sparse="operator")
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(RuntimeError, match=r"needs a C\+\+ compiler. The environment's CXX names 'no-such-compiler'"):
        export_onnx(model, tmp_path / "m.onnx", x, runtime="ort")
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(RuntimeError, match="failed with 1"):
        export_onnx(model, tmp_path / "m.onnx", x, runtime="ort")
    assert not list(tmp_path.iterdir())


def test_a_library_refuses_a_damaged_file(tmp_path):
    model = with_zeros(nn.Linear(16, 16))
    example = torch.randn(2, 16)
    program = translate(nn.Sequential(OperatorLinear(model, encoded(model.weight))), (example,), True, None, ["y"])
    with operators() as library:
        for name, value, message in (("nonzeros", 3, "another"), ("rows", 17, "code of a weight|too early|bias"),
                                     ("bits", 0, "bits"), ("width", 0, "positive")):  # fmt: skip
            damaged = onnx.ModelProto()
            damaged.CopyFrom(program)
            (node,) = [node for node in damaged.graph.node if node.domain == "filigree"]
            (attribute,) = [attribute for attribute in node.attribute if attribute.name == name]
            attribute.i = value
            with pytest.raises(ValueError, match=message):
                Session(damaged, library)


@pytest.mark.long("compiles the library twice")
def test_each_set_of_instructions(tmp_path, monkeypatch):
    """The library for other processors: what is not there on this one is left out of its choice."""
    source = library_of.SOURCE.read_text()
    linear = with_zeros(nn.Linear(70, 50), 0.5)
    operator = OperatorLinear(linear, encoded(linear.weight))
    program = translate(operator, (torch.randn(2, 70),), True, None, ["y"])
    lstm = with_zeros(nn.LSTM(9, 37, batch_first=True), 0.7)
    recurrent = offered_forms(lstm, operators=True)[""]["operator"]
    loop = translate(recurrent, (torch.randn(2, 6, 9),), True, None, ["y", "h", "c"])
    for best in ("PLAIN", "AVX2"):
        changed = tmp_path / f"{best}.cpp.in"
        changed.write_text(source.replace("= instructions();", f"= instructions() < {best} ? instructions() : {best};"))
        monkeypatch.setattr(library_of, "SOURCE", changed)
        library_of._library.cache_clear()
        with operators() as library:
            one_vector_equals(library)
            for batch in (1, 5, 40):
                x = torch.randn(batch, 70)
                (y,) = Session(program, library).run([x])
                torch.testing.assert_close(y, linear(x).detach(), rtol=1e-5, atol=1e-5)
                x = torch.randn(batch, 6, 9)
                torch.testing.assert_close(
                    Session(loop, library).run([x])[0], lstm(x)[0].detach(), rtol=1e-5, atol=1e-5
                )
    library_of._library.cache_clear()
