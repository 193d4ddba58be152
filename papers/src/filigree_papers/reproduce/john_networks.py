"""John 2019: the parameters of popular networks, counted layer by layer (Table 1.1)."""

from __future__ import annotations

from itertools import pairwise

from filigree.models import lenet_300_100
from filigree_papers.reproduce.experiment import Rows
from filigree_papers.reproduce.findings import Finding, count
from filigree_papers.reproduce.reproduction import Computation

# name -> printed number, its unit, and the digits after the point
PRINTED = {
    "LeNet-300-100": (26.6, 1e3, 1), "LeNet-5": (60, 1e3, 0), "AlexNet": (62, 1e6, 0), "VGG-16": (138, 1e6, 0),
    "ResNet-50": (25.5, 1e6, 1),
}  # fmt: skip


def _layer(inputs: int, outputs: int, side: int = 1) -> int:
    """A layer with biases: linear, or a convolution with kernels of `side` x `side`."""
    return outputs * (inputs * side * side + 1)


def _bottleneck(inputs: int, width: int, first: bool) -> int:
    """A block of ResNet-50, with batch normalisation in place of biases; the first of a stage also projects."""
    pairs = [(inputs, width, 1), (width, width, 9), (width, 4 * width, 1)]
    pairs += [(inputs, 4 * width, 1)] if first else []
    return sum(a * b * area + 2 * b for a, b, area in pairs)


def _resnet50() -> int:
    total, inputs = 3 * 64 * 49 + 2 * 64, 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            total += _bottleneck(inputs, width, block == 0)
            inputs = 4 * width
    return total + _layer(2048, 1000)


def _vgg16() -> int:
    widths = [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    convolutions = sum(_layer(a, b, 3) for a, b in pairwise(widths))
    return convolutions + _layer(512 * 49, 4096) + _layer(4096, 4096) + _layer(4096, 1000)


def _alexnet() -> int:
    """With ungrouped convolutions; grouped as first published it has 60,965,224."""
    convolutions = ((3, 96, 11), (96, 256, 5), (256, 384, 3), (384, 384, 3), (384, 256, 3))
    return sum(_layer(*shape) for shape in convolutions) + _layer(9216, 4096) + _layer(4096, 4096) + _layer(4096, 1000)


def _lenet5() -> int:
    """LeCun et al. 1998, with full connections between the second convolution and the maps before it."""
    return _layer(1, 6, 5) + _layer(6, 16, 5) + _layer(16, 120, 5) + _layer(120, 84) + _layer(84, 10)


def sizes(case: str, seed: int, quick: bool) -> Rows:
    counts = {
        "LeNet-300-100": sum(p.numel() for p in lenet_300_100().parameters()), "LeNet-5": _lenet5(),
        "AlexNet": _alexnet(), "VGG-16": _vgg16(), "ResNet-50": _resnet50(),
    }  # fmt: skip
    return [{"network": name, "parameters": float(number)} for name, number in counts.items()]


def sizes_claim(rows: Rows) -> list[Finding]:
    findings = []
    for row in rows:
        printed, unit, digits = PRINTED[row["network"]]
        what = f"{row['network']}, parameters in {'thousands' if unit == 1e3 else 'millions'}"
        findings.append(count("John 2019, Table 1.1", what, printed, row["parameters"] / unit, digits))
    return findings


REPRODUCTIONS = [
    Computation(
        "network-sizes", "Parameters of popular networks, counted (John 2019, Table 1.1).", sizes, ["all"],
        claims=[sizes_claim], notes=("Inception-v3 (printed 23M) is not counted.",),
    ),
]  # fmt: skip
