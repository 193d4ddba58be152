"""The modules, one idea a file, each beside its config, each with `.dense()`."""

from filigree.nn.channel_major_batch_norm import ChannelMajorBatchNorm2d
from filigree.nn.channel_major_conv2d import ChannelMajorConv2d
from filigree.nn.dropout import Dropout, FastDropout
from filigree.nn.feature_major_linear import FeatureMajorLinear
from filigree.nn.masked import MaskedConv2d, MaskedLinear
from filigree.nn.sparse import Sparse
from filigree.nn.sparse_conv2d import SparseConv2d
from filigree.nn.sparse_linear import SparseLinear

__all__ = [
    "ChannelMajorBatchNorm2d",
    "ChannelMajorConv2d",
    "Dropout",
    "FastDropout",
    "FeatureMajorLinear",
    "MaskedConv2d",
    "MaskedLinear",
    "Sparse",
    "SparseConv2d",
    "SparseLinear",
]
