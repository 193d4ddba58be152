"""`fg.optimize_` against torch's dense float32 and ONNX Runtime (float, and static int8, which approximates).

Sparse networks keep random connections of a dense one; `times_torch` is against the dense one as torch runs it.
"""

import copy
import importlib.util
import itertools

import pytest
import torch
from small_networks import NETWORKS
from torch import nn

import filigree as fg
from filigree.measure.timing import inference, time_interleaved

GOALS = {("R-Net", 1): 3, ("R-Net", 128): 2.5, ("CREPE tiny", 1): 3, ("CREPE tiny", 128): 2.5}


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
    works = {"torch": inference(dense, x)}
    for density in (1.0, 0.3):
        model = copy.deepcopy(dense)
        if density < 1:
            fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=density), init="keep"))
        expected = model(x)
        fg.optimize_(model, x, seconds=0.03)
        with torch.no_grad():
            torch.testing.assert_close(model(x), expected, rtol=1e-3, atol=1e-4)
        works[f"ours {density}"] = inference(model, x)
    works |= {kind: running(path, x) for kind, path in files.get(name, {}).items()}
    times = dict(zip(works, time_interleaved(list(works.values()), seconds=0.4), strict=True))
    for kind, timing in times.items():
        if kind != "torch":
            suite.add(
                network=name, batch=batch, kind=kind, ms=timing.median, torch_ms=times["torch"].median,
                times_torch=times["torch"].median / timing.median,
                goal=GOALS.get((name, batch)) if kind == "ours 1.0" else None,
            )  # fmt: skip


@pytest.mark.parametrize(("density", "goal"), [(0.5, 1.3), (0.2, 3), (0.1, 6)])
def test_one_linear_layer_of_4096(density, goal, suite):
    dense = nn.Linear(4096, 4096).eval()
    model = nn.Sequential(copy.deepcopy(dense)).eval()
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=density), init="keep"))
    x = torch.randn(1, 4096)
    report = fg.optimize_(model, x, seconds=0.03)
    times = [timing.median for timing in time_interleaved([inference(dense, x), inference(model, x)], seconds=0.4)]
    suite.add(
        network="Linear(4096, 4096)", batch=1, kind=f"ours {density}", form=report.layers[0].form, ms=times[1],
        torch_ms=times[0], times_torch=times[0] / times[1], goal=goal,
    )  # fmt: skip


@pytest.mark.parametrize("batch", [1, 128])
def test_layers_of_integers(batch, suite):
    for name, layer, shape in [
        ("Conv2d(48, 64, 3x3)", nn.Conv2d(48, 64, 3), (48, 16, 16)),
        ("Linear(1024, 1024)", nn.Linear(1024, 1024), (1024,)),
    ]:  # fmt: skip
        dense, x = nn.Sequential(layer).eval(), torch.randn(batch, *shape)
        model = copy.deepcopy(dense)
        fg.compress_(model, fg.RoundToNearest(bits=8))
        plain = copy.deepcopy(model)
        report = fg.optimize_(model, x, seconds=0.03)
        works = [inference(each, x) for each in (dense, plain, model)]
        times = [timing.median for timing in time_interleaved(works, seconds=0.4)]
        suite.add(
            network=name, batch=batch, kind="ours, integers", form=report.layers[0].form, ms=times[2],
            torch_ms=times[0], times_torch=times[0] / times[2], times_torch_before=times[0] / times[1], goal=1,
        )  # fmt: skip
