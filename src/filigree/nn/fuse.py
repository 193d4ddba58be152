"""Folding a ReLU into the layer before it."""

from torch import nn


def fuse_relu(model: nn.Module, layer: nn.Module) -> bool:
    """Take out the ReLU behind `layer`, if the layer stands in one nn.Sequential with a plain ReLU behind it."""
    uses = [(parent, key) for parent in model.modules() for key, child in parent._modules.items() if child is layer]
    if len(uses) != 1 or type(uses[0][0]) is not nn.Sequential:
        return False
    parent, key = uses[0]
    keys = list(parent._modules)
    behind = keys[keys.index(key) + 1 : keys.index(key) + 2]
    if not behind or type(parent._modules[behind[0]]) is not nn.ReLU:
        return False
    if parent._modules[behind[0]]._forward_hooks or layer._forward_hooks:  # type: ignore[union-attr]
        return False  # somebody is watching the values in between
    parent._modules[behind[0]] = nn.Identity()
    return True
