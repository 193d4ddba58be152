"""Batch normalisation among sparse convolutions: the same arithmetic, in the memory order of their outputs."""

from __future__ import annotations

from typing import Self

from torch import Tensor, nn

from filigree.nn.capabilities import Capabilities, plain_torch


class ChannelMajorBatchNorm2d(Capabilities, nn.BatchNorm2d):
    """`nn.BatchNorm2d` that reads an input as sparse convolutions leave it, channel by channel, without copying it.

    A channel's numbers lie together there, so the batch is one image of them all: torch's own fast path. Shares
    parameters, buffers and `state_dict` with `nn.BatchNorm2d`, its equivalent; other inputs take torch's path.
    """

    @classmethod
    def like(cls, norm: nn.BatchNorm2d) -> Self:
        """The same layer with the same parameter and buffer objects."""
        layer = cls(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats, device="meta")
        layer._parameters.update(norm._parameters)
        layer._buffers.update(norm._buffers)
        return layer

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4 or len(x) < 2 or not x.transpose(0, 1).is_contiguous():
            return super().forward(x)
        count, channels, height, width = x.shape
        y = super().forward(x.transpose(0, 1).reshape(1, channels, count * height, width))
        return y.view(channels, count, height, width).transpose(0, 1)

    def dense(self) -> nn.BatchNorm2d:
        """The equivalent `nn.BatchNorm2d`, with a copy of parameters and statistics."""
        dense = nn.BatchNorm2d(self.num_features, self.eps, self.momentum, self.affine, self.track_running_stats)
        for like in (self.weight, self.running_mean):  # either may be absent
            if like is not None:
                dense.to(like)
        dense.load_state_dict(self.state_dict())
        return dense

    def onnx_form(self) -> nn.Module:
        return plain_torch(self, nn.BatchNorm2d)
