"""`layer.weight` and `layer.bias` of layers that hold none: code of others reads their type, device and shape."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class DenseWeight:
    """Gives a layer with `dense()` the attribute `weight` of the equivalent dense layer.

    Models of others ask a layer for `weight.dtype` (T5, ViT) or `weight.shape`. It is a copy, made at each reading in
    the time of a dense layer, without gradient; what is written into it is lost. Train `parameters()`.
    """

    dense: Any

    @property
    def weight(self) -> Tensor:
        return self._twin().weight.detach().as_subclass(CopiedWeight)

    def _twin(self) -> Any:
        try:
            duplicate = self.dense()
        except ValueError as error:
            raise AttributeError(str(error)) from None
        return duplicate[0] if isinstance(duplicate, nn.Sequential) else duplicate


class DenseWeightAndBias(DenseWeight):
    """`bias` as well, for layers that keep theirs inside, or have none."""

    @property
    def bias(self) -> Tensor | None:
        bias = self._twin().bias
        return None if bias is None else bias.detach().as_subclass(CopiedWeight)


class CopiedWeight(Tensor):
    """A type of its own, since `nn.TransformerEncoderLayer` in eval mode passes plain weights by their layers."""
