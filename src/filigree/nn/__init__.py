"""The modules, one idea a file, each beside its config, each with `.dense()`."""

from filigree.nn.asymmetric.asymmetric import Asymmetric, AsymmetricAuto, backward_times
from filigree.nn.asymmetric.asymmetric_conv2d import AsymmetricConv2d
from filigree.nn.asymmetric.asymmetric_linear import AsymmetricLinear
from filigree.nn.asymmetric.asymmetric_rnn import AsymmetricGRU, AsymmetricLSTM
from filigree.nn.asymmetric.asymmetric_sparse_linear import AsymmetricSparseLinear
from filigree.nn.asymmetric.parameter_usage import LayerUsage, track_usage
from filigree.nn.asymmetric.sparsification import (
    ColumnRowSampling,
    Custom,
    RandomK,
    Sparsification,
    Threshold,
    TopK,
    UnscaledDropout,
)
from filigree.nn.dropout.dropout import Dropout, FastDropout
from filigree.nn.dropout.dropout_variants import GaussianDropout, GaussianNoise, GuidedDropout, StrengthDropout
from filigree.nn.dropout.partition_dropout import PartitionDropout, PartitionedConnect, PartitionedDropout
from filigree.nn.integer.empty_integer_layers import EmptyIntegerLayers
from filigree.nn.integer.integer_conv2d import IntegerConv2d
from filigree.nn.integer.integer_layer import SampledActivation
from filigree.nn.integer.integer_linear import IntegerLinear
from filigree.nn.mollified.mollified import Mollified
from filigree.nn.mollified.mollified_activation import MollifiedActivation
from filigree.nn.mollified.mollified_block import MollifiedBlock
from filigree.nn.mollified.mollified_rnn import MollifiedGates, MollifiedGRU, MollifiedLSTM
from filigree.nn.mollified.stochastic_depth import StochasticDepth
from filigree.nn.noisy.noisy import Noisy, NoisyRectifier
from filigree.nn.noisy.noisy_activations import NoisyHardSigmoid, NoisyHardTanh, NoisyReLU
from filigree.nn.noisy.noisy_rnn import NoisyGRU, NoisyGRUCell, NoisyLSTM, NoisyLSTMCell
from filigree.nn.sparse.channel_major_batch_norm import ChannelMajorBatchNorm2d
from filigree.nn.sparse.channel_major_conv2d import ChannelMajorConv2d
from filigree.nn.sparse.feature_major_linear import FeatureMajorLinear
from filigree.nn.sparse.masked import MaskedConv2d, MaskedLinear
from filigree.nn.sparse.online_paths import OnlinePaths, PathLinear
from filigree.nn.sparse.sparse import Sparse
from filigree.nn.sparse.sparse_conv2d import SparseConv2d
from filigree.nn.sparse.sparse_linear import SparseLinear
from filigree.nn.structured.acdc import ACDCLinear
from filigree.nn.structured.fastfood import FastfoodBlock, FastfoodLinear
from filigree.nn.structured.fourier import AFDFLinear, CirculantLinear, ToeplitzLinear
from filigree.nn.structured.low_rank import LowRank, LowRankLinear
from filigree.nn.structured.phd import PHDLinear
from filigree.nn.structured.sell import Sell
from filigree.nn.structured.structured import ACDC, AFDF, PHD, Circulant, Fastfood, FuseLinears, Toeplitz, sell_groups
from filigree.nn.structured.structured_rnn import StructuredRNN

__all__ = [
    "ACDC",
    "AFDF",
    "PHD",
    "ACDCLinear",
    "AFDFLinear",
    "Asymmetric",
    "AsymmetricAuto",
    "AsymmetricConv2d",
    "AsymmetricGRU",
    "AsymmetricLSTM",
    "AsymmetricLinear",
    "AsymmetricSparseLinear",
    "ChannelMajorBatchNorm2d",
    "ChannelMajorConv2d",
    "Circulant",
    "CirculantLinear",
    "ColumnRowSampling",
    "Custom",
    "Dropout",
    "EmptyIntegerLayers",
    "FastDropout",
    "Fastfood",
    "FastfoodBlock",
    "FastfoodLinear",
    "FeatureMajorLinear",
    "FuseLinears",
    "GaussianDropout",
    "GaussianNoise",
    "GuidedDropout",
    "IntegerConv2d",
    "IntegerLinear",
    "LayerUsage",
    "LowRank",
    "LowRankLinear",
    "MaskedConv2d",
    "MaskedLinear",
    "Mollified",
    "MollifiedActivation",
    "MollifiedBlock",
    "MollifiedGRU",
    "MollifiedGates",
    "MollifiedLSTM",
    "Noisy",
    "NoisyGRU",
    "NoisyGRUCell",
    "NoisyHardSigmoid",
    "NoisyHardTanh",
    "NoisyLSTM",
    "NoisyLSTMCell",
    "NoisyReLU",
    "NoisyRectifier",
    "OnlinePaths",
    "PHDLinear",
    "PartitionDropout",
    "PartitionedConnect",
    "PartitionedDropout",
    "PathLinear",
    "RandomK",
    "SampledActivation",
    "Sell",
    "Sparse",
    "SparseConv2d",
    "SparseLinear",
    "Sparsification",
    "StochasticDepth",
    "StrengthDropout",
    "StructuredRNN",
    "Threshold",
    "Toeplitz",
    "ToeplitzLinear",
    "TopK",
    "UnscaledDropout",
    "backward_times",
    "sell_groups",
    "track_usage",
]
