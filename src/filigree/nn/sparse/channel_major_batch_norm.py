"""Batch normalisation among sparse convolutions: the same arithmetic, in their memory order."""

from __future__ import annotations

from torch import Tensor, nn

from filigree.nn.drop_in import DropIn


class ChannelMajorBatchNorm2d(DropIn, nn.BatchNorm2d):
    """`nn.BatchNorm2d` that reads an input as sparse convolutions leave it, channel by channel, without copying it.

    A channel's numbers lie together there, so the batch is one sequence of them all: torch's own fast path. Shares
    parameters, buffers and `state_dict` with `nn.BatchNorm2d`, its equivalent; other inputs take torch's path.

    Images of one row, one column or one sample are normalised as sequences too: of four sides, one of which is 1,
    torch (2.13) misreads gradients whose stride there is not the usual one, as permutations and views leave it.
    """

    def forward(self, x: Tensor) -> Tensor:
        super()._check_input_dim(x)
        count, channels, height, width = x.shape
        if count and x.transpose(0, 1).is_contiguous():
            y = super().forward(x.transpose(0, 1).reshape(1, channels, count * height * width))
            return y.view(channels, count, height, width).transpose(0, 1)
        if 1 in (count, height, width):
            return super().forward(x.flatten(2)).unflatten(2, (height, width))
        return super().forward(x)

    def _check_input_dim(self, input: Tensor) -> None:
        """Nothing: `forward` has looked, and hands sequences on."""
