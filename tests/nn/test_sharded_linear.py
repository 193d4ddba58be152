"""Layers whose rows are divided over processes are the whole layers: connections, gradients, rewiring, files."""

from __future__ import annotations

import copy
import os
import socket
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import filigree as fg
from contract import check_contract
from filigree.dynamics.rewire import largest, random_growth, soft_survivors, survivors
from filigree.io.storage import read_state, write_state
from filigree.nn import ShardedLinear, SparseLinear
from filigree.nn.sparse import sharding
from filigree.topology import Size
from filigree.topology.shards import WHOLE, Shards

# -- the choice of connections, by threads in place of processes -------------------------------------------------------


class Threads(Shards):
    """A division over threads, which exchange numbers on a board."""

    def __init__(self, rank, board, barrier):
        self.rank, self.processes, self.board, self.barrier = rank, len(board), board, barrier

    def sum_(self, tensor):
        self.board[self.rank] = tensor.clone()
        self.barrier.wait()
        total = sum(self.board)
        self.barrier.wait()
        return tensor.copy_(total)


def divided(processes, work):
    """`work(part)` of each of so many threads, in order."""
    results, board, barrier = [None] * processes, [None] * processes, threading.Barrier(processes, timeout=20)

    def run(rank):
        results[rank] = work(Threads(rank, board, barrier))

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(processes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def cut(flat_indices, size, part):
    first, last = (row * size.in_features for row in part.rows(size.out_features))
    return flat_indices[(flat_indices >= first) & (flat_indices < last)] - first


TOPOLOGIES = [
    fg.ErdosRenyi(epsilon=3), fg.ErdosRenyi(density=0.7), fg.ErdosRenyi(epsilon=3, replace=True),
    fg.ErdosRenyiKernel(0.2), fg.ConstantFanIn(3), fg.Paths(60),
]  # fmt: skip


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("topology", TOPOLOGIES, ids=lambda topology: repr(topology)[:40])
def test_rows_are_drawn_as_a_whole_layer_has_them(topology, processes):
    sizes = [Size(31, 20), Size(8, 31), Size(5, 50_000)]
    draws = generator()
    whole = [drawn.flat_indices for drawn in topology.draw_weighted(sizes, draws)]
    after = torch.rand(1, generator=draws)

    def work(part):
        draws = generator()
        drawn = topology.draw_rows(sizes, draws, [part] * len(sizes))
        assert torch.equal(torch.rand(1, generator=draws), after)  # what is drawn next is the same, too
        return part, [each.flat_indices for each in drawn]

    for part, drawn in divided(processes, work):
        for rows, flat_indices, size in zip(drawn, whole, sizes, strict=True):
            assert (rows is None) == (flat_indices is None)
            if rows is not None:
                assert torch.equal(rows, cut(flat_indices, size, part))


@pytest.mark.parametrize("total", [5, 100, 2**20 + 7, 2**21 + 3, 3 * 2**20 + 17])
def test_random_numbers_are_those_of_a_whole_layer(total):
    whole = torch.randn(total, generator=generator())

    def work(part):
        draws = generator()
        first, last = part.rows(total)
        return part.numbers(lambda count: torch.randn(count, generator=draws), last - first)

    assert torch.equal(torch.cat(divided(3, work)), whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_removal_and_growth_are_those_of_a_whole_layer(dtype):
    size, rest = Size(13, 40), [3, 7, 150, 200]
    flat_indices = WHOLE.distinct(size.numel, 200, generator(1), 0, size.numel)
    weights = torch.randn(200, generator=generator(2), dtype=dtype)
    weights[::9], weights[5:40:3], weights[100:140:4] = 0, 0.25, -0.25  # exact zeros, ties
    keep = survivors(weights, 0.3)
    draws = generator(3)
    grown = random_growth(flat_indices[keep], size.numel, 200 - int(keep.sum()), draws)
    kept_largest = [largest(weights, count) for count in rest]
    soft = soft_survivors(weights, 0.3, 2.0, generator(4))

    def work(part):
        first, last = (row * size.in_features for row in part.rows(size.out_features))
        here = (flat_indices >= first) & (flat_indices < last)
        own = weights[here]
        assert torch.equal(survivors(own, 0.3, part), keep[here])
        for count, expected in zip(rest, kept_largest, strict=True):
            assert torch.equal(largest(own, count, part), expected[here])
        drawn = soft_survivors(own, 0.3, 2.0, generator(4), part)
        kept = flat_indices[here & keep] - first
        count = part.total(len(own)) - part.total(len(kept))
        new = random_growth(kept, last - first, count, generator(3), part)
        return drawn, new + first

    drawn, new = zip(*divided(3, work), strict=True)
    assert torch.equal(torch.cat(new), grown)
    assert int(torch.cat(drawn).sum()) == int(soft.sum())
    assert torch.equal(torch.cat(drawn), soft)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_the_smallest_of_all_of_equal_ones_the_first(kind):
    sizes = np.round(np.random.default_rng(0).normal(size=500), 1).astype(kind)
    for count in (0, 1, 77, 499, 500):
        order = np.sort(np.argsort(sizes, kind="stable")[:count])
        assert np.array_equal(np.flatnonzero(WHOLE.smallest(sizes, count)), order)

        def work(part, count=count):
            return part.smallest(sizes[slice(*part.rows(500))], count)

        assert np.array_equal(np.flatnonzero(np.concatenate(divided(4, work))), order)


# -- a single process --------------------------------------------------------------------------------------------------


def plain(sizes=(20, 13, 8, 3), sharded=False, seed=0, **options):
    torch.manual_seed(seed)
    model = fg.models.mlp(list(sizes)).double()
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(epsilon=2), sharded=sharded, **options))
    return model


def test_without_a_process_group_all_rows_are_here():
    layer, whole = (
        ShardedLinear(9, 6, fg.ErdosRenyi(epsilon=2), seed=3),
        SparseLinear(9, 6, fg.ErdosRenyi(epsilon=2), seed=3),
    )
    assert layer.part is WHOLE
    for name, tensor in whole.state_dict().items():
        assert torch.equal(layer.own.state_dict()[name], tensor)
    x = torch.randn(4, 9)
    assert torch.equal(layer(x), whole(x))
    check_contract(layer, x)
    assert layer.macs == whole.nnz


@pytest.mark.parametrize("init", ["he", "keep", 0.1])
def test_sharded_layers_are_made_filed_and_loaded(init, tmp_path):
    model, other = plain(sharded=True, init=init), plain(init=init)
    assert [type(layer) for layer in model if hasattr(layer, "out_features")].count(ShardedLinear) == 3
    x = torch.randn(5, 20).double()
    assert torch.equal(model(x), other(x))
    fg.save(model, tmp_path / "sharded")
    fg.save(other, tmp_path / "plain")
    assert (tmp_path / "sharded").read_bytes() == (tmp_path / "plain").read_bytes()  # files say nothing of it
    again = fg.load(tmp_path / "sharded")
    assert not [layer for layer in again.modules() if isinstance(layer, ShardedLinear)]
    assert torch.equal(again(x), other(x))
    back = fg.load(tmp_path / "plain", sharded=True)
    assert [type(layer) for layer in back.modules()].count(ShardedLinear) == 3
    assert torch.equal(back(x), other(x))


def test_shard_divides_layers_that_there_are():
    model = plain()
    whole, x = copy.deepcopy(model), torch.randn(5, 20).double()
    report = fg.shard_(model, where="fc1")
    assert report.changes[0].after == "ShardedLinear(20, 13)"
    assert [type(layer) for layer in model.modules()].count(ShardedLinear) == 1
    assert torch.equal(model(x), whole(x))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    evolution = fg.SET(model, optimizer, 0.3, epochs=2)
    model(x).sum().backward()
    optimizer.step()
    evolution.step()
    assert {name: len(births) for name, births in evolution.births.items()}["fc1.own"] == whole[0].nnz


class Own(nn.Module):
    """A module whose attributes have names that sharded layers use too."""

    def __init__(self):
        super().__init__()
        self.part, self.bias = nn.Linear(9, 6), nn.Parameter(torch.ones(6))

    def forward(self, x):
        return self.part(x) + self.bias


def test_names_of_a_users_module_are_its_own(tmp_path):
    model, x = Own(), torch.randn(4, 9)
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(epsilon=2)))
    assert len(fg.SET(model, torch.optim.SGD(model.parameters(), 0.1), 0.3, epochs=2).layers) == 1
    fg.save(model, tmp_path / "own")
    back = fg.load(tmp_path / "own", into=Own(), sharded=True)
    assert type(back.part) is ShardedLinear
    assert torch.equal(back(x), model(x))


def test_mistakes_are_one_line(monkeypatch):
    with pytest.raises(ValueError, match=r"^shard_: the model has no sparse linear layers inside\. Call fg\.convert_"):
        fg.shard_(nn.Sequential(nn.Linear(3, 3)))
    with pytest.raises(ValueError, match=r"^Sparse: sharded=True divides sparse layers, not those of masked=True\.$"):
        fg.Sparse(fg.ErdosRenyi(epsilon=2), masked=True, sharded=True)
    with pytest.raises(ValueError, match=r"cannot be chosen by measurement"):
        fg.convert_(fg.models.mlp([8, 8, 8]), fg.Sparse(fg.ErdosRenyi(epsilon=2), sharded=True), measure=True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    line = r"several processes need a process group\. Call torch\.distributed\.init_process_group\(\) first\.$"
    with pytest.raises(ValueError, match=r"^shard_: " + line):
        fg.shard_(plain())
    with pytest.raises(ValueError, match=r"^Sparse: sharded=True: " + line):
        plain(sharded=True)


# -- two and three processes -------------------------------------------------------------------------------------------


def run_in_processes(check, processes, *arguments):
    """Run a function of this file, which asserts, in so many processes that talk by gloo."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent), *(entry for entry in sys.path if entry)])
    environment = os.environ | {
        "PYTHONPATH": path, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(processes),
        "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "FILIGREE_DEBUG": "1",
    }  # fmt: skip
    code = f"import test_sharded_linear as t; t.begin(); t.{check.__name__}(*{arguments!r}); t.end()"
    started = [
        subprocess.Popen(
            [sys.executable, "-W", "error::UserWarning:filigree", "-c", code], stderr=subprocess.PIPE, text=True,
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(processes)
    ]  # fmt: skip
    errors = [process.communicate(timeout=300)[1] for process in started]
    assert [process.returncode for process in started] == [0] * processes, "\n".join(errors)


def begin():
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")


HELD = []  # models, beyond the end of the process group


def end():
    group = weakref.ref(torch.distributed.group.WORLD)
    HELD.append(network(sharded=True))
    torch.distributed.destroy_process_group()
    assert group() is None  # its threads would abort a process that ends while they hold Python's objects
    with pytest.raises(ValueError, match=r"^a sharded layer needs its process group\. Got one that was destroyed\.$"):
        HELD[0](torch.zeros(1, 64).double())


def rank():
    return torch.distributed.get_rank()


def own_part(sharded, whole):
    """The rows here of the tensors `(nnz,)` and `(rows,)` of a whole layer, by the names of the parameters."""
    first, last = sharded.part.rows(sharded.out_features)
    begin, end = int(whole.indptr[first]), int(whole.indptr[last])
    return slice(begin, end), slice(first, last)


def close(one, other):
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def layers_of(model):
    return [layer for layer in model if isinstance(layer, ShardedLinear | SparseLinear | nn.Linear)]


def check_against(model, whole, tensor_of=lambda parameter: parameter):
    """Parameters (or what goes with them) of a sharded model are those of the whole one."""
    for layer, other in zip(layers_of(model), layers_of(whole), strict=True):
        if not isinstance(layer, ShardedLinear):
            for mine, theirs in zip(layer.parameters(), other.parameters(), strict=True):
                close(tensor_of(mine), tensor_of(theirs))
            continue
        connections, rows = own_part(layer, other)
        expected = other.flat_indices()[connections] - layer.first * layer.in_features
        assert torch.equal(layer.own.flat_indices(), expected)
        close(tensor_of(layer.own.values), tensor_of(other.values)[connections])
        if other.bias is not None:
            close(tensor_of(layer.own.bias), tensor_of(other.bias)[rows])


def same_layers():
    for out, bias, relu in ((7, True, False), (12, False, True), (3, True, True)):
        options = {"topology": fg.ErdosRenyi(epsilon=4), "bias": bias, "relu": relu, "seed": 5, "dtype": torch.float64}
        layer, whole = ShardedLinear(9, out, **options), SparseLinear(9, out, **options)
        connections, rows = own_part(layer, whole)
        assert torch.equal(layer.own.values, whole.values[connections])
        assert torch.equal(layer.whole().values, whole.values)
        for shape in ((4, 9), (1, 9), (2, 3, 9)):
            torch.manual_seed(1)
            x = torch.randn(shape).double()
            for order in (x, x.transpose(0, -1).contiguous().transpose(0, -1)):
                mine, theirs = order.clone().requires_grad_(), order.clone().requires_grad_()
                y, expected = layer(mine), whole(theirs)
                close(y, expected)
                dy = torch.randn(expected.shape).double()
                y.backward(dy), expected.backward(dy)
                close(mine.grad, theirs.grad)
                close(layer.own.values.grad, whole.values.grad[connections])
                if bias:
                    close(layer.own.bias.grad, whole.bias.grad[rows])
                layer.zero_grad(), whole.zero_grad()
    few = fg.models.mlp([6, 1])
    assert "fewer rows than processes" in str(fg.convert_(few, fg.Sparse(fg.ErdosRenyi(density=0.5), sharded=True)))
    assert type(few[0]) is SparseLinear
    with pytest.raises(ValueError, match="out_features must be at least the number of processes"):
        ShardedLinear(6, 1)


OPTIMIZERS = {
    "sgd": lambda model: torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=1e-3),
    "adamw": lambda model: torch.optim.AdamW(model.parameters(), 0.01),
}
EVOLUTIONS = {
    "none": None,
    "SET": lambda model, optimizer: fg.SET(model, optimizer, 0.3, epochs=6),
    "RigL": lambda model, optimizer: fg.Evolution(model, optimizer, 0.3, 6, grow="gradient"),
    "initial": lambda model, optimizer: fg.Evolution(model, optimizer, fg.CosineDecay(0.4), 6, regrow="initial"),
    "density": lambda model, optimizer: fg.Evolution(model, optimizer, 0.2, 6, density=fg.LinearDensity(0.1, end=0.9)),
    "erk": lambda model, optimizer: fg.Evolution(model, optimizer, 0.2, 6, density=0.3, allocate="erk"),
    "soft": lambda model, optimizer: fg.Evolution(model, optimizer, 0.3, 6, soft=(1.0, 3.0)),
    "OSV": lambda model, optimizer: fg.OSV(model, optimizer, epochs=6),
}


def same_training():
    """A mixture of sharded and replicated layers, in loops by hand: as one process trains it."""
    x, y = torch.randn(30, 20, generator=generator(8)).double(), torch.randint(3, (30,), generator=generator(9))
    for optimize in OPTIMIZERS.values():
        for label, evolve in EVOLUTIONS.items():
            whole = plain()
            model = copy.deepcopy(whole)
            fg.shard_(model, where=["fc1", "fc2"])
            assert [type(layer) for layer in layers_of(model)] == [ShardedLinear, ShardedLinear, SparseLinear], label
            trained = []
            for network in (model, whole):
                optimizer = optimize(network)
                evolution = evolve(network, optimizer) if evolve else None
                trained.append((network, optimizer, evolution))
            for _ in range(6):
                for network, optimizer, evolution in trained:
                    optimizer.zero_grad()
                    nn.functional.cross_entropy(network(x), y).backward()
                    optimizer.step()
                    if evolution is not None:
                        evolution.step()
                check_against(model, whole)
                check_against(model, whole, lambda parameter: parameter.grad)
            sharding.check_same(model, model[0].part, "test")
            if evolve is not None and label not in ("density", "erk"):
                assert evolution.births["fc3"].max() > 0
                assert model[0].part.total(model[0].own.nnz) == whole[0].nnz
    with pytest.raises(
        ValueError, match=r"^Evolution: grow='cht3' needs whole layers\. 'fc1\.own' is divided over proc"
    ):
        fg.CHT(model, trained[0][1], epochs=3)
    with pytest.raises(ValueError, match=r"^Evolution: allocate='global' needs whole layers"):
        fg.Evolution(model, trained[0][1], 0.1, 3, density=0.1, allocate="global")
    with pytest.raises(ValueError, match=r"^measure: a model that is divided over processes cannot be timed"):
        fg.measure(model, x)
    cost = fg.measure(model, x, seconds=0)
    assert cost.macs_forward == sum(m.nnz for m in model.modules() if isinstance(m, SparseLinear))
    with pytest.raises(ValueError, match=r"^export: 'fc1' is a ShardedLinear, which is divided over processes"):
        fg.export(model, "never.c", x)
    other = plain(seed=rank(), init="keep")
    with pytest.raises(
        ValueError, match=r"^shard_: the model must be the same in all processes\. 'fc1\.values' differs"
    ):
        fg.shard_(other)


def fitted(folder, model, resume=False, epochs=4, interrupted=False):
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    data = fg.data.load("digits", seed=0).train
    train = data.x[:200].double(), data.y[:200]

    def stop(state):
        if interrupted and state.epoch == 1:
            raise KeyboardInterrupt

    return fg.fit(
        model, train, optimizer=optimizer, epochs=epochs, batch_size=32, validation=train, checkpoint=folder,
        record=folder, resume=resume, progress=False, seed=3,
        callbacks=[fg.SET(model, optimizer, 0.3), stop],
    )  # fmt: skip


def network(sharded, dropout=0.2):
    fg.seed_everything(0)
    model = fg.models.mlp([64, 33, 16, 10], dropout).double()
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(epsilon=4), sharded=sharded), ["fc1", "fc2"])
    return model


def fits_saves_and_resumes(folder):
    folder = Path(folder)
    model = network(sharded=True)
    if rank():
        torch.manual_seed(99)  # dropout is that of the first process all the same
    else:
        torch.manual_seed(1)
    history = fitted(folder / "run", model)
    fg.save(model, folder / "model.safetensors")
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    write_state(folder / f"state{rank()}", {"state": state, "losses": history["train_loss"]})

    again = network(sharded=True)
    torch.manual_seed(1)
    with pytest.raises(KeyboardInterrupt):
        fitted(folder / "again", again, interrupted=True)
    again = network(sharded=True)
    fitted(folder / "again", again, resume=True)
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, state[name]), name

    back = fg.load(folder / "model.safetensors", sharded=True)
    assert {type(layer) for layer in back.modules() if hasattr(layer, "own")} == {ShardedLinear}
    for name, tensor in back.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    with pytest.raises(FileNotFoundError, match=r"there is no folder"):  # in the one that writes, and the others
        fg.save(model, folder / "nowhere" / "model")
    losses = fg.fit(
        model, (torch.randn(8, 64).double(), torch.zeros(8).long()), optimizer=torch.optim.SGD(model.parameters(), 0.0),
        loss=lambda output, y: nn.functional.cross_entropy(output, y) + rank(), progress=False,
        epochs=9, validation=(torch.zeros(4, 64).double(), torch.zeros(4).long()),
        early_stopping=fg.EarlyStopping("val_loss", 2),
    )["train_loss"]  # fmt: skip
    assert losses[0] < 10
    assert model.fc1.part.objects(losses) == [losses, losses]  # all decide by the numbers of the first


@pytest.mark.long("two or three processes, by gloo")
@pytest.mark.parametrize("processes", [2, 3])
def test_divided_layers_are_the_whole_ones(processes):
    run_in_processes(same_layers, processes)


@pytest.mark.long("two processes, by gloo")
def test_divided_networks_train_and_are_rewired_as_whole_ones():
    run_in_processes(same_training, 2)


@pytest.mark.long("two processes, by gloo")
def test_fit_checkpoints_resumes_saves_and_loads(tmp_path):
    run_in_processes(fits_saves_and_resumes, 2, str(tmp_path))
    parts = [read_state(tmp_path / f"state{rank}") for rank in (0, 1)]
    assert parts[0]["losses"] == parts[1]["losses"]
    whole = fg.load(tmp_path / "model.safetensors")  # by a single process, as an ordinary file
    assert not [layer for layer in whole.modules() if isinstance(layer, ShardedLinear)]
    for name in ("fc1", "fc2"):
        layer = whole.get_submodule(name)
        assert type(layer) is SparseLinear
        assert torch.equal(layer.values, torch.cat([part["state"][f"{name}.own.values"] for part in parts]))
        assert torch.equal(layer.bias, torch.cat([part["state"][f"{name}.own.bias"] for part in parts]))
    for name, tensor in parts[0]["state"].items():
        if ".own." not in name:  # replicated
            assert torch.equal(tensor, parts[1]["state"][name])
    alone = network(sharded=False)
    torch.manual_seed(1)
    history = fitted(tmp_path / "alone", alone)
    assert history["train_loss"] == pytest.approx(parts[0]["losses"], rel=1e-9)
    for name, tensor in alone.state_dict().items():
        torch.testing.assert_close(tensor, whole.state_dict()[name], rtol=1e-9, atol=1e-9)
