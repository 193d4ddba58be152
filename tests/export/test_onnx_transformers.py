"""ONNX files of transformers, and of modules that read their layers' attributes, equal torch with any method."""

import os

import pytest
import torch
from torch import nn

import filigree as fg
from filigree.compress.compression import Compression
from filigree.convert import Conversion
from filigree.export import export_onnx
from filigree.export.onnx.program import Session

REASON = "the extra `onnx` is not installed"
onnx = pytest.importorskip("onnx", reason=REASON)
pytest.importorskip("onnxscript", reason=REASON)
pytest.importorskip("onnxruntime", reason=REASON)

DENSE = fg.ErdosRenyi(density=0.4)
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


def words(batch):
    return torch.randint(3, 40, (batch, 6))


class FromOneInput(nn.Module):
    """An encoder and a decoder, which reads the same words, or always these."""

    def __init__(self, model, words=None):
        super().__init__()
        self.model, self.words = model, words

    def forward(self, x):
        start = x if self.words is None else self.words.expand(len(x), -1)
        return self.model(x, decoder_input_ids=start).last_hidden_state


def of_transformers(name):
    """The model, and what makes a batch of its inputs."""
    t = pytest.importorskip("transformers", reason="the extra `transformers` is not installed")
    torch.manual_seed(0)
    if name == "BERT":
        return t.BertModel(t.BertConfig(vocab_size=40, **SMALL)), words
    if name == "GPT-2":
        from filigree.integrations.transformers import conv1d_to_linear_

        sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}
        model = t.GPT2LMHeadModel(t.GPT2Config(vocab_size=40, use_cache=False, **sizes))
        conv1d_to_linear_(model)
        return model, words
    if name == "Llama":
        return t.LlamaForCausalLM(t.LlamaConfig(vocab_size=40, num_key_value_heads=1, use_cache=False, **SMALL)), words
    if name == "T5":
        sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
        return FromOneInput(t.T5Model(t.T5Config(vocab_size=40, use_cache=False, **sizes))), words
    if name == "ViT":
        return t.ViTModel(t.ViTConfig(image_size=16, patch_size=8, **SMALL)), lambda n: torch.randn(n, 3, 16, 16)
    sizes = {
        "d_model": 16, "num_mel_bins": 8, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_source_positions": 8,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
    }  # fmt: skip
    model = t.WhisperModel(t.WhisperConfig(vocab_size=40, use_cache=False, **sizes))
    return FromOneInput(model, torch.tensor([[5, 9, 11]])), lambda n: torch.randn(n, 8, 16)


def methods():
    """What the configs give as examples of themselves, but for pruning, which has a matrix of its own."""
    for base in (Conversion, Compression):
        for kind in base.by_kind().values():
            if not kind.__module__.startswith("filigree.compress.pruning"):
                yield from kind.examples().items()


def one_line(error):
    text = str(error)
    assert "\n" not in text.strip()
    assert len(text) < 600
    return text


def check_export(model, make, path):
    """Export a model with tensors in its outputs, and compare the file with torch on another batch of another size."""
    export_onnx(model, path, make(2), seconds=0.0)
    x = make(3)
    with torch.no_grad():
        outputs = model.eval()(x)
    expected = list(outputs.values()) if isinstance(outputs, dict) else [outputs]
    for y, reference in zip(Session(onnx.load(path)).run([x]), expected, strict=True):
        torch.testing.assert_close(y, reference, rtol=0, atol=1e-4 * float(reference.abs().max()))


def cells():
    """Six models with some twenty-five methods: one in eight, or with FILIGREE_EVERY_EXPORT=1 each."""
    every = os.environ.get("FILIGREE_EVERY_EXPORT") == "1"
    for i, name in enumerate(["BERT", "GPT-2", "Llama", "T5", "ViT", "Whisper"]):
        for j, (label, config) in enumerate(methods()):
            if every or (i + 3 * j) % 8 == 1:
                yield pytest.param(name, config, id=f"{name}-{label}")


@pytest.mark.long("an export takes seconds")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(("name", "config"), list(cells()))
def test_files_equal_torch_or_the_method_is_refused_in_one_line(name, config, tmp_path):
    model, make = of_transformers(name)
    try:
        if isinstance(config, Conversion):
            fg.convert_(model, config)
        else:
            fg.compress_(model, config, make(4))
    except ValueError as error:
        pytest.skip(f"refused: {one_line(error)}")
    model.train()(make(2))
    check_export(model.eval(), make, tmp_path / "m.onnx")


@pytest.mark.filterwarnings("ignore:enable_nested_tensor:UserWarning")
def test_torch_s_encoder_layer(tmp_path):
    """In eval mode it reads its layers' weights, and bypasses the layers unless it notices that they are others."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True))
    dense = model[0].linear1
    fg.convert_(model, fg.Sparse(DENSE), where="*linear1")
    fg.convert_(model, fg.LowRank(4), where="*linear2")
    check_export(model, lambda n: torch.randn(n, 6, 16), tmp_path / "m.onnx")
    x = torch.randn(2, 6, 16)
    with torch.no_grad():
        y = model.eval()(x)
        model[0].linear1 = model[0].linear1.dense()
        torch.testing.assert_close(y, model(x))
        model[0].linear1 = dense
        assert not torch.allclose(y, model(x))


class Reads(nn.Module):
    """It reads of a layer what models of other libraries do."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        layer = self.layer
        assert layer.weight.shape == (layer.out_features, layer.in_features)
        assert layer.bias is None or layer.bias.shape == (layer.out_features,)
        x = x.to(device=layer.weight.device, dtype=layer.weight.dtype)
        return layer(x)[..., : layer.out_features].relu()


def test_modules_that_read_their_layers_attributes(tmp_path):
    torch.manual_seed(0)
    configs = [
        fg.Sparse(DENSE), fg.Sparse(DENSE, masked=True), fg.ACDC(), fg.Fastfood(), fg.PHD(), fg.AFDF(),
        fg.Asymmetric.topk(4), fg.LowRank(4),
    ]  # fmt: skip
    model = nn.Sequential(*(Reads(nn.Linear(8, 8)) for _ in range(len(configs) + 1)))
    for number, config in enumerate(configs):
        fg.convert_(model, config, where=f"{number}.layer")
    fg.compress_(model, fg.MonteCarlo(), torch.randn(9, 8), where=f"{len(configs)}.layer")
    check_export(model, lambda n: torch.randn(n, 8), tmp_path / "m.onnx")


# -- what ONNX has otherwise than torch, or not at all -----------------------------------------------------------------


def pools(dims):
    kinds = (getattr(nn, f"{kind}Pool{dims}d") for kind in ("Max", "Avg", "LP", "AdaptiveAvg", "AdaptiveMax"))
    largest, average, power, adaptive, adaptive_largest = kinds
    for geometry in ((3, 2, 1, 2), (2, 3, 1, 2), (2, 2, 0, 1)):
        yield largest(*geometry, ceil_mode=True)
    for geometry in ((3, 2, 1), (2, 3, 0), (2, 3, 1)):
        yield from (average(*geometry, ceil_mode=True, count_include_pad=counted) for counted in (True, False))
    yield average(3, 2, 1, count_include_pad=False)
    yield from (power(2, 3, 2, ceil_mode=True), power(2, 2, 3, ceil_mode=True), adaptive(3), adaptive_largest(4))
    if dims > 1:
        yield average(3, 2, ceil_mode=True, divisor_override=2)


@pytest.mark.long("exports some fifty poolings")
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_pooling_equals_torch_or_is_refused_in_one_line(dims, tmp_path):
    exported = 0
    for pool in pools(dims):
        torch.manual_seed(0)
        make = lambda n: torch.randn(n, 3, *range(8, 8 + dims)) - 2  # noqa: E731 - padding of zeros would be the largest
        try:
            check_export(nn.Sequential(pool), make, tmp_path / "m.onnx")
            exported += 1
        except ValueError as error:
            refused = one_line(error)
            assert refused.startswith("export: ")
            assert list(tmp_path.glob("*")) == [tmp_path / "m.onnx"] * bool(exported)
    assert exported > 5


def test_what_onnx_infers_otherwise_is_refused_by_name(tmp_path):
    """torch drops a last window that would begin in the padding, and ONNX does not."""
    model = nn.Sequential(nn.ReLU(), nn.AvgPool1d(2, 3, ceil_mode=True))
    with pytest.raises(ValueError, match=r"^export: '1' \(AvgPool1d\) cannot be exported: .*AveragePool") as caught:
        export_onnx(model, tmp_path / "m.onnx", torch.randn(2, 3, 9))
    one_line(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_model_that_returns_no_tensors_is_refused(tmp_path):
    class Returns(nn.Module):
        def __init__(self, outputs):
            super().__init__()
            self.layer, self.outputs = nn.Linear(3, 3), outputs

        def forward(self, x):
            return self.outputs

    for outputs, line in (((), "returns none"), (3, r"must return tensors.*Got int\."), ({"a": "b"}, "Got str")):
        with pytest.raises((TypeError, ValueError), match=f"^export: the model .*{line}"):
            export_onnx(Returns(outputs), tmp_path / "m.onnx", torch.randn(2, 3))
    assert not list(tmp_path.iterdir())
