"""Sparse decoders in what people train transformers with: resuming, two processes, accumulation, checkpoints, autocast,
compilers, trainers, ONNX."""

import copy
import os
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

import filigree as fg
from filigree.dynamics.evolution import Evolvable
from filigree.io.storage import read_state, write_state

TOKENS, LENGTH = 11, 8
COMPILER = os.environ.get("FILIGREE_COMPILE", "aot_eager")
INSIDE = ["*.attention.*", "*.feed_forward.*"]


def decoder(density=0.4, topology=None, **options):
    torch.manual_seed(0)
    model = fg.models.gpt(TOKENS, LENGTH, width=16, blocks=2, heads=2, **options)
    fg.convert_(model, fg.Sparse(topology or fg.ErdosRenyi(density=density), init="keep"), where=INSIDE)
    return model


def text(samples=32, seed=0):
    x = torch.randint(TOKENS, (samples, LENGTH), generator=torch.Generator().manual_seed(seed))
    return x, (x + x.roll(1, 1)) % TOKENS


def loss_of(model, x, y):
    return F.cross_entropy(model(x).flatten(0, 1), y.flatten())


def gradients(model):
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def check_close(some, others, **tolerance):
    assert some.keys() == others.keys()
    for name, tensor in some.items():
        torch.testing.assert_close(tensor, others[name], msg=lambda m, n=name: f"{n}: {m}", **tolerance)


KINDS = {
    "dense": lambda model, optimizer: (),
    "RigL": lambda model, optimizer: fg.RigL(model, optimizer, 0.3, delta_t=2),
    "CHTs": lambda model, optimizer: fg.CHTs(model, optimizer, density=fg.SigmoidDensity(0.1)),
    "AnnealedTopK": lambda model, optimizer: fg.AnnealedTopK(model, optimizer, 0.1, sparse_below=0.6, least=1),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_is_the_whole_one(kind, tmp_path):
    """Interrupted within an epoch, with dropout and a schedule of the learning rate."""

    def run(folder, at=None, resume=False):
        fg.seed_everything(0)
        topology = fg.topology.Full() if kind == "AnnealedTopK" else None
        model = fg.models.gpt(TOKENS, LENGTH, 16, 2, 2, dropout=0.1) if kind == "dense" else decoder(
            topology=topology, dropout=0.1
        )  # fmt: skip
        optimizer = torch.optim.AdamW(model.parameters(), 0.01)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4)

        class Killed:
            @staticmethod
            def on_step_end(state):
                if state.step == at:
                    raise KeyboardInterrupt

        made = KINDS[kind](model, optimizer)
        callbacks = [scheduler, *(made if isinstance(made, tuple) else [made]), Killed()]
        fg.fit(
            model, text(), optimizer=optimizer, epochs=4, batch_size=8, callbacks=callbacks, checkpoint=folder,
            resume=resume, progress=False,
        )  # fmt: skip
        return model, optimizer

    whole, optimizer = run(tmp_path / "whole")
    for at in (6, 11):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "parts", at, resume=True)
    again, other = run(tmp_path / "parts", resume=True)
    torch.testing.assert_close(again.state_dict(), whole.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(other.state_dict()["state"], optimizer.state_dict()["state"], rtol=0, atol=0)


# -- two processes -----------------------------------------------------------------------------------------------------

PROCESS = """
import sys
sys.path.insert(0, {here!r})
import test_gpt_training
test_gpt_training.one_of_two(sys.argv[1])
"""
PARALLEL = {
    "gradient": lambda model, optimizer: fg.Evolution(model, optimizer, 0.3, epochs=4, grow="gradient"),
    "cht2": lambda model, optimizer: fg.CHTs(model, optimizer, epochs=4, density=0.1),
    "topk": lambda model, optimizer: fg.AnnealedTopK(model, optimizer, 0.2, steps=4, sparse_below=0.9, least=1),
}


def trained_steps(kind, wrap, rank=None):
    """Four steps, each of them followed by what moves connections; on both halves of the batch, or on one."""
    model = decoder(topology=fg.topology.Full() if kind == "topk" else None).double()
    runner, optimizer = wrap(model), torch.optim.AdamW(model.parameters(), 0.01)
    moves = PARALLEL[kind](model, optimizer)
    counts = []
    for step in range(4):
        x, y = text(8, step)
        if rank is not None:
            x, y = x[4 * rank : 4 * rank + 4], y[4 * rank : 4 * rank + 4]
        optimizer.zero_grad()
        loss_of(runner, x, y).backward()
        optimizer.step()
        moves.step()
        counts.append(sum(parameter.numel() for parameter in model.parameters()))
    return model, counts


def one_of_two(folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    for kind in PARALLEL:
        model, counts = trained_steps(kind, DistributedDataParallel, rank)
        write_state(f"{folder}/{kind}{rank}", {"model": model.state_dict(), "counts": counts})
    torch.distributed.destroy_process_group()


@pytest.mark.long("starts two processes")
def test_two_processes_take_the_steps_of_one(tmp_path):
    """Gradients are reduced over the values, also where there are fewer of them after each step."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    command = [sys.executable, "-c", PROCESS.format(here=str(Path(__file__).parent)), str(tmp_path)]
    processes = [
        subprocess.Popen(command, env=environment | {"RANK": rank}, stderr=subprocess.PIPE, text=True)
        for rank in ("0", "1")
    ]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
    for kind in PARALLEL:
        plain, counts = trained_steps(kind, lambda model: model)
        ranks = [read_state(tmp_path / f"{kind}{rank}") for rank in (0, 1)]
        assert ranks[0]["counts"] == ranks[1]["counts"] == counts
        assert (len(set(counts)) > 1) == (kind != "gradient")
        check_close(ranks[0]["model"], ranks[1]["model"], rtol=0, atol=0)
        check_close(ranks[0]["model"], dict(plain.state_dict()), rtol=1e-9, atol=1e-12)


# -- the same gradients in other ways ----------------------------------------------------------------------------------


def test_accumulated_gradients_are_those_of_the_whole_batch():
    model, (x, y) = decoder(), text(8)
    loss_of(model, x, y).backward()
    whole = gradients(model)
    model.zero_grad()
    for part in range(4):
        (loss_of(model, x[2 * part : 2 * part + 2], y[2 * part : 2 * part + 2]) / 4).backward()
    check_close(gradients(model), whole)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpoints_change_nothing(reentrant):
    """Also what grows by gradient, which looks at inputs and gradients of layers."""
    results = []
    for checkpointed in (False, True):
        model, (x, y) = decoder(dropout=0.1), text(8)
        if checkpointed:
            for block in model.blocks:
                block.forward = partial(checkpoint, block.forward, use_reentrant=reentrant)
        evolution = fg.Evolution(model, None, 0.3, grow="gradient")
        torch.manual_seed(1)
        loss_of(model, x, y).backward()
        before = gradients(model)
        evolution.step()
        results.append((before, {name: layer.flat_indices() for name, layer in evolution.layers.items()}))
    check_close(results[1][0], results[0][0])
    check_close(results[1][1], results[0][1])


def test_autocast():
    model, (x, y) = decoder(), text(16)
    exact = loss_of(model, x, y)
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(model, x, y)
    torch.testing.assert_close(loss, exact, rtol=0.02, atol=0.02)
    loss.backward()
    rounded = gradients(model)
    model.zero_grad()
    exact.backward()
    for name, gradient in gradients(model).items():
        error = float((rounded[name] - gradient).norm() / gradient.norm())
        assert error < 0.05, f"{name}: {error}"
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    for _ in range(40):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model, x, y)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.7 * exact.item()


@pytest.mark.filterwarnings("ignore::UserWarning")  # the compiler's own are many
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled(tmp_path):
    """Outputs and gradients, before and after the number of connections changed."""
    torch.compiler.reset()
    model, (x, y) = decoder(), text(4)
    compiled = torch.compile(model, backend=COMPILER)
    evolution = fg.Evolution(model, None, 0.3, epochs=2, density=0.2)
    for _ in range(2):
        eager = copy.deepcopy(model)
        model.zero_grad()
        torch.testing.assert_close(compiled(x), eager(x), rtol=1e-4, atol=1e-5)
        loss_of(compiled, x, y).backward()
        loss_of(eager, x, y).backward()
        check_close(gradients(model), gradients(eager), rtol=1e-3, atol=1e-5)
        evolution.step()


# -- other people's trainers, and other runtimes -----------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_lightning(tmp_path):
    lightning = pytest.importorskip("lightning", reason="Lightning is not installed")
    from filigree.integrations.lightning import Dynamics

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = decoder()

        def training_step(self, batch, index):
            return loss_of(self.model, *batch)

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), 0.01)

    module = Module()
    trainer = lightning.Trainer(
        max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accumulate_grad_batches=2,
        callbacks=[Dynamics(lambda model, optimizer: fg.CHTs(model, optimizer, density=0.1))],
    )  # fmt: skip
    trainer.fit(module, DataLoader(TensorDataset(*text()), batch_size=8))
    check_trained(module, 0.1)


@pytest.mark.long("imports and trains by transformers")
def test_trainer(tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    from filigree.integrations.transformers import Dynamics

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = decoder(topology=fg.topology.Full())

        def forward(self, input_ids, labels):
            return {"loss": loss_of(self.model, input_ids, labels)}

    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), num_train_epochs=3, per_device_train_batch_size=8, gradient_accumulation_steps=2,
        report_to="none", save_strategy="no", disable_tqdm=True, use_cpu=True, dataloader_pin_memory=False,
    )  # fmt: skip
    data = [{"input_ids": x, "labels": y} for x, y in zip(*text(), strict=True)]
    dynamics = Dynamics(lambda model, optimizer: fg.AnnealedTopK(model, optimizer, 0.1, sparse_below=0.9, least=1))
    trainer = transformers.Trainer(Model(), arguments, train_dataset=data, callbacks=[dynamics])
    trainer.train()
    check_trained(trainer.model, 0.1)


def check_trained(model, density):
    layers = [layer for layer in model.modules() if isinstance(layer, Evolvable)]
    assert len(layers) == 8
    for layer in layers:
        assert layer.nnz / (layer.in_features * layer.out_features) == pytest.approx(density, abs=0.03)


@pytest.mark.parametrize("options", [{}, {"rotary": True, "tied": False}], ids=str)
def test_onnx(options, tmp_path):
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason="the extra `onnx` is not installed")
    model, (x, y) = decoder(**options), text(4)
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    for _ in range(3):
        optimizer.zero_grad()
        loss_of(model, x, y).backward()
        optimizer.step()
    model.eval()
    report = fg.export(model, tmp_path / "m.onnx", x)
    assert "m.onnx" in str(report)
    import onnxruntime  # type: ignore[import-untyped]

    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"))
    (logits,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), model(x).detach(), rtol=1e-4, atol=1e-4)
