"""`fg.optimize_` against torch's dense float32 and ONNX Runtime (float, and static int8, which approximates).

Sparse networks keep random connections of a dense one; `times_torch` is against the dense one as torch runs it.
"""

import copy
import importlib.util
import itertools

import pytest
import torch
from small_networks import NETWORKS

import filigree as fg
from filigree.measure.timing import inference, time_interleaved

TOLERANCE = 0.02
GOALS = {
    (name, batch, "ours 1.0"): goal for name in ("R-Net", "CREPE tiny") for batch, goal in ((1, 3), (128, 2.5))
} | {("speaker LSTM", 1, "ours 0.3"): 2}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The networks as ONNX files, float and of static integers, by name and kind; {} without ONNX Runtime."""
    if importlib.util.find_spec("onnxruntime") is None:
        return {}
    from onnxruntime import quantization

    paths = {}
    for name, (make, shape) in NETWORKS.items():
        if name == "speaker LSTM":  # its static int8 leaves recurrent layers as they are
            continue
        folder = tmp_path_factory.mktemp("onnx")
        plain, integers = folder / "float.onnx", folder / "int8.onnx"
        fg.export(make().eval(), plain, torch.randn(2, *shape))
        paths[name] = {"ONNX Runtime": plain, "ONNX Runtime int8": integers}
        batches = iter([{_session(plain).get_inputs()[0].name: torch.randn(2, *shape).numpy()} for _ in range(4)])

        class Reader(quantization.CalibrationDataReader):
            def get_next(self, batches=batches):
                return next(batches, None)

        quantization.quantize_static(
            str(plain), str(integers), Reader(), quant_format=quantization.QuantFormat.QDQ, per_channel=True
        )
    return paths


def _session(path):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(str(path), options)


def running(path, x):
    session = _session(path)
    inputs = {session.get_inputs()[0].name: x.numpy()}
    return lambda: session.run(None, inputs)


@pytest.mark.parametrize(
    ("name", "batch"), [*itertools.product(("R-Net", "CREPE tiny"), (1, 128)), ("speaker LSTM", 1), ("speaker LSTM", 4)]
)
def test_whole_networks(name, batch, suite, files):
    make, shape = NETWORKS[name]
    dense = make().eval()
    x = torch.randn(batch, *shape)
    works, differences = {"torch": inference(dense, x)}, {}
    for density, int8 in itertools.product((1.0, 0.3), (False, True)):
        model = copy.deepcopy(dense)
        if density < 1:
            fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=density), init="keep"))
        expected = model(x)
        report = fg.optimize_(model, x, seconds=0.03, tolerance=TOLERANCE if int8 else 0.0)
        if not int8:
            with torch.no_grad():
                torch.testing.assert_close(model(x), expected, rtol=1e-3, atol=1e-4)
        kind = f"ours {density}{' int8' if int8 else ''}"
        differences[kind] = report.difference
        works[kind] = inference(model, x)
    works |= {kind: running(path, x) for kind, path in files.get(name, {}).items()}
    times = dict(zip(works, time_interleaved(list(works.values()), seconds=0.4), strict=True))
    for kind, timing in times.items():
        if kind != "torch":
            suite.add(
                network=name, batch=batch, kind=kind, ms=timing.median, torch_ms=times["torch"].median,
                times_torch=times["torch"].median / timing.median,
                difference=differences.get(kind), goal=GOALS.get((name, batch, kind)),
            )  # fmt: skip
