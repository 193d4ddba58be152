"""Plain torch networks of the papers. Each remembers how it was made, so that `fg.load` can rebuild it."""

from filigree.models.networks import build, lenet5, lenet_300_100, mlp, resnet

__all__ = ["build", "lenet5", "lenet_300_100", "mlp", "resnet"]
