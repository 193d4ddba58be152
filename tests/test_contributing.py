"""The method that CONTRIBUTING.md adds really is one source file and one test file: each step is done with it."""

import re
import runpy
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn

import filigree as fg
from filigree import config
from filigree.export.c.compiler import compiler

ROOT = Path(__file__).parents[1]
SOURCE, USE, TEST = re.findall(r"^```python\n(.*?)^```", (ROOT / "CONTRIBUTING.md").read_text(), flags=re.S | re.M)


@pytest.fixture
def added(monkeypatch):
    """The page's source file as a module; what it adds is gone afterwards."""
    monkeypatch.setattr(config, "_KINDS", dict(config._KINDS))
    module = types.ModuleType("block_diagonal")
    monkeypatch.setitem(sys.modules, "block_diagonal", module)
    exec(compile(SOURCE, "block_diagonal.py", "exec"), vars(module))
    return module


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))


def converted(added):
    model = network()
    report = fg.convert_(model, added.BlockDiagonal())
    return model, report


def test_the_page_runs(added, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = dict(vars(added))
    use = USE if compiler() else USE.replace('print(fg.export(model, "model.c", x))\n', "")
    for package in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(package)
    exec(compile(use, "CONTRIBUTING.md", "exec"), names)
    output = capsys.readouterr().out
    for line in re.findall(r"print\(.*\)  # (.*)", USE):
        assert all(part in output for part in re.split(r"  +", line)), line
    exec(compile(TEST, "CONTRIBUTING.md", "exec"), names)
    names["test_block_diagonal"]()


def test_its_test_can_fail(added, monkeypatch):
    names = dict(vars(added))
    exec(compile(TEST, "CONTRIBUTING.md", "exec"), names)
    right = added.BlockDiagonalLinear.forward
    monkeypatch.setattr(added.BlockDiagonalLinear, "forward", lambda self, x: right(self, x) * 1.001)
    with pytest.raises(AssertionError):
        names["test_block_diagonal"]()


def test_it_is_converted_and_trained(added):
    model, report = converted(added)
    assert [(c.before, c.after) for c in report.changes] == [
        ("Linear(16, 32)", "BlockDiagonalLinear(16, 32)"), ("Linear(32, 8)", "BlockDiagonalLinear(32, 8)"),
    ]  # fmt: skip
    assert report.parameters == (16 * 32 + 32 + 32 * 8 + 8, 4 * 32 + 32 + 8 * 8 + 8)
    assert report.macs == (16 * 32 + 32 * 8, 4 * 32 + 8 * 8)
    x, y = torch.randn(64, 16), torch.randint(8, (64,))
    before = nn.functional.cross_entropy(model(x), y).item()
    fg.fit(model, (x, y), optimizer=torch.optim.Adam(model.parameters(), 0.01), epochs=5)
    assert nn.functional.cross_entropy(model.eval()(x), y).item() < before


def test_it_is_measured(added):
    model, report = converted(added)
    cost = fg.measure(model, torch.randn(4, 16), seconds=0)
    assert cost.parameters == cost.nonzeros == report.parameters[1]
    assert cost.macs_forward == report.macs[1]


def test_it_is_saved_and_loaded(added, tmp_path):
    model, _ = converted(added)
    fg.save(model, tmp_path / "m.safetensors")
    x = torch.randn(4, 16)
    assert torch.equal(fg.load(tmp_path / "m.safetensors", into=network())(x), model(x))
    built = fg.models.mlp([16, 32, 8])  # made on the meta device when it is loaded
    fg.convert_(built, added.BlockDiagonal())
    fg.save(built, tmp_path / "built.safetensors")
    assert torch.equal(fg.load(tmp_path / "built.safetensors")(x), built(x))


@pytest.mark.parametrize("suffix", [".onnx", ".c"])
def test_it_is_exported(added, tmp_path, suffix):
    if suffix == ".c":
        if compiler() is None:
            pytest.skip("there is no C compiler")
    else:
        for package in ("onnx", "onnxruntime", "onnxscript"):
            pytest.importorskip(package)
    model, _ = converted(added)
    report = fg.export(model.eval(), tmp_path / f"m{suffix}", torch.randn(4, 16))
    assert report.difference is not None
    assert report.difference < 1e-4


def test_pruning_refuses_it_with_its_reason(added):
    model, _ = converted(added)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="'0' reads and writes whole blocks"):
        fg.compress_(nn.Sequential(*model, nn.Linear(8, 8), nn.Linear(8, 8)), fg.SubsetPruning(), torch.randn(64, 16))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_it_is_found_by_the_matrix_of_methods_and_its_page(added):
    matrix = runpy.run_path(str(ROOT / "tests" / "composition.py"))
    assert ("BlockDiagonal", "Noisy") in matrix["pairs"]()
    assert "| BlockDiagonal | `BlockDiagonal()` |" in matrix["page"](dict.fromkeys(matrix["pairs"](), ""))
    assert matrix["compose"]("BlockDiagonal", "GaussianDropout", export=False) == ""
    message = matrix["compose"]("BlockDiagonal", "SubsetPruning", export=False)
    assert matrix["reason"](message) in matrix["REASONS"]


def test_it_is_found_by_the_contract_tests(added):
    found = runpy.run_path(str(ROOT / "tests" / "nn" / "test_contract.py"))
    assert "BlockDiagonal" in dict(found["examples"]())
    found["test_layers_agree_with_their_dense_references"]("BlockDiagonal", added.BlockDiagonal(), "flat")
