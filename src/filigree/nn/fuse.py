"""Folding a ReLU into the layer before it."""

from torch import nn

from filigree.nn.sparse.sparse_sequential import SEQUENCES
from filigree.preserved import has_hooks


def fuse_relu(model: nn.Module, layer: nn.Module) -> bool:
    """Take out the ReLU after `layer`, if the layer stands in one `nn.Sequential` and a plain ReLU follows it.

    Returns whether that was so.
    """
    uses = [(parent, key) for parent in model.modules() for key, child in parent._modules.items() if child is layer]
    if len(uses) != 1 or type(uses[0][0]) not in SEQUENCES:
        return False
    parent, key = uses[0]
    keys = list(parent._modules)
    following = keys[keys.index(key) + 1 : keys.index(key) + 2]
    if not following or type(relu := parent._modules[following[0]]) is not nn.ReLU:
        return False
    if has_hooks(relu) or has_hooks(layer):
        return False  # hooks read the values in between, or their gradients
    parent._modules[following[0]] = nn.Identity()
    return True
