"""An encoder of DistilBERT's shape (6 layers, 768 / 3072, 128 tokens) by `fg.optimize_`, torch and ONNX Runtime.

Sparse ones keep random connections. `times_torch` is against the dense one as torch runs it; `difference` is the
largest one of the outputs over the largest magnitude, against the network that came in.
"""

import copy
import importlib.util

import pytest
import torch
from torch import nn

import filigree as fg
from filigree.measure.timing import inference, time_interleaved

TOKENS, TOLERANCE = 128, 0.1
GOALS = {(0.2, True): 4.7, (0.1, True): 6}


@pytest.fixture(scope="module")
def dense():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(768, 12, 3072, activation="gelu", batch_first=True)
    return nn.TransformerEncoder(layer, 6, enable_nested_tensor=False).eval()


@pytest.mark.parametrize("density", [1.0, 0.2, 0.1])
@pytest.mark.parametrize("int8", [False, True])
def test_encoders(density, int8, dense, suite):
    model, x = copy.deepcopy(dense), torch.randn(1, TOKENS, 768)
    if density < 1:
        fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=density), init="keep"))
    report = fg.optimize_(model, x, tolerance=TOLERANCE if int8 else 0.0, seconds=0.02)
    _add(suite, f"ours {density}{' int8' if int8 else ''}", dense, inference(model, x), x, report.difference,
         GOALS.get((density, int8)))  # fmt: skip


@pytest.mark.parametrize("kind", ["float", "static int8", "dynamic int8"])
def test_onnx_runtime(kind, dense, suite, tmp_path):
    if importlib.util.find_spec("onnxruntime") is None:
        pytest.skip("onnxruntime is not installed")
    import onnxruntime
    from onnxruntime import quantization

    x, plain, integers = torch.randn(1, TOKENS, 768), tmp_path / "float.onnx", tmp_path / "int8.onnx"
    fg.export(dense, plain, x)
    name = onnxruntime.InferenceSession(str(plain)).get_inputs()[0].name
    if kind == "dynamic int8":
        quantization.quantize_dynamic(str(plain), str(integers), per_channel=True)
    elif kind == "static int8":
        batches = iter([{name: torch.randn(1, TOKENS, 768).numpy()} for _ in range(4)])

        class Reader(quantization.CalibrationDataReader):
            def get_next(self):
                return next(batches, None)

        quantization.quantize_static(
            str(plain), str(integers), Reader(), quant_format=quantization.QuantFormat.QDQ, per_channel=True
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(plain if kind == "float" else integers), options)
    inputs = {name: x.numpy()}
    with torch.no_grad():
        expected = dense(x)
    difference = float((torch.from_numpy(session.run(None, inputs)[0]) - expected).abs().max() / expected.abs().max())
    label = {"float": "ONNX Runtime", "static int8": "ONNX Runtime int8", "dynamic int8": "ONNX Runtime dynamic int8"}
    _add(suite, label[kind], dense, lambda: session.run(None, inputs), x, difference, None)


def _add(suite, kind, dense, work, x, difference, goal):
    torch_ms, ms = (timing.median for timing in time_interleaved([inference(dense, x), work], seconds=1.5))
    suite.add(
        network="encoder", batch=1, kind=kind, ms=ms, torch_ms=torch_ms, times_torch=torch_ms / ms,
        difference=difference, goal=goal,
    )  # fmt: skip
