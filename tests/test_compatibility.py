"""What users of torch do with any model: compile, copy, cast, move and save it; and models of transformers and timm.

FILIGREE_COMPILE=inductor compiles with that backend, which takes many minutes; by default graphs are captured and
differentiated, not compiled to machine code."""

import copy
import os
import re
import warnings

import pytest
import torch
from torch import nn

import filigree as fg
from composition import METHODS, apply, inputs, network, train

COMPILER = os.environ.get("FILIGREE_COMPILE", "aot_eager")
DENSE = fg.ErdosRenyi(density=0.3)


def convolutional():
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)), torch.randn(4, 3, 8, 8)


class Last(nn.Module):
    def __init__(self, rnn):
        super().__init__()
        self.rnn, self.out = rnn, nn.Linear(8, 4)

    def forward(self, x):
        return self.out(self.rnn(x)[0][:, -1])


def recurrent(kind):
    torch.manual_seed(0)
    return Last(kind(6, 8, num_layers=2, batch_first=True)), torch.randn(4, 5, 6)


OTHERS = {
    "convolution, sparse": (convolutional, fg.Sparse(DENSE)),
    "convolution, top-k": (convolutional, fg.Asymmetric.topk(4)),
    "convolution, RoundToNearest": (convolutional, fg.RoundToNearest()),
    "convolution, pruned": (convolutional, fg.SubsetPruning(keep=0.5)),
    "LSTM, sparse": (lambda: recurrent(nn.LSTM), fg.Sparse(DENSE)),
    "LSTM, noisy": (lambda: recurrent(nn.LSTM), fg.Noisy("NAH")),
    "LSTM, mollified": (lambda: recurrent(nn.LSTM), fg.Mollified()),
    "GRU, top-k": (lambda: recurrent(nn.GRU), fg.Asymmetric.topk(4)),
    "GRU, noisy": (lambda: recurrent(nn.GRU), fg.Noisy("NANIS")),
}


def changed(name):
    """A model with that method, trained two steps, in eval mode; and inputs."""
    if name in METHODS:
        model, x = network(), inputs()
        assert not apply(model, name)
        train(model)
    else:
        (model, x), config = OTHERS[name][0](), OTHERS[name][1]
        change = fg.compress_ if hasattr(fg.compress, type(config).__name__) else fg.convert_
        assert (change(model, config, x) if change is fg.compress_ else change(model, config)).changes
    return model.eval(), x


@pytest.fixture(params=[*METHODS, *OTHERS])
def case(request):
    return changed(request.param)


QUICKLY = ("Sparse", "top-k", "ACDC", "Noisy", "MonteCarlo", "convolution, sparse", "LSTM, sparse")
COMPILED = [
    name if name in QUICKLY else pytest.param(name, marks=pytest.mark.long("compiles twice, half a second each"))
    for name in (*METHODS, *OTHERS)
]


@pytest.mark.parametrize("name", COMPILED)
def test_compiles_or_falls_back(name):
    model, x = changed(name)
    torch.compiler.reset()
    model.zero_grad()
    eager = copy.deepcopy(model)
    expected = eager(x)
    with warnings.catch_warnings(record=True) as warned:  # the compiler's own are many
        warnings.simplefilter("always")
        output = torch.compile(model, backend=COMPILER)(x)
        torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
        if output.requires_grad:
            output.square().sum().backward()
            expected.square().sum().backward()
        for (parameter, compiled), plain in zip(model.named_parameters(), eager.parameters(), strict=True):
            torch.testing.assert_close(
                compiled.grad, plain.grad, rtol=1e-3, atol=1e-5, msg=lambda m, n=parameter: f"{n}: {m}"
            )
        assert bool(torch.compile(model.train(), backend=COMPILER)(x).isfinite().all())  # with its noise
    assert not [one for one in warned if "filigree" in str(one.message)]


def test_copies_are_independent(case):
    model, x = case
    expected = model(x)
    other = copy.deepcopy(model)
    assert torch.equal(other(x), expected)
    with torch.no_grad():
        for tensor in other.parameters():
            tensor.zero_()
    assert torch.equal(model(x), expected)


def test_the_state_dict_is_read_without_pickle(case, tmp_path):
    model, x = case
    torch.save(model.state_dict(), tmp_path / "model.pt")
    other = copy.deepcopy(model)
    with torch.no_grad():
        for tensor in other.parameters():
            tensor.zero_()
    other.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    assert torch.equal(other(x), model(x))


@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-5), (torch.bfloat16, 0.1)])
def test_other_types(case, dtype, error):
    """As `.double()` and `.bfloat16()` do: `.to(dtype)` would make complex weights real."""
    model, x = case
    expected = model(x)
    y = (model.double() if dtype is torch.float64 else model.bfloat16())(x.to(dtype))
    assert y.dtype is dtype
    torch.testing.assert_close(y.float(), expected, rtol=error, atol=error)


def test_moves_to_another_device(case):
    """The meta device stands in for an accelerator: all that a layer holds goes along."""
    model, _ = case
    model.to("meta")
    assert {tensor.device.type for tensor in [*model.parameters(), *model.buffers()]} == {"meta"}


@pytest.mark.parametrize("name", ["Sparse", "ACDC", "PHD", "LowRank", "RoundToNearest", "PathSampling"])
def test_weight_is_that_of_the_dense_layer(name):
    model, _ = changed(name)
    layers = [module for module in model.modules() if hasattr(module, "dense")]
    for layer in layers:
        dense = layer.dense()
        torch.testing.assert_close(
            torch.Tensor(layer.weight), (dense[0] if isinstance(dense, nn.Sequential) else dense).weight
        )
        assert not layer.weight.requires_grad
    assert layers


def test_a_layer_with_relu_inside_has_no_weight():
    layer = fg.nn.ACDCLinear(8, 8, order=2, relu=True)
    assert not hasattr(layer, "weight")


@pytest.mark.parametrize("config", [fg.Sparse(DENSE), fg.ACDC(2), fg.LowRank(4)], ids=lambda c: type(c).__name__)
@torch.no_grad()
def test_a_transformer_in_eval_mode_runs_the_converted_layers(config):
    """torch would pass the layers' weights to one fused product (not where there are hooks, so none count here)."""
    torch.manual_seed(0)
    model = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(16, 2, 16, batch_first=True), 2, enable_nested_tensor=False
    )
    fg.convert_(model, config, where="*.linear?")
    seen = []
    for module in model.modules():
        if hasattr(module, "dense"):
            module.forward = lambda x, its=module.forward: seen.extend([1] * (x.dim() == 3)) or its(x)
    x = torch.randn(3, 5, 16)
    y = model.eval()(x)
    assert len(seen) == 4
    torch.testing.assert_close(y, dense_reference(model)(x), rtol=1e-4, atol=1e-5)


def dense_reference(model):
    dense_reference = copy.deepcopy(model)
    for name, module in list(dense_reference.named_modules()):
        if hasattr(module, "dense"):
            parent, _, last = name.rpartition(".")
            setattr(dense_reference.get_submodule(parent), last, module.dense())
    return dense_reference


# -- transformers and timm -----------------------------------------------------------------------------------------

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def words():
    ids = torch.randint(99, (2, 10))
    return {"input_ids": ids, "labels": ids}


def two_classes(**given):
    return given | {"labels": torch.tensor([0, 1])}


def of_transformers(name):
    """The model, and a batch."""
    t = pytest.importorskip("transformers", reason="the extra `transformers` is not installed")
    torch.manual_seed(0)
    if name == "BERT":
        return t.BertForSequenceClassification(t.BertConfig(vocab_size=99, **SMALL)), two_classes(**words())
    if name == "BERT, tied":
        return t.BertForMaskedLM(t.BertConfig(vocab_size=99, **SMALL)), words()
    if name == "GPT-2":
        from filigree.integrations.transformers import conv1d_to_linear_

        model = t.GPT2LMHeadModel(
            t.GPT2Config(vocab_size=99, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0)
        )
        batch = words()
        expected = model.eval()(**batch).logits
        assert len(conv1d_to_linear_(model)) == 8
        torch.testing.assert_close(model(**batch).logits, expected)
        return model, batch
    if name == "Llama":
        return t.LlamaForCausalLM(t.LlamaConfig(vocab_size=99, **SMALL)), words()
    if name == "T5":
        config = t.T5Config(
            vocab_size=99, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0
        )
        return t.T5ForConditionalGeneration(config), words()
    assert name == "ViT"
    model = t.ViTForImageClassification(t.ViTConfig(image_size=16, patch_size=4, **SMALL))
    return model, two_classes(pixel_values=torch.randn(2, 3, 16, 16))


CONFIGS = {"sparse": fg.Sparse(DENSE), "top-k": fg.Asymmetric.topk(8), "low rank": fg.LowRank(4), "ACDC": fg.ACDC(2)}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("name", ["BERT", "BERT, tied", "GPT-2", "Llama", "T5", "ViT"])
def test_transformers(name, config, tmp_path):
    model, batch = of_transformers(name)
    outputs = lambda of: of.eval()(**batch).logits  # noqa: E731
    check_life(model, lambda: of_transformers(name)[0], lambda of: of(**batch).loss, outputs, config, tmp_path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize(
    "name", ["resnet10t", "vit_tiny_patch16_224", "mixer_s32_224", "mobilenetv3_small_050", "convnext_atto"]
)
def test_timm(name, config, tmp_path):
    timm = pytest.importorskip("timm", reason="timm needs torchvision, which has no build for torch's CPU version")
    size = {"img_size": 32} if name.startswith(("vit", "mixer")) else {}
    make = lambda: timm.create_model(name, num_classes=4, **size)  # noqa: E731
    torch.manual_seed(0)
    x, y = torch.randn(2, 3, 32, 32), torch.tensor([0, 1])
    loss = lambda of: nn.functional.cross_entropy(of(x), y)  # noqa: E731
    check_life(make(), make, loss, lambda of: of.eval()(x), config, tmp_path)


def check_life(model, make, loss, outputs, config, folder):
    """Convert, train a step, save, load."""
    try:
        report = fg.convert_(model, CONFIGS[config])
    except ValueError as error:  # networks of convolutions have no linear layer that is worth it
        if re.search("no layer would gain|no module was selected", str(error)):
            return
        raise
    assert len(report.changes) >= 1
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loss(model.train()).backward()
    optimizer.step()
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    expected = outputs(model)
    assert bool(expected.isfinite().all())
    fg.save(model, folder / "model.safetensors")
    assert torch.equal(outputs(fg.load(folder / "model.safetensors", into=make())), expected)
    torch.save(model.state_dict(), folder / "model.pt")
    other = make()
    fg.convert_(other, CONFIGS[config])
    other.load_state_dict(torch.load(folder / "model.pt", weights_only=True))
    assert torch.equal(outputs(other), expected)


IN_PLACE = {"Sparse": fg.Sparse(DENSE), "top-k": fg.Asymmetric.topk(4), "ACDC": fg.ACDC(2), "Fastfood": fg.Fastfood(),
            "Circulant": fg.Circulant(), "PHD": fg.PHD(), "LowRank": fg.LowRank(4),
            "RoundToNearest": fg.RoundToNearest(), "OnlinePaths": fg.OnlinePaths(64)}  # fmt: skip


@pytest.mark.parametrize("name", [*IN_PLACE, "convolution"])
def test_what_follows_may_work_in_place(name):
    """As `nn.ReLU(inplace=True)` does behind the layers of VGG."""
    torch.manual_seed(0)
    if name == "convolution":
        layer, x, config = nn.Conv2d(3, 8, 3), torch.randn(2, 3, 6, 6), IN_PLACE["Sparse"]
    else:
        layer, x, config = nn.Linear(32, 32), torch.randn(5, 32), IN_PLACE[name]
    model = nn.Sequential(layer, nn.Hardswish(inplace=True))
    if name == "RoundToNearest":
        fg.compress_(model, config, x)
    else:
        fg.convert_(model, config, where="0")
    plain = nn.Sequential(model[0], nn.Hardswish())
    mine, its = x.clone().requires_grad_(), x.clone().requires_grad_()
    torch.manual_seed(1)
    y = model(mine)
    torch.manual_seed(1)
    expected = plain(its)
    torch.testing.assert_close(y, expected)
    (dx,), (wanted,) = (torch.autograd.grad(out.square().sum(), at) for out, at in ((y, mine), (expected, its)))
    torch.testing.assert_close(dx, wanted)
