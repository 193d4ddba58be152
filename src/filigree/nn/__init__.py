"""The modules, one idea a file, each beside its config, each with `.dense()`."""

from filigree.nn.dropout import Dropout, FastDropout
from filigree.nn.feature_major_linear import FeatureMajorLinear
from filigree.nn.masked_linear import MaskedLinear
from filigree.nn.sparse import Sparse
from filigree.nn.sparse_linear import SparseLinear

__all__ = ["Dropout", "FastDropout", "FeatureMajorLinear", "MaskedLinear", "Sparse", "SparseLinear"]
