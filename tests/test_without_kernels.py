"""Without compiled kernels everything works and says the same: `python tests/test_without_kernels.py FILE` in a process
without them, and the same here."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import filigree as fg
from filigree.cli.doctor import _instruction_set
from filigree.ops import _load

EXACT = 1e-9  # in float64: sums of another order


def trained(model, x, y, make_callbacks=lambda model, optimizer: []):
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    fg.fit(
        model, (x, y), optimizer=optimizer, epochs=2, callbacks=make_callbacks(model, optimizer), progress=False, seed=0
    )
    return model.eval()


def converted(config, *sizes):
    torch.manual_seed(1)
    model = fg.models.mlp([64, *sizes, 10]).double()
    fg.convert_(model, config)
    return model


def outputs():
    """What networks of several kinds say after they were converted, trained, pruned, saved, loaded and exported."""
    data = fg.data.load("digits")
    x, y = data.train.x.double()[:300], data.train.y[:300]
    said_by = {}
    model = converted(fg.Sparse(fg.ErdosRenyi(density=0.2)), 120, 80)
    trained(model, x, y, lambda model, optimizer: [fg.SET(model, optimizer)])
    said_by["sparse"] = model(x)
    fg.save(model, "sparse.safetensors")
    said_by["loaded"] = fg.load("sparse.safetensors").eval()(x)
    methods = {
        "top-k": fg.Asymmetric.topk(5), "partial": fg.Asymmetric.partial(4, 8), "ACDC": fg.ACDC(order=2),
        "Fastfood": fg.Fastfood(), "low rank": fg.LowRank(4),
    }  # fmt: skip
    for name, config in methods.items():
        said_by[name] = trained(converted(config, 64), x, y)(x)
    torch.manual_seed(2)
    images = x.view(-1, 1, 8, 8)
    layers = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten()
    convolutions = nn.Sequential(*layers, nn.Linear(144, 10)).double()
    fg.convert_(convolutions, fg.Sparse(fg.ErdosRenyiKernel(density=0.5)))
    said_by["convolutions"] = trained(convolutions, images, y)(images)
    torch.manual_seed(3)
    dense = trained(fg.models.mlp([64, 40, 10]).double(), x, y)
    fg.compress_(dense, fg.SubsetPruning(keep=0.5), x, progress=False)
    said_by["pruned"] = dense(x)
    fg.compress_(dense, fg.RoundToNearest(8))
    said_by["integers"] = dense(x)
    fg.export(dense.float(), "dense.c", x.float())
    report = fg.optimize_(dense, x[:4].float(), seconds=0.001)
    assert _load.compiled or "filigree's kernels are not there" in str(report)
    with torch.no_grad():
        half = converted(fg.Sparse(fg.ErdosRenyi(density=0.2)), 30).bfloat16().eval()
        said_by["bfloat16"] = half(x.bfloat16()).double() * EXACT  # to its own precision
    return {name: output.detach() for name, output in said_by.items()}


@pytest.mark.long("trains networks of several kinds, also in another process")
def test_everything_works_and_says_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    environment = os.environ | {"FILIGREE_KERNELS": "none", "FILIGREE_ISA": ""}
    done = subprocess.run(
        [sys.executable, Path(__file__).resolve(), "plain.pt"], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("filigree runs without its compiled kernels: FILIGREE_KERNELS is none") == 1
    plain_program = Path("dense.c").read_text()
    ours, plain = outputs(), torch.load("plain.pt")
    assert ours.keys() == plain.keys()
    for name, output in ours.items():
        assert torch.allclose(output, plain[name], rtol=EXACT, atol=EXACT), name
    assert Path("dense.c").read_text() == plain_program


@pytest.mark.skipif(os.environ.get("FILIGREE_KERNELS") == "none", reason="FILIGREE_KERNELS is none")
def test_here_the_kernels_are_compiled():
    """A build that fails leaves a package without them; the tests of the kernels would pass by plain torch."""
    assert fg.ops.compiled


def test_what_stands_in_for_the_kernels():
    with pytest.warns(UserWarning, match=r"without its compiled kernels: they are gone\. All of it is plain torch"):
        kernels = _load._without("they are gone")
    assert (kernels.isa(), kernels.isas()) == ("none", ["none"])
    kernels.flush_denormals(True)
    assert torch.tensor(1e-310, dtype=torch.float64) * 1 == 0
    kernels.flush_denormals(False)
    kernels.advise_huge_pages(0, 0)
    assert _instruction_set("none", ["none"], "riscv64").text == "no compiled kernels"


def test_the_openmp_runtime_of_the_system_is_shared_where_torch_brings_none(tmp_path, monkeypatch):
    """As with the torch of Debian or conda: by its name, and only if the process holds it already."""
    shared, mode = [], os.RTLD_GLOBAL | os.RTLD_NOLOAD
    monkeypatch.setattr(_load.ctypes, "CDLL", lambda name, mode: shared.append((name, mode)))
    monkeypatch.setattr(torch, "__file__", str(tmp_path / "__init__.py"))
    _load._share_openmp()
    assert ("libgomp.so.1", mode) in shared
    own = tmp_path / "lib" / "libgomp-1.so"
    own.parent.mkdir()
    own.touch()
    shared.clear()
    _load._share_openmp()
    assert shared == [(str(own), mode)]


if __name__ == "__main__":
    torch.save(outputs(), sys.argv[1])
