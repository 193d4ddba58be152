"""A dense convolution among sparse ones: the same arithmetic, in their memory order."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from filigree.nn.drop_in import DropIn
from filigree.nn.sparse.feature_major_linear import full_pattern
from filigree.nn.sparse.sparse_conv2d import conv_geometry, conv_size
from filigree.ops.conv import conv2d
from filigree.ops.transforms import transforming

_SMALL = 4096  # weights up to which the sparse kernels, with every place connected, are faster than a dense product


class ChannelMajorConv2d(DropIn, nn.Conv2d):
    """`nn.Conv2d` with a channel-major output (see `SparseConv2d`), so that mixed memory orders do not slow a network.

    Small convolutions, as the first one of most networks is, run on the sparse kernels; of kernel 1 x 1 they are one
    matrix product. Shares parameters and `state_dict` with `nn.Conv2d`, its equivalent; what is neither takes torch's
    path and order.
    """

    has_integer_form = True

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        plain = x.dim() == 4 and x.shape[1] == self.in_channels and x.dtype == weight.dtype and x.is_cpu
        plain = plain and self.padding_mode == "zeros"
        if not plain or torch.compiler.is_compiling() or transforming():
            return super().forward(x)
        if weight.numel() <= _SMALL:
            size = conv_size(self)
            full = full_pattern(size.out_features, size.in_features)
            return conv2d(weight.reshape(-1), self.bias, x, full.indptr, full.indices, conv_geometry(self))
        point = self.kernel_size == (1, 1) and self.groups == 1 and self.padding in ((0, 0), "valid")
        if not point or not x.transpose(0, 1).is_contiguous():
            return super().forward(x)
        rows = x.transpose(0, 1)[:, :, :: self.stride[0], :: self.stride[1]]  # (channels, images, height, width)
        y = weight.flatten(1) @ rows.flatten(1)
        if self.bias is not None:
            y = y + self.bias.unsqueeze(1)
        return y.view(-1, *rows.shape[1:]).transpose(0, 1)
