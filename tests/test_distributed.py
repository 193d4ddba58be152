"""Two processes under a launcher train as one would, also a recipe, and one with layers divided over them; a dead one;
a search and a cross-validation on Ray."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest
import torch

import filigree as fg
from filigree import recipes
from filigree.recipes import RecipeError, Sweep
from filigree.train import Record

SCRIPT = Path(__file__).parent.parent / "reliability" / "distributed.py"
PLAIN = """
about: Without dropout, whose masks each process draws for its own samples.
data: {name: digits}
model: {name: mlp, hidden: [40]}
training: {epochs: 2, batch_size: 32, lr: 0.03, momentum: 0.9}
seeds: [0]
convert: [{config: {kind: Sparse, topology: {kind: ErdosRenyi, epsilon: 10}}}]
methods:
  dense: {convert: []}
  SET: {evolution: {schedule: {kind: Constant, zeta: 0.3}}}
"""


@pytest.mark.long("six runs of two processes each: a minute and a half")
def test_two_processes_rewire_alike_and_outlive_a_dead_one(tmp_path: Path) -> None:
    record = tmp_path / "distributed.json"
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--grow", "gradient", "--out", str(record)],
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(record.read_text())["runs"]["gradient"]
    assert found["rewirings"] == 4
    assert found["hashes_equal_on_both_ranks"]
    assert found["hashes_equal_to_one_process"]
    assert found["weights_of_the_ranks_apart"] == 0
    assert found["weights_apart_from_one_process"] < 1e-9
    dead = found["dead_rank"]
    assert dead["exit"] == 1
    assert "has lost another process of this run" in dead["message"]
    assert dead["epochs_kept"] == 2
    assert dead["resumed_apart_from_undisturbed"] == 0


TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


ACCELERATE = [
    sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--multi_gpu", "--num_processes", "2",
    "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0",
]  # fmt: skip


def launchers(kind: str) -> list[list[str]]:
    """The commands that are started side by side: a node each."""
    if kind == "torchrun":
        return [[*TORCHRUN, "--standalone", "--nproc_per_node", "2"]]
    if kind == "accelerate":
        return [ACCELERATE]
    meet = ["--nnodes", "2", "--nproc_per_node", "1", "--master_addr", "127.0.0.1", "--master_port", str(free_port())]
    return [[*TORCHRUN, *meet, "--node_rank", rank] for rank in ("0", "1")]


@pytest.mark.long("two processes by a launcher, and one")
@pytest.mark.parametrize("kind", ["torchrun", "nodes", "accelerate"])
def test_a_recipe_in_two_processes_is_one_run(kind: str, tmp_path: Path) -> None:
    recipe = tmp_path / "plain.yaml"
    recipe.write_text(PLAIN)
    methods = ["--method", "dense", *(["--method", "SET"] if kind == "torchrun" else [])]
    module = "--module" if kind == "accelerate" else "-m"
    train = [module, "filigree.cli", "train", str(recipe), *methods, "--no-report"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    started = [
        subprocess.Popen(
            [*launcher, *train, "--out", str(tmp_path / "two")], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, env=environment,
        )
        for launcher in launchers(kind)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=600) for process in started]
    assert [process.returncode for process in started] == [0] * len(started), outputs
    assert sum(output.count("models: ") for output, _ in outputs) == 1
    last = "SET-0" if kind == "torchrun" else "dense-0"
    assert {file.name for file in (tmp_path / "two" / last).iterdir()} == {"model.safetensors", "record.json"}
    recipes.run(recipes.load(str(recipe)), tmp_path / "one", methods=["dense"], timed=False, progress=False)
    two, one = (Record.load(tmp_path / name / "dense-0").history for name in ("two", "one"))
    losses = [[row["train_loss"] for row in history] for history in (two, one)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


DIVIDED = PLAIN.replace("epsilon: 10}", "epsilon: 10}, sharded: true").replace("hidden: [40]", "hidden: [41, 20]")


@pytest.mark.long("two processes by torchrun, and one")
def test_a_recipe_with_layers_divided_over_two_processes_is_one_run(tmp_path: Path) -> None:
    recipe = tmp_path / "divided.yaml"
    recipe.write_text(DIVIDED)
    arguments = [str(recipe), "--method", "SET", "--no-report", "--out", str(tmp_path / "two")]
    train = ["-m", "filigree.cli", "train", *arguments]
    done = subprocess.run(
        [*launchers("torchrun")[0], *train], env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("models: ") == 1
    recipes.run(recipes.load(str(recipe)), tmp_path / "one", methods=["SET"], timed=False, progress=False)
    two, one = (Record.load(tmp_path / name / "SET-0") for name in ("two", "one"))
    for key in ("train_loss", "test_accuracy"):
        assert [row[key] for row in two.history] == pytest.approx([row[key] for row in one.history], rel=1e-4)
    models = [fg.load(tmp_path / name / "SET-0" / "model.safetensors") for name in ("two", "one")]
    assert [type(layer) for layer in models[0]] == [type(layer) for layer in models[1]]
    assert torch.equal(models[0].fc1.flat_indices(), models[1].fc1.flat_indices())


@pytest.fixture
def ray() -> Iterator[None]:
    module = pytest.importorskip("ray", reason="Ray Tune is not installed (the extra `ray`)")
    yield
    module.shutdown()


@pytest.mark.long("a local Ray cluster, one worker of which is killed: a minute and a half")
@pytest.mark.usefixtures("ray")
def test_a_killed_ray_workers_trial_is_run_again(tmp_path: Path) -> None:
    settings = ("data.name=digits", "data.validation=0.2", "training.epochs=150", "seeds=[0]", "model.hidden=[24]")
    recipe = str(Path(__file__).with_name("recipes") / "asymmetric.yaml")
    wanted = Sweep(recipe, {"k": "2:20:log"}, "topk", settings=settings)
    killed: list[int] = []
    threading.Thread(target=kill_a_worker, args=(tmp_path, killed), daemon=True).start()
    summary = recipes.sweep_ray(wanted, tmp_path, trials=1)
    assert len(killed) == 1
    assert len(summary["trials"]) == 1
    notes = [note for folder in tmp_path.glob("trial-*/topk-0") for note in Record.load(folder).notes]
    assert len([note for note in notes if note.startswith("Resumed")]) == 1


@pytest.mark.long("a local Ray cluster")
@pytest.mark.usefixtures("ray")
def test_a_cross_validation_on_ray_is_that_of_one_process(tmp_path: Path) -> None:
    text = PLAIN.replace("{name: digits}", "{name: digits, folds: 2, repeats: 1}").replace("seeds: [0]\n", "")
    (tmp_path / "folds.yaml").write_text(text.replace("epochs: 2", "epochs: 1"))
    recipe = recipes.load(str(tmp_path / "folds.yaml"))
    recipes.run_ray(recipe, tmp_path / "ray", methods=["SET"])
    recipes.run(recipe, tmp_path / "one", methods=["SET"], timed=False, progress=False)
    for fold in ("SET-0", "SET-1"):
        by_ray, one = (Record.load(tmp_path / name / fold) for name in ("ray", "one"))
        assert by_ray.finished
        losses = [[row["train_loss"] for row in record.history] for record in (by_ray, one)]
        assert losses[0] == pytest.approx(losses[1], 1e-5)
    with pytest.raises(RecipeError, match="holds earlier runs: SET-0 "):
        recipes.run_ray(recipe, tmp_path / "ray", methods=["SET"])
    ended = Record.load(tmp_path / "ray" / "SET-0").finished
    recipes.run_ray(recipe, tmp_path / "ray", methods=["SET"], resume=True)
    assert Record.load(tmp_path / "ray" / "SET-0").finished == ended  # it is not trained again


def test_without_the_run_that_searches_no_other_begins_by_ray(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    begun: list[int] = []

    def get(_: Any) -> None:
        raise RuntimeError("no room")

    task = SimpleNamespace(remote=lambda recipe, out, methods, number, folder: begun.append(number))
    cluster = SimpleNamespace(is_initialized=lambda: True, remote=lambda **_: lambda train: task, get=get)
    monkeypatch.setitem(sys.modules, "ray", cluster)
    recipe = recipes.load("demo", ["seeds=[0, 1]", "data.validation=0.2", "search.lr=[0.1, 0.2]"])
    with pytest.raises(RuntimeError, match=r"1 of 2 runs failed: 0 \(no room\)"):
        recipes.run_ray(recipe, tmp_path, methods=["SET"])
    assert begun == [0]


def kill_a_worker(out: Path, killed: list[int]) -> None:
    """Kill the process of the trial once it has a checkpoint."""
    ends = time.monotonic() + 600
    while time.monotonic() < ends:
        time.sleep(0.02)
        if not list(out.glob("trial-*/topk-0/checkpoint.safetensors")):
            continue
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if "ImplicitFunc" in " ".join(process.cmdline()):
                    process.kill()
                    killed.append(process.pid)
                    return
