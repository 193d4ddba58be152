"""`fg.optimize_` against torch's dense float32 and ONNX Runtime (float, and static int8, which approximates).

Sparse networks keep random connections of a dense one; `times_torch` is against the dense one as torch runs it.
"""

import copy

import pytest
import torch
from small_networks import NETWORKS
from torch import nn

import filigree as fg
from filigree.measure.timing import inference, time_interleaved

GOALS = {("R-Net", 1): 3, ("R-Net", 128): 2.5, ("CREPE tiny", 1): 3, ("CREPE tiny", 128): 2.5}


def session(model, x, folder, integers):
    """What ONNX Runtime runs in place of the model, on as many threads; None where it is not installed."""
    try:
        import onnxruntime
        from onnxruntime import quantization
    except ImportError:
        return None
    path = folder / "model.onnx"
    torch.onnx.export(model, (x,), str(path), dynamo=True, external_data=False, verbose=False)
    if integers:
        batches = iter([{"x": torch.randn_like(x).numpy()} for _ in range(4)])

        class Reader(quantization.CalibrationDataReader):
            def get_next(self):
                return next(batches, None)

        quantised = folder / "int8.onnx"
        quantization.quantize_static(
            str(path), str(quantised), Reader(), quant_format=quantization.QuantFormat.QDQ, per_channel=True
        )
        path = quantised
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    running, inputs = onnxruntime.InferenceSession(str(path), options), {"x": x.numpy()}
    return lambda: running.run(None, inputs)


@pytest.mark.parametrize("batch", [1, 128])
@pytest.mark.parametrize("name", NETWORKS)
def test_whole_networks(name, batch, suite, tmp_path):
    make, shape = NETWORKS[name]
    dense = make().eval()
    x = torch.randn(batch, *shape)
    kept = (1.0, 0.3) if batch == 1 or name != "speaker LSTM" else (1.0,)
    works = {"torch": inference(dense, x)}
    for density in kept:
        model = copy.deepcopy(dense)
        if density < 1:
            fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=density), init="keep"))
        expected = model(x)
        fg.optimize_(model, x)
        with torch.no_grad():
            torch.testing.assert_close(model(x), expected, rtol=1e-3, atol=1e-4)
        works[f"ours {density}"] = inference(model, x)
    if name != "speaker LSTM":  # ONNX Runtime's static int8 leaves recurrent layers as they are
        for kind, integers in (("ONNX Runtime", False), ("ONNX Runtime int8", True)):
            if (work := session(dense, x, tmp_path, integers)) is not None:
                works[kind] = work
    times = dict(zip(works, time_interleaved(list(works.values()), seconds=1.5), strict=True))
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
    report = fg.optimize_(model, x)
    times = [timing.median for timing in time_interleaved([inference(dense, x), inference(model, x)], seconds=1.5)]
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
        report = fg.optimize_(model, x)
        works = [inference(each, x) for each in (dense, plain, model)]
        times = [timing.median for timing in time_interleaved(works, seconds=0.7)]
        suite.add(
            network=name, batch=batch, kind="ours, integers", form=report.layers[0].form, ms=times[2],
            torch_ms=times[0], times_torch=times[0] / times[2], times_torch_before=times[0] / times[1], goal=1,
        )  # fmt: skip
