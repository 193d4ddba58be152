"""Whatever goes by the position of a weight follows a rewiring, or says that it was not told."""

import copy
import io
import warnings

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import filigree as fg
from filigree.nn import SparseLinear


def _linear(masked=False):
    model = fg.models.mlp([12, 20, 15, 3])
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.3), masked=masked))
    return model, lambda: torch.randn(8, 12)


def _conv(masked=False):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Flatten(), nn.Linear(24, 3))
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.3), masked=masked))
    return model, lambda: torch.randn(4, 3, 6, 6)


def _recurrent(masked=False):
    class Last(nn.Sequential):
        def forward(self, x):
            return self[0](x)[0]

    model = Last(nn.LSTM(5, 6, batch_first=True))
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.3), masked=masked))
    return model, lambda: torch.randn(4, 3, 5)


def _asymmetric():
    model, batch = _linear()
    fg.convert_(model, fg.Asymmetric(fg.TopK(0.5)))
    return model, batch


KINDS = {
    "linear": _linear,
    "masked": lambda: _linear(True),
    "conv": _conv,
    "masked conv": lambda: _conv(True),
    "recurrent": _recurrent,
    "asymmetric": _asymmetric,
}


class Lookahead:
    """As most are written: an optimizer in an attribute, slow weights in a list for each group."""

    def __init__(self, optimizer):
        self.optimizer = optimizer
        self.slow = [[p.detach().clone() for p in group["params"]] for group in optimizer.param_groups]

    def step(self):
        self.optimizer.step()
        for group, slow in zip(self.optimizer.param_groups, self.slow, strict=True):
            for p, s in zip(group["params"], slow, strict=True):
                s.lerp_(p.detach(), 0.5)


class SAM(torch.optim.Optimizer):
    """As most are written: an optimizer of its own around a base, with which it shares the groups."""

    def __init__(self, params):
        super().__init__(params, {})
        self.base = torch.optim.Adam(self.param_groups, 0.01)
        self.param_groups = self.base.param_groups

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.state[p]["e_w"] = p.grad * 0.01
        self.base.step()


class ById:
    """A wrapper that keeps its tensors by the ids of the parameters."""

    def __init__(self, params):
        params = list(params)
        self.inner = torch.optim.SGD(params, 0.01, momentum=0.9)
        self.kept = {id(p): p.detach().clone() for p in params}

    def step(self):
        self.inner.step()


def _each(*parts):
    return [kind(parameters, 0.01) for kind, parameters in parts if parameters]


OPTIMIZERS = {
    **{
        name: getattr(torch.optim, name)
        for name in ("ASGD", "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "Rprop")
    },
    "SGD": lambda p: torch.optim.SGD(p, 0.01, momentum=0.9),
    "RMSprop": lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.5, centered=True),
    "AMSGrad": lambda p: torch.optim.Adam(p, 0.01, amsgrad=True),
    "Adagrad from 0.1": lambda p: torch.optim.Adagrad(p, 0.01, initial_accumulator_value=0.1),
    "Muon": lambda p: _each(
        [torch.optim.Muon, [q for q in p if q.dim() == 2]], [torch.optim.Adam, [q for q in p if q.dim() != 2]]
    ),
    "Lookahead": lambda p: Lookahead(torch.optim.Adam(p, 0.01)),
    "SAM": SAM,
    "by id": ById,
}


def train(model, optimizer, batch, steps=2):
    parts = optimizer if isinstance(optimizer, list) else [optimizer]
    for _ in range(steps):
        model.zero_grad()
        model(batch()).square().mean().backward()
        for part in parts:
            part.step()


def tensors(optimizer, parameter):
    """What an optimizer of these tests keeps for a parameter, by name, of the parameter's shape."""
    kept = {}
    for part in optimizer if isinstance(optimizer, list) else [optimizer]:
        for holder in (part, *(getattr(part, name, None) for name in ("base", "optimizer", "inner"))):
            kept |= getattr(holder, "state", {}).get(parameter, {})
        if isinstance(part, Lookahead):
            pairs = [
                (id(p), slow)
                for group, own in zip(part.optimizer.param_groups, part.slow, strict=True)
                for p, slow in zip(group["params"], own, strict=True)
            ]
            kept["slow"] = dict(pairs)[id(parameter)]
        if isinstance(part, ById):
            kept["kept"] = part.kept[id(parameter)]
    return {name: t for name, t in kept.items() if isinstance(t, torch.Tensor) and t.shape == parameter.shape}


def picture(layer, tensor):
    """A tensor of the weights' shape, as the dense weight has it, flat."""
    dense = torch.zeros(layer.out_features * layer.in_features)
    flat_indices = layer.flat_indices()
    dense[flat_indices] = tensor.detach() if tensor.dim() == 1 else tensor.detach().reshape(-1)[flat_indices]
    return dense


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_state_stays_at_its_connections(kind, optimizer):
    torch.manual_seed(0)
    model, batch = KINDS[kind]()
    optimizer = OPTIMIZERS[optimizer](list(model.parameters()))
    train(model, optimizer, batch)
    evolution = fg.Evolution(model, optimizer, 0.4)
    before = {
        name: {key: picture(layer, t) for key, t in tensors(optimizer, layer.connections).items()}
        for name, layer in evolution.layers.items()
    }
    rewirings = []
    evolution.on_rewire(rewirings.append)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # masked Adafactor, which begins anew
        evolution.step()
    assert [rewiring.name for rewiring in rewirings] == list(evolution.layers)
    for rewiring in rewirings:
        layer = rewiring.layer
        is_new = rewiring.source < 0
        assert bool(is_new.any())
        for key, tensor in tensors(optimizer, layer.connections).items():
            now, starts_at = picture(layer, tensor), 0.0
            if key == "step_size":
                starts_at = 0.01
            elif key == "sum" and optimizer.defaults["initial_accumulator_value"]:
                starts_at = 0.1
            kept = rewiring.after[~is_new]
            assert torch.equal(now[kept], before[rewiring.name][key][kept])
            assert bool((now[rewiring.after[is_new]] == starts_at).all())
            if tensor.dim() > 1:  # masked: nothing is left at removed connections
                everywhere = torch.zeros(tensor.numel(), dtype=torch.bool)
                everywhere[rewiring.after] = True
                assert not bool(tensor.reshape(-1)[~everywhere].any())
    train(model, optimizer, batch)


@pytest.mark.parametrize("masked", [False, True])
def test_the_history_of_lbfgs_begins_anew_and_says_so(masked):
    torch.manual_seed(0)
    model, batch = _linear(masked)
    optimizer, x = torch.optim.LBFGS(model.parameters(), 0.1, max_iter=3), batch()

    def closure():
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    evolution = fg.Evolution(model, optimizer, 0.3)
    with pytest.warns(UserWarning, match=r"the state of LBFGS \(.*old_dirs.*\) does not go connection by connection"):
        evolution.step()
    assert not any(optimizer.state.values())
    assert optimizer.step(closure).isfinite()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evolution.step()  # said once


def test_factored_state_of_masked_layers_begins_anew():
    torch.manual_seed(0)
    model, batch = _linear(masked=True)
    optimizer = torch.optim.Adafactor(model.parameters())
    train(model, optimizer, batch)
    with pytest.warns(UserWarning, match=r"the state of Adafactor \(row_var, col_var\)"):
        fg.Evolution(model, optimizer, 0.3).step()
    assert not optimizer.state[model.fc1.weight]
    assert optimizer.state[model.fc1.bias]
    train(model, optimizer, batch)


def test_tensors_of_unknown_meaning_are_refused_before_anything_moves():
    model, _ = _linear()
    optimizer = ById(model.parameters())
    optimizer.kept[id(model.fc3.values)] = {"rows": torch.zeros(3)}
    evolution = fg.Evolution(model, optimizer, 0.3)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="ById keeps rows for a weight that is to be rewired"):
        evolution.step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert evolution.calls == evolution.epoch == 0


# -- who is rewired --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("grow", ["random", "gradient"])
def test_frozen_layers_stay(masked, grow):
    torch.manual_seed(0)
    model, batch = _linear(masked)
    model.fc2.requires_grad_(False)
    before = copy.deepcopy(model.fc2.state_dict())
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 0.01)
    evolution = fg.Evolution(model, optimizer, 0.3, grow=grow)
    for _ in range(3):
        train(model, optimizer, batch)
        evolution.step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.fc2.state_dict().items())
    assert not evolution.births["fc2"].any()
    assert evolution.births["fc1"].any()
    assert evolution.births["fc3"].any()
    model.fc2.requires_grad_(True)
    with pytest.raises(ValueError, match=r"does not hold the weights of layer 'fc2'\. Freeze it"):
        evolution.step()
    optimizer.add_param_group({"params": list(model.fc2.parameters())})
    train(model, optimizer, batch)
    evolution.step()
    assert evolution.births["fc2"].any()


@pytest.mark.parametrize("where", ["fc1", ["fc1"], lambda name, layer: layer.in_features == 12])
def test_where_chooses(where):
    model, batch = _linear()
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.fc1.parameters(), 0.01, momentum=0.9)
    evolution = fg.SET(model, optimizer, where=where)
    train(model, optimizer, batch)
    evolution.step()
    assert list(evolution.layers) == ["fc1"]
    assert not torch.equal(model.fc1.indices, before["fc1.indices"])
    assert torch.equal(model.fc2.values, before["fc2.values"])
    again = fg.SET(model, optimizer, where=where)
    again.load_state_dict(evolution.state_dict())
    with pytest.raises(ValueError, match="this model's are"):
        fg.SET(model, None).load_state_dict(evolution.state_dict())


def test_who_cannot_be_rewired_is_named():
    model, _ = _linear()
    with pytest.raises(ValueError, match=r"does not hold the weights of layer 'fc2'\. Freeze it"):
        fg.SET(model, torch.optim.SGD(model.fc1.parameters(), 0.1))
    with pytest.raises(ValueError, match=r"where='fc9' matches no sparse layer\. Those are: fc1, fc2, fc3"):
        fg.SET(model, None, where="fc9")
    model.requires_grad_(False)
    with pytest.raises(ValueError, match=r"must train\. Frozen \(requires_grad is False\) are fc1, fc2, fc3"):
        fg.SET(model, None)


# -- averages --------------------------------------------------------------------------------------------------------


def dense_weights(model):
    return {
        name: picture(layer, layer.connections) for name, layer in model.named_modules() if hasattr(layer, "rewire_")
    }


def run_beside_a_dense_average(model, batch, update, average, decay=0.7):
    """Train and rewire; the average is compared with that of the dense weights at the connections."""
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    evolution = fg.Evolution(model, optimizer, 0.3)
    truth = None
    for step in range(6):
        train(model, optimizer, batch, 1)
        if step % 2:
            evolution.step()
        update()
        now = dense_weights(model)
        truth = now if truth is None else {name: decay * truth[name] + (1 - decay) * w for name, w in now.items()}
        for name, weight in dense_weights(average).items():
            connected = torch.zeros(len(weight), dtype=torch.bool)
            connected[model.get_submodule(name).flat_indices()] = True
            truth[name] = torch.where(connected, truth[name], 0)
            torch.testing.assert_close(weight, truth[name])
    x = batch()
    torch.testing.assert_close(average(x), _dense(average)(x))


def _dense(model):
    model = copy.deepcopy(model)
    for name, layer in list(model.named_modules()):
        if hasattr(layer, "rewire_"):
            model.set_submodule(name, layer.dense())
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_ema_is_that_of_the_dense_weights(kind):
    torch.manual_seed(0)
    model, batch = KINDS[kind]()
    ema = fg.EMA(model, 0.7)
    run_beside_a_dense_average(model, batch, ema.step, ema.module)


@pytest.mark.parametrize("kind", ["linear", "masked", "conv"])
def test_averaged_model_that_is_told_is_right(kind):
    torch.manual_seed(0)
    model, batch = KINDS[kind]()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.7))

    def update():
        fg.match_connections_(average, model)
        average.update_parameters(model)

    run_beside_a_dense_average(model, batch, update, average.module)


def test_an_average_of_tensors_follows_by_the_hook():
    torch.manual_seed(0)
    model, batch = _linear()
    average = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    evolution = fg.Evolution(model, optimizer, 0.3)
    handle = evolution.on_rewire(lambda rewiring: rewiring.move_(average[rewiring.parameter]))
    snapshot = copy.deepcopy(model)
    follow = evolution.on_rewire(lambda rewiring: rewiring.apply_(snapshot.get_submodule(rewiring.name)))
    before = picture(model.fc2, average["fc2.values"])
    old = model.fc2.flat_indices()
    rewirings = []
    evolution.on_rewire(rewirings.append)
    train(model, optimizer, batch)
    evolution.step()
    rewiring = rewirings[1]
    kept = rewiring.after[rewiring.source >= 0]
    assert torch.equal(rewiring.before, old)
    assert torch.equal(rewiring.before[rewiring.source[rewiring.source >= 0]], kept)
    for now in (picture(model.fc2, average["fc2.values"]), picture(model.fc2, snapshot.fc2.values)):
        assert torch.equal(now[kept], before[kept])
        assert not now[rewiring.after[rewiring.source < 0]].any()
    with pytest.raises(ValueError, match=r"must have the shape of 'fc2\.values'"):
        rewiring.move_(torch.zeros(3))
    with pytest.raises(ValueError, match="has not the connections that 'fc2' had before"):
        rewiring.apply_(SparseLinear(20, 15))
    handle.remove(), follow.remove()
    kept = {name: tensor.clone() for name, tensor in average.items()}
    evolution.step()
    assert all(torch.equal(tensor, average[name]) for name, tensor in kept.items())


UNTOLD = "an average of weights was not told that its layer was rewired"


def averages():
    def by_copy(model, write):
        average = copy.deepcopy(model)

        def update():
            for mean, parameter in zip(average.parameters(), model.parameters(), strict=True):
                write(mean, parameter.detach())

        return average, update

    def by_state_dict(model):
        average = copy.deepcopy(model)

        def update():
            for mean, value in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
                mean.lerp_(value, 0.5) if mean.is_floating_point() else mean.copy_(value)

        return average, update

    def averaged(model, **options):
        average = AveragedModel(model, **options)
        return average, lambda: average.update_parameters(model)

    return {
        "AveragedModel": averaged,
        "by buffers too": lambda model: averaged(model, use_buffers=True, multi_avg_fn=get_ema_multi_avg_fn(0.5)),
        "lerp_": lambda model: by_copy(model, lambda mean, p: mean.data.lerp_(p, 0.5)),
        "data": lambda model: by_copy(model, lambda mean, p: setattr(mean, "data", mean.data * 0.5 + p * 0.5)),
        "state dict": by_state_dict,
    }


@pytest.mark.parametrize("how", averages())
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_an_average_that_was_not_told_says_so(kind, how):
    torch.manual_seed(0)
    model, batch = KINDS[kind]()
    optimizer, x = torch.optim.SGD(model.parameters(), 0.01), batch()
    evolution = fg.Evolution(model, optimizer, 0.3)
    average, update = averages()[how](model)
    for _ in range(2):
        train(model, optimizer, batch, 1)
        update()
    assert average(x).isfinite().all()
    evolution.step()
    assert average(x).isfinite().all()  # as it was before
    train(model, optimizer, batch, 1)
    with pytest.raises(ValueError, match=UNTOLD):  # noqa: PT012 - at the update, which reads the state, or after it
        update()
        average(x)
    for use in (average.eval(), average.state_dict, lambda: fg.match_connections_(average, model)):
        with pytest.raises(ValueError, match=UNTOLD):
            use(x) if use is average else use()
    assert model(x).isfinite().all()


def test_an_average_that_is_written_into_the_model_is_warned_of():
    """As Lightning's `StochasticWeightAveraging`: the copy holds numbers, and never computes."""
    torch.manual_seed(0)
    model, batch = _linear()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    evolution = fg.Evolution(model, optimizer, 0.3)
    average, update = averages()["lerp_"](model)
    for _ in range(2):
        train(model, optimizer, batch, 1)
        update()
        model.eval().train()
    evolution.step()
    model.eval().train()
    update()
    with pytest.warns(UserWarning, match=UNTOLD) as warned:
        model.eval()
    assert len(warned) == 3  # layers
    for parameter, mean in zip(model.parameters(), average.parameters(), strict=True):
        parameter.data.copy_(mean)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.train().eval()
        evolution.step()


def test_a_masked_copy_that_keeps_an_old_mask_says_so():
    torch.manual_seed(0)
    model, batch = _linear(masked=True)
    average, update = averages()["lerp_"](model)
    evolution = fg.Evolution(model, None, 0.3)
    update()
    evolution.step()
    update()
    with pytest.raises(ValueError, match=UNTOLD):
        average(batch())
    model, batch = _linear(masked=True)
    evolution = fg.Evolution(model, None, 0.3)
    right, update = averages()["AveragedModel"](model)  # dense weights and the mask go by the same positions
    update(), evolution.step(), update()
    assert right(batch()).isfinite().all()


def test_copies_that_are_no_averages_are_left_alone():
    torch.manual_seed(0)
    model, batch = _linear()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    evolution = fg.Evolution(model, optimizer, 0.3)
    snapshot, forked, loaded = (copy.deepcopy(model) for _ in range(3))
    late, x = AveragedModel(model), batch()
    expected = model(x)
    other = torch.optim.SGD(forked.parameters(), 0.01)
    train(forked, other, batch)
    for _ in range(3):
        train(model, optimizer, batch, 1)
        evolution.step()
    train(forked, other, batch)
    other.zero_grad()
    assert forked(x).isfinite().all()
    assert torch.equal(snapshot(x), expected)
    assert torch.equal(snapshot.double().float()(x), expected)
    torch.save(snapshot.state_dict(), io.BytesIO())
    loaded.load_state_dict(model.state_dict())
    assert torch.equal(loaded(x), model(x))
    for _ in range(3):  # begins when the connections have moved before: its first update copies
        train(model, optimizer, batch, 1)
        late.update_parameters(model)
    torch.testing.assert_close(late(x), _dense(late.module)(x))
    for network in (model, late, snapshot):
        file = io.BytesIO()
        torch.save(network, file)
        file.seek(0)
        again = torch.load(file, weights_only=False)
        assert torch.equal(again(x), network(x))
        assert torch.equal(copy.deepcopy(network)(x), network(x))


def test_averages_of_integer_buffers_are_refused():
    model, batch = _linear()
    average = AveragedModel(model, use_buffers=True, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    for _ in range(3):
        average.update_parameters(model)
    with pytest.raises(ValueError, match="an average of weights must leave integer buffers alone"):
        average(batch())


def test_ema_is_a_callback_and_part_of_a_checkpoint(tmp_path):
    def run(epochs, folder):
        fg.seed_everything(0)
        model, _ = _linear()
        x, y = torch.randn(64, 12), torch.randint(3, (64,))
        optimizer, ema = torch.optim.Adam(model.parameters(), 0.01), fg.EMA(model, 0.9)
        callbacks = [fg.SET(model, optimizer), ema]
        fg.fit(model, (x, y), optimizer=optimizer, epochs=epochs, callbacks=callbacks, checkpoint=folder)
        return ema

    whole = run(4, tmp_path / "whole")
    run(2, tmp_path / "parts")
    parts = run(4, tmp_path / "parts")
    assert whole.updates == parts.updates == 4
    for name, tensor in whole.module.state_dict().items():
        assert torch.equal(tensor, parts.module.state_dict()[name])
    with pytest.raises(ValueError, match=r"EMA: decay must be in \[0, 1\). Got 1"):
        fg.EMA(nn.Linear(2, 2), 1)
    with pytest.raises(ValueError, match="average must have the sparse layers of model, 3 of the same sizes"):
        fg.match_connections_(nn.Linear(2, 2), whole.model)


def test_an_average_is_not_watched_for_growth_by_gradient():
    model, _ = _linear()
    evolution = fg.Evolution(model, None, 0.3, grow="gradient")
    average = fg.EMA(model).module
    assert not any(module._forward_hooks for module in average.modules())
    model(torch.randn(4, 12)).square().sum().backward()
    evolution.step()  # the model still is


def test_a_tied_weight_is_averaged_once_a_step():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5, bias=False))
    model[1].weight = model[0].weight
    ema = fg.EMA(model, 0.9)
    ema.step()
    before = model[0].weight.detach().clone()
    model[0].weight.data.add_(1.0)
    ema.step()
    assert ema.module[0].weight is ema.module[1].weight
    torch.testing.assert_close(ema.module[0].weight, before + 0.1)


def test_ema_follows_buffers_whose_shape_changes():
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5))
    fg.convert_(model, fg.PartitionDropout(2))
    ema = fg.EMA(model)
    model(torch.randn(2, 4))
    for _ in range(2):
        ema.step()
        assert torch.equal(ema.module[1].partition, model[1].partition)
        assert ema.module[1].partition is not model[1].partition


def test_ema_follows_what_annealing_sets():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh())
    fg.convert_(model, fg.Noisy(), where="1")
    fg.convert_(model, fg.Mollified(), where="2")
    annealing = fg.NoiseAnnealing(model, 30, 0.5, steps=5)
    ema = fg.EMA(model)
    for _ in range(3):
        annealing.step()
    model[2].p = 0.25
    ema.step()
    assert ema.module[1].c == model[1].c < 30
    assert ema.module[2].p == 0.25


# -- derived indices -------------------------------------------------------------------------------------------------


def _copy_buffers(layer, other):
    for mine, theirs in zip(layer.buffers(), other.buffers(), strict=True):
        mine.copy_(theirs)


def _copy_state(layer, other):
    for name, tensor in layer.state_dict().items():
        tensor.copy_(other.state_dict()[name])


def _copy_data(layer, other):
    layer.eval()
    for name, tensor in layer.state_dict().items():
        tensor.data.copy_(other.state_dict()[name])
    layer.train()


WRITES = {
    "buffers": _copy_buffers,
    "state dict": _copy_state,
    "data": _copy_data,
    "load": lambda layer, other: layer.load_state_dict(other.state_dict()),
    "assign": lambda layer, other: layer.load_state_dict(copy.deepcopy(other.state_dict()), assign=True),
}


@pytest.mark.parametrize("how", WRITES)
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_gradients_are_right_after_the_index_was_written(how, kind):
    def layer(seed):
        dense = nn.Linear(9, 7) if kind == "linear" else nn.Conv2d(3, 7, 2)
        model = nn.Sequential(dense)
        fg.convert_(model, fg.Sparse(fg.ConstantFanIn(4), seed=seed))
        return model[0]

    one, other = layer(0), layer(1)
    x = torch.randn(5, 9) if kind == "linear" else torch.randn(2, 3, 4, 4)
    one(x)  # whatever is kept from a first call
    WRITES[how](one, other)
    with torch.no_grad():
        one.values.copy_(other.values), one.bias.copy_(other.bias)
    results = []
    for module in (one, other, other.dense()):
        inputs = x.clone().requires_grad_()
        y = module(inputs)
        y.square().sum().backward()
        results.append((y, inputs.grad))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)
    torch.testing.assert_close(results[0], results[2])
    one.indices.fill_(-1)
    with pytest.raises(ValueError, match="indptr and indices were changed in place"):
        one(x)


def test_functional_call_reads_the_buffers_that_it_is_given():
    one, other = (SparseLinear(9, 7, fg.ConstantFanIn(4), seed=seed) for seed in (0, 1))
    x = torch.randn(5, 9, requires_grad=True)
    given = {**dict(other.named_parameters()), **{name: b.clone() for name, b in other.named_buffers()}}
    expected = one(x)
    y = torch.func.functional_call(one, given, (x,))
    torch.testing.assert_close(y, other(x))
    torch.testing.assert_close(
        torch.autograd.grad(y.square().sum(), x), torch.autograd.grad(other(x).square().sum(), x)
    )
    assert torch.equal(one(x), expected)


def test_layers_that_vmap_runs_together_have_one_topology():
    layers = [SparseLinear(9, 7, fg.ConstantFanIn(4), seed=seed) for seed in (0, 0, 1)]
    x = torch.randn(5, 9)
    with torch.no_grad():
        layers[1].values.mul_(2)

    def together(ensemble):
        parameters, buffers = torch.func.stack_module_state(ensemble)
        with torch.no_grad():
            return torch.vmap(lambda p, b: torch.func.functional_call(ensemble[0], (p, b), (x,)))(parameters, buffers)

    y = together(layers[:2])
    torch.testing.assert_close(y, torch.stack([layer(x) for layer in layers[:2]]))
    with pytest.raises(ValueError, match="must have the same connections"):
        together(layers[1:])
