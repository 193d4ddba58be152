"""The parameter counts of Chouliaras 2021, appendix B, beside ours; the networks are built, not trained."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from filigree import models
from filigree.convert import convert_
from filigree.nn.sparse.sparse import Sparse
from filigree.topology import ErdosRenyi

# setting: inputs, hidden widths, classes; dense and sparse parameters as printed
PRINTED = {
    "LUNG": ([3312, 1000, 1000, 1000, 5], 5_320_005, 172_000),
    "ORL": ([1024, 1000, 1000, 1000, 40], 3_067_040, 138_000),
    "Prostate-GE": ([5966, 1000, 1000, 1000, 2], 7_971_002, 222_000),
    "GLIOMA": ([4434, 1000, 1000, 1000, 4], 6_441_004, 193_000),
    "Fashion 3 x 1000": ([784, 1000, 1000, 1000, 10], 2_797_010, 130_000),
    "Fashion 4000-1000-4000": ([784, 4000, 1000, 4000, 10], 11_185_010, 350_000),
    "Fashion 4 x 4000": ([784, 4000, 4000, 4000, 4000, 10], 51_192_010, 650_000),
}


@dataclass(frozen=True)
class Count:
    """One setting: printed and counted parameters, biases included."""

    setting: str
    printed_dense: int
    dense: int
    printed_sparse: int
    distinct: int  # connections drawn without replacement
    merged: int  # drawn with replacement, duplicates merged (the public code of SET's authors)

    @property
    def nearer(self) -> str:
        """Which of the two ways of drawing comes nearer to the printed figure."""
        return min(("distinct", "merged"), key=lambda way: abs(getattr(self, way) - self.printed_sparse))

    @property
    def difference(self) -> float:
        """Relative difference of the nearer one to the printed figure."""
        return getattr(self, self.nearer) / self.printed_sparse - 1


def counts(epsilon: float = 20, seed: int = 0) -> list[Count]:
    """All seven settings, counted on networks that are built sparse (no dense weights are allocated)."""
    rows = []
    for setting, (sizes, dense, sparse) in PRINTED.items():
        distinct, merged = (_parameters(sizes, ErdosRenyi(epsilon, replace=way), seed) for way in (False, True))
        rows.append(Count(setting, dense, _parameters(sizes, None, seed), sparse, distinct, merged))
    return rows


def _parameters(sizes: list[int], topology: ErdosRenyi | None, seed: int) -> int:
    with torch.device("meta"):
        model = models.mlp(sizes)
    if topology is not None:
        convert_(model, Sparse(topology, seed=seed))
    return sum(p.numel() for p in model.parameters())
