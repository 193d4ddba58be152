"""Whatever a method makes of a network comes back from its file and computes the same, bit for bit."""

import dataclasses
import itertools

import pytest
import torch
import torch_pruning as tp
from torch import nn

import filigree as fg
from composition import AFTER, BEFORE
from filigree.compress import Compression
from filigree.config import config
from filigree.convert import Change

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
N = 6  # samples


class Scaled(nn.Module):
    """Bare parameters of a user's own."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 3)
        self.scale, self.shift = nn.Parameter(torch.rand(16) + 0.5), nn.Parameter(torch.randn(16))

    def forward(self, x):
        return self.last(torch.relu(self.first(x) * self.scale + self.shift))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.body, self.head = nn.Embedding(11, 8), nn.Linear(8, 8), nn.Linear(8, 11, bias=False)
        self.head.weight = self.words.weight

    def forward(self, ids):
        return self.head(torch.tanh(self.body(self.words(ids))))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.attend, self.last = nn.Linear(5, 8), nn.MultiheadAttention(8, 2), nn.Linear(8, 3)

    def forward(self, x):
        y = self.first(x)
        return self.last(self.attend(y, y, y, need_weights=False)[0])


class Last(nn.Module):
    def __init__(self, rnn):
        super().__init__()
        self.rnn, self.out = rnn, nn.Linear(8, 3)

    def forward(self, x):
        return self.out(self.rnn(x)[0][:, -1])


class Logits(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x).logits


def chain(*body):
    return nn.Sequential(*body, nn.Flatten(), nn.LazyLinear(3))


def bert():
    t = pytest.importorskip("transformers", reason="the extra `transformers` is not installed")
    config = t.BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                          intermediate_size=32, max_position_embeddings=16)  # fmt: skip
    return Logits(t.BertForSequenceClassification(config))


def vit():
    t = pytest.importorskip("transformers", reason="the extra `transformers` is not installed")
    config = t.ViTConfig(image_size=8, patch_size=4, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                         intermediate_size=32)  # fmt: skip
    return Logits(t.ViTForImageClassification(config))


def floats(*shape):
    return torch.randn(N, *shape)


def words(length):
    return torch.randint(11, (N, length))


NETWORKS = {
    "batch norm": (lambda: chain(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU()), floats(8)),
    "layer norm": (lambda: chain(nn.Linear(8, 16), nn.LayerNorm(16), nn.ReLU()), floats(8)),
    "no bias": (lambda: nn.Sequential(nn.Linear(8, 16, False), nn.GELU(), nn.Linear(16, 3, False)), floats(8)),
    "images, batch norms": (
        lambda: chain(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3, bias=False)),
        floats(3, 8, 8),
    ),
    "images, other norms": (
        lambda: chain(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.PReLU(8), nn.Conv2d(8, 4, 3),
                      nn.InstanceNorm2d(4, affine=True, track_running_stats=True), nn.PReLU(4)),
        floats(3, 8, 8),
    ),
    "depthwise": (
        lambda: chain(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)),
        floats(3, 6, 6),
    ),
    "channels last": (
        lambda: chain(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 3)),
        floats(3, 8, 8),
    ),
    "sequences": (lambda: chain(nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8), nn.PReLU(8), nn.Conv1d(8, 4, 3)), floats(3, 8)),
    "volumes": (
        lambda: chain(nn.Conv3d(2, 6, 3), nn.BatchNorm3d(6), nn.ReLU(), nn.Conv3d(6, 4, 2)), floats(2, 4, 4, 4),
    ),
    "transposed": (
        lambda: chain(nn.ConvTranspose2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.ConvTranspose2d(8, 4, 3)),
        floats(3, 4, 4),
    ),
    "embedding": (lambda: chain(nn.Embedding(11, 8), nn.LayerNorm(8), nn.Linear(8, 6), nn.ReLU()), words(4)),
    "tied": (Tied, words(4)),
    "LSTM": (lambda: Last(nn.LSTM(5, 8, batch_first=True)), floats(4, 5)),
    "transformer": (lambda: nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)), floats(4, 8)),
    "attention": (Attention, floats(4, 5)),
    "bare parameters": (Scaled, floats(8)),
    "BERT": (bert, words(6)),
    "ViT": (vit, floats(3, 8, 8)),
    "resnet": (lambda: fg.models.resnet([1, 1, 1], width=4), floats(3, 8, 8)),
}  # fmt: skip
CASES = [
    pytest.param(*case, marks=() if number % 20 == 0 else pytest.mark.long("one in twenty is tried in make test"))
    for number, case in enumerate(itertools.product(NETWORKS, BEFORE | AFTER))
]


def built(name):
    torch.manual_seed(0)
    make, x = NETWORKS[name]
    model = make()
    model(x)  # lazy layers take their sizes
    return model, x


def check_comes_back(model, name, path):
    x = NETWORKS[name][1]
    expected = model.eval()(x)
    fg.save(model, path)
    again = fg.load(path, into=built(name)[0]).eval()
    assert torch.equal(again(x), expected)
    return again


@pytest.mark.parametrize(("name", "method"), CASES)
def test_every_method_comes_back(name, method, tmp_path):
    model, x = built(name)
    if name == "channels last":
        model.to(memory_format=torch.channels_last)
    try:
        if method in AFTER:
            timed = {"measure": False} if hasattr(AFTER[method], "measure") else {}
            fg.compress_(model, dataclasses.replace(AFTER[method], **timed), x)
        else:
            fg.convert_(model, BEFORE[method], where=lambda path, _: path != "")
    except ValueError:  # a line that says why, tested elsewhere
        return
    check_comes_back(model, name, tmp_path / "m")


@config
class Halved(Compression):
    """A compression of a user's own: half of a module's outputs go, and what depends on them, by torch-pruning."""

    @classmethod
    def examples(cls):
        return {}

    def accepts(self, module):
        return True

    def compress(self, model, names, data):
        known = [m for m in model.modules() if type(m).__module__.startswith("torch.")]
        bare = [(p, p.dim() - 1) for m in {*model.modules()} - {*known} for p in m._parameters.values()]
        graph = tp.DependencyGraph().build_dependency(model, data.tensor, unwrapped_parameters=bare)
        module = model.get_submodule(names[0])
        pruner = graph.get_pruner_of_module(module)
        gone = list(range(1, pruner.get_out_channels(module), 2))
        graph.get_pruning_group(module, pruner.prune_out_channels, idxs=gone).prune()
        return [Change.of(names[0], module, module)], []


HALVED = {
    "batch norm": "0", "layer norm": "0", "no bias": "0", "images, batch norms": "3", "images, other norms": "0",
    "depthwise": "0", "channels last": "0", "sequences": "0", "volumes": "0", "transposed": "0",
    "bare parameters": "first", "BERT": "model.bert.embeddings.word_embeddings", "embedding": "0",
    "attention": "first", "resnet": "conv",
    "ViT": "model.vit.embeddings.patch_embeddings.projection",
}  # fmt: skip


@pytest.mark.parametrize("name", HALVED)
def test_modules_of_any_class_come_back_in_their_new_sizes(name, tmp_path):
    model, x = built(name)
    before = sum(p.numel() for p in model.parameters())
    fg.compress_(model, Halved(), x, where=HALVED[name])
    assert sum(p.numel() for p in model.parameters()) < before
    again = check_comes_back(model, name, tmp_path / "m")
    assert repr(again) == repr(model)  # in_features, num_groups and the like
    fg.save(again, tmp_path / "n")  # and once more
    check_comes_back(again, name, tmp_path / "n")


@config
class Narrowed(Compression):
    """A compression that gives a layer fewer outputs, and a buffer that no state dict holds as many numbers."""

    @classmethod
    def examples(cls):
        return {}

    def accepts(self, module):
        return isinstance(module, Masked)

    def compress(self, model, names, data):
        for layer in map(model.get_submodule, names):
            layer.weight, layer.mask = nn.Parameter(layer.weight[:2]), layer.mask[:2]
        return [], []


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3))
        self.register_buffer("mask", torch.rand(4), persistent=False)

    def forward(self, x):
        return x @ self.weight.t() * self.mask


def test_buffers_of_another_size_are_stored_even_if_no_state_dict_held_them(tmp_path):
    model, x = nn.Sequential(Masked()), torch.randn(5, 3)
    fg.compress_(model, Narrowed(), x)
    fg.save(model, tmp_path / "m")
    assert torch.equal(fg.load(tmp_path / "m", into=nn.Sequential(Masked()))(x), model(x))


def test_ties_are_those_of_the_saved_model(tmp_path):
    model, other = Tied(), Tied()
    model.head.weight = nn.Parameter(torch.randn(11, 8))  # cut
    fg.save(model, tmp_path / "cut")
    again = fg.load(tmp_path / "cut", into=other)
    x = words(4)
    assert torch.equal(again(x), model(x))
    assert again.head.weight is not again.words.weight
    model.head.weight = model.words.weight
    fg.save(model, tmp_path / "tied")
    other.head.weight = nn.Parameter(torch.randn(11, 8))
    again = fg.load(tmp_path / "tied", into=other)
    assert torch.equal(again(x), model(x))
    assert again.head.weight is again.words.weight


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_numbers_of_another_type_are_refused(dtype, tmp_path):
    fg.save(nn.Sequential(nn.Linear(3, 2)).to(dtype), tmp_path / "m")
    with pytest.raises(ValueError, match=f"is {dtype} in the file. Make `into` so first, its is torch.float32"):
        fg.load(tmp_path / "m", into=nn.Sequential(nn.Linear(3, 2)))
    assert fg.load(tmp_path / "m", into=nn.Sequential(nn.Linear(3, 2)).to(dtype))[0].weight.dtype is dtype


def test_memory_order_comes_back(tmp_path):
    model = fg.models.lenet5().to(memory_format=torch.channels_last)
    model.fc1.weight = nn.Parameter(model.fc1.weight.detach().t().contiguous().t())
    fg.save(model, tmp_path / "m")
    for again in (fg.load(tmp_path / "m"), fg.load(tmp_path / "m", into=fg.models.lenet5())):
        strides = [p.stride() for p in again.parameters()]
        assert strides == [p.stride() for p in model.parameters()]


def test_layers_that_measuring_left_dense(tmp_path, monkeypatch):
    verdicts = iter([(True, ""), (False, "")])
    monkeypatch.setattr("filigree.nn.sparse.sparse._is_faster", lambda *_: next(verdicts))
    make = lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3))  # noqa: E731
    model, x = make(), torch.randn(4, 3, 8, 8)
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.3)), measure=x)
    fg.save(model.eval(), tmp_path / "m")
    again = fg.load(tmp_path / "m", into=make()).eval()
    assert repr(again) == repr(model)
    assert torch.equal(again(x), model(x))


WRAPPERS = {
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "parallel": nn.DataParallel,
    "both": lambda model: torch.compile(nn.DataParallel(model), backend="eager"),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_the_model_inside_a_wrapper_is_saved_and_loaded(wrapper, tmp_path):
    model, x = built("layer norm")
    fg.compress_(model, fg.MagnitudePruning(keep=0.5), x)
    fg.save(WRAPPERS[wrapper](model), tmp_path / "m")
    assert torch.equal(check_comes_back(model, "layer norm", tmp_path / "plain")(x), model(x))
    assert (tmp_path / "m").read_bytes() == (tmp_path / "plain").read_bytes()
    wrapped = WRAPPERS[wrapper](built("layer norm")[0])
    assert fg.load(tmp_path / "m", into=wrapped) is wrapped
    assert torch.equal(wrapped(x), model(x))


def test_what_was_done_to_a_wrapped_model_or_to_a_compiled_part_is_known(tmp_path):
    model, x = built("layer norm")
    fg.compress_(torch.compile(model, backend="eager"), fg.MagnitudePruning(keep=0.5), x)
    model[0] = torch.compile(model[0], backend="eager")
    fg.save(model, tmp_path / "m")
    assert torch.equal(fg.load(tmp_path / "m", into=built("layer norm")[0])(x), model(x))
