"""The plain decoder: what it computes, and that its cache changes nothing."""

import math

import pytest
import torch
from torch.nn import functional as F

import filigree as fg
from filigree.models.gpt import rotated, rotations

SMALL = {"tokens": 11, "context": 16, "width": 8, "blocks": 2, "heads": 2}
KINDS = [{}, {"rotary": True}, {"tied": False, "bias": True, "inner": 5}]


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_no_position_sees_a_later_one(options):
    model = fg.models.gpt(**SMALL, **options).eval()
    tokens = torch.randint(11, (3, 9), generator=torch.Generator().manual_seed(0))
    logits = model(tokens)
    assert logits.shape == (3, 9, 11)
    changed = tokens.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 11
    differences = (model(changed) - logits).detach().abs().amax((0, 2))
    assert float(differences[:5].max()) == 0
    assert float(differences[5:].min()) > 0


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_generation_with_the_cache_is_generation_without(options):
    torch.manual_seed(0)
    model = fg.models.gpt(**SMALL, **options).eval()
    for parameter in model.parameters():
        parameter.data.mul_(8)  # far from uniform logits
    tokens = torch.randint(11, (3, 4))
    whole = model.generate(tokens, 20, temperature=0)
    assert whole.shape == (3, 24)
    assert torch.equal(whole[:, :4], tokens)
    for place in range(4, 24):
        # when the context is full, the last 8 tokens are read again
        begin = 0 if place <= 16 else 9
        likeliest = model(whole[:, begin:place])[:, -1].argmax(1)
        assert torch.equal(whole[:, place], likeliest)


def test_draws_follow_the_distribution():
    model = fg.models.gpt(**SMALL).eval()
    model.tokens.weight.data.mul_(100)
    begin = torch.tensor([[3, 4]]).expand(4000, 2)
    shares = model.generate(begin, 1, generator=torch.Generator().manual_seed(0))[:, 2].bincount(minlength=11) / 4000
    expected = model(begin[:1])[0, -1].softmax(0)
    assert torch.allclose(shares, expected, atol=0.03)
    likeliest = set(expected.topk(2).indices.tolist())
    assert set(model.generate(begin[:200], 1, top=2)[:, 2].tolist()) <= likeliest
    model.tokens.weight.data.zero_()
    assert len(set(model.generate(begin[:200], 1, top=2)[:, 2].tolist())) == 2  # where all are equally likely too


def test_no_samples_and_no_tokens():
    model = fg.models.gpt(**SMALL)
    for shape in ((0, 4), (2, 0)):
        assert model(torch.zeros(shape, dtype=torch.int64)).shape == (*shape, 11)
    assert model.generate(torch.zeros(0, 4, dtype=torch.int64), 3).shape == (0, 7)


def test_against_torch_s_own_layer():
    """A block is torch's encoder layer with a causal mask and the norms first."""
    model = fg.models.gpt(**SMALL, bias=True).eval()
    ours = model.blocks[0]
    theirs = torch.nn.TransformerEncoderLayer(8, 2, 32, 0.0, "gelu", batch_first=True, norm_first=True).eval()
    theirs.load_state_dict({
        "self_attn.in_proj_weight": ours.attention.qkv.weight, "self_attn.in_proj_bias": ours.attention.qkv.bias,
        "self_attn.out_proj.weight": ours.attention.out.weight, "self_attn.out_proj.bias": ours.attention.out.bias,
        "linear1.weight": ours.feed_forward[0].weight, "linear1.bias": ours.feed_forward[0].bias,
        "linear2.weight": ours.feed_forward[2].weight, "linear2.bias": ours.feed_forward[2].bias,
        "norm1.weight": ours.norm1.weight, "norm1.bias": ours.norm1.bias,
        "norm2.weight": ours.norm2.weight, "norm2.bias": ours.norm2.bias,
    })  # fmt: skip
    x = torch.randn(2, 7, 8)
    mask = torch.nn.Transformer.generate_square_subsequent_mask(7)
    torch.testing.assert_close(ours(x, None, None, 0), theirs(x, mask, is_causal=True))


def test_rotations_depend_on_distances_only():
    q, k = torch.randn(2, 1, 8, dtype=torch.float64).unbind()
    turns = rotations(0, 12, 8, q)
    products = [float(rotated(q, turns[:, i : i + 1]) @ rotated(k, turns[:, i + 3 : i + 4]).T) for i in range(9)]
    assert products == pytest.approx([products[0]] * 9)
    turned = rotated(q, turns[:, 5:6])
    assert float(turned.norm()) == pytest.approx(float(q.norm()))


def test_the_size_of_gpt_2(monkeypatch):
    def loads_the_compiler(*args):
        raise AssertionError("no numbers are drawn on the meta device: torch would load its compiler")

    monkeypatch.setattr(torch.nn.init, "normal_", loads_the_compiler)
    with torch.device("meta"):
        model = fg.models.gpt(50_257, 1024, 768, 12, 12, bias=True)
    assert sum(parameter.numel() for parameter in model.parameters()) == 124_439_808


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_sparse_saved_and_loaded(options, tmp_path):
    model = fg.models.gpt(**SMALL, **options).eval()
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.5)), where=["*.attention.*", "*.feed_forward.*"])
    model.vocabulary = fg.data.Vocabulary(tuple("abcdefghijk"))
    fg.save(model, tmp_path / "m.safetensors")
    again = fg.load(tmp_path / "m.safetensors").eval()
    tokens = torch.randint(11, (2, 9))
    assert torch.equal(again(tokens), model(tokens))
    assert again.vocabulary == model.vocabulary
    assert torch.equal(again.generate(tokens, 4, temperature=0), model.generate(tokens, 4, temperature=0))


def test_generation_leaves_each_module_in_its_mode():
    model = fg.models.gpt(**SMALL, dropout=0.1)
    model.blocks[0].eval()
    modes = [module.training for module in model.modules()]
    model.generate(torch.zeros(1, 1, dtype=torch.int64), 2)
    assert [module.training for module in model.modules()] == modes


def test_fit_takes_classes_last():
    """Loss and accuracy are means over all tokens, as those of flat outputs."""
    torch.manual_seed(0)
    model = fg.models.gpt(**SMALL).eval()
    x = torch.randint(11, (10, 16))
    y = (x + 1) % 11
    result = fg.evaluate(model, (x, y))
    logits = model(x).detach().flatten(0, 1)
    assert result["loss"] == pytest.approx(float(F.cross_entropy(logits, y.flatten())), rel=1e-5)
    assert result["accuracy"] == pytest.approx(float((logits.argmax(1) == y.flatten()).float().mean()))
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    fg.fit(model, (x, y), optimizer=optimizer, epochs=60, batch_size=5, progress=False)
    assert fg.evaluate(model, (x, y))["accuracy"] > 0.9
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 11\)"):
        fg.evaluate(model, (x, y + 5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 3}, "heads must divide width. Got 3 heads of 8"),
        ({"width": 6, "rotary": True}, "with rotary, each even. Got 2 heads of 6"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\). Got 1.0"),
        ({"blocks": 0}, "must be at least 1. Got 11, 16, 8, 0, 2 and 32"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        fg.models.gpt(**SMALL | options)


def test_what_generation_refuses():
    model = fg.models.gpt(**SMALL)
    with pytest.raises(ValueError, match=r"tokens must be \(batch, length\), with at most 16 of them in a row"):
        model(torch.zeros(1, 17, dtype=torch.int64))
    with pytest.raises(ValueError, match="with a length of 1 at least"):
        model.generate(torch.zeros(1, 0, dtype=torch.int64), 3)
    with pytest.raises(ValueError, match="temperature must be at least 0"):
        model.generate(torch.zeros(1, 1, dtype=torch.int64), 3, temperature=-1)
    with pytest.raises(ValueError, match=r"temperature must be at least 0.* temperature=nan"):
        model.generate(torch.zeros(1, 1, dtype=torch.int64), 3, temperature=math.nan)
    assert math.isfinite(float(model.generate(torch.zeros(1, 1, dtype=torch.int64), 3).sum()))
