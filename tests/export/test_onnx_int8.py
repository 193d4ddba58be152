"""ONNX files that compute in 8 bits: the operators that ONNX Runtime makes of them, and what they compute."""

from collections import Counter

import pytest
import torch
from torch import nn

import filigree as fg
from filigree.export import export_onnx
from filigree.export.onnx.int8 import calibration_batches, int8_form
from filigree.export.onnx.program import Session

REASON = "the extra `onnx` is not installed"
onnx = pytest.importorskip("onnx", reason=REASON)
pytest.importorskip("onnxscript", reason=REASON)
runtime = pytest.importorskip("onnxruntime", reason=REASON)


def operators_in(path):
    """How often each operator is in the graph that ONNX Runtime runs."""
    options = runtime.SessionOptions()
    options.optimized_model_filepath = str(path.with_name("optimized.onnx"))
    options.log_severity_level = 3
    runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)


def quantized_by_hand(x, low, high):
    """x in 8 bits between the least and the largest number, as ONNX defines it."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / 255
    zero = round(-low / scale)
    return ((x / scale).round().add(zero).clamp(0, 255) - zero) * scale


def run(path, x):
    (y,) = Session(onnx.load(path)).run([x])
    return y


def test_layers_alike_share_no_zero_point(tmp_path):
    """ONNX Runtime on x86 without VNNI replaces each, and refuses a file where it would do so twice."""
    torch.manual_seed(0)
    tied = nn.Linear(8, 8)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), tied, nn.ReLU(), tied)
    x = torch.randn(30, 8)
    report = export_onnx(model, tmp_path / "m.onnx", x, seconds=0.001, int8="all", calibration=x, tolerance=0.5)
    assert report.relative < 0.1
    nodes = onnx.load(tmp_path / "m.onnx").graph.node
    zeros = Counter(node.input[2] for node in nodes if "integers" in node.input[0] and len(node.input) > 2)
    assert len(zeros) > 2
    assert max(zeros.values()) == 1


def test_linear_layers(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(70, 60), nn.ReLU(), nn.Linear(60, 9))
    x = torch.randn(50, 70)
    fg.compress_(model, fg.RoundToNearest(bits=4), x)
    plain = export_onnx(model, tmp_path / "m.onnx", x, seconds=0.001)
    report = export_onnx(
        model, tmp_path / "m.onnx", x[:5], seconds=0.001, int8="integers", calibration=[x[:20], x[20:]]
    )
    assert [layer.form for layer in report.layers] == ["int8", "int8"]
    assert report.relative < 0.05
    assert 'options.add_session_config_entry("session.x64quantprecision", "1")' in str(report).replace("'", '"')
    assert "x64quantprecision" not in str(plain)
    assert report.bytes < plain.bytes + 4000  # 4 bits a weight in both
    found_operators = operators_in(tmp_path / "m.onnx")
    assert found_operators["QGemm"] == 2
    assert not {"Gemm", "MatMul"} & set(found_operators)
    with torch.no_grad():
        h = model[0].dense()(quantized_by_hand(x, float(x.min()), float(x.max()))).relu()
        expected = model[2].dense()(quantized_by_hand(h, float(h.min()), float(model[0](x).relu().max())))
    torch.testing.assert_close(run(tmp_path / "m.onnx", x), expected, rtol=0, atol=0.02 * float(expected.abs().max()))


def test_convolutions_and_rows_of_samples(tmp_path):
    torch.manual_seed(0)
    images = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, stride=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(16 * 9, 5),
    )  # fmt: skip
    x = torch.randn(16, 3, 14, 14)
    fg.compress_(images, fg.RoundToNearest(bits=8), x)
    report = export_onnx(images, tmp_path / "m.onnx", x, seconds=0.001, int8="integers")
    assert [layer.form for layer in report.layers] == ["int8"] * 3
    assert report.relative < 0.05
    found_operators = operators_in(tmp_path / "m.onnx")
    assert (found_operators["QLinearConv"], found_operators["QGemm"]) == (2, 1)
    assert not {"Relu", "Conv", "MaxPool"} & set(found_operators)  # all between the first and the last is integers
    with torch.no_grad():
        expected = images(x)
    torch.testing.assert_close(run(tmp_path / "m.onnx", x), expected, rtol=0, atol=0.05 * float(expected.abs().max()))


def test_layers_of_floats(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(2, 8, 5), nn.ReLU(), nn.Conv1d(8, 6, 3, stride=2), nn.Tanh(), nn.Linear(12, 7))
    x = torch.randn(8, 2, 30)
    before = [parameter.clone() for parameter in model.parameters()]
    report = export_onnx(model, tmp_path / "m.onnx", x, seconds=0.001, int8="all")
    assert [layer.form for layer in report.layers] == ["int8"] * 3
    found_operators = operators_in(tmp_path / "m.onnx")
    assert (found_operators["QLinearConv"], found_operators["MatMulIntegerToFloat"]) == (2, 1)
    assert report.relative < 0.05
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_scales_of_inputs_and_a_shared_layer(tmp_path):
    torch.manual_seed(0)
    shared = nn.Linear(20, 20)
    model = nn.Sequential(shared, nn.ReLU(), shared, nn.ReLU(), nn.Linear(20, 4))
    x = torch.randn(64, 20)
    fg.compress_(model, fg.MonteCarlo(samples=2.0), x)
    report = export_onnx(model, tmp_path / "m.onnx", x, seconds=0.001, int8="integers")
    assert "int8" in {layer.form for layer in report.layers}
    with torch.no_grad():
        expected = model(x)
    torch.testing.assert_close(run(tmp_path / "m.onnx", x), expected, rtol=0, atol=0.05 * float(expected.abs().max()))


def test_which_layers_have_the_form():
    integer = nn.Sequential(nn.Linear(8, 8))
    fg.compress_(integer, fg.RoundToNearest(bits=12), torch.randn(4, 8))
    assert int8_form(integer[0], "integers") is None  # larger than a byte
    assert int8_form(nn.Linear(8, 8), "integers") is None
    assert int8_form(nn.Linear(8, 8), "all") is not None
    assert int8_form(nn.Linear(8, 8).double(), "all") is None
    form = int8_form(nn.Linear(3, 2), "all")
    assert form.integers.abs().max() == 127


def test_calibration_data():
    example = (torch.zeros(2, 3),)
    x = torch.randn(10, 3)
    assert calibration_batches(None, example) == [example]
    assert torch.equal(calibration_batches(x, example)[0][0], x)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, torch.zeros(10)), batch_size=4)
    assert [len(batch[0]) for batch in calibration_batches(loader, example)] == [4, 4, 2]
    with pytest.raises(ValueError, match="must be like the example"):
        calibration_batches(torch.zeros(2, 4), example)
    with pytest.raises(ValueError, match="at least one sample"):
        calibration_batches([], example)
    for given in (3, x.numpy(), [{"x": x}], "text"):
        with pytest.raises(TypeError, match="calibration must be a tensor or batches"):
            calibration_batches(given, example)


def test_errors(tmp_path):
    model, x = nn.Sequential(nn.Linear(8, 8)), torch.randn(2, 8)
    with pytest.raises(ValueError, match=r"int8 must be None, 'integers' or 'all'. Got 'int4'"):
        export_onnx(model, tmp_path / "m.onnx", x, int8="int4")
    with pytest.raises(ValueError, match="calibration is for int8"):
        export_onnx(model, tmp_path / "m.onnx", x, calibration=x)
    with pytest.raises(ValueError, match=r"calibration must hold at least one sample\. Got none"):
        export_onnx(model, tmp_path / "m.onnx", x, int8="all", calibration=x[:0])
    with pytest.raises(ValueError, match="on the calibration data must be finite"):
        export_onnx(model, tmp_path / "m.onnx", x, int8="all", calibration=x / 0, seconds=0.001)
    with pytest.raises(
        ValueError, match=r"no such layer of float32 scales\. It is for linear layers and convolutions in"
    ):
        export_onnx(nn.Linear(8, 8).double(), tmp_path / "m.onnx", x.double(), int8="all", seconds=0.001)
    with pytest.raises(ValueError, match="int8='integers': the model has no such layer"):
        export_onnx(model, tmp_path / "m.onnx", x, int8="integers", seconds=0.001)
    assert not list(tmp_path.iterdir())


class Scaled(nn.Module):
    """Its inputs are called as this file might call what it adds to a graph."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 4)

    def forward(self, x, x_scale, x_zero, x_quantized, x_dequantized):
        return self.linear(x) * x_scale + x_zero + x_quantized + x_dequantized


def test_inputs_of_any_name(tmp_path):
    torch.manual_seed(0)
    inputs = torch.randn(3, 8), *torch.randn(4, 3, 4)
    assert export_onnx(Scaled(), tmp_path / "m.onnx", inputs, seconds=0.001, int8="all").relative < 0.05


@pytest.mark.parametrize("layer", [nn.Linear(8, 4), nn.Conv1d(8, 4, 1)])
def test_a_bias_of_a_row_of_zeros_stays(tmp_path, layer):
    torch.manual_seed(0)
    x = torch.randn(64, 8) if isinstance(layer, nn.Linear) else torch.randn(64, 8, 3)
    with torch.no_grad():
        layer.weight[0], layer.bias[0] = 0, 0.5
        layer.weight[1], layer.bias[1] = 1e-12, -0.5
    export_onnx(nn.Sequential(layer), tmp_path / "m.onnx", x, seconds=0.001, int8="all", calibration=x)
    with torch.no_grad():
        torch.testing.assert_close(run(tmp_path / "m.onnx", x), layer(x), atol=0.06, rtol=0.02)


def test_inputs_that_were_zero_on_the_calibration_data(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))
    with torch.no_grad():
        model[0].bias.fill_(-100.0)
    x = torch.randn(64, 8)
    export_onnx(model, tmp_path / "m.onnx", x, seconds=0.001, int8="all", calibration=x)
    with torch.no_grad():
        torch.testing.assert_close(run(tmp_path / "m.onnx", x), model(x), atol=0.01, rtol=0.01)
