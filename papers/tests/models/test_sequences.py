"""Recurrent networks of Moczulski 2019, chapter 4, against torch's packed sequences and Graves' equations."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss
from torch.overrides import TorchFunctionMode

import filigree as fg
from filigree.convert import replace_module
from filigree_papers import models as own_models
from filigree_papers.models.ntm import EPSILON, address

WORDS = torch.tensor([[3, 4, 5, 2], [6, 2, 0, 0], [5, 3, 2, 0]])
TARGET = torch.tensor([[1, 4, 2, 0, 0], [1, 6, 5, 3, 2], [1, 3, 6, 2, 0]])


def language(**options):
    return fg.models.language_model(7, 8, 8, **options), (WORDS,), (3, 4, 7)


MAKERS = {
    "language_model": language,
    "language_model, GRU, tied": lambda: language(kind="gru", layers=1, dropout=0.2, tied=True, carry=False),
    "sequence_classifier": lambda: (own_models.sequence_classifier(7, 5, 6, 4, 9), (WORDS,), (3, 4)),
    "character_encoder": lambda: (own_models.character_encoder(7, 5, 6, 4, width=8), (WORDS,), (3, 4)),
    "translator": lambda: (own_models.translator(7, 8, 5, 6), (WORDS, TARGET), (3, 4, 8)),
    "ntm": lambda: (
        own_models.ntm(3, 2, controller=7, slots=6, width=5),
        (torch.randn(3, 4, 3),),
        (3, 4, 2),
    ),
    "ntm, two heads": lambda: (own_models.ntm(3, 2, 7, 6, 5, heads=2), (torch.randn(3, 4, 3),), (3, 4, 2)),
}


@pytest.fixture(params=MAKERS)
def network(request):
    return MAKERS[request.param]()


def test_shapes_and_gradients_of_every_parameter(network):
    model, inputs, shape = network
    y = model(*inputs)
    assert y.shape == shape
    y.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_save_and_load(network, tmp_path):
    model, inputs, _ = network
    fg.save(model.eval(), tmp_path / "m.safetensors")
    again = fg.load(tmp_path / "m.safetensors").eval()
    assert torch.equal(again(*inputs), model(*inputs))
    assert repr(again) == repr(model)
    assert len(list(again.parameters())) == len(list(model.parameters()))


class Forbidden(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        assert getattr(func, "__name__", "") not in ("tanh", "sigmoid", "relu")
        return func(*args, **(kwargs or {}))


def test_every_activation_is_a_module(network):
    """With the modules replaced nothing is left that `fg.convert_` would not find."""
    model, inputs, _ = network
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Tanh | nn.Sigmoid | nn.ReLU):
            replace_module(model, name, nn.Identity())
    with Forbidden():
        model(*inputs)


@pytest.mark.parametrize("name", ["language_model", "sequence_classifier", "character_encoder", "translator"])
def test_recurrent_layers_can_be_converted(name):
    """Into layers that loop over time steps themselves, packed sequences included."""
    model, inputs, shape = MAKERS[name]()
    fg.convert_(model, fg.Circulant(), where=lambda _, module: isinstance(module, nn.LSTM | nn.GRU))
    assert model(*inputs).shape == shape


# Language models


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_pieces_with_carry_equal_one_long_run(kind):
    model, _, _ = language(kind=kind)
    text = torch.randint(7, (3, 12))
    whole = model(text)
    model.reset()
    pieces = torch.cat([model(piece) for piece in text.split([5, 1, 6], 1)], 1)
    torch.testing.assert_close(pieces, whole)


def test_what_ends_the_carrying():
    model, (text,), _ = language()
    first = model(text)
    assert not torch.equal(model(text), first)
    model.reset()
    assert torch.equal(model(text), first)
    model.eval()
    assert torch.equal(model(text), first)
    assert not torch.equal(model.eval()(text), first)  # no change of mode
    assert torch.equal(model.train()(text), first)
    torch.testing.assert_close(model(text[:2]), first[:2])  # another batch size
    still, _, _ = language(carry=False)
    assert torch.equal(still(text), still(text))
    assert not any("state" in name for name in model.state_dict())


def test_no_gradient_through_the_carried_state():
    model, (text,), _ = language()
    model(text)
    model(text).sum().backward()
    model(text).sum().backward()  # the graph of the call before is gone


def test_initial_values_and_sizes():
    model = fg.models.language_model(50, 20, 20, init=0.05, tied=True)
    values = torch.cat([p.flatten() for p in model.parameters()])
    assert 0.0499 < values.max() <= 0.05
    assert -0.05 <= values.min() < -0.0499
    assert values.numel() == 50 * 20 + 50 + 2 * 4 * (20 * 40 + 40)


# Padding


def test_padding_changes_nothing():
    longer = nn.functional.pad(WORDS, (0, 3))
    encoder = own_models.character_encoder(7, 5, 6, 4, width=8)
    expected = torch.cat([encoder(word[word != 0].unsqueeze(0)) for word in WORDS])
    torch.testing.assert_close(encoder(longer), expected)
    model = own_models.translator(7, 8, 5, 6)
    words = [word[word != 0].unsqueeze(0) for word in WORDS]
    expected = torch.cat([model(word, target.unsqueeze(0)) for word, target in zip(words, TARGET, strict=True)])
    torch.testing.assert_close(model(longer, TARGET), expected)
    model.source_embedding.weight.data[0] = 100.0
    torch.testing.assert_close(model(longer, TARGET), expected)


def test_greedy_translation_is_the_teacher_forced_argmax():
    model = own_models.translator(7, 8, 5, 16).eval()
    model.readout.fc2.bias.data[2] = -9  # no sentence ends by itself
    source = torch.randint(3, 7, (10, 5))
    out = model.translate(source, most=6)
    assert out.shape == (10, 6)
    forced = model(source, nn.functional.pad(out, (1, 0), value=1))
    assert torch.equal(out, forced[..., 2:].argmax(-1) + 2)


# The Neural Turing Machine


def test_addressing_equals_equations_5_to_9():
    batch, heads, slots, width = 2, 2, 5, 3
    memory, key = torch.randn(batch, slots, width), torch.randn(batch, heads, width)
    before, shift = torch.randn(batch, heads, slots).softmax(-1), torch.randn(batch, heads, 3).softmax(-1)
    strength, gate, sharpness = torch.rand(3, batch, heads, 1) * torch.tensor([9, 1, 4]).view(3, 1, 1, 1)
    sharpness += 1
    weights_of_heads = address(memory, before, key, strength, gate, shift, sharpness)
    for b in range(batch):
        for h in range(heads):
            k, g, s, gamma = key[b, h], gate[b, h, 0].item(), shift[b, h], sharpness[b, h, 0].item()
            cosines = [
                sum(k[n].item() * memory[b, i, n].item() for n in range(width))
                / (math.hypot(*k.tolist()) * math.hypot(*memory[b, i].tolist()) + EPSILON)
                for i in range(slots)
            ]  # (6)
            content = [math.exp(strength[b, h, 0].item() * c) for c in cosines]
            content = [c / sum(content) for c in content]  # (5)
            gated = [g * content[i] + (1 - g) * before[b, h, i].item() for i in range(slots)]  # (7)
            moved = [
                sum(gated[j] * s[d + 1].item() for j in range(slots) for d in (-1, 0, 1) if (i - j - d) % slots == 0)
                for i in range(slots)
            ]  # (8)
            sharp = [w**gamma / sum(v**gamma for v in moved) for w in moved]  # (9)
            torch.testing.assert_close(weights_of_heads[b, h], torch.tensor(sharp), rtol=1e-4, atol=1e-6)


def test_write_and_read_equal_equations_2_to_4():
    model = own_models.ntm(3, 2, controller=7, slots=6, width=5, heads=2)
    h, memory, w = torch.randn(2, 7), torch.randn(2, 6, 5), torch.randn(2, 2, 6).softmax(-1)
    erase, add = model.erase.fc(h).sigmoid().view(2, 2, 5), model.add.fc(h).tanh().view(2, 2, 5)
    expected = memory.clone()
    for head in range(2):
        expected *= 1 - w[:, head, :, None] * erase[:, head, None]
    for head in range(2):
        expected += w[:, head, :, None] * add[:, head, None]
    torch.testing.assert_close(model._write(h, memory, w), expected)


def test_gradients_of_the_addressing_and_its_extremes():
    shapes = {"memory": (1, 4, 3), "before": (1, 2, 4), "key": (1, 2, 3), "strength": (1, 2, 1)}
    values = [torch.rand(s, dtype=torch.float64, requires_grad=True) for s in shapes.values()]
    values += [torch.rand(1, 2, n, dtype=torch.float64, requires_grad=True) for n in (1, 3, 1)]
    assert torch.autograd.gradcheck(address, values)
    memory = torch.zeros(1, 4, 3, requires_grad=True)  # blank, all weight on one slot, exponents far out
    one, ten = torch.ones(1, 2, 1), torch.tensor([1.0, 0, 0, 0]).expand(1, 2, 4)
    w = address(memory, ten, torch.zeros(1, 2, 3), 1e4 * one, 0 * one, torch.tensor([0.0, 0, 1]), 1e4 * one)
    torch.testing.assert_close(w, torch.tensor([0.0, 1, 0, 0]).expand(1, 2, 4))
    w.square().sum().backward()
    assert memory.grad.isfinite().all()


# Learning


def overfitted(model, loss, steps, lr=0.01):
    optimizer = torch.optim.Adam(model.parameters(), lr)
    for _ in range(steps):
        optimizer.zero_grad()
        value = loss()
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5)
        optimizer.step()
    return value.item()


def test_language_model_overfits():
    model = fg.models.language_model(7, 8, 32, layers=1, carry=False)
    text = torch.randint(7, (2, 9))
    assert overfitted(model, lambda: cross_entropy(model(text[:, :-1]).mT, text[:, 1:]), 150, 0.03) < 0.2


def test_sequence_classifier_overfits():
    model = own_models.sequence_classifier(11, 8, 16, 6, 16)
    x = torch.randint(11, (8, 5))
    unique = torch.tensor([len(set(row)) for row in x.tolist()])
    assert overfitted(model, lambda: cross_entropy(model(x), unique), 150) < 0.1


def test_character_encoder_overfits():
    model, y = own_models.character_encoder(7, 8, 16, 4, width=16), torch.randn(3, 4)
    assert overfitted(model, lambda: mse_loss(model(WORDS), y), 200) < 0.05


@pytest.mark.long("trains a translator")
def test_translator_overfits_and_translates():
    model = own_models.translator(7, 8, 16, 16)
    loss = overfitted(model, lambda: cross_entropy(model(WORDS, TARGET).mT, TARGET[:, 1:], ignore_index=0), 150)
    assert loss < 0.1
    assert torch.equal(model.eval().translate(WORDS), TARGET[:, 1:])


@pytest.mark.long("trains a neural Turing machine")
def test_ntm_overfits_a_copy_task():
    model = own_models.ntm(5, 4, controller=32, slots=8, width=6)
    bits = torch.randint(2, (4, 3, 4)).float()
    x = torch.zeros(4, 7, 5)
    x[:, :3, :4], x[:, 3, 4] = bits, 1
    assert overfitted(model, lambda: binary_cross_entropy_with_logits(model(x)[:, 4:], bits), 200) < 0.1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fg.models.language_model(0, 8, 8), "language_model: tokens, .* at least 1. Got 0, 8, 8 and 2"),
        (lambda: fg.models.language_model(5, 8, 8, kind="rnn"), "kind must be"),
        (lambda: fg.models.language_model(5, 8, 9, tied=True), "tied needs embedding equal to hidden. Got 8 and 9"),
        (lambda: fg.models.language_model(5, 8, 8, dropout=1), "dropout must be in"),
        (lambda: fg.models.language_model(5, 8, 8, init=0), "init must be above 0"),
        (
            lambda: own_models.sequence_classifier(5, 8, 8, 0, 8),
            "sequence_classifier: .* Got 5, 8, 8, 0 and 8",
        ),
        (
            lambda: own_models.character_encoder(5, 8, 8, 8, layers=0),
            "character_encoder: .* Got 5, 8, 8, 8, 0 and 500",
        ),
        (
            lambda: own_models.character_encoder(5, 8, 8, 8)(torch.zeros(2, 3, dtype=torch.long)),
            "padding alone",
        ),
        (lambda: own_models.translator(2, 8, 8, 8), "must be at least 3"),
        (lambda: own_models.translator(8, 8, 8, 8)(0 * WORDS, TARGET), "translator: .* padding alone"),
        (
            lambda: own_models.translator(8, 8, 8, 8).translate(WORDS, most=0),
            "most must be at least 1. Got 0",
        ),
        (lambda: own_models.ntm(3, 2, slots=0), "ntm: .* Got 3, 2, 100, 0, 20 and 1"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
