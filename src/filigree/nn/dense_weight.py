"""`layer.weight` and `layer.bias` of layers that hold none, since other libraries read their type, device and shape."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class DenseWeight:
    """Gives a layer with `dense()` the attribute `weight` of the equivalent dense layer.

    Models of other libraries read `weight.dtype` (T5, ViT) or `weight.shape`. The weight is a copy without gradient,
    made at each reading in the time of a dense layer; what is written into it is lost. Train `parameters()`.
    """

    dense: Any

    @property
    def weight(self) -> Tensor:
        return self._dense_reference().weight.detach().as_subclass(CopiedWeight)

    def _dense_reference(self) -> Any:
        try:
            duplicate = self.dense()
        except ValueError as error:
            raise AttributeError(str(error)) from None
        return duplicate[0] if isinstance(duplicate, nn.Sequential) else duplicate


class DenseWeightAndBias(DenseWeight):
    """Gives a layer `bias` as well, where it keeps its own inside or has none."""

    @property
    def bias(self) -> Tensor | None:
        bias = self._dense_reference().bias
        return None if bias is None else bias.detach().as_subclass(CopiedWeight)


class CopiedWeight(Tensor):
    """The type of such a weight: in eval mode `nn.TransformerEncoderLayer` bypasses layers whose weights are plain."""
