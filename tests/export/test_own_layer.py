"""A layer that only this file knows: its forward and its dense equivalent are all that export needs of it."""

import pytest
import torch
from torch import nn

import filigree as fg
from filigree.export import export_c, export_onnx
from filigree.export.c.compiler import compiler
from filigree.nn.capabilities import Capabilities


class BlockDiagonalLinear(Capabilities, nn.Module):
    """`y = x W^T` with W of blocks `(out, in)` along its diagonal."""

    def __init__(self, blocks, inputs, outputs):
        super().__init__()
        self.blocks = nn.Parameter(torch.randn(blocks, outputs, inputs) * inputs**-0.5)

    def forward(self, x):
        parts = x.unflatten(-1, (len(self.blocks), -1))
        return torch.einsum("...bi,boi->...bo", parts, self.blocks).flatten(-2)

    @torch.no_grad()
    def dense(self):
        weight = torch.block_diag(*self.blocks)
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        linear.weight.copy_(weight)
        return linear


class Shifted(BlockDiagonalLinear):
    """Another forward than the one whose dense equivalent it inherits."""

    def forward(self, x):
        return super().forward(x) + 1


class Scaled(Capabilities, nn.Module):
    """It says nothing of itself, and C has no form for what it computes."""

    def forward(self, x):
        return 2 * x


def network(*layers):
    return nn.Sequential(*layers, nn.ReLU(), nn.Linear(32, 5))


def test_c_stores_the_blocks_alone(tmp_path):
    report = export_c(network(BlockDiagonalLinear(8, 5, 4)), tmp_path / "m.c")
    layer = report.layers[0]
    assert layer.form.startswith("sparse")
    assert layer.bytes < 1.5 * 4 * 8 * 5 * 4  # of 5,120 bytes dense
    if compiler() is not None:
        assert report.relative < 1e-5


def test_onnx_holds_the_layer_as_it_is(tmp_path):
    pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
    pytest.importorskip("onnxscript", reason="the extra `onnx` is not installed")
    report = export_onnx(network(BlockDiagonalLinear(8, 5, 4)), tmp_path / "m.onnx", torch.randn(3, 40), seconds=0.001)
    assert report.layers == []
    assert report.relative < 1e-5
    assert fg.export(network(Shifted(8, 5, 4)), tmp_path / "s.onnx", torch.randn(3, 40), seconds=0.001).relative < 1e-5


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (Shifted(8, 5, 4), "cannot be traced as a chain of layers"),
        (Scaled(), "'mul' in the forward of '0' cannot be written as C"),
    ],
)
def test_a_form_is_not_inherited_by_another_forward(tmp_path, layer, message):
    with pytest.raises(ValueError, match=message) as caught:
        export_c(network(layer), tmp_path / "m.c", torch.randn(3, 40))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_program_that_trains_refuses_it_by_name(tmp_path):
    with pytest.raises(ValueError, match="'0' is a BlockDiagonalLinear, which a program that trains cannot hold"):
        export_c(network(BlockDiagonalLinear(8, 5, 4)), tmp_path / "m.c", training=True)
