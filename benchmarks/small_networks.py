"""Networks that people have, in the shapes of their published weights: speed does not depend on the values."""

import torch
from torch import nn
from torch.nn import functional as F


class FaceRefiner(nn.Module):
    """The second network of a face detector, R-Net (Zhang et al. 2016): images (batch, 3, 24, 24)."""

    def __init__(self):
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 28, 3), nn.PReLU(28)
        self.conv2, self.prelu2 = nn.Conv2d(28, 48, 3), nn.PReLU(48)
        self.conv3, self.prelu3 = nn.Conv2d(48, 64, 2), nn.PReLU(64)
        self.pool = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.dense4, self.prelu4 = nn.Linear(576, 128), nn.PReLU(128)
        self.face, self.box = nn.Linear(128, 2), nn.Linear(128, 4)

    def forward(self, x):
        x = self.pool(self.prelu1(self.conv1(x)))
        x = self.pool(self.prelu2(self.conv2(x)))
        x = self.prelu3(self.conv3(x)).permute(0, 3, 2, 1).contiguous()
        x = self.prelu4(self.dense4(x.view(x.shape[0], -1)))
        return self.box(x), self.face(x).softmax(1)


class Pitch(nn.Module):
    """CREPE, tiny (Kim et al. 2018): frames (batch, 1024) to 360 pitches."""

    def __init__(self):
        super().__init__()
        widths = [1, 128, 16, 16, 16, 32, 64]
        kernels = [512, 64, 64, 64, 64, 64]
        self.convs = nn.ModuleList(
            nn.Conv2d(i, o, (k, 1), stride=(4 if i == 1 else 1, 1))
            for i, o, k in zip(widths, widths[1:], kernels, strict=False)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(width, eps=0.001) for width in widths[1:])
        self.classifier = nn.Linear(256, 360)

    def forward(self, x):
        x = x[:, None, :, None]
        for conv, norm in zip(self.convs, self.norms, strict=True):
            padding = (0, 0, 254, 254) if conv.in_channels == 1 else (0, 0, 31, 32)
            x = F.max_pool2d(norm(F.relu(conv(F.pad(x, padding)))), (2, 1), (2, 1))
        return torch.sigmoid(self.classifier(x.permute(0, 2, 1, 3).reshape(-1, 256)))


class Speaker(nn.Module):
    """A speaker encoder (Wan et al. 2018): mel frames (batch, 160, 40)."""

    def __init__(self):
        super().__init__()
        self.lstm, self.linear = nn.LSTM(40, 256, 3, batch_first=True), nn.Linear(256, 256)

    def forward(self, x):
        _, (hidden, _) = self.lstm(x)
        y = self.linear(hidden[-1]).relu()
        return y / torch.norm(y, dim=1, keepdim=True)


NETWORKS = {"R-Net": (FaceRefiner, (3, 24, 24)), "CREPE tiny": (Pitch, (1024,)), "speaker LSTM": (Speaker, (160, 40))}
