"""A speaker encoder made faster: three LSTM layers (Wan et al. 2018), pretrained, on synthetic voices.

    pip download --no-deps -d wheels resemblyzer
    python examples/shrink_speaker.py --batch 1

Kept: a mean cosine of 0.99 between the embeddings of the smaller network and those of the original.
"""

import math

import torch
from pretrained import run, weights
from torch import nn
from torch.nn import functional as F

RATE, FRAMES, MELS = 16000, 160, 40


class Speaker(nn.Module):
    """Mel spectrograms (batch, 160, 40) to embeddings of length 1."""

    def __init__(self):
        super().__init__()
        self.lstm, self.linear = nn.LSTM(MELS, 256, 3, batch_first=True), nn.Linear(256, 256)

    def forward(self, x):
        _, (hidden, _) = self.lstm(x)
        y = self.linear(hidden[-1]).relu()
        return y / torch.norm(y, dim=1, keepdim=True)


def voices(count, seed):
    """Mel spectrograms of 1.6 s of a sung vowel or several: a voice's pitch glides, its formants move."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(FRAMES * 160 + 400) / RATE
    basis, window = mel_filters(), torch.hann_window(400)
    spectrograms = []
    for _ in range(count):
        pitch = 80 * 3.5 ** torch.rand(1, generator=generator)
        glide = 1 + 0.15 * torch.sin(2 * torch.pi * (time * (1 + 3 * torch.rand(1, generator=generator))))
        phase = 2 * torch.pi * torch.cumsum(pitch * glide, 0) / RATE
        formants = torch.tensor([500.0, 1500.0, 2500.0]) * (0.6 + 0.9 * torch.rand(3, generator=generator))
        wave = torch.zeros_like(time)
        for overtone in range(1, int(4000 / float(pitch))):
            peaks = torch.exp(-(((overtone * pitch - formants) / 250) ** 2)).sum() + 0.02
            wave += peaks * torch.sin(overtone * phase)
        syllables = 0.6 + 0.4 * torch.sin(2 * torch.pi * time * (2 + 3 * torch.rand(1, generator=generator)))
        wave = wave * syllables + 0.02 * torch.randn(time.shape, generator=generator)
        wave = 0.03 * wave / wave.square().mean().sqrt()
        power = torch.stft(wave, 400, 160, window=window, center=False, return_complex=True).abs().square()
        spectrograms.append((basis @ power).T[:FRAMES])
    return torch.stack(spectrograms)


def mel_filters():
    """Triangles on the mel scale of Slaney (1998), each of area one: (40, 201)."""

    def hertz(mel):
        return mel * 200 / 3 if mel < 15 else 1000 * math.exp((mel - 15) * math.log(6.4) / 27)

    top = 15 + 27 * math.log(RATE / 2 / 1000) / math.log(6.4)
    edges = [hertz(top * i / (MELS + 1)) for i in range(MELS + 2)]
    lines = torch.linspace(0, RATE / 2, 201)
    rows = []
    for low, middle, high in zip(edges, edges[1:], edges[2:], strict=False):
        rising, falling = (lines - low) / (middle - low), (high - lines) / (high - middle)
        rows.append(torch.minimum(rising, falling).clamp(min=0) * 2 / (high - low))
    return torch.stack(rows)


def mean_cosine(outputs, original):
    return F.cosine_similarity(outputs, original).mean()


if __name__ == "__main__":
    model = Speaker()
    stored = weights("Resemblyzer", "pretrained.pt")["model_state"]
    model.load_state_dict({name: stored[name] for name in model.state_dict()})
    run("speaker encoder (LSTM)", model.eval(), voices(128, 0), voices(96, 1), mean_cosine, keep=0.99)
