"""A face detector's second network made faster: R-Net of MTCNN (Zhang et al. 2016), pretrained, on synthetic images.

    pip download --no-deps -d wheels facenet-pytorch
    python examples/shrink_faces.py --batch 128

Kept: 98.5% of its decisions whether an image is a face.
"""

import torch
from pretrained import run, weights
from torch import nn
from torch.nn import functional as F


class FaceRefinement(nn.Module):
    """Images of 24 x 24 to the scores of "no face" and "face", and to a correction of the box."""

    def __init__(self):
        super().__init__()
        self.conv1, self.prelu1, self.pool1 = nn.Conv2d(3, 28, 3), nn.PReLU(28), nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv2, self.prelu2, self.pool2 = nn.Conv2d(28, 48, 3), nn.PReLU(48), nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv3, self.prelu3 = nn.Conv2d(48, 64, 2), nn.PReLU(64)
        self.dense4, self.prelu4 = nn.Linear(576, 128), nn.PReLU(128)
        self.dense5_1, self.dense5_2 = nn.Linear(128, 2), nn.Linear(128, 4)

    def forward(self, x):
        x = self.pool2(self.prelu2(self.conv2(self.pool1(self.prelu1(self.conv1(x))))))
        x = self.prelu3(self.conv3(x)).permute(0, 3, 2, 1).flatten(1)
        x = self.prelu4(self.dense4(x))
        return self.dense5_1(x), self.dense5_2(x)


def heads(count, seed):
    """Pictures of 24 x 24: a smooth ground, an ellipse on it, four darker ones in that; some pass as faces."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.meshgrid(torch.arange(24.0), torch.arange(24.0), indexing="ij")

    def between(low, high):
        return (low + (high - low) * torch.rand(count, generator=generator)).view(-1, 1, 1)

    def ellipse(x, y, width, height):
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


def decisions_kept(outputs, original):
    """The share of images of which both say "face", or both not."""
    return (outputs[0].argmax(1) == original[0].argmax(1)).double().mean()


if __name__ == "__main__":
    model = FaceRefinement()
    model.load_state_dict(weights("facenet_pytorch", "rnet.pt"))
    run("face detector (R-Net)", model.eval(), heads(400, 0), heads(600, 1), decisions_kept, keep=0.985)
