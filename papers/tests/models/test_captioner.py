"""Soft attention over regions: against the paper's equations one by one, and as noisy activations need it."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.overrides import TorchFunctionMode

import filigree as fg
from filigree.convert import replace_module, width_before
from filigree_papers import models as own_models

TOKENS = torch.tensor([[1, 4, 2, 0, 0], [1, 6, 5, 3, 2], [1, 3, 6, 2, 0]])


def small(dropout=0.5):
    return own_models.captioner(7, 4, 5, 6, dropout)


@pytest.fixture
def features():
    return torch.randn(3, 9, 4)


def test_shapes_and_gradients_of_every_parameter(features):
    model = small()
    y = model(features, TOKENS)
    assert y.shape == (3, 4, 7)
    y.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_steps_equal_the_equations(features):
    model = small().eval()
    logits, alpha = model.attend(features, TOKENS)
    look, out, cell = model.attention, model.readout, model.decoder
    for b in range(3):
        a = features[b]
        h = (model.first_state.fc.weight @ a.mean(0) + model.first_state.fc.bias).tanh()
        c = (model.first_memory.fc.weight @ a.mean(0) + model.first_memory.fc.bias).tanh()
        for t in range(4):
            e = [
                look.score.weight[0]
                @ (look.of_state.weight @ h + look.of_region.weight @ a_i + look.of_region.bias).tanh()
                for a_i in a
            ]
            weights = torch.stack(e).softmax(0)
            beta = (look.gate.fc.weight[0] @ h + look.gate.fc.bias[0]).sigmoid()
            z = beta * sum(weight * a_i for weight, a_i in zip(weights, a, strict=True))
            y = model.embedding.weight[TOKENS[b, t]]
            i, f, g, o = (cell.weight_ih @ torch.cat([y, z]) + cell.bias_ih + cell.weight_hh @ h + cell.bias_hh).chunk(
                4
            )
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            inner = y + out.of_state.weight @ h + out.of_state.bias + out.of_context.weight @ z
            torch.testing.assert_close(alpha[b, t], weights)
            torch.testing.assert_close(logits[b, t], out.fc.weight @ inner.tanh() + out.fc.bias)
    assert torch.equal(model(features, TOKENS), logits)


def test_dropout_where_the_logits_are_made(features):
    model = small()
    _, alpha = model.attend(features, TOKENS)
    again, same = model.attend(features, TOKENS)
    assert torch.equal(alpha, same)  # the states are the same
    assert not torch.equal(model(features, TOKENS), again)
    for part in (model.readout.of_state, model.readout.of_context):  # of either alone
        before = part.weight.data.clone()
        part.weight.data.zero_()
        assert not torch.equal(model(features, TOKENS), model(features, TOKENS))
        part.weight.data = before
    model.readout.dropout.p = 0.0
    torch.testing.assert_close(model(features, TOKENS), model.eval()(features, TOKENS))
    still = small(0.0)
    assert torch.equal(still(features, TOKENS), still(features, TOKENS))


class Forbidden(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        assert getattr(func, "__name__", "") not in ("tanh", "sigmoid", "relu")
        return func(*args, **(kwargs or {}))


def test_every_activation_is_a_module_behind_its_layer(features):
    model = small()
    widths = {
        name: width_before(model, name, "test")[:2]
        for name, module in model.named_modules()
        if isinstance(module, nn.Tanh | nn.Sigmoid)
    }
    assert widths == {
        "first_state.tanh": (6, -1), "first_memory.tanh": (6, -1), "attention.tanh": (6, -1),
        "attention.gate.sigmoid": (1, -1), "readout.tanh": (5, -1),
    }  # fmt: skip
    for name in widths:
        replace_module(model, name, nn.Identity())
    with Forbidden():
        model(features, TOKENS)


@pytest.mark.parametrize("kind", ["NAN", "NAH", "NANI", "NANIL", "NANIS"])
def test_noisy_save_and_load(features, kind, tmp_path):
    model = small()
    report = fg.convert_(model, fg.Noisy(kind))
    assert len(report.changes) == 6  # five activations and the decoder
    model(features, TOKENS).sum().backward()
    fg.save(model.eval(), tmp_path / "m.safetensors")
    again = fg.load(tmp_path / "m.safetensors").eval()
    assert torch.equal(again(features, TOKENS), model(features, TOKENS))
    assert repr(again) == repr(model)


def test_greedy_captions_are_the_teacher_forced_argmax():
    model, features = own_models.captioner(7, 4, 16, 16).eval(), 9 * torch.randn(20, 5, 4)
    model.readout.fc.bias.data[2] = -9  # no caption ends by itself
    out = model.describe(features, most=6)
    assert out.shape == (20, 6)
    forced = model(features, nn.functional.pad(out, (1, 0), value=1))
    assert torch.equal(out, forced[..., 2:].argmax(-1) + 2)


def test_overfits_and_describes():
    model, features = own_models.captioner(7, 4, 16, 16, dropout=0.0), torch.randn(3, 5, 4)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(120):
        optimizer.zero_grad()
        loss = cross_entropy(model(features, TOKENS).mT, TOKENS[:, 1:], ignore_index=0)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1
    assert torch.equal(model.eval().describe(features), TOKENS[:, 1:])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: own_models.captioner(2, 4, 5, 6),
            "captioner: tokens must be at least 3, .* Got 2, 4, 5 and 6",
        ),
        (lambda: own_models.captioner(7, 0, 5, 6), "Got 7, 0, 5 and 6"),
        (lambda: own_models.captioner(7, 4, 5, 6, 1.0), r"captioner: dropout must be in \[0, 1\). Got 1.0"),
        (lambda: small().describe(torch.randn(2, 3, 4), 0), "describe: most must be at least 1. Got 0"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
