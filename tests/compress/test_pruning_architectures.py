"""Whole heads and hidden units of the usual architectures: half of them go, and what is left comes back from files."""

import importlib.util

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import filigree as fg
from zoo import Wired, hugging_face

CONFIG = fg.MagnitudePruning(keep=0.5, compensate=None, measure=False)
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
LLAMA = SIZES | {"num_key_value_heads": 2, "vocab_size": 50, "use_cache": False}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 50, "use_cache": False}
WHISPER = {
    "d_model": 32, "num_mel_bins": 8, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_source_positions": 16,
    "max_target_positions": 20, "vocab_size": 50, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "decoder_start_token_id": 1, "use_cache": False,
}  # fmt: skip


def ids(length=6, words=50):
    return torch.randint(3, words, (12, length), generator=torch.Generator().manual_seed(0))


def images(*shape):
    return torch.randn(12, *shape, generator=torch.Generator().manual_seed(0))


GPT2 = {"n_embd": 32, "n_head": 4, "n_layer": 2, "vocab_size": 50, "n_positions": 20, "use_cache": False}
VIT = SIZES | {"image_size": 12, "patch_size": 4, "num_labels": 5}
MODELS = {  # class, configuration, its sizes, inputs, layers that make heads and how many outputs these are to have
    "bert": ("BertForMaskedLM", "BertConfig", SIZES | {"vocab_size": 50}, {"input_ids": ids()}, "*self.query", 16),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", GPT2, {"input_ids": ids()}, "*attn.c_attn", 48),
    "llama": ("LlamaForCausalLM", "LlamaConfig", LLAMA, {"input_ids": ids()}, "*q_proj", 16),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", LLAMA | {"head_dim": 8}, {"input_ids": ids()}, "*q_proj", 16),
    "t5": ("T5ForConditionalGeneration", "T5Config", T5 | {"feed_forward_proj": "gated-gelu"},
           {"input_ids": ids(), "decoder_input_ids": ids(4)}, "*Attention.q", 16),
    "vit": ("ViTForImageClassification", "ViTConfig", VIT, {"pixel_values": images(3, 12, 12)}, "*q_proj", 16),
    "whisper": ("WhisperModel", "WhisperConfig", WHISPER,
                {"input_features": images(8, 32), "decoder_input_ids": ids(4)}, "*attn.q_proj", 16),
}  # fmt: skip


def build(name):
    model, config, sizes, *_ = MODELS[name]
    torch.manual_seed(0)
    return hugging_face(model, config, **sizes).eval()


def outputs(model, inputs):
    with torch.no_grad():
        return fg.outputs.numbers_in(model(**inputs), "test")


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is not installed")
@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.long("seconds each")) for name in MODELS])
def test_transformers(name, tmp_path):
    *_, inputs, heads, width = MODELS[name]
    model = build(name)
    fg.compress_(model, CONFIG, inputs)  # refuses what would compute anything else than the masked network
    makers = [layer for at, layer in model.named_modules() if fg.layer_selection.fnmatch.fnmatchcase(at, heads)]
    assert makers
    assert all(layer.weight.shape[1 if name == "gpt2" else 0] == width for layer in makers)
    fg.save(model, tmp_path / "m.safetensors")
    again = fg.load(tmp_path / "m.safetensors", into=build(name))
    for one, other in zip(outputs(model, inputs), outputs(again, inputs), strict=True):
        assert torch.equal(one, other)
    wrapped = Wired(lambda s, *x: s.inner(**dict(zip(inputs, x, strict=True)))[0], inner=model).eval()
    fg.export(wrapped, tmp_path / "m.onnx", tuple(inputs.values()), seconds=0.01)  # compares the outputs


class Attention(nn.Module):
    """Packed queries, keys and values of heads with norms and rotated positions, in residual streams."""

    def __init__(self, heads=4, size=6):
        super().__init__()
        self.num_heads, self.head_dim, self.attn_dim = heads, size, heads * size
        self.embed, self.qkv, self.proj = nn.Linear(5, 16), nn.Linear(16, 3 * heads * size), nn.Linear(heads * size, 16)
        self.q_norm, self.k_norm, self.norm = nn.RMSNorm(size), nn.LayerNorm(size), nn.RMSNorm(16)
        self.head = nn.Linear(16, 3)
        self.register_buffer("angles", torch.arange(7.0)[:, None] / torch.tensor([1.0, 3.0, 9.0]))

    def rotated(self, x):
        a, b = x.chunk(2, -1)
        cos, sin = self.angles.cos(), self.angles.sin()
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    def forward(self, x):
        h = self.embed(x)
        b, n, _ = h.shape
        q, k, v = self.qkv(self.norm(h)).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(self.rotated(self.q_norm(q)), self.rotated(self.k_norm(k)), v)
        return self.head(h + self.proj(y.transpose(1, 2).reshape(b, n, self.attn_dim)))


def test_whole_heads_of_packed_attention(tmp_path):
    torch.manual_seed(0)
    model, x = Attention(), torch.randn(10, 7, 5)
    whole = Attention()
    whole.load_state_dict(model.state_dict())
    fg.compress_(model, CONFIG, x, where=["qkv"])
    assert (model.num_heads, model.head_dim, model.attn_dim) == (2, 6, 12)
    assert (model.qkv.out_features, model.proj.in_features, model.embed.out_features) == (36, 12, 16)
    gone = torch.ones(24, dtype=torch.bool)
    gone[model.proj.kept_inputs] = False
    assert gone.view(4, 6).any(1).equal(gone.view(4, 6).all(1))
    with torch.no_grad():
        whole.proj.weight[:, gone] = 0
    torch.testing.assert_close(model(x), whole(x))
    fg.save(model, tmp_path / "m.safetensors")
    assert torch.equal(fg.load(tmp_path / "m.safetensors", into=Attention())(x), model(x))


class Padded(torch.nn.Module):
    """Zeros are added around what units give, as CREPE and others do it, by a function."""

    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Conv2d(1, 8, (5, 1)), torch.nn.Conv2d(8, 6, (4, 1))
        self.head = torch.nn.Linear(6, 3)

    def forward(self, x):
        x = torch.nn.functional.pad(x, (0, 0, 2, 2))
        x = torch.nn.functional.pad(self.first(x).relu(), (0, 0, 1, 2))
        return self.head(self.second(x).relu().mean((2, 3)))


def test_units_before_padding():
    torch.manual_seed(0)
    model = Padded()
    report = fg.compress_(model, fg.SubsetPruning(keep=0.5, measure=False), torch.randn(40, 1, 16, 1))
    assert (model.first.out_channels, model.second.in_channels, model.second.out_channels) == (4, 4, 3)
    assert model.head.in_features == 3
    assert "left whole" not in str(report)
