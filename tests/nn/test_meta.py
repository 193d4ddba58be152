"""Every layer on the device meta, in training too: shapes without numbers."""

import copy

import pytest
import torch
from test_contract import examples, networks
from torch import nn

import filigree as fg
from contract import convert_or_skip
from filigree.compress.compression import Compression

CONFIGS = [
    *examples(),
    ("PartitionDropout, elements", fg.PartitionDropout(3, per="element")),
    ("PartitionDropout, connect", fg.PartitionDropout(3, connect=True)),
    ("top-k, forward", fg.Asymmetric(forward=fg.TopK(3))),
]


def parameters():
    for label, config in CONFIGS:
        slow = [pytest.mark.long("calibrates")] if isinstance(config, Compression) else []
        yield pytest.param(config, id=label, marks=slow)


@pytest.mark.parametrize("network", ["flat", "images", pytest.param("recurrent", marks=pytest.mark.long("loops"))])
@pytest.mark.parametrize("config", list(parameters()))
def test_layers_have_shapes_on_meta(config, network):
    model, x = networks()[network]
    convert_or_skip(model, config, x)
    for training in (True, False):
        real = model.train(training)(x)
        meta = copy.deepcopy(model).to("meta").train(training)
        inputs = x.to("meta").requires_grad_()
        real, y = (out if isinstance(out, torch.Tensor) else out[0] for out in (real, meta(inputs)))
        assert (y.shape, y.dtype, y.device.type) == (real.shape, real.dtype, "meta")
        y.sum().backward()
        assert inputs.grad.shape == x.shape
        for parameter in meta.parameters():
            assert parameter.grad is None or parameter.grad.shape == parameter.shape


def test_another_type_on_meta_is_refused_in_a_line():
    layer = fg.nn.SparseLinear(6, 5).to("meta")
    with pytest.raises(TypeError, match=r"SparseLinear: the input must be torch.float32.*Got torch.float64\."):
        layer(torch.ones(2, 6, dtype=torch.float64, device="meta"))
    model = nn.Sequential(nn.Linear(6, 5))
    fg.convert_(model, fg.Asymmetric.topk(2))
    with torch.autocast("cpu", torch.bfloat16):
        assert model(torch.ones(2, 6)).dtype == torch.bfloat16
