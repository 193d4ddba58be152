"""`fg.optimize_` on networks of timm's, with random weights, against torch and ONNX Runtime.

`FILIGREE_NETWORKS="resnet18;ghostnet_100"` tries these; the rows of others stay as they are recorded. The record is
written after each network. Needs timm: `pip install --no-deps timm torchvision`.
"""

import copy
import importlib.util
import os

import pytest
import torch

import filigree as fg
from filigree.measure.timing import inference, time_interleaved

SIZE = 224  # pixels
NETWORKS = (
    "mobilenetv2_100", "mobilenetv3_small_100", "efficientnet_b0", "ghostnet_100", "regnety_002", "resnet18",
    "convnext_atto", "mobilevit_xxs", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "densenet121",
)  # fmt: skip
CHOSEN = os.environ.get("FILIGREE_NETWORKS", ";".join(NETWORKS)).split(";")


@pytest.mark.parametrize("batch", [1, 16])
@pytest.mark.parametrize("name", [name for name in NETWORKS if name in CHOSEN])
def test_networks_of_others(suite, benchmark, tmp_path, name, batch):
    timm = pytest.importorskip("timm")
    suite.networks, suite.keys = list(NETWORKS), ("network", "batch", "kind")
    torch.manual_seed(0)
    model, x = timm.create_model(name, num_classes=10).eval(), torch.randn(batch, 3, SIZE, SIZE)
    ours = copy.deepcopy(model)
    report = fg.optimize_(ours, x)
    works = {"torch": inference(model, x), "ours": inference(ours, x)}
    if importlib.util.find_spec("onnxruntime"):
        works["ONNX Runtime"] = _in_onnx_runtime(model, x, tmp_path / "model.onnx")
    times = dict(zip(works, time_interleaved(list(works.values()), seconds=1.0), strict=True))
    for kind, timing in times.items():
        suite.add(
            network=name, batch=batch, kind=kind, ms=timing.median, times_torch=times["torch"].median / timing.median,
            **({"difference": report.difference} if kind == "ours" else {}),
        )  # fmt: skip
    suite.save()
    benchmark.pedantic(lambda: None, rounds=1)


def _in_onnx_runtime(model, x, path):
    import onnxruntime

    fg.export(model, path, x, seconds=0.01)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options)
    inputs = {session.get_inputs()[0].name: x.numpy()}
    return lambda: session.run(None, inputs)
