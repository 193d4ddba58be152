"""Annealed magnitude top-k against the same in dense torch, and what shrinks with it."""

import pytest
import torch
from torch import nn

import filigree as fg


def network(sizes=(12, 200, 100, 3), topology=None):
    torch.manual_seed(0)
    model = fg.models.mlp(list(sizes))
    fg.convert_(model, fg.Sparse(topology or fg.topology.Full(), init="keep"))
    return model


def dense_reference(sizes=(12, 200, 100, 3)):
    torch.manual_seed(0)
    return fg.models.mlp(list(sizes))


def batch(step):
    return torch.randn(16, 12, generator=torch.Generator().manual_seed(step))


def loss(model, step):
    return (model(batch(step)) - 1).square().mean()


def dense_topk_(weight, k, least):
    size = weight.detach().abs()
    keep = torch.zeros_like(size, dtype=torch.bool)
    keep.view(-1)[size.flatten().topk(k).indices] = True
    keep.scatter_(1, size.topk(min(least, size.shape[1]), dim=1).indices, True)
    weight.data.mul_(keep)


@pytest.mark.parametrize("least", [0, 3])
def test_without_taking_out_it_is_the_publication(least):
    """The same steps on nn.Linear: AdamW, then all but the largest are zeroed."""
    model, reference = network(), dense_reference()
    optimizers = [torch.optim.AdamW(m.parameters(), 0.01) for m in (model, reference)]
    schedule = fg.LinearDensity(0.02, 0.1, 0.6)
    annealed = fg.AnnealedTopK(model, optimizers[0], schedule, steps=20, least=least, sparse_below=0)
    for step in range(20):
        for each, optimizer in zip((model, reference), optimizers, strict=True):
            optimizer.zero_grad()
            loss(each, step).backward()
            optimizer.step()
        annealed.step()
        for layer in (m for m in reference.modules() if isinstance(m, nn.Linear)):
            k = max(1, round(schedule.density(1.0, (step + 1) / 20) * layer.weight.numel()))
            dense_topk_(layer.weight, k, least)
    for name, layer in annealed.layers.items():
        weight = reference.get_submodule(name).weight
        torch.testing.assert_close(layer.weight_matrix(), weight.detach(), rtol=1e-4, atol=1e-5)
        assert layer.nnz == layer.in_features * layer.out_features
        share = float((layer.values != 0).float().mean())
        assert share == pytest.approx(max(0.02, least / layer.in_features), rel=0.35)


def test_a_full_layer_computes_as_a_dense_one():
    layer = network().fc2
    assert layer.is_full
    x = torch.randn(2, 5, 200, requires_grad=True)
    y, other = layer(x), layer.dense()(x)
    assert torch.equal(y, other)
    torch.testing.assert_close(torch.autograd.grad(y.sum(), x), torch.autograd.grad(other.sum(), x))
    costs = [fg.measure(nn.Sequential(each), x) for each in (layer, layer.dense())]
    assert costs[0].macs_forward == costs[1].macs_forward


def test_values_state_and_files_shrink(tmp_path):
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    annealed = fg.AnnealedTopK(model, optimizer, 0.02, steps=40, least=1, sparse_below=0.3, spare=0.5)
    counts, outputs = [], []
    for step in range(40):
        optimizer.zero_grad()
        loss(model, step).backward()
        optimizer.step()
        annealed.step()
        layer = model.fc2
        counts.append(layer.nnz)
        x = torch.randn(3, 200)
        torch.testing.assert_close(layer(x), layer.dense()(x))
        moments = optimizer.state[layer.values]
        assert moments["exp_avg"].shape == moments["exp_avg_sq"].shape == layer.values.shape
        outputs.append(model(batch(0)).detach())
    assert counts == sorted(counts, reverse=True)
    assert len(set(counts)) < 15  # rarely
    k = round(0.02 * 20_000)
    assert k <= counts[-1] <= k + 100
    assert int((model.fc2.values != 0).sum()) == counts[-1]
    assert counts[-2] >= 1.4 * k  # the spare ones go with the last step
    fg.save(model, tmp_path / "m.safetensors")
    assert (tmp_path / "m.safetensors").stat().st_size < 25_000
    assert torch.equal(fg.load(tmp_path / "m.safetensors")(batch(0)), outputs[-1])


def test_a_weight_comes_back():
    """A weight that was zeroed and is pulled strongly is among the largest again."""
    model = nn.Sequential(fg.nn.SparseLinear(6, 5, fg.topology.Full(), bias=False))
    layer = model[0]
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    annealed = fg.AnnealedTopK(model, optimizer, fg.LinearDensity(0.2, 0.0, 0.01), steps=100, least=0)
    annealed.step()
    assert layer.nnz == 30
    lowest = int((layer.values == 0).nonzero()[0])
    layer.values.grad = torch.zeros(30).index_fill_(0, torch.tensor([lowest]), -50.0)
    optimizer.step()
    annealed.step()
    assert layer.weights()[lowest] == 50
    assert int((layer.values != 0).sum()) == 6


def test_a_resumed_run_is_the_whole_one(tmp_path):
    x = torch.randn(64, 12, generator=torch.Generator().manual_seed(1))
    data = x, (x.sum(1) > 0).long()

    def run(folder, until=None, resume=False):
        fg.seed_everything(0)
        model = network()
        optimizer = torch.optim.AdamW(model.parameters(), 0.01)
        annealed = fg.AnnealedTopK(model, optimizer, 0.05, least=2, sparse_below=0.5)

        class Killed:
            @staticmethod
            def on_epoch_start(state):
                if state.epoch == until:
                    raise KeyboardInterrupt

        callbacks = [annealed, Killed()]
        fg.fit(model, data, optimizer=optimizer, epochs=6, batch_size=16, callbacks=callbacks, progress=False,
               checkpoint=folder, resume=resume)  # fmt: skip
        return model, optimizer

    whole, optimizer = run(tmp_path / "whole")
    for until in (2, 4):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "parts", until, resume=True)
    again, other = run(tmp_path / "parts", resume=True)
    torch.testing.assert_close(again.state_dict(), whole.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(other.state_dict()["state"], optimizer.state_dict()["state"], rtol=0, atol=0)
    assert whole.fc2.density < 0.06


def test_frozen_layers_stay():
    """The optimizer need not hold their weights, as its message says."""
    model = network()
    model.fc1.requires_grad_(False)
    before = model.fc1.values.clone()
    topk = fg.AnnealedTopK(model, torch.optim.SGD(model.fc2.parameters()), 0.1, steps=1, where=["fc1", "fc2"])
    topk.step()
    assert torch.equal(model.fc1.values, before)
    assert model.fc2.density < 0.2
    with pytest.raises(ValueError, match="at least one sparse layer must train"):
        fg.AnnealedTopK(model, None, where=["fc1"])


def test_what_is_refused():
    with pytest.raises(ValueError, match="no sparse layers"):
        fg.AnnealedTopK(nn.Linear(3, 3), None)
    model = fg.models.mlp([12, 8, 3])
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.5), masked=True))
    with pytest.raises(ValueError, match="layer 'fc1' is masked"):
        fg.AnnealedTopK(model, None)
    model = network()
    with pytest.raises(ValueError, match=r"least must be at least 0\. Got -1"):
        fg.AnnealedTopK(model, None, least=-1)
    with pytest.raises(ValueError, match="does not hold the weights"):
        fg.AnnealedTopK(model, torch.optim.SGD(dense_reference().parameters(), 0.1))
    with pytest.raises(ValueError, match="needs the horizon"):
        fg.AnnealedTopK(model, None).step()
