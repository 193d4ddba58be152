"""On an Accelerator: the user's own objects are trained, with the plain loop's results; two processes act as one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator  # type: ignore[import-untyped]
from accelerate.state import AcceleratorState  # type: ignore[import-untyped]
from torch import nn

from filigree.io.storage import read_state, write_state
from filigree.train import EarlyStopping, History, Record, fit, seed_everything


@pytest.fixture(autouse=True)
def _own_state() -> Iterator[None]:
    AcceleratorState._reset_state(reset_partial_state=True)  # another test's trainer may have made one
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def data(n: int = 90) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 8, generator=generator), torch.randint(3, (n,), generator=generator)


def train(
    accelerator: Any = None, wrap: bool = False, **options: Any
) -> tuple[nn.Module, torch.optim.Optimizer, History]:
    torch.set_num_threads(1)
    seed_everything(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    given: tuple[Any, Any] = accelerator.prepare(model, optimizer) if wrap else (model, optimizer)
    x, y = data()
    options = {"epochs": 3, "batch_size": 20, "progress": False} | options
    history = fit(given[0], (x.double(), y), optimizer=given[1], accelerator=accelerator, **options)
    assert [id(p) for p in model.parameters()] == [id(p) for group in optimizer.param_groups for p in group["params"]]
    return model, optimizer, history


def test_no_accelerator_is_made_in_an_ordinary_process() -> None:
    train()
    assert not AcceleratorState._shared_state
    assert Accelerator(cpu=True, mixed_precision="bf16").mixed_precision == "bf16"  # still the user's choice


@pytest.mark.parametrize("wrap", [False, True])
def test_one_process_gives_the_plain_loops_weights(wrap: bool) -> None:
    plain, _, history = train()
    accelerator = Accelerator(cpu=True)
    for _ in range(2):
        model, optimizer, same = train(accelerator, wrap)
        assert same["train_loss"] == history["train_loss"]
        for a, b in zip(plain.parameters(), model.parameters(), strict=True):
            assert torch.equal(a, b)
        assert len(optimizer.state) == 4
        assert type(model) is nn.Sequential


def test_mixed_precision_is_on_during_the_run_only() -> None:
    seen: list[torch.dtype] = []
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    for _ in range(2):  # a second run is not left without
        seen.clear()
        model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
        model[1].register_forward_hook(lambda *args: seen.append(args[2].dtype))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(2):
            fit(model, data(), optimizer=optimizer, epochs=1, accelerator=accelerator, progress=False)
        assert set(seen) == {torch.bfloat16}
        seen.clear()
        assert model(data()[0]).dtype == torch.float32
        assert seen == [torch.float32]
        assert not {"forward", "_original_forward", "_is_accelerate_prepared"} & set(vars(model))


def test_gradient_accumulation_is_refused() -> None:
    with pytest.raises(ValueError, match=r"gradient_accumulation_steps must be 1\. Got 4"):
        train(Accelerator(cpu=True, gradient_accumulation_steps=4))


PROCESS = """
import sys
sys.path.insert(0, {here!r})
import test_accelerate
test_accelerate.one_of_two(sys.argv[1])
"""


def one_of_two(folder: str) -> None:
    """What each of the two processes does: a run, interrupted and resumed."""
    options: dict[str, Any] = {
        "checkpoint": folder, "record": folder, "validation": (data(45)[0].double(), data(45)[1]),
        "early_stopping": EarlyStopping(restore_best=False),
    }  # fmt: skip
    train(epochs=2, **options)
    model, _, history = train(epochs=3, resume=True, **options)
    rank = os.environ["RANK"]
    write_state(f"{folder}/rank{rank}", {"model": model.state_dict(), "history": history.rows})


@pytest.mark.long("starts two processes by Accelerate")
def test_two_processes_take_the_steps_of_one(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    path = os.pathsep.join(entry for entry in sys.path if entry)
    environment = os.environ | {
        "PYTHONPATH": path, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2",
        "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    script = PROCESS.format(here=str(Path(__file__).parent))
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path)], env=environment | {"RANK": rank, "LOCAL_RANK": rank},
            stderr=subprocess.PIPE, text=True,
        )
        for rank in ("0", "1")
    ]  # fmt: skip
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)

    x, y = data(45)
    plain, _, history = train(validation=(x.double(), y))  # 90 samples: batches of 20 and one of 10
    ranks = [read_state(tmp_path / f"rank{rank}") for rank in (0, 1)]
    for rank in ranks:
        for name, tensor in plain.state_dict().items():
            assert torch.allclose(rank["model"][name], tensor, rtol=0, atol=1e-12)
        for ours, theirs in zip(history, rank["history"], strict=True):
            for key in ("train_loss", "train_accuracy", "val_loss", "val_accuracy"):
                assert ours[key] == pytest.approx(theirs[key], rel=1e-12)
    assert all(torch.equal(ranks[0]["model"][name], ranks[1]["model"][name]) for name in ranks[0]["model"])
    assert len(Record.load(tmp_path).history) == 3
    assert {p.name for p in tmp_path.iterdir()} == {"checkpoint.safetensors", "record.json", "rank0", "rank1"}
