"""Attention whose projections are layers: against torch's own, in torch's transformer layers, and made sparse."""

import contextlib
import copy

import pytest
import torch
from torch import nn

import filigree as fg
from filigree.nn import LayeredAttention

OPTIONS = [
    {}, {"batch_first": True}, {"bias": False}, {"kdim": 5, "vdim": 3}, {"kdim": 5, "batch_first": True, "bias": False}
]  # fmt: skip


def attention(**options):
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(8, 2, **options).double()
    for parameter in layer.parameters():  # biases begin as zeros
        nn.init.normal_(parameter, 0, 0.5)
    return layer


def sequences(layer, batched=True):
    """Query, key and value in the order that the layer reads."""
    shapes = [(4, 3, 8), (6, 3, layer.kdim), (6, 3, layer.vdim)]
    if not batched:
        shapes = [(length, width) for length, _, width in shapes]
    elif layer.batch_first:
        shapes = [(batch, length, width) for length, batch, width in shapes]
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


MASKS = {
    "none": {},
    "causal": {"attn_mask": torch.ones(4, 6, dtype=torch.bool).triu(1), "is_causal": True},
    "added": {"attn_mask": torch.linspace(-1, 1, 24, dtype=torch.float64).view(4, 6)},
    "by head": {"attn_mask": torch.linspace(-1, 1, 144, dtype=torch.float64).view(6, 4, 6)},
    "padding": {"key_padding_mask": torch.arange(6).expand(3, 6) > torch.tensor([[5], [2], [3]])},
    "both": {
        "attn_mask": torch.ones(4, 6, dtype=torch.bool).triu(2),
        "key_padding_mask": torch.arange(6).expand(3, 6) > torch.tensor([[5], [2], [3]]),
    },
}


@pytest.mark.parametrize("weights", [{}, {"need_weights": False}, {"average_attn_weights": False}], ids=str)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_it_is_torch_s_attention(options, mask, weights):
    reference = attention(**options)
    layered = LayeredAttention(copy.deepcopy(reference))
    inputs = sequences(reference)
    (y, shares), (expected, expected_shares) = (
        layered(*inputs, **MASKS[mask], **weights),
        reference(*inputs, **MASKS[mask], **weights),
    )
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(shares, expected_shares)
    dy = torch.randn_like(y)
    for own, other in zip(torch.autograd.grad(y, inputs, dy), torch.autograd.grad(expected, inputs, dy), strict=True):
        torch.testing.assert_close(own, other)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_without_a_batch(options):
    reference = attention(**options)
    inputs = sequences(reference, batched=False)
    for own, other in zip(LayeredAttention(reference)(*inputs), reference(*inputs), strict=True):
        torch.testing.assert_close(own, other)


def test_dropout_is_of_the_weights():
    layered = LayeredAttention(attention(dropout=0.5)).train()
    x = torch.ones(4, 2, 8, dtype=torch.float64)
    _, shares = layered(x, x, x, average_attn_weights=False)
    assert set(shares.unique().tolist()) == {0.0, 0.5}
    assert set(layered.eval()(x, x, x)[1].unique().tolist()) == {0.25}


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_made_sparse(options, tmp_path):
    def fresh():
        torch.manual_seed(0)
        return nn.Sequential(nn.MultiheadAttention(8, 2, **options))

    model = fresh()
    report = fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.5)))
    layer = model[0]
    assert isinstance(layer, LayeredAttention)
    assert [change.name for change in report.changes] == ["0.q", "0.k", "0.v", "0.out"]
    assert all(isinstance(part, fg.nn.SparseLinear) for part in layer.children())
    inputs = [x.float() for x in sequences(layer)]
    expected = layer.dense()(*inputs)
    for own, other in zip(layer(*inputs), expected, strict=True):
        torch.testing.assert_close(own, other)
    fg.save(model, tmp_path / "m.safetensors")
    again = fg.load(tmp_path / "m.safetensors", into=fresh())
    for own, other in zip(again[0](*inputs), layer(*inputs), strict=True):
        assert torch.equal(own, other)


@pytest.mark.parametrize("density", [1.0, 0.999])
def test_padding_in_torch_s_encoder(density):
    """In eval mode the encoder looks at the first layer's weights, to take a shortcut with nested tensors."""
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True), 2).eval()
    x, padding = torch.randn(3, 5, 8), torch.arange(5) >= torch.tensor([[5], [3], [4]])
    dense = copy.deepcopy(encoder)
    dense.use_nested_tensor = False  # torch warns of its own
    fg.convert_(encoder, fg.Sparse(fg.ErdosRenyi(density=density), init="keep"), where="*self_attn")
    for one, other in zip(encoder.layers, dense.layers, strict=True):
        other.self_attn = one.self_attn.dense()
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            own, expected = (part(x, src_key_padding_mask=padding) for part in (encoder, dense))
        torch.testing.assert_close(own[~padding], expected[~padding])
    attention = encoder.layers[0].self_attn
    assert torch.equal(torch.Tensor(attention.in_proj_weight), attention.dense().in_proj_weight)
    assert attention.out_proj is attention.out


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("first", [True, False])
def test_in_torch_s_transformer(first, training):
    """All weights kept: torch's encoder and decoder compute what they did, and take no shortcut past the layers."""
    torch.manual_seed(0)
    options = {"dim_feedforward": 16, "dropout": 0.0, "batch_first": first}
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, **options), 2, enable_nested_tensor=False)
    model = nn.ModuleList([encoder, nn.TransformerDecoderLayer(8, 2, **options)]).train(training)
    x, y = torch.randn(5, 5, 8), torch.randn(5, 5, 8)
    mask = nn.Transformer.generate_square_subsequent_mask(5)

    def run(model):
        with contextlib.nullcontext() if training else torch.no_grad():
            return model[1](y, model[0](x, mask, is_causal=True), tgt_mask=mask, tgt_is_causal=True)

    expected = run(model)
    converted = copy.deepcopy(model)
    fg.convert_(converted, fg.Sparse(fg.ErdosRenyi(density=1.0), init="keep"))
    assert sum(isinstance(part, LayeredAttention) for part in converted.modules()) == 4
    torch.testing.assert_close(run(converted), expected)
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.5), init="keep"))
    once = run(model)
    for part in model.modules():
        if isinstance(part, fg.nn.SparseLinear):
            part.values.data.mul_(2)
    assert not torch.allclose(run(model), once)  # the sparse layers are what runs


def test_what_stays_as_it_is():
    biased = nn.Sequential(nn.MultiheadAttention(8, 2, add_bias_kv=True), nn.Linear(8, 8))
    fg.convert_(biased, fg.Sparse(fg.ErdosRenyi(density=0.5)))
    assert [type(part) for part in biased] == [nn.MultiheadAttention, fg.nn.SparseLinear]
    tied = nn.ModuleList([nn.MultiheadAttention(8, 2), nn.MultiheadAttention(8, 2), nn.Linear(8, 8)])
    tied[1].in_proj_weight = tied[0].in_proj_weight
    report = fg.convert_(tied, fg.Sparse(fg.ErdosRenyi(density=0.5)))
    assert [type(part) for part in tied] == [nn.MultiheadAttention] * 2 + [fg.nn.SparseLinear]
    assert tied[1].in_proj_weight is tied[0].in_proj_weight
    assert str(report).count("stays dense: its weight is shared") == 2


def test_frozen_projections_stay_frozen():
    model = nn.Sequential(nn.MultiheadAttention(8, 2))
    model[0].in_proj_weight.requires_grad_(False)
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.5)))
    assert [part.values.requires_grad for part in model[0].children()] == [False, False, False, True]


def test_measured_it_stays_dense():
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    report = fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.5)), measure=torch.randn(2, 3, 8))
    assert "measure cannot judge its projections" in str(report)
    assert isinstance(model.self_attn, nn.MultiheadAttention)


def test_a_causal_call_needs_its_mask():
    x = torch.randn(3, 1, 8, dtype=torch.float64)
    with pytest.raises(ValueError, match="is_causal says what attn_mask holds"):
        LayeredAttention(attention())(x, x, x, is_causal=True)
    with pytest.raises(AttributeError, match="has no q_proj_weight: read its q, k, v and out"):
        _ = LayeredAttention(attention()).q_proj_weight
