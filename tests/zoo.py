"""Small networks, one for each kind of structure that models out there have, and what is true of each.

`NETWORKS` holds them by name; `build` makes one anew, with the same numbers each time, and `example` a batch for it.
"""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

BATCH = 24
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Network:
    """A network of the corpus.

    Attributes:
        make: builds it. structure: what is special about it.
        args, kwargs: the shapes of its inputs; a tensor stands for itself.
        prunes: whether units must come out of some layer; else they may be refused as well.
        needs: a package, without which it is skipped.
        means: whether its code takes means over units outside norms.
    """

    make: Callable[[], nn.Module]
    structure: str
    args: tuple[Shape | Tensor, ...]
    kwargs: dict[str, Shape | Tensor]
    prunes: bool
    needs: str | None
    means: bool = False

    def build(self) -> nn.Module:
        if self.needs and importlib.util.find_spec(self.needs) is None:
            pytest.skip(f"{self.needs} is not installed")
        torch.manual_seed(0)
        return trained(self.make())

    def example(self) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(1)

        def drawn(shape: Shape | Tensor) -> Tensor:
            return shape if isinstance(shape, Tensor) else torch.randn(shape, generator=generator)

        return tuple(map(drawn, self.args)), {name: drawn(shape) for name, shape in self.kwargs.items()}


def trained(model: nn.Module) -> nn.Module:
    """With the numbers of norms and biases different for each unit, as after training: equal ones would hide faults."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point() and tensor.numel() > 1 and bool((tensor == tensor.flatten()[0]).all()):
            tensor.data += 0.5 * torch.rand(tensor.shape)
    return model


NETWORKS: dict[str, Network] = {}


def network(
    *args: Shape | Tensor, prunes: bool = False, needs: str | None = None, means: bool = False, **kwargs: Shape | Tensor
) -> Callable[[Callable[[], nn.Module]], Callable[[], nn.Module]]:
    """Decorator: put the function's network into `NETWORKS`, with the shapes of its inputs behind the batch's side."""

    def batch(value: Shape | Tensor) -> Shape | Tensor:
        return value if isinstance(value, Tensor) else (BATCH, *value)

    def add(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        inputs = tuple(map(batch, args)), {name: batch(value) for name, value in kwargs.items()}
        NETWORKS[make.__name__] = Network(make, make.__doc__ or "", *inputs, prunes, needs, means)
        return make

    return add


class Wired(nn.Module):
    """Modules by name, and a function of them and the inputs."""

    def __init__(self, run: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(self, *args, **kwargs)


def tokens(length: int = 6, words: int = 40) -> Tensor:
    return torch.randint(words, (BATCH, length), generator=torch.Generator().manual_seed(2))


def mlp(*sizes: int, bias: bool = True) -> nn.Sequential:
    """Linear layers with a ReLU between each two."""
    layers = [layer for a, b in itertools.pairwise(sizes) for layer in (nn.Linear(a, b, bias), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def convs(*sizes: int, norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> nn.Sequential:
    """3 x 3 convolutions, each with its norm and a ReLU."""
    blocks = [(nn.Conv2d(a, b, 3, padding=1), norm(b), nn.ReLU()) for a, b in itertools.pairwise(sizes)]
    return nn.Sequential(*(layer for block in blocks for layer in block))


def classifier(channels: int, classes: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


# -- how layers are wired ----------------------------------------------------------------------------------------------


@network((8,), prunes=True)
def residual() -> nn.Module:
    """Two blocks whose outputs are added to their inputs."""
    run = lambda s, x: s.head((y := (z := s.stem(x)) + s.a(z)) + s.b(y))  # noqa: E731
    return Wired(run, stem=nn.Linear(8, 16), a=mlp(16, 24, 16), b=mlp(16, 24, 16), head=nn.Linear(16, 4))


@network((2, 6, 6), prunes=True)
def residual_images() -> nn.Module:
    """A residual block of convolutions and batch norms, with a shortcut of its own."""
    block = convs(8, 12, 12)
    run = lambda s, x: s.head(torch.relu(s.block(y := s.stem(x)) + s.short(y)))  # noqa: E731
    return Wired(run, stem=convs(2, 8), block=block, short=nn.Conv2d(8, 12, 1), head=classifier(12))


@network((2, 6, 6), prunes=True)
def densely_connected() -> nn.Module:
    """Each layer reads the concatenation of all before it."""

    def run(s: Any, x: Tensor) -> Tensor:
        for layer in (s.a, s.b, s.c):
            x = torch.cat([x, layer(x)], 1)
        return s.head(x)

    return Wired(run, a=convs(2, 8), b=convs(10, 8), c=convs(18, 8), head=classifier(26))


@network((2, 8, 8), prunes=True)
def unet() -> nn.Module:
    """Down and up again, with concatenated shortcuts."""

    def run(s: Any, x: Tensor) -> Tensor:
        a = s.down1(x)
        b = s.down2(F.max_pool2d(a, 2))
        return s.out(torch.cat([a, s.up(b)], 1))

    up = nn.ConvTranspose2d(12, 8, 2, stride=2)
    return Wired(run, down1=convs(2, 8), down2=convs(8, 12), up=up, out=nn.Conv2d(16, 3, 1))


@network((8,), prunes=True)
def called_twice() -> nn.Module:
    """The same two layers twice, on other inputs."""

    def run(s: Any, x: Tensor) -> Tensor:
        for _ in range(2):
            x = s.b(torch.relu(s.a(x))) * 3 + 2
        return x

    return Wired(run, a=nn.Linear(8, 32), b=nn.Linear(32, 8))


@network((8,), prunes=True)
def shared_modules() -> nn.Module:
    """One layer under three names, and one activation for all."""
    shared, relu = nn.Linear(16, 16), nn.ReLU()
    return nn.Sequential(nn.Linear(8, 16), relu, shared, relu, shared, relu, nn.Sequential(shared, nn.Linear(16, 4)))


@network((16,))
def tied_autoencoder() -> nn.Module:
    """The decoder's weight is the encoder's, transposed in the forward pass."""
    run = lambda s, x: F.linear(torch.relu(s.encoder(x)), s.encoder.weight.t(), s.out.bias)  # noqa: E731
    return Wired(run, encoder=nn.Linear(16, 12), out=nn.Linear(12, 16))


@network(tokens(), prunes=True)
def tied_embeddings() -> nn.Module:
    """The head's weight is the embedding's."""
    embed, head = nn.Embedding(40, 16), nn.Linear(16, 40, bias=False)
    head.weight = embed.weight
    return Wired(lambda s, x: s.head(s.body(s.embed(x))), embed=embed, body=mlp(16, 24, 16), head=head)


@network((8,), prunes=True)
def tied_layers() -> nn.Module:
    """Two layers with one weight, each with its bias."""
    model = mlp(8, 16, 16, 16, 4)
    model[4].weight = model[2].weight
    return model


# -- inputs and outputs ------------------------------------------------------------------------------------------------


@network((2, 4, 4))
def second_head_permuted() -> nn.Module:
    """Two outputs; the second reads the channels in another order."""
    run = lambda s, x: (s.a(z := s.stem(x)), s.b(z.unflatten(1, (2, 4)).transpose(1, 2).flatten(1, 2)))  # noqa: E731
    return Wired(run, stem=convs(2, 8), a=classifier(8), b=classifier(8, 3))


@network((8,), prunes=True)
def two_heads() -> nn.Module:
    """A tuple of two outputs."""
    return Wired(
        lambda s, x: (s.a(z := s.body(x)), s.b(z)), body=mlp(8, 24, 16), a=nn.Linear(16, 4), b=nn.Linear(16, 1)
    )


@network((8,), prunes=True)
def dict_output() -> nn.Module:
    """A dict of outputs, one of them a list."""
    run = lambda s, x: {"logits": s.a(z := s.body(x)), "all": [s.b(z), None]}  # noqa: E731
    return Wired(run, body=mlp(8, 24, 16), a=nn.Linear(16, 4), b=nn.Linear(16, 1))


@dataclass
class Output:
    logits: Tensor
    value: Tensor


@network((8,), prunes=True)
def dataclass_output() -> nn.Module:
    """A dataclass of outputs."""
    run = lambda s, x: Output(s.a(z := s.body(x)), s.b(z))  # noqa: E731
    return Wired(run, body=mlp(8, 24, 16), a=nn.Linear(16, 4), b=nn.Linear(16, 1))


class Pair(NamedTuple):
    mean: Tensor
    deviation: Tensor


@network((8,), prunes=True)
def named_tuple_output() -> nn.Module:
    """A named tuple, one of its numbers positive."""
    run = lambda s, x: Pair(s.a(z := s.body(x)), F.softplus(s.b(z)))  # noqa: E731
    return Wired(run, body=mlp(8, 24, 16), a=nn.Linear(16, 4), b=nn.Linear(16, 4))


@network(left=(8,), right=(6,))
def keyword_inputs() -> nn.Module:
    """Two inputs by keyword only."""
    run = lambda s, *, left, right: s.head(torch.relu(s.a(left) + s.b(right)))  # noqa: E731
    return Wired(run, a=nn.Linear(8, 16), b=nn.Linear(6, 16), head=mlp(16, 12, 4))


@network((8,), (6,))
def two_inputs() -> nn.Module:
    """Two inputs by position, of which the second may be left out."""

    def run(s: Any, x: Tensor, y: Tensor | None = None) -> Tensor:
        return s.head(torch.relu(s.a(x) if y is None else s.a(x) * s.b(y)))

    return Wired(run, a=nn.Linear(8, 16), b=nn.Linear(6, 16), head=mlp(16, 12, 4))


@network(tokens(), prunes=True)
def token_ids() -> nn.Module:
    """An embedding, averaged over the words."""
    return Wired(lambda s, x: s.body(s.embed(x).mean(1)), embed=nn.Embedding(40, 16), body=mlp(16, 24, 4))


@network((8,))
def data_dependent() -> nn.Module:
    """Which layer comes next depends on the numbers."""
    run = lambda s, x: s.head(s.a(x) if x.mean() > 0 else s.b(x))  # noqa: E731
    return Wired(run, a=mlp(8, 24, 16), b=mlp(8, 12, 16), head=nn.Linear(16, 4))


# -- what stands between a layer and its readers -----------------------------------------------------------------------


@network((2, 6, 6), prunes=True)
def channel_shuffle() -> nn.Module:
    """Channels are put into another order; a layer norm stands elsewhere."""
    return nn.Sequential(
        nn.Conv2d(2, 8, 3), nn.ReLU(), nn.ChannelShuffle(2), nn.Conv2d(8, 4, 1), nn.Flatten(), nn.Linear(64, 4),
        nn.LayerNorm(4),
    )  # fmt: skip


@network((2, 4, 4), prunes=True)
def channels_last_flatten() -> nn.Module:
    """Images are flattened with their channels last, behind a layer norm."""
    run = lambda s, x: s.head(s.norm(s.body(x).permute(0, 2, 3, 1)).flatten(1))  # noqa: E731
    return Wired(run, body=convs(2, 8), norm=nn.LayerNorm(8), head=mlp(128, 12, 4))


@network((8,), prunes=True)
def sorted_units() -> nn.Module:
    """Units are sorted by value."""
    return Wired(lambda s, x: s.head(s.body(x).sort(-1).values), body=mlp(8, 24, 16), head=mlp(16, 12, 4))


@network((2, 6, 6), prunes=True, means=True)
def channel_mean() -> nn.Module:
    """Each channel loses the mean over all channels."""
    run = lambda s, x: s.head(s.conv(y := s.stem(x)) + (y - y.mean(1, keepdim=True)))  # noqa: E731
    return Wired(run, stem=convs(2, 8), conv=nn.Conv2d(8, 8, 1), head=classifier(8))


@network((2, 6, 6), prunes=True)
def squeeze_excitation() -> nn.Module:
    """Channels are scaled by what a small network makes of their means."""
    run = lambda s, x: s.head((y := s.stem(x)) * torch.sigmoid(s.gate(y.mean((2, 3))))[:, :, None, None])  # noqa: E731
    return Wired(run, stem=convs(2, 8), gate=mlp(8, 4, 8), head=nn.Sequential(nn.Conv2d(8, 6, 1), classifier(6)))


@network((2, 6, 6), prunes=True, means=True)
def spatial_attention() -> nn.Module:
    """Positions are scaled by a convolution of the channels' mean and maximum."""

    def run(s: Any, x: Tensor) -> Tensor:
        y = s.stem(x)
        mask = s.mask(torch.cat([y.mean(1, keepdim=True), y.amax(1, keepdim=True)], 1))
        return s.head(y * torch.sigmoid(mask))

    mask = nn.Conv2d(2, 1, 3, padding=1)
    return Wired(run, stem=convs(2, 8), mask=mask, head=nn.Sequential(nn.Conv2d(8, 6, 1), classifier(6)))


@network((8,), prunes=True)
def scalar_gate() -> nn.Module:
    """A sample's units are scaled by one number of its own."""
    run = lambda s, x: s.head(s.body(x) * torch.sigmoid(s.gate(x)))  # noqa: E731
    return Wired(run, body=mlp(8, 24, 16), gate=mlp(8, 12, 1), head=mlp(16, 12, 4))


@network((6,), prunes=True)
def gated_halves() -> nn.Module:
    """One half of the units gates the other: `chunk`, then `nn.GLU`."""

    def run(s: Any, x: Tensor) -> Tensor:
        a, b = s.wide(x).chunk(2, -1)
        return s.out(s.glu(s.mid(F.silu(a) * b)))

    return Wired(run, wide=nn.Linear(6, 32), mid=nn.Linear(16, 24), glu=nn.GLU(), out=nn.Linear(12, 4))


@network((6,))
def uneven_split() -> nn.Module:
    """Units are split into unequal parts that different layers read."""

    def run(s: Any, x: Tensor) -> Tensor:
        a, b = torch.relu(s.wide(x)).split([12, 20], -1)
        return s.a(a) + s.b(b)

    return Wired(run, wide=nn.Linear(6, 32), a=nn.Linear(12, 4), b=nn.Linear(20, 4))


@network((2, 4, 4), prunes=True)
def pixel_shuffle() -> nn.Module:
    """Channels become pixels, pixels channels."""
    return nn.Sequential(
        nn.Conv2d(2, 12, 3, padding=1), nn.PixelShuffle(2), nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(),
        nn.PixelUnshuffle(2), nn.Conv2d(20, 6, 1), classifier(6),
    )  # fmt: skip


@network((8,), prunes=True)
def mixture_of_experts() -> nn.Module:
    """Each sample goes through the two experts that a layer chooses."""

    def run(s: Any, x: Tensor) -> Tensor:
        weights, chosen = s.gate(x).softmax(-1).topk(2)
        outputs = torch.stack([expert(x) for expert in s.experts], 1)
        return s.head((outputs.gather(1, chosen[..., None].expand(-1, -1, 16)) * weights[..., None]).sum(1))

    experts = nn.ModuleList(mlp(8, 12, 16) for _ in range(3))
    return Wired(run, gate=nn.Linear(8, 3), experts=experts, head=nn.Linear(16, 4))


@network((8,), prunes=True)
def graph_network() -> nn.Module:
    """Samples are nodes: messages along edges are summed where they arrive."""
    edges = torch.randint(BATCH, (2, 60), generator=torch.Generator().manual_seed(3))

    def run(s: Any, x: Tensor) -> Tensor:
        h = torch.relu(s.embed(x))
        start, end = s.edges % len(x)
        messages = s.message(torch.cat([h[start], h[end]], -1))
        return s.out(s.update(torch.zeros_like(h).index_add(0, end, messages)) + h)

    model = Wired(run, embed=nn.Linear(8, 16), message=mlp(32, 24, 16), update=nn.Linear(16, 16), out=nn.Linear(16, 4))
    model.register_buffer("edges", edges)
    return model


# -- norms, and numbers of their own for each unit ---------------------------------------------------------------------


@network((10,), prunes=True)
def layer_norm() -> nn.Module:
    """A layer norm between linear layers."""
    return nn.Sequential(nn.Linear(10, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 4))


@network((2, 6, 6), prunes=True)
def norms_of_images() -> nn.Module:
    """A group norm, an affine instance norm, a PReLU of each channel."""
    return nn.Sequential(
        nn.Conv2d(2, 8, 3), nn.GroupNorm(2, 8), nn.PReLU(8), nn.Conv2d(8, 12, 3), nn.InstanceNorm2d(12, affine=True),
        nn.ReLU(), classifier(12),
    )  # fmt: skip


@network((10,), prunes=True)
def batch_norm_and_prelu() -> nn.Module:
    """A batch norm of vectors, and a PReLU of each unit."""
    return nn.Sequential(
        nn.Linear(10, 32), nn.BatchNorm1d(32), nn.PReLU(32), nn.Linear(32, 16), nn.PReLU(), nn.Linear(16, 4)
    )


class Scaled(nn.Module):
    """A scale and an offset of each unit, as bare parameters, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 4)
        self.gamma, self.beta = nn.Parameter(torch.rand(16) + 0.5), nn.Parameter(torch.randn(1, 16))
        self.register_buffer("mean", torch.randn(16))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu((self.a(x) - self.mean) * self.gamma + self.beta))


@network((8,))
def bare_parameters() -> nn.Module:
    """Parameters of the network itself, one number for each unit."""
    return Scaled()


# -- flags and parametrisations ----------------------------------------------------------------------------------------


@network((2, 6, 6), prunes=True)
def frozen_backbone() -> nn.Module:
    """A frozen part in evaluation mode below a head that trains."""
    model = nn.Sequential(convs(2, 8, 12), classifier(12))
    model[0].requires_grad_(False).eval()
    return model


@network((8,), prunes=True)
def frozen() -> nn.Module:
    """Nothing trains."""
    return mlp(8, 24, 16, 4).requires_grad_(False)


@network((8,), prunes=True)
def frozen_in_parts() -> nn.Module:
    """Only the biases of one layer and the weights of another train."""
    model = mlp(8, 24, 16, 4)
    model[0].weight.requires_grad_(False)
    model[2].bias.requires_grad_(False)
    return model


@network((8,))
def weight_norms_by_hooks() -> nn.Module:
    """Weight norm and spectral norm of the old kind, by hooks."""
    return nn.Sequential(
        weight_norm(nn.Linear(8, 24)), nn.ReLU(), spectral_norm(nn.Linear(24, 16)), nn.ReLU(), nn.Linear(16, 4)
    )


@network((8,))
def parametrised() -> nn.Module:
    """Weight norm, spectral norm and orthogonality as parametrisations."""
    return nn.Sequential(
        parametrizations.weight_norm(nn.Linear(8, 24)), nn.ReLU(), parametrizations.spectral_norm(nn.Linear(24, 16)),
        nn.ReLU(), parametrizations.orthogonal(nn.Linear(16, 16)), nn.ReLU(), nn.Linear(16, 4),
    )  # fmt: skip


@network((8,))
def masked_by_torch() -> nn.Module:
    """Weights with the masks of `torch.nn.utils.prune`."""
    model = mlp(8, 24, 16, 4)
    prune.random_unstructured(model[0], "weight", 0.5)
    prune.random_structured(model[2], "weight", 0.5, dim=0)
    return model


@network((8,), prunes=True)
def hooked() -> nn.Module:
    """Hooks that change what passes."""
    model = mlp(8, 24, 16, 4)
    model[0].register_forward_hook(lambda module, args, y: y * 1.5)
    model[2].register_forward_pre_hook(lambda module, args: (args[0] + 0.5,))
    return model


# -- recurrent networks ------------------------------------------------------------------------------------------------


@network((5, 8))
def recurrent() -> nn.Module:
    """An LSTM, a GRU of both directions and a plain recurrent layer."""
    run = lambda s, x: s.head(s.rnn(s.gru(s.lstm(x)[0])[0])[1][-1])  # noqa: E731
    lstm, gru = nn.LSTM(8, 12, batch_first=True), nn.GRU(12, 8, batch_first=True, bidirectional=True)
    return Wired(run, lstm=lstm, gru=gru, rnn=nn.RNN(16, 8, batch_first=True), head=nn.Linear(8, 4))


@network((5, 8))
def cell_by_hand() -> nn.Module:
    """A loop over an LSTM cell, with a layer before and behind."""

    def run(s: Any, x: Tensor) -> Tensor:
        state = None
        for step in x.unbind(1):
            state = s.cell(torch.relu(s.embed(step)), state)
        return s.head(state[0])

    return Wired(run, embed=nn.Linear(8, 12), cell=nn.LSTMCell(12, 10), head=mlp(10, 12, 4))


# -- convolutions ------------------------------------------------------------------------------------------------------


@network((2, 16))
def convolutions_of_series() -> nn.Module:
    """Convolutions of one dimension, dilated and strided, with batch norms."""
    return nn.Sequential(
        nn.Conv1d(2, 8, 3, stride=2), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 12, 2, dilation=2), nn.ReLU(),
        nn.AdaptiveAvgPool1d(2), nn.Flatten(), nn.Linear(24, 4),
    )  # fmt: skip


@network((2, 4, 4, 4))
def convolutions_of_volumes() -> nn.Module:
    """Convolutions of three dimensions."""
    return nn.Sequential(
        nn.Conv3d(2, 8, 3, padding=1), nn.BatchNorm3d(8), nn.ReLU(), nn.Conv3d(8, 6, 2), nn.ReLU(),
        nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(6, 4),
    )  # fmt: skip


@network((4, 3, 3))
def transposed_convolutions() -> nn.Module:
    """A decoder of transposed convolutions."""
    return nn.Sequential(
        nn.ConvTranspose2d(4, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.ConvTranspose2d(8, 6, 2), nn.ReLU(),
        nn.Conv2d(6, 2, 1),
    )  # fmt: skip


@network((4, 6, 6), prunes=True)
def depthwise() -> nn.Module:
    """A mobile block: 1 x 1, depthwise, 1 x 1."""
    return nn.Sequential(
        nn.Conv2d(4, 16, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6(),
        nn.Conv2d(16, 16, 3, 2, 1, groups=16, bias=False), nn.BatchNorm2d(16), nn.ReLU6(),
        nn.Conv2d(16, 8, 1, bias=False), nn.BatchNorm2d(8), classifier(8),
    )  # fmt: skip


@network((4, 6, 6), prunes=True)
def grouped() -> nn.Module:
    """Convolutions in groups, and dilated pooling that rounds up."""
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, groups=2), nn.ReLU(), nn.MaxPool2d(2, 1, dilation=2, ceil_mode=True),
        nn.Conv2d(8, 12, 1, groups=4), nn.ReLU(), classifier(12),
    )  # fmt: skip


@network((2, 6, 6), prunes=True)
def convnext() -> nn.Module:
    """A block that computes with its channels last: layer norm, linear layers, a scale of each channel."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.depth, self.norm = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.LayerNorm(8)
            self.up, self.down = nn.Linear(8, 32), nn.Linear(32, 8)
            self.gamma = nn.Parameter(torch.full((8,), 0.5))

        def forward(self, x: Tensor) -> Tensor:
            y = self.down(F.gelu(self.up(self.norm(self.depth(x).permute(0, 2, 3, 1)))))
            return x + (self.gamma * y).permute(0, 3, 1, 2)

    return nn.Sequential(nn.Conv2d(2, 8, 2, 2), Block(), Block(), classifier(8))


@network((8,))
def reads_its_layers() -> nn.Module:
    """The forward pass reads a layer's weight, its type and its sizes."""

    def run(s: Any, x: Tensor) -> Tensor:
        y = s.a(x.to(s.a.weight.dtype)).relu() / s.a.out_features**0.5
        y = F.linear(y, s.b.weight, s.b.bias).relu()
        return s.c(F.dropout(y, s.drop.p, s.training))

    return Wired(run, a=nn.Linear(8, 24), b=nn.Linear(24, 16), c=nn.Linear(16, 4), drop=nn.Dropout(0.25))


@network((8,), prunes=True)
def registered_out_of_order() -> nn.Module:
    """Modules stand in another order than that in which they run."""
    parts = {"head": nn.Linear(16, 4), "drop": nn.Dropout(0.25), "tanh": nn.Tanh(), "body": nn.Linear(8, 16)}
    return Wired(lambda s, x: s.head(s.drop(s.tanh(s.body(x)))), **parts)


@network((8,), prunes=True)
def in_a_row() -> nn.Module:
    """Linear layers, saturating activations and dropout, one after another."""
    return nn.Sequential(
        nn.Linear(8, 24), nn.Tanh(), nn.Dropout(0.2), nn.Linear(24, 16), nn.Sigmoid(), nn.Dropout1d(0.2),
        nn.Linear(16, 4),
    )  # fmt: skip


# -- attention ---------------------------------------------------------------------------------------------------------


def heads(x: Tensor, count: int) -> Tensor:
    """(batch, length, count * size) to (batch, count, length, size)"""
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


class PackedAttention(nn.Module):
    """Queries, keys and values by one linear layer, reshaped as timm does."""

    def __init__(self, width: int, count: int = 2) -> None:
        super().__init__()
        self.qkv, self.proj, self.count = nn.Linear(width, 3 * width), nn.Linear(width, width), count
        self.drop = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.count, c // self.count).permute(2, 0, 3, 1, 4)
        p = self.drop.p if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=p)
        return self.proj(y.transpose(1, 2).reshape(b, n, c))


class Encoder(nn.Module):
    """Attention and a small network, each behind a layer norm and beside a shortcut."""

    def __init__(self, width: int, attention: nn.Module) -> None:
        super().__init__()
        self.norm1, self.attention, self.norm2 = nn.LayerNorm(width), attention, nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchesWithClass(nn.Module):
    """Patches of an image, a class token before them, and positions added."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(2, width, 2, 2)
        self.cls = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, 10, width) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        return torch.cat([self.cls.expand(len(x), -1, -1), x], 1) + self.positions


@network((2, 6, 6), prunes=True)
def vision_transformer() -> nn.Module:
    """Packed attention over patches and a class token, as timm's."""
    run = lambda s, x: s.head(s.norm(s.block(s.embed(x)))[:, 0])  # noqa: E731
    block = Encoder(12, PackedAttention(12))
    return Wired(run, embed=PatchesWithClass(12), block=block, norm=nn.LayerNorm(12), head=nn.Linear(12, 4))


@network((4, 4, 8), prunes=True)
def shifted_windows() -> nn.Module:
    """Packed attention in windows of an image that is rolled, as Swin's; then patches are merged."""

    def run(s: Any, x: Tensor) -> Tensor:
        b = len(x)
        y = torch.roll(x, (-1, -1), (1, 2)).view(b, 2, 2, 2, 2, 8).transpose(2, 3).reshape(-1, 4, 8)
        y = s.block(y).view(b, 2, 2, 2, 2, 8).transpose(2, 3).reshape(b, 4, 4, 8)
        y = torch.cat([y[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], -1)
        return s.head(s.merge(s.norm(y)).mean((1, 2)))

    block = Encoder(8, PackedAttention(8))
    return Wired(run, block=block, norm=nn.LayerNorm(32), merge=nn.Linear(32, 16, bias=False), head=nn.Linear(16, 4))


@network((6, 8), prunes=True)
def mixer() -> nn.Module:
    """A small network over the positions, then one over the channels."""

    def run(s: Any, x: Tensor) -> Tensor:
        x = x + s.over_positions(s.norm1(x).transpose(1, 2)).transpose(1, 2)
        return s.head((x + s.over_channels(s.norm2(x))).mean(1))

    parts = {"norm1": nn.LayerNorm(8), "norm2": nn.LayerNorm(8), "head": nn.Linear(8, 4)}
    return Wired(run, over_positions=mlp(6, 16, 6), over_channels=mlp(8, 24, 8), **parts)


@network((5, 8), prunes=True)
def grouped_query_attention() -> nn.Module:
    """Two heads of queries for each of keys and values, which are expanded; gated units, no biases."""

    def run(s: Any, x: Tensor) -> Tensor:
        k, v = heads(s.k(x), 2), heads(s.v(x), 2)
        k = k[:, :, None].expand(-1, -1, 2, -1, -1).flatten(1, 2)
        x = x + s.o(attend(heads(s.q(x), 4), k, v.repeat_interleave(2, 1)))
        return s.head(x + s.down(F.silu(s.gate(x)) * s.up(x)))

    sizes = {
        "q": (8, 16),
        "k": (8, 8),
        "v": (8, 8),
        "o": (16, 8),
        "gate": (8, 20),
        "up": (8, 20),
        "down": (20, 8),
        "head": (8, 4),
    }
    return Wired(run, **{name: nn.Linear(*size, bias=False) for name, size in sizes.items()})


@network((5, 8), prunes=True)
def torch_transformer() -> nn.Module:
    """torch's own encoder layer, and its attention."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    run = lambda s, x: s.head(s.attention(y := s.layer(x), y, y, need_weights=False)[0].mean(1))  # noqa: E731
    return Wired(run, layer=layer, attention=nn.MultiheadAttention(8, 2, batch_first=True), head=mlp(8, 12, 4))


@network((5, 8), (4, 8))
def encoder_decoder() -> nn.Module:
    """A decoder that attends to what an encoder makes of the other input."""

    def run(s: Any, x: Tensor, y: Tensor) -> Tensor:
        memory = s.encoder(x)
        y = y + s.o(attend(heads(s.q(s.norm(y)), 2), heads(s.k(memory), 2), heads(s.v(memory), 2)))
        return s.head(y)

    linears = {name: nn.Linear(8, 8) for name in "qkvo"}
    return Wired(run, encoder=Encoder(8, PackedAttention(8)), norm=nn.LayerNorm(8), head=mlp(8, 16, 4), **linears)


# -- models of transformers, from small configurations -----------------------------------------------------------------

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}


def hugging_face(model: str, config: str, **sizes: Any) -> nn.Module:
    package = importlib.import_module("transformers")
    return getattr(package, model)(getattr(package, config)(**sizes))


@network(tokens(), needs="transformers")
def bert() -> nn.Module:
    """BERT with two heads."""
    return hugging_face("BertForPreTraining", "BertConfig", vocab_size=40, max_position_embeddings=16, **SMALL)


@network(tokens(), needs="transformers")
def gpt2() -> nn.Module:
    """GPT-2: transposed linear layers, a tied head."""
    sizes = {"vocab_size": 40, "n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2}
    return hugging_face("GPT2LMHeadModel", "GPT2Config", use_cache=False, bos_token_id=1, eos_token_id=2, **sizes)


@network(tokens(), prunes=True, needs="transformers")
def llama() -> nn.Module:
    """Llama: grouped queries, rotary positions, gated units, no biases."""
    sizes = SMALL | {"num_attention_heads": 4, "num_key_value_heads": 2}
    return hugging_face("LlamaForCausalLM", "LlamaConfig", vocab_size=40, use_cache=False, **sizes)


@network(input_ids=tokens(), decoder_input_ids=tokens(4), needs="transformers")
def t5() -> nn.Module:
    """T5: cross attention, relative positions, a layer's weight is read for its type."""
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2, "vocab_size": 40}
    return hugging_face(
        "T5ForConditionalGeneration", "T5Config", feed_forward_proj="gated-gelu", use_cache=False, **sizes
    )


@network((3, 8, 8), prunes=True, needs="transformers")
def vit() -> nn.Module:
    """The vision transformer of transformers: separate queries, keys and values, a class token."""
    return hugging_face("ViTForImageClassification", "ViTConfig", image_size=8, patch_size=4, num_labels=4, **SMALL)


@network(input_features=(8, 32), decoder_input_ids=tokens(4), needs="transformers")
def whisper() -> nn.Module:
    """Whisper: convolutions of a spectrogram, then an encoder and a decoder."""
    layers = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    layers |= {"encoder_ffn_dim": 24, "decoder_ffn_dim": 24}
    sizes = {"d_model": 16, "num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 16, "vocab_size": 40}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    return hugging_face("WhisperModel", "WhisperConfig", use_cache=False, **layers, **sizes, **ids)
