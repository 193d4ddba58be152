"""ACDC: cascades of diagonals in the signal's and in the cosine domain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import nn

from filigree.config import check_choice
from filigree.nn.dense_weight import DenseWeightAndBias
from filigree.nn.structured.sell import Sell, diagonal
from filigree.nn.torch_attributes import ReadsAttributes
from filigree.ops.sell import next_power_of_two


class ACDCLinear(ReadsAttributes, DenseWeightAndBias, Sell):
    r"""`y = x prod_k A_k C (D_k + bias_k) C^-1` (Moczulski 2019, eq. 3.26 with cosine transforms).

    An order has 3 n numbers: `h2 = dct(a * x); h3 = d * h2 + bias; y = idct(h3)`; gradients as eqs. 3.28-3.32.

    Args:
        order: K, how many are composed.
        bias: in the cosine domain, after D, one a number, at first 0 ("biases on D only").
        relu, permute: a ReLU, or a fixed random permutation, between one order and the next, as in the convolutional
            network of 3.10.7; purely linear by default.
        sigma: A and D are drawn from N(1, sigma^2); .061 in the network, .1 in Fig. 3.4.
        structure: "diagonal"; "band" or "block" of `width`: the A and D of 3.10.8, which mix neighbours.
        pad: n is the next power of two of the larger side, where the compiled transforms are; else that side itself.
    """

    instead: ClassVar[Mapping[str, str]] = dict.fromkeys(("weight", "bias"), "it is not linear; read its parameters()")

    def __init__(
        self, in_features: int, out_features: int, order: int = 1, bias: bool = True, relu: bool = False,
        permute: bool = False, sigma: float = 0.061, structure: Literal["diagonal", "band", "block"] = "diagonal",
        width: int = 3, pad: bool = True, seed: int = 0,
    ) -> None:  # fmt: skip
        if order < 1:
            raise ValueError(f"ACDCLinear: order must be at least 1. Got {order}.")
        check_choice("ACDCLinear", "structure", structure, ("diagonal", "band", "block"))
        larger = max(in_features, out_features)
        size = next_power_of_two(larger) if pad else larger
        if structure == "block":
            size = -(-size // width) * width
        super().__init__(in_features, out_features, size)
        self.order = order
        generator = torch.Generator().manual_seed(seed)
        for k in range(order):
            self._scale(structure, width, sigma, generator)
            self.add("dct")
            self._scale(structure, width, sigma, generator)
            if bias:
                self.add("bias", nn.Parameter(torch.zeros(self.size)))
            self.add("idct")
            if k < order - 1:
                if relu:
                    self.add("relu")
                if permute:
                    self.add("permute", torch.randperm(self.size, generator=generator))

    def _scale(self, structure: str, width: int, sigma: float, generator: torch.Generator) -> None:
        n = self.size
        if structure == "diagonal":
            self.add("diagonal", diagonal(n, sigma, generator))
        elif structure == "band":
            if width < 1 or width % 2 == 0:
                raise ValueError(f"ACDCLinear: the width of a band must be odd. Got {width}.")
            band = sigma * torch.randn(width, n, generator=generator)
            band[width // 2] += 1
            self.add("band", nn.Parameter(band))
        else:
            blocks = sigma * torch.randn(n // width, width, width, generator=generator) + torch.eye(width)
            self.add("block", nn.Parameter(blocks))

    def extra_repr(self) -> str:
        return super().extra_repr() + f", order={self.order}"
