"""The examples run, and a run that goes on from a checkpoint is the run that was never interrupted, bit for bit."""

import importlib.util
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

import filigree as fg
from filigree.export.c.compiler import compiler
from filigree.export.c.int8_network import Int8Network

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # Lightning uses what torch has deprecated
@pytest.mark.filterwarnings("ignore:.*does not have many workers")  # advice
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* is not empty")  # as it is meant
def test_lightning(tmp_path):
    pytest.importorskip("lightning", reason="Lightning is not installed")
    example = load("lightning_evolution")
    whole = example.train(tmp_path)
    evolution = whole.callbacks[0].driver.callbacks.objects[0]
    assert whole.callback_metrics["val_accuracy"] > 0.85
    assert evolution.epoch == 5  # none after the last epoch
    assert evolution.rate > 0
    resumed = example.train(tmp_path, resume=tmp_path / "epoch=2.ckpt")
    again = resumed.callbacks[0].driver.callbacks.objects[0]
    assert same(whole.lightning_module.state_dict(), resumed.lightning_module.state_dict())
    assert same(evolution.births, again.births)


@pytest.mark.long("imports and trains by transformers")
def test_transformers(tmp_path):
    pytest.importorskip("transformers", reason="transformers is not installed")
    example = load("transformers_trainer")
    whole = example.make_trainer(str(tmp_path))
    whole.train()
    evolution = dynamics_of(whole).objects[0]
    assert whole.evaluate()["eval_accuracy"] > 0.9
    assert evolution.epoch == 3
    resumed = example.make_trainer(str(tmp_path))
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-64"))  # after the second epoch
    again = dynamics_of(resumed).objects[0]
    assert same(whole.model.state_dict(), resumed.model.state_dict())
    assert same(evolution.births, again.births)
    (tmp_path / "checkpoint-64" / "filigree.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"filigree\.safetensors"):
        example.make_trainer(str(tmp_path)).train(resume_from_checkpoint=str(tmp_path / "checkpoint-64"))


def dynamics_of(trainer):
    return next(
        call for call in trainer.callback_handler.callbacks if type(call).__name__ == "Dynamics"
    ).driver.callbacks


@pytest.mark.skipif(compiler() is None or shutil.which("make") is None, reason="there is no C compiler or no make")
def test_c_programs(tmp_path):
    """`make run` on networks that know nothing yet: without warnings, the classes that torch says, and a learner."""
    torch.manual_seed(0)
    model, learner = fg.models.mlp([64, 6, 10]).eval(), fg.models.mlp([64, 8, 10])
    fg.convert_(learner, fg.Sparse(fg.ErdosRenyi(density=0.5)), where=["fc1"])
    for name in ("digits", "learner"):
        (tmp_path / name).mkdir()
    x = torch.randn(1000, 64)
    fg.export(model, tmp_path / "digits" / "digits.c", x[:32], activations="int8")
    fg.export(learner, tmp_path / "learner" / "learner.c", training=True, batch=16, momentum=0.9)
    x.numpy().tofile(tmp_path / "digits" / "input.bin")
    records = np.zeros(2000, np.dtype([("x", "<f4", 64), ("label", "<i4")]))
    records["x"][:, 0] = records["label"] = np.arange(2000) % 2
    records.tofile(tmp_path / "learner" / "input.bin")
    flags = "CFLAGS=-O1 -Wall -Wextra -Wconversion -Werror"
    run = subprocess.run(
        ["make", "-C", EXAMPLES / "c", "run", f"PROGRAMS={tmp_path}", f"CC={compiler()[0]}", flags],
        capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    integer = Int8Network(model, x[:32])
    classes = integer.integers(integer.stored(x)).argmax(1)
    assert (tmp_path / "classes.txt").read_text().split() == [str(number) for number in classes.tolist()]
    lines = [line.split() for line in (tmp_path / "learned.txt").read_text().splitlines()]
    assert [int(seen) for seen, _ in lines] == [1000, 2000]
    assert int(lines[-1][1]) > 950
