"""The layers and other modules; the configs that put them into a model are in `filigree` itself."""

from filigree.nn.asymmetric.asymmetric import backward_times
from filigree.nn.asymmetric.asymmetric_conv2d import AsymmetricConv2d
from filigree.nn.asymmetric.asymmetric_linear import AsymmetricLinear
from filigree.nn.asymmetric.asymmetric_rnn import AsymmetricGRU, AsymmetricLSTM
from filigree.nn.asymmetric.asymmetric_sparse_linear import AsymmetricSparseLinear
from filigree.nn.asymmetric.parameter_usage import LayerUsage, track_usage
from filigree.nn.decay import decay_groups
from filigree.nn.dropout.dropout import FastDropout
from filigree.nn.dropout.dropout_variants import GaussianNoise, StrengthDropout
from filigree.nn.dropout.partition_dropout import PartitionedConnect, PartitionedDropout
from filigree.nn.integer.integer_conv2d import IntegerConv2d
from filigree.nn.integer.integer_layer import SampledActivation
from filigree.nn.integer.integer_linear import IntegerLinear
from filigree.nn.layered_attention import LayeredAttention
from filigree.nn.mollified.mollified_activation import MollifiedActivation
from filigree.nn.mollified.mollified_block import MollifiedBlock
from filigree.nn.mollified.mollified_rnn import MollifiedGates, MollifiedGRU, MollifiedLSTM
from filigree.nn.noisy.noisy_activations import NoisyHardSigmoid, NoisyHardTanh, NoisyReLU
from filigree.nn.noisy.noisy_rnn import NoisyGRU, NoisyGRUCell, NoisyLSTM, NoisyLSTMCell
from filigree.nn.sparse.channel_major_batch_norm import ChannelMajorBatchNorm2d
from filigree.nn.sparse.channel_major_conv2d import ChannelMajorConv2d
from filigree.nn.sparse.feature_major_linear import FeatureMajorLinear
from filigree.nn.sparse.masked import MaskedConv2d, MaskedLinear
from filigree.nn.sparse.online_paths import PathLinear
from filigree.nn.sparse.sharded_linear import ShardedLinear
from filigree.nn.sparse.sparse_conv2d import SparseConv2d
from filigree.nn.sparse.sparse_linear import SparseLinear
from filigree.nn.sparse.sparse_sequential import SparseSequential
from filigree.nn.standardize import Standardize
from filigree.nn.structured.acdc import ACDCLinear
from filigree.nn.structured.fastfood import FastfoodBlock, FastfoodLinear
from filigree.nn.structured.fourier import AFDFLinear, CirculantLinear, ToeplitzLinear
from filigree.nn.structured.low_rank import LowRankConv2d, LowRankLinear
from filigree.nn.structured.phd import PHDLinear
from filigree.nn.structured.sell import Sell
from filigree.nn.structured.structured import sell_groups
from filigree.nn.structured.structured_rnn import StructuredRNN

__all__ = [
    "ACDCLinear",
    "AFDFLinear",
    "AsymmetricConv2d",
    "AsymmetricGRU",
    "AsymmetricLSTM",
    "AsymmetricLinear",
    "AsymmetricSparseLinear",
    "ChannelMajorBatchNorm2d",
    "ChannelMajorConv2d",
    "CirculantLinear",
    "FastDropout",
    "FastfoodBlock",
    "FastfoodLinear",
    "FeatureMajorLinear",
    "GaussianNoise",
    "IntegerConv2d",
    "IntegerLinear",
    "LayerUsage",
    "LayeredAttention",
    "LowRankConv2d",
    "LowRankLinear",
    "MaskedConv2d",
    "MaskedLinear",
    "MollifiedActivation",
    "MollifiedBlock",
    "MollifiedGRU",
    "MollifiedGates",
    "MollifiedLSTM",
    "NoisyGRU",
    "NoisyGRUCell",
    "NoisyHardSigmoid",
    "NoisyHardTanh",
    "NoisyLSTM",
    "NoisyLSTMCell",
    "NoisyReLU",
    "PHDLinear",
    "PartitionedConnect",
    "PartitionedDropout",
    "PathLinear",
    "SampledActivation",
    "Sell",
    "ShardedLinear",
    "SparseConv2d",
    "SparseLinear",
    "SparseSequential",
    "Standardize",
    "StrengthDropout",
    "StructuredRNN",
    "ToeplitzLinear",
    "backward_times",
    "decay_groups",
    "sell_groups",
    "track_usage",
]
