"""What `fg.export` writes, in ONNX Runtime, against the dense network as ONNX Runtime runs it: `times_dense`.

Networks in the shapes of published ones keep half of their units, or 30% of their connections (with filigree's
operators: `runtime="ort"`), or compute in 8 bits (`int8="all"`). ONNX Runtime's own static int8 stands beside them.
"""

import copy

import pytest
import torch
from small_networks import NETWORKS
from torch import nn

import filigree as fg
from filigree.measure.timing import time_interleaved

onnxruntime = pytest.importorskip("onnxruntime")
from onnxruntime import quantization  # noqa: E402  (only where it is installed)

SIZES = {"R-Net": (3, 24, 24), "CREPE tiny": (1024,)}
ORDER = [*SIZES, "Linear(1024, 1024)", "Linear(4096, 4096)", "speaker LSTM"]


def running(path, x, library=None):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    if library:
        options.register_custom_ops_library(str(library))
    session = onnxruntime.InferenceSession(str(path), options)
    inputs = {session.get_inputs()[0].name: x.numpy()}
    return lambda: session.run(None, inputs)


def static_int8(plain, path, shape):
    """ONNX Runtime's own way, as its documentation shows it: QDQ, a scale for each channel."""
    name = onnxruntime.InferenceSession(str(plain)).get_inputs()[0].name
    batches = iter([{name: torch.randn(8, *shape).numpy()} for _ in range(4)])

    class Reader(quantization.CalibrationDataReader):
        def get_next(self):
            return next(batches, None)

    quantization.quantize_static(
        str(plain), str(path), Reader(), quant_format=quantization.QuantFormat.QDQ, per_channel=True
    )


def compressed(model, *steps, data=None):
    for step in steps:
        fg.compress_(model, step, data)
    return model


def compare(suite, network, x, files):
    """A row for each file; `files` maps a name to (path, library). The record keeps rows of networks not tried."""
    suite.networks = ORDER
    works = {name: running(path, x, library) for name, (path, library) in files.items()}
    times = dict(zip(works, time_interleaved(list(works.values()), seconds=0.5), strict=True))
    for name, (path, _) in files.items():
        suite.add(
            network=network, batch=len(x), kind=name, ms=times[name].median,
            times_dense=times["dense"].median / times[name].median, bytes=path.stat().st_size,
        )  # fmt: skip


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("batch", [1, 128])
def test_whole_networks(name, batch, suite, tmp_path):
    make, shape = NETWORKS[name]
    dense, x, data = make().eval(), torch.randn(batch, *shape), torch.randn(300, *shape)
    units = compressed(copy.deepcopy(dense), fg.MagnitudePruning(keep=0.5), data=data)
    few = compressed(copy.deepcopy(dense), fg.OneShot(sparsity=0.7), data=data)
    files = {}

    def write(kind, model, **options):
        path = tmp_path / f"{len(files)}.onnx"
        fg.export(model, path, x, **options)
        library = path.with_suffix(".so")  # absent where no operator was the fastest form
        files[kind] = path, library if library.exists() else None

    write("dense", dense)
    static_int8(files["dense"][0], tmp_path / "static.onnx", shape)
    files["ONNX Runtime's static int8"] = tmp_path / "static.onnx", None
    write("half of the units", units)
    write("30% of the connections, filigree's operators", few, runtime="ort")
    write("int8", dense, int8="all", calibration=data, tolerance=0.5)
    write("half of the units, int8", units, int8="all", calibration=data, tolerance=0.5)
    compare(suite, name, x, files)


@pytest.mark.parametrize(("side", "batch"), [(1024, 1), (1024, 8), (1024, 128), (4096, 1)])
def test_one_layer(side, batch, suite, tmp_path):
    dense, x = nn.Sequential(nn.Linear(side, side)).eval(), torch.randn(batch, side)
    sparse = copy.deepcopy(dense)
    fg.convert_(sparse, fg.Sparse(fg.ErdosRenyi(density=0.1), init="keep"))
    fg.export(dense, tmp_path / "dense.onnx", x)
    fg.export(sparse, tmp_path / "sparse.onnx", x, runtime="ort", sparse="operator")
    fg.export(dense, tmp_path / "int8.onnx", x, int8="all", tolerance=0.5)
    files = {"dense": (tmp_path / "dense.onnx", None)}
    files["10% of the connections, filigree's operators"] = tmp_path / "sparse.onnx", tmp_path / "sparse.so"
    files["int8"] = tmp_path / "int8.onnx", None
    compare(suite, f"Linear({side}, {side})", x, files)


@pytest.mark.parametrize("batch", [1, 16])
def test_recurrent_layers(batch, suite, tmp_path):
    """The LSTM of a speaker encoder, 3 x 256, with some of its connections."""
    make, shape = NETWORKS["speaker LSTM"]
    dense, x = make().eval(), torch.randn(batch, *shape)
    files = {"dense": (tmp_path / "dense.onnx", None)}
    fg.export(dense, files["dense"][0], x)
    for percent in (30, 20, 10):
        sparse = copy.deepcopy(dense)
        fg.convert_(sparse, fg.Sparse(fg.ErdosRenyi(density=percent / 100), init="keep"), where=["lstm"])
        path = tmp_path / f"{percent}.onnx"
        fg.export(sparse, path, x, runtime="ort", sparse="operator")
        files[f"{percent}% of the connections, filigree's operators"] = path, path.with_suffix(".so")
    compare(suite, "speaker LSTM", x, files)
