"""Batch normalisation among sparse convolutions: the same arithmetic, in their memory order."""

from __future__ import annotations

from torch import Tensor, nn

from filigree.nn.drop_in import DropIn


class ChannelMajorBatchNorm2d(DropIn, nn.BatchNorm2d):
    """`nn.BatchNorm2d` that reads an input as sparse convolutions leave it, channel by channel, without copying it.

    A channel's numbers lie together there, so the batch is one image of them all: torch's own fast path. Shares
    parameters, buffers and `state_dict` with `nn.BatchNorm2d`, its equivalent; other inputs take torch's path.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4 or len(x) < 2 or not x.transpose(0, 1).is_contiguous():
            return super().forward(x)
        count, channels, height, width = x.shape
        y = super().forward(x.transpose(0, 1).reshape(1, channels, count * height, width))
        return y.view(channels, count, height, width).transpose(0, 1)
